//! The lab: nodes and pods as network namespaces, traffic, packets, generators.
