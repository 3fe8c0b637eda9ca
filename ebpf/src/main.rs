//! Entry points of the TC programs; everything they do is in `reeve-packet`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic addition has no stable form for this target")]

mod kernel;
mod maps;

use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::classifier;
use aya_ebpf::programs::TcContext;
use kernel::Kernel;
use reeve_packet::env::{Action, Hook};
use reeve_packet::walk;

/// TC ingress of a pod's host-side device: what the pod sends.
#[classifier]
pub fn reeve_from_pod(ctx: TcContext) -> i32 {
    judge(&ctx, Hook::FromPod)
}

/// TC egress of a pod's host-side device: what the pod receives.
#[classifier]
pub fn reeve_to_pod(ctx: TcContext) -> i32 {
    judge(&ctx, Hook::ToPod)
}

/// Drops everything: stands at a hook while the others are put in order there, or where there is no room to judge.
#[classifier]
pub fn reeve_hold(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[inline(always)]
fn judge(ctx: &TcContext, hook: Hook) -> i32 {
    let Some(scratch) = maps::SCRATCH.get_ptr_mut(0) else { return TC_ACT_SHOT };
    // SAFETY: one element per CPU, and a program is neither migrated nor interrupted by another run of itself: TC runs
    // with bottom halves disabled.
    let scratch = unsafe { &mut *scratch };
    match walk::run(&Kernel { ctx }, hook, scratch) {
        // Not `TC_ACT_OK`: others in the chain still have their say.
        Action::Continue => TC_ACT_UNSPEC,
        Action::Drop => TC_ACT_SHOT,
    }
}

#[cfg(not(test))]
#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    loop {}
}

/// The verifier lets programs with a GPL-compatible licence call every helper.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 13] = *b"Dual MIT/GPL\0";
