//! Reads the pinned maps back into an image: where the difference to the wanted one starts after a restart.

use super::maps::{MapError, Maps};
use reeve_abi::endpoint::{
    ENDPOINT_ADDRESSES_INCOMPLETE, ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6, ENDPOINT_READY,
};
use reeve_abi::ids::{IdentityId, Revision, WorkloadId};
use reeve_policy::image::{EndpointImage, Image};
use std::collections::BTreeMap;

/// What an earlier agent left enforced.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Found {
    /// The maps' content.
    pub image: Image,
    /// Which interface each workload was enforced on.
    pub interfaces: BTreeMap<WorkloadId, u32>,
    /// Highest revision at any endpoint.
    pub revision: Revision,
}

/// Reads everything that the reconciler writes.
pub fn read(maps: &Maps) -> Result<Found, MapError> {
    let mut found = Found {
        image: Image {
            endpoints: BTreeMap::new(),
            addresses: maps.addresses.read()?.into_iter().collect(),
            networks: maps.networks.read()?.into_iter().collect(),
            classes: maps.classes.read()?.into_iter().map(|(id, class)| (IdentityId(id), class)).collect(),
            peers: maps.peers.read()?.into_iter().collect(),
            ports: maps.ports.read()?.into_iter().collect(),
            ranges: maps.ranges.read()?.into_iter().collect(),
        },
        ..Found::default()
    };
    for (ifindex, value) in maps.endpoints.read()? {
        found.revision = found.revision.max(value.head_revision);
        // A device that a pod was moved away from stays closed under that pod's number, at revision 0.
        if found.image.endpoints.get(&value.workload).is_some_and(|other| other.revision > value.head_revision) {
            continue;
        }
        found.interfaces.insert(value.workload, ifindex);
        found.image.endpoints.insert(
            value.workload,
            EndpointImage {
                identity: value.identity,
                policies: value.policies,
                address_v4: value.address_v4,
                address_v6: value.address_v6,
                revision: value.head_revision,
                ready: value.flags & ENDPOINT_READY != 0,
                incomplete: value.flags & ENDPOINT_ADDRESSES_INCOMPLETE != 0,
                contested: [ENDPOINT_CONTESTED_V4, ENDPOINT_CONTESTED_V6].map(|flag| value.flags & flag != 0),
            },
        );
    }
    // `device` and `bridge` belong to this machine, not to the image; the reconciler fills them in again.
    for address in found.image.addresses.values_mut() {
        address.device = 0;
        address.bridge = 0;
    }
    Ok(found)
}
