//! Gives a program another packet in each run: a program of a few instructions writes addresses and ports from a table
//! into the frame and hands over.
//!
//! So many new flows are measured in one run of the kernel's own loop; the same with an empty program at the end is what
//! they are measured against.

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::bytecode::{self, Code, LOOK_UP, PROGRAMS, STORE_BYTES, TAIL_CALL};
use crate::frames::Ends;
use crate::kernel::{CONTEXT_MARK, context};

/// Addresses and ports of one packet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Deal {
    /// The sender.
    pub source: (Ipv4Addr, u16),
    /// The receiver.
    pub destination: (Ipv4Addr, u16),
}

/// Where the addresses are in a frame: IPv4 without options.
const ADDRESSES_AT: i32 = 26;
/// Addresses and ports, one after the other.
const WRITTEN: i32 = 12;
/// An entry of the table.
const ENTRY_BYTES: i32 = 16;
/// An entry of a table of keys.
const KEY_BYTES: i32 = 32;
/// What is returned if nobody is there to hand over to.
const NOBODY: i32 = 77;

/// Deals packets to programs.
pub struct Dealer {
    program: OwnedFd,
    position: OwnedFd,
    next: OwnedFd,
    frame: Vec<u8>,
}

impl Dealer {
    /// Deals these in turn, again and again.
    pub fn new(deals: &[Deal], segment: Segment) -> anyhow::Result<Self> {
        let table: Vec<u8> = deals.iter().flat_map(Deal::bytes).collect();
        let (position, table) = (bytecode::array(&[0; 16])?, bytecode::array(&table)?);
        let next = bytecode::map(PROGRAMS, 4)?;
        let (context, entry) = (6, 9);
        let program = step(Code::default().copy(context, 1), position.as_fd(), deals.len())?
            .multiply(8, ENTRY_BYTES)
            .value(entry, table.as_fd())
            .add_register(entry, 8)
            // A mark that the packet before it got would say something about this one.
            .set(1, 0)
            .store_word(context, i16::try_from(CONTEXT_MARK)?, 1)
            .copy(1, context)
            .set(2, ADDRESSES_AT)
            .copy(3, entry)
            .set(4, WRITTEN)
            .set(5, 0)
            .call(STORE_BYTES)
            .copy(1, context)
            .map(2, next.as_fd())
            .set(3, 0)
            .call(TAIL_CALL)
            .set(0, NOBODY)
            .exit()
            .classifier()?;
        let ends = Ends {
            source_mac: [2, 0, 0, 0, 0, 1],
            destination_mac: [2, 0, 0, 0, 0, 2],
            source: Ipv4Addr::LOCALHOST.into(),
            destination: Ipv4Addr::LOCALHOST.into(),
        };
        let frame = match segment {
            Segment::Opening => ends.tcp(1, 1, "S", 1, 0),
            Segment::Open => ends.tcp(1, 1, ".", 2, 2),
        };
        Ok(Self { program, position, next, frame })
    }

    /// Hands over to this program from now on.
    pub fn aim(&self, program: BorrowedFd<'_>) -> anyhow::Result<()> {
        bytecode::write(self.next.as_fd(), &program.as_raw_fd().to_ne_bytes())
    }

    /// Mean time in ns of so many runs at an interface, each with the next packet of the table, dealing included.
    pub fn deal(&self, ifindex: u32, ingress_ifindex: u32, repeat: u32) -> anyhow::Result<f64> {
        let context = context(ifindex, ingress_ifindex, 0);
        let (ns, returned) = bytecode::test_run(self.program.as_fd(), &self.frame, &context, repeat)?;
        anyhow::ensure!(returned != NOBODY, "the program was not called");
        Ok(ns)
    }

    /// Begins the table anew.
    pub fn rewind(&self) -> anyhow::Result<()> {
        bytecode::write(self.position.as_fd(), &[0; 16])
    }
}

/// What is dealt.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Segment {
    /// Segments that open a connection.
    Opening,
    /// Segments of open connections.
    Open,
}

impl Deal {
    fn bytes(&self) -> [u8; 16] {
        let mut bytes = [0; 16];
        bytes[..4].copy_from_slice(&self.source.0.octets());
        bytes[4..8].copy_from_slice(&self.destination.0.octets());
        bytes[8..10].copy_from_slice(&self.source.1.to_be_bytes());
        bytes[10..12].copy_from_slice(&self.destination.1.to_be_bytes());
        bytes
    }
}

/// One look-up in a map by the next key of a table: the least that finding a flow can cost.
pub struct Finder {
    finds: OwnedFd,
    reads: OwnedFd,
    position: OwnedFd,
}

impl Finder {
    /// Looks these keys of 32 bytes up in turn.
    pub fn new(map: BorrowedFd<'_>, keys: &[u8]) -> anyhow::Result<Self> {
        let length = keys.len() / usize::try_from(KEY_BYTES)?;
        let (position, table) = (bytecode::array(&[0; 16])?, bytecode::array(keys)?);
        let begun = || -> anyhow::Result<Code> {
            let code = step(Code::default(), position.as_fd(), length)?;
            // Both programs touch the key.
            Ok(code.multiply(8, KEY_BYTES).value(2, table.as_fd()).add_register(2, 8).load(1, 2, 0))
        };
        let reads = begun()?.set(0, 0).exit().classifier()?;
        let finds = begun()?
            .map(1, map)
            .call(LOOK_UP)
            .skip_if_set(0, 3)
            // Counts what is not there.
            .load(1, 7, 8)
            .add(1, 1)
            .store(7, 8, 1)
            .set(0, 0)
            .exit()
            .classifier()?;
        Ok(Self { finds, reads, position })
    }

    /// Mean time in ns of a look-up, above reading the key.
    pub fn cost(&self, repeat: u32) -> anyhow::Result<f64> {
        let (frame, context) = ([0; 64], context(1, 0, 0));
        bytecode::write(self.position.as_fd(), &[0; 16])?;
        let (base, _) = bytecode::test_run(self.reads.as_fd(), &frame, &context, repeat)?;
        bytecode::write(self.position.as_fd(), &[0; 16])?;
        let (cost, _) = bytecode::test_run(self.finds.as_fd(), &frame, &context, repeat)?;
        let mut state = [0; 16];
        bytecode::read(self.position.as_fd(), &mut state)?;
        let missed = u64::from_ne_bytes(state[8..].try_into()?);
        anyhow::ensure!(missed == 0, "{missed} of {repeat} keys are not in the map");
        Ok(cost - base)
    }
}

/// Register 7: the position's value, register 8: the position, below `length`; the next run has the next one.
fn step(code: Code, position: BorrowedFd<'_>, length: usize) -> anyhow::Result<Code> {
    let code = code.value(7, position).load(8, 7, 0).skip_if_below(8, i32::try_from(length)?, 1).set(8, 0);
    Ok(code.copy(1, 8).add(1, 1).store(7, 0, 1))
}
