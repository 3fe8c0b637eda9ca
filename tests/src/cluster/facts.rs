//! What the API server has, as the oracle reads it: the judge of what agents make of it.

use anyhow::Context;
use reeve_policy::store::{Change, Object, Store};
use serde_json::Value;

use super::Cluster;
use crate::lab::Node;

/// Kinds that facts are made of.
const KINDS: &str = "namespaces,nodes,pods,services,endpointslices,networkpolicies";

impl Cluster {
    /// The facts of now, as they are seen on this node.
    pub fn facts(&self, node: &Node) -> anyhow::Result<Store> {
        self.facts_with(node, &[])
    }

    /// The same, with kinds of policies that are defined.
    pub fn facts_with(&self, node: &Node, defined: &[&str]) -> anyhow::Result<Store> {
        let mut store = Store::new(node.name());
        let kinds = [&[KINDS], defined].concat().join(",");
        let list = self.get(&[&kinds, "--all-namespaces"])?;
        for value in list["items"].as_array().context("a list has items")? {
            store.apply(Change::Apply(fact(value.clone())));
        }
        Ok(store)
    }
}

/// An object of the API server's.
pub fn fact(value: Value) -> Object {
    Object { value, origin: "the API server".to_owned() }
}
