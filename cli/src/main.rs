//! What a person types: explain, flows, status, endpoints, policy check.

fn main() {}
