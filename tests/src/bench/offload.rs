//! Whether a device cuts large TCP segments itself, as `ethtool -K DEVICE tso on gso on` says it.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use anyhow::Context;
use socket2::{Domain, Socket, Type};

use crate::lab::Netns;

/// `ETHTOOL_STSO` and `ETHTOOL_SGSO`.
const SET: [u32; 2] = [0x1f, 0x24];

/// Whether segments leave a pod larger than its packets.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Offload {
    /// They do, as is usual.
    On,
    /// They do not: every packet is one of the wire's size.
    Off,
}

/// `struct ethtool_value`.
#[repr(C)]
struct Setting {
    command: u32,
    data: u32,
}

/// `struct ifreq` with a pointer.
#[repr(C)]
struct Request {
    name: [u8; libc::IFNAMSIZ],
    data: *mut Setting,
    rest: [u8; 16],
}

/// Sets a device's offloads; connections that are opened later have them.
pub fn set(netns: &Netns, device: &str, offload: Offload) -> anyhow::Result<()> {
    let any = netns.run(|| Socket::new(Domain::IPV4, Type::DGRAM, None))??;
    let socket = OwnedFd::from(any);
    for command in SET {
        let mut setting = Setting { command, data: u32::from(offload == Offload::On) };
        let mut request = Request { name: [0; libc::IFNAMSIZ], data: &raw mut setting, rest: [0; 16] };
        request.name[..device.len()].copy_from_slice(device.as_bytes());
        // SAFETY: the request and the setting that it points to are laid out as the kernel reads them and outlive the call.
        let result = unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCETHTOOL, &raw mut request) };
        if result != 0 {
            return Err(io::Error::last_os_error()).with_context(|| format!("cannot set offloads of {device}"));
        }
    }
    Ok(())
}
