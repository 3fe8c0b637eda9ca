//! Carries out plans: map operations in their order, neighbours of the same kind in one call.
//!
//! Invariant: the one writer of `ENDPOINTS`, `ADDRESSES`, `NETWORKS`, `CLASSES`, `PEERS`, `PORTS`, `RANGES`, `DEVICES`,
//! `SERVICES` and `CONFIG`.

use super::discover::Device;
use super::grace::grace;
use super::maps::{MapError, Maps, Table};
use bytemuck::Pod;
use reeve_abi::address::{AddressValue, OWNER_LOCAL_POD};
use reeve_abi::config::Config;
use reeve_abi::endpoint::{
    ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_MARKS, ENDPOINT_READY,
    EndpointValue,
};
use reeve_abi::ids::WorkloadId;
use reeve_policy::image::EndpointImage;
use reeve_policy::plan::Op;
use std::collections::BTreeMap;
use std::iter::Peekable;

/// On which device each local workload is. One that is absent has no `ENDPOINTS` row yet.
pub type Interfaces = BTreeMap<WorkloadId, Device>;

/// Carries out the operations. With an error those before the failing one are done, and the rest is not: the caller
/// reads the maps back ([`super::adopt::read`]) and plans anew.
pub fn apply(maps: &Maps, ops: &[Op], interfaces: &Interfaces, known: Known) -> Result<(), MapError> {
    let mut rest = ops.iter().peekable();
    let mut flipped = false;
    while let Some(op) = rest.peek() {
        if flipped && is_removal(op) {
            grace();
            flipped = false;
        }
        flipped |= matches!(op, Op::PutEndpoint(..));
        match op {
            Op::PutPort(..) => {
                put(&maps.ports, &mut rest, |op| if let Op::PutPort(k, v) = op { Some((*k, *v)) } else { None })?;
            }
            Op::PutRange(..) => {
                put(&maps.ranges, &mut rest, |op| if let Op::PutRange(k, v) = op { Some((*k, *v)) } else { None })?;
            }
            Op::PutPeer(..) => {
                put(&maps.peers, &mut rest, |op| if let Op::PutPeer(k, v) = op { Some((*k, *v)) } else { None })?;
            }
            Op::PutClass(..) => {
                put(&maps.classes, &mut rest, |op| if let Op::PutClass(k, v) = op { Some((k.0, *v)) } else { None })?;
            }
            Op::PutNetwork(..) => {
                put(&maps.networks, &mut rest, |op| if let Op::PutNetwork(k, v) = op { Some((*k, *v)) } else { None })?;
            }
            Op::PutAddress(..) => put(&maps.addresses, &mut rest, |op| {
                if let Op::PutAddress(k, v) = op { Some((*k, placed(*v, interfaces))) } else { None }
            })?,
            Op::DeletePort(_) => {
                delete(&maps.ports, &mut rest, |op| if let Op::DeletePort(k) = op { Some(*k) } else { None })?;
            }
            Op::DeleteRange(_) => {
                delete(&maps.ranges, &mut rest, |op| if let Op::DeleteRange(k) = op { Some(*k) } else { None })?;
            }
            Op::DeletePeer(_) => {
                delete(&maps.peers, &mut rest, |op| if let Op::DeletePeer(k) = op { Some(*k) } else { None })?;
            }
            Op::DeleteClass(_) => {
                delete(&maps.classes, &mut rest, |op| if let Op::DeleteClass(k) = op { Some(k.0) } else { None })?;
            }
            Op::DeleteNetwork(_) => {
                delete(&maps.networks, &mut rest, |op| if let Op::DeleteNetwork(k) = op { Some(*k) } else { None })?;
            }
            Op::DeleteAddress(_) => {
                delete(&maps.addresses, &mut rest, |op| if let Op::DeleteAddress(k) = op { Some(*k) } else { None })?;
            }
            Op::PutEndpoint(workload, image) => {
                if let Some(device) = interfaces.get(workload) {
                    maps.endpoints.put(&device.ifindex, &endpoint_row(*workload, image, device, known))?;
                }
                rest.next();
            }
            Op::DeleteEndpoint(workload) => {
                if let Some(device) = interfaces.get(workload) {
                    maps.endpoints.delete(&device.ifindex)?;
                }
                rest.next();
            }
            Op::BumpAddressEpoch => {
                let config = maps.config.get(&0)?.unwrap_or(Config::DEFAULT);
                maps.config.put(&0, &Config { address_epoch: config.address_epoch + 1, ..config })?;
                rest.next();
            }
        }
    }
    Ok(())
}

/// Whether the operation takes away what something may still refer to.
pub fn is_removal(op: &Op) -> bool {
    use Op::{DeleteAddress, DeleteClass, DeleteNetwork, DeletePeer, DeletePort, DeleteRange};
    matches!(op, DeletePort(_) | DeleteRange(_) | DeletePeer(_) | DeleteClass(_) | DeleteNetwork(_) | DeleteAddress(_))
}

/// Whether the kernel knows every address that there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Known {
    /// It does.
    All,
    /// Some have no room: selected endpoints deny whoever is not known.
    Some,
}

impl Known {
    /// The bit of an endpoint's row.
    fn flag(self) -> u32 {
        match self {
            Self::All => 0,
            Self::Some => ENDPOINT_ADDRESSES_INCOMPLETE,
        }
    }
}

/// Says at every endpoint whether all addresses are known.
pub fn set_known(maps: &Maps, known: Known) -> Result<(), MapError> {
    for (ifindex, row) in maps.endpoints.read()? {
        let flags = row.flags & !ENDPOINT_ADDRESSES_INCOMPLETE | known.flag();
        maps.endpoints.put(&ifindex, &EndpointValue { flags, ..row })?;
    }
    Ok(())
}

/// The kernel's row of an endpoint on an interface whose programs are attached.
pub fn endpoint_row(workload: WorkloadId, image: &EndpointImage, device: &Device, known: Known) -> EndpointValue {
    let ready = if image.ready { ENDPOINT_READY } else { 0 };
    let incomplete = if image.incomplete { ENDPOINT_ADDRESSES_INCOMPLETE } else { 0 };
    let [v4, v6] = image.contested;
    let contested = if v4 { ENDPOINT_CONTESTED_V4 } else { 0 } | if v6 { ENDPOINT_CONTESTED_V6 } else { 0 };
    EndpointValue {
        head_ifindex: device.ifindex,
        tail_ifindex: device.ifindex,
        head_revision: image.revision,
        tail_revision: image.revision,
        flags: ready | incomplete | contested | known.flag() | ENDPOINT_MARKS,
        workload,
        identity: image.identity,
        policies: image.policies,
        address_v4: image.address_v4,
        address_v6: image.address_v6,
        bridge: device.bridge,
    }
}

/// An address with the device and bridge of its pod, where they are known.
pub fn placed(value: AddressValue, interfaces: &Interfaces) -> AddressValue {
    match interfaces.get(&value.workload) {
        Some(device) if value.owner == OWNER_LOCAL_POD => {
            AddressValue { device: device.ifindex, bridge: device.bridge, ..value }
        }
        _ => value,
    }
}

/// Makes a map hold these rows and no others: what is new first, what has gone last, unless only that makes room. Whether
/// anything was to be done.
pub fn follow<K: Pod + Ord, V: Pod + PartialEq>(
    table: &Table<K, V>,
    wanted: &BTreeMap<K, V>,
) -> Result<bool, MapError> {
    let there: BTreeMap<K, V> = table.read()?.into_iter().collect();
    let new: Vec<(K, V)> =
        wanted.iter().filter(|(key, value)| there.get(key) != Some(value)).map(|(key, value)| (*key, *value)).collect();
    let put = table.put_many(&new);
    if put.as_ref().is_err_and(|error| !error.is_full()) {
        return put.map(|()| true);
    }
    let gone: Vec<K> = there.into_keys().filter(|key| !wanted.contains_key(key)).collect();
    table.delete_many(&gone)?;
    if put.is_err() {
        table.put_many(&new)?;
    }
    Ok(!new.is_empty() || !gone.is_empty())
}

fn put<'a, K: Pod, V: Pod>(
    table: &Table<K, V>,
    ops: &mut Peekable<impl Iterator<Item = &'a Op>>,
    row: impl Fn(&Op) -> Option<(K, V)>,
) -> Result<(), MapError> {
    let mut rows = Vec::new();
    while let Some(found) = ops.peek().and_then(|op| row(op)) {
        rows.push(found);
        ops.next();
    }
    table.put_many(&rows)
}

fn delete<'a, K: Pod, V: Pod>(
    table: &Table<K, V>,
    ops: &mut Peekable<impl Iterator<Item = &'a Op>>,
    key: impl Fn(&Op) -> Option<K>,
) -> Result<(), MapError> {
    let mut keys = Vec::new();
    while let Some(found) = ops.peek().and_then(|op| key(op)) {
        keys.push(found);
        ops.next();
    }
    table.delete_many(&keys)
}
