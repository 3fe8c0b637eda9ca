//! Entry points of the programs; everything they do is in `reeve-packet`.
#![no_std]
#![no_main]
#![feature(core_intrinsics)]
#![allow(internal_features, reason = "atomic addition has no stable form for this target")]

mod kernel;
mod maps;

use aya_ebpf::bindings::__sk_buff;
use aya_ebpf::bindings::{TC_ACT_SHOT, TC_ACT_UNSPEC};
use aya_ebpf::macros::{cgroup_skb, classifier};
use aya_ebpf::programs::{SkBuffContext, TcContext};
use kernel::Kernel;
use reeve_packet::env::{Action, Hook};
use reeve_packet::recent;
use reeve_packet::uplink::{self, Next};
use reeve_packet::walk::{self, Scratch};

/// TC ingress of a pod's host-side device: what the pod sends.
#[classifier]
pub fn reeve_from_pod(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, |kernel, scratch| walk::run(kernel, Hook::FromPod, scratch))
}

/// TC egress of a pod's host-side device: what the pod receives.
#[classifier]
pub fn reeve_to_pod(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, |kernel, scratch| walk::run(kernel, Hook::ToPod, scratch))
}

/// TC egress of a device that is no pod's: what leaves the node.
#[classifier]
pub fn reeve_uplink(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, |kernel, scratch| uplink::leaving(kernel, scratch, Next::Others))
}

/// The same, for the moment in which another of us may stand behind it.
#[classifier]
pub fn reeve_out_spare(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, |kernel, scratch| uplink::leaving(kernel, scratch, Next::Ourselves))
}

/// TC ingress of a device that is no pod's: what enters the node.
#[classifier]
pub fn reeve_uplink_in(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, uplink::entering)
}

/// The same, for the moment in which another of us may stand behind it.
#[classifier]
pub fn reeve_in_spare(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, uplink::entering)
}

/// Ingress of a cgroup: what local processes receive. 1 lets through.
#[cgroup_skb(ingress)]
pub fn reeve_host_in(ctx: SkBuffContext) -> i32 {
    i32::from(judge(ctx.skb.skb, uplink::received) == Some(Action::Continue))
}

/// Adds up what one row of `RECENT` has counted: run by the agent, for each row once; it stands at no hook.
#[classifier]
pub fn reeve_settle(ctx: TcContext) -> i32 {
    verdict(ctx.skb.skb, |kernel, scratch| {
        recent::settle(kernel, scratch);
        Action::Drop
    })
}

/// Drops everything: stands at a hook while the others are put in order there, or where there is no room to judge.
#[classifier]
pub fn reeve_hold(_ctx: TcContext) -> i32 {
    TC_ACT_SHOT
}

#[inline(always)]
fn verdict(skb: *mut __sk_buff, judged_by: impl Fn(&Kernel, &mut Scratch) -> Action) -> i32 {
    match judge(skb, judged_by) {
        // Not `TC_ACT_OK`: others in the chain still have their say.
        Some(Action::Continue) => TC_ACT_UNSPEC,
        Some(Action::Drop) | None => TC_ACT_SHOT,
    }
}

#[inline(always)]
fn judge(skb: *mut __sk_buff, judged_by: impl Fn(&Kernel, &mut Scratch) -> Action) -> Option<Action> {
    let scratch = maps::SCRATCH.get_ptr_mut(0)?;
    // SAFETY: one element per CPU, and a program is neither migrated nor interrupted by another run of itself: TC runs
    // with bottom halves disabled, and sockets' filters run where packets are received, which is the same.
    let scratch = unsafe { &mut *scratch };
    let config = maps::CONFIG.get(0)?; // an array's only element: always there
    Some(judged_by(&Kernel { skb, config }, scratch))
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
