//! The walk over single frames on the host; each test says what must hold.

mod counts;
mod established;
mod express;
mod fragments;
mod icmp;
mod marks;
mod origin;
mod policy;
mod refusal;
mod rejudged;
mod services;
