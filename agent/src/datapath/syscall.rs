//! The raw `bpf()` element commands, single and in batches, over typed keys and values.
//!
//! aya has no batch calls, and its element types cannot be implemented for those of `reeve-abi`.

use bytemuck::Pod;
use std::ffi::CString;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

const MAP_LOOKUP_ELEM: libc::c_long = 1;
const MAP_UPDATE_ELEM: libc::c_long = 2;
const MAP_DELETE_ELEM: libc::c_long = 3;
const MAP_GET_NEXT_KEY: libc::c_long = 4;
/// `statfs.f_type` of a bpffs.
const BPF_FS_MAGIC: libc::__fsword_t = 0xcafe_4a11;
/// Flag of an update.
const BPF_NOEXIST: u64 = 1;
const MAP_LOOKUP_BATCH: libc::c_long = 24;
const MAP_UPDATE_BATCH: libc::c_long = 26;
const MAP_DELETE_BATCH: libc::c_long = 27;
const OBJECT_PIN: libc::c_long = 6;
const OBJECT_GET: libc::c_long = 7;
const OBJECT_GET_INFO: libc::c_long = 15;
const PROGRAM_QUERY: libc::c_long = 16;
const LINK_UPDATE: libc::c_long = 29;
const LINK_DETACH: libc::c_long = 34;

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

/// `union bpf_attr`, batch commands.
#[allow(clippy::struct_field_names, reason = "the kernel's names")]
#[repr(C)]
#[derive(Default)]
struct Batch {
    in_batch: u64,
    out_batch: u64,
    keys: u64,
    values: u64,
    count: u32,
    map_fd: u32,
    elem_flags: u64,
    flags: u64,
}

fn fd_number(fd: BorrowedFd<'_>) -> u32 {
    u32::try_from(fd.as_raw_fd()).expect("an open file descriptor is not negative")
}

fn address<T>(pointer: *const T) -> u64 {
    pointer.expose_provenance() as u64
}

fn bpf<T>(command: libc::c_long, attributes: &mut T) -> io::Result<()> {
    // SAFETY: `attributes` is a zero-initialised prefix of `union bpf_attr` for this command, and every pointer in it
    // refers to memory that its caller keeps alive and large enough for the map's key and value.
    let result = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attributes), size_of::<T>()) };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// `union bpf_attr`, link update.
#[repr(C)]
#[derive(Default)]
struct LinkUpdate {
    link_fd: u32,
    new_program_fd: u32,
    flags: u32,
    old_program_fd: u32,
}

/// `union bpf_attr`, pinned objects.
#[repr(C)]
#[derive(Default)]
struct ObjectPath {
    path: u64,
    fd: u32,
    flags: u32,
}

/// Whether a directory is on a bpffs, the only kind of file system that holds pins.
pub(super) fn is_bpffs(directory: &Path) -> bool {
    rustix::fs::statfs(directory).is_ok_and(|found| found.f_type == BPF_FS_MAGIC)
}

/// Opens what is pinned at a path.
pub(super) fn open_pin(path: &Path) -> io::Result<OwnedFd> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    let mut attributes = ObjectPath { path: address(path.as_ptr()), ..ObjectPath::default() };
    // SAFETY: a zero-initialised prefix of `union bpf_attr` for this command; the path lives until the call returns.
    let result = unsafe {
        libc::syscall(libc::SYS_bpf, OBJECT_GET, std::ptr::from_mut(&mut attributes), size_of::<ObjectPath>())
    };
    let fd = i32::try_from(result).ok().filter(|fd| *fd >= 0).ok_or_else(io::Error::last_os_error)?;
    // SAFETY: the call has just made it, for nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Pins an object at a path where there is nothing.
pub(super) fn pin(object: BorrowedFd<'_>, path: &Path) -> io::Result<()> {
    let path = CString::new(path.as_os_str().as_bytes())?;
    bpf(OBJECT_PIN, &mut ObjectPath { path: address(path.as_ptr()), fd: fd_number(object), flags: 0 })
}

/// Puts another program into a link, without a moment in which there is none.
pub(super) fn update_link(link: BorrowedFd<'_>, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attributes =
        LinkUpdate { link_fd: fd_number(link), new_program_fd: fd_number(program), ..LinkUpdate::default() };
    bpf(LINK_UPDATE, &mut attributes)
}

/// `union bpf_attr`, asking for the programs of a device's chain.
#[repr(C)]
#[derive(Default)]
struct Query {
    ifindex: u32,
    attach_type: u32,
    flags: u32,
    attach_flags: u32,
    programs: u64,
    count: u32,
    padding: u32,
    program_flags: u64,
    links: u64,
    link_flags: u64,
    revision: u64,
}

/// A chain of TCX is no longer.
const LONGEST_CHAIN: usize = 64;

/// Numbers of the programs that stand at a device, first to last; `attach_type` is `BPF_TCX_INGRESS` or
/// `BPF_TCX_EGRESS`. One call: it is asked of each device again and again.
pub(super) fn chain(ifindex: u32, attach_type: u32) -> io::Result<Vec<u32>> {
    let mut programs = vec![0_u32; LONGEST_CHAIN];
    let mut attributes = Query {
        ifindex,
        attach_type,
        programs: address(programs.as_mut_ptr()),
        count: u32::try_from(LONGEST_CHAIN).expect("few"),
        ..Query::default()
    };
    bpf(PROGRAM_QUERY, &mut attributes)?;
    programs.truncate(attributes.count as usize);
    Ok(programs)
}

/// `union bpf_attr`, detaching a link.
#[repr(C)]
#[derive(Default)]
struct LinkDetach {
    link_fd: u32,
}

/// Takes a link's program off its device: when this returns, no packet that comes is judged by it any more, which
/// cannot be said of closing the last descriptor.
pub(super) fn detach_link(link: BorrowedFd<'_>) -> io::Result<()> {
    bpf(LINK_DETACH, &mut LinkDetach { link_fd: fd_number(link) })
}

/// `union bpf_attr`, asking for what an object is.
#[repr(C)]
#[derive(Default)]
struct ObjectInfo {
    object_fd: u32,
    info_bytes: u32,
    info: u64,
}

/// The beginning of `struct bpf_link_info`, as links on cgroups fill it.
#[repr(C)]
#[derive(Default)]
struct LinkInfo {
    kind: u32,
    link: u32,
    program: u32,
    padding: u32,
    cgroup: u64,
    attach_type: u32,
    padding_end: u32,
}

/// A link on a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct CgroupLink {
    /// The kernel's number of the link.
    pub(super) link: u32,
    /// That of its program.
    pub(super) program: u32,
    /// That of its cgroup, which is its directory's inode; 0 where it has been taken off.
    pub(super) cgroup: u64,
}

/// What a link on a cgroup is.
pub(super) fn cgroup_link(link: BorrowedFd<'_>) -> io::Result<CgroupLink> {
    let mut info = LinkInfo::default();
    let mut attributes = ObjectInfo {
        object_fd: fd_number(link),
        info_bytes: u32::try_from(size_of::<LinkInfo>()).expect("it is short"),
        info: address(std::ptr::from_mut(&mut info).cast_const()),
    };
    bpf(OBJECT_GET_INFO, &mut attributes)?;
    Ok(CgroupLink { link: info.link, program: info.program, cgroup: info.cgroup })
}

/// One value, `None` if the key is absent. `value` has the map's value size (all CPUs for per-CPU maps).
pub(super) fn lookup<K: Pod>(fd: BorrowedFd<'_>, key: &K, value: &mut [u8]) -> io::Result<Option<()>> {
    let mut attributes = Element {
        map_fd: fd_number(fd),
        key: address(std::ptr::from_ref(key)),
        value_or_next: address(value.as_mut_ptr()),
        ..Element::default()
    };
    match bpf(MAP_LOOKUP_ELEM, &mut attributes) {
        Ok(()) => Ok(Some(())),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserts or replaces.
pub(super) fn update<K: Pod, V: Pod>(fd: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(fd, key, bytemuck::bytes_of(value), 0)
}

/// Inserts; `EEXIST` if the key is there.
pub(super) fn insert<K: Pod, V: Pod>(fd: BorrowedFd<'_>, key: &K, value: &V) -> io::Result<()> {
    write(fd, key, bytemuck::bytes_of(value), BPF_NOEXIST)
}

/// `value` has the map's value size (all CPUs for per-CPU maps).
pub(super) fn write<K: Pod>(fd: BorrowedFd<'_>, key: &K, value: &[u8], flags: u64) -> io::Result<()> {
    let mut attributes = Element {
        map_fd: fd_number(fd),
        key: address(std::ptr::from_ref(key)),
        value_or_next: address(value.as_ptr()),
        flags,
        ..Element::default()
    };
    bpf(MAP_UPDATE_ELEM, &mut attributes)
}

/// Deletes; absent is fine.
pub(super) fn delete<K: Pod>(fd: BorrowedFd<'_>, key: &K) -> io::Result<()> {
    let mut attributes = Element { map_fd: fd_number(fd), key: address(std::ptr::from_ref(key)), ..Element::default() };
    match bpf(MAP_DELETE_ELEM, &mut attributes) {
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(()),
        result => result,
    }
}

/// The key after `key` (`None`: the first one), `None` at the end.
pub(super) fn next_key<K: Pod>(fd: BorrowedFd<'_>, key: Option<&K>) -> io::Result<Option<K>> {
    let mut next = K::zeroed();
    let mut attributes = Element {
        map_fd: fd_number(fd),
        key: key.map_or(0, |key| address(std::ptr::from_ref(key))),
        value_or_next: address(std::ptr::from_mut(&mut next).cast_const()),
        ..Element::default()
    };
    match bpf(MAP_GET_NEXT_KEY, &mut attributes) {
        Ok(()) => Ok(Some(next)),
        Err(error) if error.raw_os_error() == Some(libc::ENOENT) => Ok(None),
        Err(error) => Err(error),
    }
}

/// Inserts or replaces many; on failure the number that went in comes with the error.
pub(super) fn update_batch<K: Pod, V: Pod>(
    fd: BorrowedFd<'_>,
    keys: &[K],
    values: &[V],
) -> Result<(), (usize, io::Error)> {
    debug_assert_eq!(keys.len(), values.len());
    batch(MAP_UPDATE_BATCH, fd, keys.as_ptr().cast(), values.as_ptr().cast(), keys.len())
}

/// Deletes many; on failure the number that went out comes with the error (an absent key is `ENOENT`).
pub(super) fn delete_batch<K: Pod>(fd: BorrowedFd<'_>, keys: &[K]) -> Result<(), (usize, io::Error)> {
    batch(MAP_DELETE_BATCH, fd, keys.as_ptr().cast(), std::ptr::null(), keys.len())
}

fn batch(
    command: libc::c_long,
    fd: BorrowedFd<'_>,
    keys: *const u8,
    values: *const u8,
    count: usize,
) -> Result<(), (usize, io::Error)> {
    let mut attributes = Batch {
        keys: address(keys),
        values: address(values),
        count: u32::try_from(count).expect("a batch is far below 4 billion elements"),
        map_fd: fd_number(fd),
        ..Batch::default()
    };
    bpf(command, &mut attributes).map_err(|error| (attributes.count as usize, error))
}

/// Reads a whole hash map in batches.
pub(super) fn read_all<K: Pod, V: Pod>(fd: BorrowedFd<'_>) -> io::Result<Vec<(K, V)>> {
    let mut all = Vec::new();
    let mut capacity = 1024_usize;
    // The cursor is opaque: a bucket number for hash maps, a key for others.
    let mut cursor = vec![0_u8; size_of::<K>().max(8)];
    let mut next = cursor.clone();
    let mut started = false;
    loop {
        let mut keys = vec![K::zeroed(); capacity];
        let mut values = vec![V::zeroed(); capacity];
        let mut attributes = Batch {
            in_batch: if started { address(cursor.as_ptr()) } else { 0 },
            out_batch: address(next.as_mut_ptr()),
            keys: address(keys.as_mut_ptr()),
            values: address(values.as_mut_ptr()),
            count: u32::try_from(capacity).expect("a batch is far below 4 billion elements"),
            map_fd: fd_number(fd),
            ..Batch::default()
        };
        let result = bpf(MAP_LOOKUP_BATCH, &mut attributes);
        let count = attributes.count as usize;
        match result {
            Ok(()) => {
                all.extend(keys.into_iter().zip(values).take(count));
                std::mem::swap(&mut cursor, &mut next);
                started = true;
            }
            Err(error) if error.raw_os_error() == Some(libc::ENOENT) => {
                all.extend(keys.into_iter().zip(values).take(count));
                return Ok(all);
            }
            // One bucket holds more than the batch has room for: the same cursor again with more room.
            Err(error) if error.raw_os_error() == Some(libc::ENOSPC) && capacity < 1 << 22 => capacity *= 4,
            Err(error) => return Err(error),
        }
    }
}
