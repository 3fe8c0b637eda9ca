//! Programs of a few instructions, written by hand, and their maps: what the compiled programs are measured against.
//!
//! Invariant: nothing is pinned; everything goes with its file descriptor.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

use anyhow::Context;

use crate::kernel::{CONTEXT_BYTES, TC_ACT_UNSPEC};

const MAP_CREATE: libc::c_long = 0;
const MAP_UPDATE: libc::c_long = 2;
const MAP_LOOKUP: libc::c_long = 1;
const PROGRAM_LOAD: libc::c_long = 5;
const PROGRAM_TEST_RUN: libc::c_long = 10;
const LINK_CREATE: libc::c_long = 28;

/// `BPF_MAP_TYPE_ARRAY`.
pub const ARRAY: u32 = 2;
/// `BPF_MAP_TYPE_PROG_ARRAY`.
pub const PROGRAMS: u32 = 3;

const SCHED_CLS: u32 = 3;
const PSEUDO_MAP_FD: u8 = 1;
const PSEUDO_MAP_VALUE: u8 = 2;

/// `bpf_map_lookup_elem`.
pub const LOOK_UP: i32 = 1;
/// `bpf_skb_store_bytes`.
pub const STORE_BYTES: i32 = 9;
/// `bpf_redirect_peer`.
pub const REDIRECT_PEER: i32 = 155;
/// `bpf_tail_call`.
pub const TAIL_CALL: i32 = 12;

/// Instructions as they are put together; registers are numbers, 10 is the frame pointer.
#[derive(Default)]
pub struct Code(Vec<u64>);

impl Code {
    fn put(mut self, code: u8, to: u8, from: u8, offset: i16, value: i32) -> Self {
        let registers = to | from << 4;
        let [low, high] = offset.to_le_bytes();
        let [a, b, c, d] = value.to_le_bytes();
        self.0.push(u64::from_le_bytes([code, registers, low, high, a, b, c, d]));
        self
    }

    /// `to = value`.
    #[must_use]
    pub fn set(self, to: u8, value: i32) -> Self {
        self.put(0xb7, to, 0, 0, value)
    }
    /// `to = from`.
    #[must_use]
    pub fn copy(self, to: u8, from: u8) -> Self {
        self.put(0xbf, to, from, 0, 0)
    }
    /// `to += value`.
    #[must_use]
    pub fn add(self, to: u8, value: i32) -> Self {
        self.put(0x07, to, 0, 0, value)
    }
    /// `to += from`.
    #[must_use]
    pub fn add_register(self, to: u8, from: u8) -> Self {
        self.put(0x0f, to, from, 0, 0)
    }
    /// `to *= value`.
    #[must_use]
    pub fn multiply(self, to: u8, value: i32) -> Self {
        self.put(0x27, to, 0, 0, value)
    }
    /// `to = *(u64 *)(from + offset)`.
    #[must_use]
    pub fn load(self, to: u8, from: u8, offset: i16) -> Self {
        self.put(0x79, to, from, offset, 0)
    }
    /// `to = *(u32 *)(from + offset)`.
    #[must_use]
    pub fn load_word(self, to: u8, from: u8, offset: i16) -> Self {
        self.put(0x61, to, from, offset, 0)
    }
    /// `*(u64 *)(to + offset) = from`.
    #[must_use]
    pub fn store(self, to: u8, offset: i16, from: u8) -> Self {
        self.put(0x7b, to, from, offset, 0)
    }
    /// `*(u32 *)(to + offset) = from`.
    #[must_use]
    pub fn store_word(self, to: u8, offset: i16, from: u8) -> Self {
        self.put(0x63, to, from, offset, 0)
    }
    /// `to` = a map.
    #[must_use]
    pub fn map(self, to: u8, map: BorrowedFd<'_>) -> Self {
        self.put(0x18, to, PSEUDO_MAP_FD, 0, map.as_raw_fd()).put(0, 0, 0, 0, 0)
    }
    /// `to` = the value of an array of one element.
    #[must_use]
    pub fn value(self, to: u8, map: BorrowedFd<'_>) -> Self {
        self.put(0x18, to, PSEUDO_MAP_VALUE, 0, map.as_raw_fd()).put(0, 0, 0, 0, 0)
    }
    /// Skips instructions if `register < value`, unsigned.
    #[must_use]
    pub fn skip_if_below(self, register: u8, value: i32, skipped: i16) -> Self {
        self.put(0xa5, register, 0, skipped, value)
    }
    /// Skips instructions if `register != 0`.
    #[must_use]
    pub fn skip_if_set(self, register: u8, skipped: i16) -> Self {
        self.put(0x55, register, 0, skipped, 0)
    }
    /// Skips instructions if `register != value`.
    #[must_use]
    pub fn skip_unless(self, register: u8, value: i32, skipped: i16) -> Self {
        self.put(0x55, register, 0, skipped, value)
    }
    /// Calls a helper.
    #[must_use]
    pub fn call(self, helper: i32) -> Self {
        self.put(0x85, 0, 0, 0, helper)
    }
    /// Returns register 0.
    #[must_use]
    pub fn exit(self) -> Self {
        self.put(0x95, 0, 0, 0, 0)
    }

    /// Loads it as a classifier.
    pub fn classifier(&self) -> anyhow::Result<OwnedFd> {
        let mut log = vec![0_u8; 1 << 16];
        let mut attributes = Load {
            kind: SCHED_CLS,
            instructions: u32::try_from(self.0.len())?,
            code: address(self.0.as_ptr()),
            licence: address(c"Dual MIT/GPL".as_ptr()),
            log_level: 1,
            log_size: u32::try_from(log.len())?,
            log: address(log.as_mut_ptr()),
            ..Load::default()
        };
        made(bpf(PROGRAM_LOAD, &mut attributes)).with_context(|| {
            let said: Vec<u8> = log.iter().copied().take_while(|byte| *byte != 0).collect();
            format!("the verifier refuses a program:\n{}", String::from_utf8_lossy(&said))
        })
    }
}

/// Where at a device a classifier stands, as the kernel numbers it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Hook {
    /// What comes in: `BPF_TCX_INGRESS`.
    Ingress = 46,
    /// What goes out: `BPF_TCX_EGRESS`.
    Egress = 47,
}

/// Attaches a classifier to a device of this thread's network namespace, after those that are there.
pub fn attach(program: BorrowedFd<'_>, ifindex: u32, hook: Hook) -> anyhow::Result<OwnedFd> {
    let mut attributes = Link { program: number(program), ifindex, kind: hook as u32, ..Link::default() };
    made(bpf(LINK_CREATE, &mut attributes)).with_context(|| format!("cannot attach to interface {ifindex}"))
}

/// The program that does nothing: what a run costs by itself.
pub fn empty() -> anyhow::Result<OwnedFd> {
    Code::default().set(0, TC_ACT_UNSPEC).exit().classifier()
}

/// A map whose keys are 4 bytes.
pub fn map(kind: u32, value_bytes: usize) -> anyhow::Result<OwnedFd> {
    let mut attributes =
        Create { kind, key_bytes: 4, value_bytes: u32::try_from(value_bytes)?, entries: 1, ..Create::default() };
    made(bpf(MAP_CREATE, &mut attributes)).context("cannot make a map")
}

/// Writes the one element of a map.
pub fn write(map: BorrowedFd<'_>, value: &[u8]) -> anyhow::Result<()> {
    bpf(MAP_UPDATE, &mut element(map, value.as_ptr())).context("cannot write a map").map(drop)
}

/// Reads the one element of a map.
pub fn read(map: BorrowedFd<'_>, value: &mut [u8]) -> anyhow::Result<()> {
    bpf(MAP_LOOKUP, &mut element(map, value.as_mut_ptr().cast_const())).context("cannot read a map").map(drop)
}

/// An array of one element that holds these bytes.
pub fn array(value: &[u8]) -> anyhow::Result<OwnedFd> {
    let map = map(ARRAY, value.len())?;
    write(map.as_fd(), value)?;
    Ok(map)
}

/// Mean time of `repeat` runs in a row over a frame in ns, as the kernel measures it, and what the last one returned.
pub fn test_run(
    program: BorrowedFd<'_>,
    frame: &[u8],
    context: &[u8; CONTEXT_BYTES],
    repeat: u32,
) -> anyhow::Result<(f64, i32)> {
    let mut attributes = TestRun {
        program: number(program),
        data_bytes: u32::try_from(frame.len())?,
        data: address(frame.as_ptr()),
        repeat,
        context_bytes: u32::try_from(context.len())?,
        context: address(context.as_ptr()),
        ..TestRun::default()
    };
    bpf(PROGRAM_TEST_RUN, &mut attributes).context("cannot run a program")?;
    Ok((f64::from(attributes.duration_ns), attributes.returned.cast_signed()))
}

/// `union bpf_attr`, loading a program.
#[repr(C)]
#[derive(Default)]
struct Load {
    kind: u32,
    instructions: u32,
    code: u64,
    licence: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

/// `union bpf_attr`, making a link.
#[repr(C)]
#[derive(Default)]
struct Link {
    program: u32,
    ifindex: u32,
    kind: u32,
    flags: u32,
    relative: [u64; 2],
}

/// `union bpf_attr`, making a map.
#[repr(C)]
#[derive(Default)]
struct Create {
    kind: u32,
    key_bytes: u32,
    value_bytes: u32,
    entries: u32,
    flags: u32,
    padding: u32,
}

/// `union bpf_attr`, elements.
#[repr(C)]
#[derive(Default)]
struct Element {
    map: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// `union bpf_attr`, test runs.
#[repr(C)]
#[derive(Default)]
struct TestRun {
    program: u32,
    returned: u32,
    data_bytes: u32,
    data_out_bytes: u32,
    data: u64,
    data_out: u64,
    repeat: u32,
    duration_ns: u32,
    context_bytes: u32,
    context_out_bytes: u32,
    context: u64,
    context_out: u64,
    flags: u32,
    cpu: u32,
    batch: u32,
    padding: u32,
}

fn element(map: BorrowedFd<'_>, value: *const u8) -> Element {
    static FIRST: u32 = 0;
    Element { map: number(map), key: address(&raw const FIRST), value: address(value), ..Element::default() }
}

fn number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open file descriptor is not negative")
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn made(result: io::Result<i32>) -> io::Result<OwnedFd> {
    // SAFETY: the call has just made it, for nobody else.
    result.map(|fd| unsafe { OwnedFd::from_raw_fd(fd) })
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<i32> {
    // SAFETY: a zero-initialised prefix of `union bpf_attr` for this command; what its pointers refer to outlives the
    // call and is as large as the command is told or as the map's value is.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(i32::try_from(result).expect("a file descriptor or zero"))
}
