//! `v1` Node: its labels and the addresses that pods and clients see it by.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels, tunnel};
use crate::model::Node;
use crate::store::ObjectKey;
use std::net::IpAddr;

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let root = root.with("what was known of the node goes on to hold");
    match (labels::of(&root), addresses(&root), tunnel::addresses(&root)) {
        (Ok(labels), Ok(mut addresses), Ok(tunnels)) => {
            addresses.extend(tunnels);
            Lowered::Node(Node { name: key.name.clone(), labels, addresses })
        }
        _ => Lowered::Unreadable,
    }
}

/// `status.addresses`, names left out.
fn addresses(root: &Field<'_>) -> Result<Vec<IpAddr>, Unreadable> {
    let Some(list) = root.find("status").and_then(|status| status.find("addresses")) else { return Ok(Vec::new()) };
    let mut addresses = Vec::new();
    for item in list.list()? {
        let kind = item.at("type").text()?;
        if !matches!(kind, "InternalIP" | "ExternalIP") {
            continue;
        }
        let field = item.at("address").with("this address is not known as the node's");
        match field.text()?.parse::<IpAddr>() {
            Ok(address) => addresses.push(address.to_canonical()),
            Err(_) => {
                field.bad("must be an IP address");
            }
        }
    }
    addresses.dedup();
    Ok(addresses)
}
