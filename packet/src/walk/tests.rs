mod counts;
mod established;
mod fragments;
mod icmp;
mod origin;
mod policy;
mod rejudged;
