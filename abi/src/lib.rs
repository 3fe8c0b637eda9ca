//! The bytes that cross the kernel boundary, defined once.
//!
//! Invariant: every structure is `#[repr(C)]`, free of padding and made of integers and byte arrays only; its size is
//! pinned by an assertion. No logic beyond naming values lives here.
#![no_std]

pub mod address;
pub mod config;
pub mod conntrack;
pub mod decision;
pub mod device;
pub mod edge;
pub mod endpoint;
pub mod event;
pub mod ids;
pub mod mark;
pub mod policy;
pub mod recent;
pub mod service;
pub mod stats;

/// Version of all layouts in this crate; it is kept in the pinned `CONFIG` map.
pub const ABI_VERSION: u32 = 2;

/// Asserts at compile time that a structure has the size that both sides expect, in bytes.
macro_rules! pin_size {
    ($($type:ty = $bytes:expr),+ $(,)?) => { $(const _: () = assert!(core::mem::size_of::<$type>() == $bytes);)+ };
}
pub(crate) use pin_size;
