//! One map of the kernel over typed keys and values, by the raw `bpf()` commands.
//!
//! aya's element types cannot be implemented for those of `reeve-abi`.

use anyhow::Context;
use bytemuck::Pod;
use std::io;
use std::marker::PhantomData;
use std::os::fd::{AsRawFd, BorrowedFd};

const LOOKUP: libc::c_long = 1;
const UPDATE: libc::c_long = 2;
const DELETE: libc::c_long = 3;
const NEXT_KEY: libc::c_long = 4;

/// `union bpf_attr`, element commands.
#[repr(C)]
#[derive(Default)]
struct Element {
    map_fd: u32,
    padding: u32,
    key: u64,
    value_or_next: u64,
    flags: u64,
}

/// A map.
pub struct Rows<'a, K, V> {
    name: &'static str,
    fd: BorrowedFd<'a>,
    types: PhantomData<(K, V)>,
}

impl<'a, K, V> Rows<'a, K, V> {
    pub(super) fn new(name: &'static str, fd: BorrowedFd<'a>) -> Self {
        Self { name, fd, types: PhantomData }
    }
}

impl<K: Pod, V: Pod> Rows<'_, K, V> {
    /// One value.
    pub fn get(&self, key: &K) -> anyhow::Result<Option<V>> {
        let mut value = V::zeroed();
        let found = element(LOOKUP, self.fd, Some(key), std::ptr::from_mut(&mut value).cast());
        absent(found).map(|found| found.map(|()| value)).with_context(|| format!("cannot read {}", self.name))
    }

    /// Inserts or replaces.
    pub fn put(&self, key: &K, value: &V) -> anyhow::Result<()> {
        // The kernel only reads the value.
        let value = std::ptr::from_ref(value).cast_mut().cast();
        element(UPDATE, self.fd, Some(key), value).with_context(|| format!("cannot write {}", self.name))
    }

    /// Deletes; absent is fine.
    pub fn remove(&self, key: &K) -> anyhow::Result<()> {
        let gone = element(DELETE, self.fd, Some(key), std::ptr::null_mut());
        absent(gone).map(drop).with_context(|| format!("cannot delete from {}", self.name))
    }

    /// Everything in it, in no order; nobody may write meanwhile.
    pub fn all(&self) -> anyhow::Result<Vec<(K, V)>> {
        let mut all: Vec<(K, V)> = Vec::new();
        while let Some(key) = self.next_key(all.last().map(|row| &row.0))? {
            let value = self.get(&key)?.with_context(|| format!("a row of {} went while it was read", self.name))?;
            all.push((key, value));
        }
        Ok(all)
    }

    /// Deletes everything.
    pub fn clear(&self) -> anyhow::Result<()> {
        while let Some(key) = self.next_key(None)? {
            self.remove(&key)?;
        }
        Ok(())
    }

    fn next_key(&self, key: Option<&K>) -> anyhow::Result<Option<K>> {
        let mut next = K::zeroed();
        let found = element(NEXT_KEY, self.fd, key, std::ptr::from_mut(&mut next).cast());
        absent(found).map(|found| found.map(|()| next)).with_context(|| format!("cannot walk {}", self.name))
    }
}

/// Sum of a counter of a per-CPU array.
pub(super) fn sum_over_cpus(fd: BorrowedFd<'_>, index: u32, cpus: usize) -> anyhow::Result<u64> {
    let mut values = vec![0_u64; cpus];
    element(LOOKUP, fd, Some(&index), values.as_mut_ptr().cast()).context("cannot read STATS")?;
    Ok(values.iter().sum())
}

fn absent(result: io::Result<()>) -> io::Result<Option<()>> {
    match result {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        result => result.map(Some),
    }
}

fn element<K: Pod>(command: libc::c_long, fd: BorrowedFd<'_>, key: Option<&K>, value: *mut u8) -> io::Result<()> {
    let mut attributes = Element {
        map_fd: u32::try_from(fd.as_raw_fd()).expect("an open file descriptor is not negative"),
        key: key.map_or(0, |key| std::ptr::from_ref(key).expose_provenance() as u64),
        value_or_next: value.expose_provenance() as u64,
        ..Element::default()
    };
    // SAFETY: a zero-initialised prefix of `union bpf_attr` for this command; its pointers outlive the call and have the
    // map's key and value sizes, which the types of `reeve-abi` pin.
    let result =
        unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(&mut attributes), size_of::<Element>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}
