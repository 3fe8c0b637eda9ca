//! Copies and clears working memory by whole words.
//!
//! Left to itself, a compiler for BPF makes a loop over bytes of what is longer than a few words.

use crate::judge::Peer;
use crate::walk::Rewritten;
use reeve_abi::conntrack::FlowValue;
use reeve_abi::endpoint::EndpointValue;

/// Plain words that may be copied one by one and all be zero.
pub(crate) trait Words: Copy {}
impl Words for EndpointValue {}
impl Words for FlowValue {}
impl Words for [u64; 2] {}
impl Words for Peer {}
impl Words for Rewritten {}

/// Copies by whole words.
#[inline(always)]
pub(crate) fn copy<T: Words>(from: &T, to: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) }
    let (from, to) = (core::ptr::from_ref(from).cast::<u64>(), core::ptr::from_mut(to).cast::<u64>());
    let mut i = 0;
    while i < size_of::<T>() / 8 {
        // SAFETY: both have that many aligned words; volatile, or the loop would be taken for what it avoids.
        unsafe { to.add(i).write_volatile(from.add(i).read()) };
        i += 1;
    }
}

/// Zeroes by whole words.
#[inline(always)]
pub(crate) fn zero<T: Words>(place: &mut T) {
    const { assert!(size_of::<T>().is_multiple_of(8) && align_of::<T>() == 8) }
    let place = core::ptr::from_mut(place).cast::<u64>();
    let mut i = 0;
    while i < size_of::<T>() / 8 {
        // SAFETY: as in `copy`; all that `Words` names may be zero.
        unsafe { place.add(i).write_volatile(0) };
        i += 1;
    }
}
