//! Everything that touches the kernel's eBPF side: load, attach, read and write maps. The only part that knows aya.

pub mod adopt;
pub mod attach;
pub mod conntrack;
pub mod discover;
pub mod endpoints;
pub mod grace;
pub mod guard;
pub mod host;
pub mod load;
pub mod maps;
pub mod migrate;
pub mod reconcile;
pub mod room;
pub mod services;
mod syscall;
pub mod uplinks;

pub use attach::{Attachments, Mark, Mechanism, Repair};
pub use load::{Adopted, LoadError, Loaded, Pins};
pub use maps::{MapError, Maps, Table};

/// The compiled programs that this binary was built with; empty without `REEVE_BPF_OBJECT` at build time.
pub fn embedded_object() -> &'static [u8] {
    EMBEDDED
}

static EMBEDDED: &[u8] = aya::include_bytes_aligned!(concat!(env!("OUT_DIR"), "/reeve-ebpf.o"));
