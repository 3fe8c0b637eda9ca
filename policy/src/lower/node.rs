//! `v1` Node: its labels and the addresses that pods and clients see it by.

use super::reader::{Field, Unreadable};
use super::{Lowered, labels, tunnel};
use crate::model::{Node, Reading};
use crate::store::ObjectKey;
use std::net::IpAddr;

const LEFT_OUT: &str =
    "this address is not known as the node's; rules that do more than allow nodes like it deny everyone";

pub(super) fn lower(key: &ObjectKey, root: &Field<'_>) -> Lowered {
    let root = root.with("what was known of the node goes on to hold");
    match (labels::of(&root), addresses(&root), tunnel::addresses(&root)) {
        (Ok(labels), Ok((addresses, reading)), Ok(tunnels)) => {
            Lowered::Node(Node { name: key.name.clone(), labels, addresses, reading, tunnels })
        }
        _ => Lowered::Unreadable,
    }
}

/// `status.addresses`, names left out, and whether all of them could be read.
fn addresses(root: &Field<'_>) -> Result<(Vec<IpAddr>, Reading), Unreadable> {
    let (mut addresses, mut reading) = (Vec::new(), Reading::Whole);
    let Some(list) = root.find("status").and_then(|status| status.find("addresses")) else {
        return Ok((addresses, reading));
    };
    for item in list.list()? {
        let kind = item.at("type").text()?;
        if !matches!(kind, "InternalIP" | "ExternalIP") {
            continue;
        }
        let field = item.at("address").with(LEFT_OUT);
        match field.text()?.parse::<IpAddr>().map(|address| address.to_canonical()) {
            Ok(address) if addresses.contains(&address) => {}
            Ok(address) => addresses.push(address),
            Err(_) => {
                field.bad("must be an IP address");
                reading = Reading::Partial;
            }
        }
    }
    Ok((addresses, reading))
}
