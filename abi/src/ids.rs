//! Numbers that stand for things: each is derived from the content it names, so the same thing has the same number on
//! every node and after every restart, and a number never comes to mean something else.

use bytemuck::{Pod, Zeroable};

macro_rules! id {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[repr(transparent)]
        #[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Pod, Zeroable)]
        pub struct $name(pub u64);
        impl core::fmt::Display for $name {
            fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
                write!(f, "{:016x}", self.0)
            }
        }
    };
}

id!(
    /// One pod, by UID. 0: not a pod.
    WorkloadId
);
id!(
    /// The labels of a workload that some selector reads, with its namespace. Values below [`FIRST_HASHED`] are reserved.
    IdentityId
);
id!(
    /// Verdict, decider and path, interned. Values below [`FIRST_HASHED`] are the datapath's own (`crate::decision`).
    DecisionId
);
id!(
    /// The rules that apply to an endpoint in one direction and address family. 0: no policy selects it.
    PolicyNumber
);
id!(
    /// Identities that every local policy treats alike. 0: identities that no rule's peer matches.
    ClassId
);
id!(
    /// A port table. 0: none.
    TableId
);
id!(
    /// The engine's change counter; rises with each change set, also across restarts.
    Revision
);

/// Content-derived numbers begin here; what is below is reserved for fixed meanings.
pub const FIRST_HASHED: u64 = 1 << 16;

/// An address that no policy names and no known pod or node owns.
pub const IDENTITY_WORLD: IdentityId = IdentityId(1);
/// A process of this node, in its own network namespace.
pub const IDENTITY_HOST: IdentityId = IdentityId(2);
/// An address that several pods claim: nobody's, closed for every selected subject.
pub const IDENTITY_CONTESTED: IdentityId = IdentityId(3);
/// Somebody whom this node's own address stands for, and nobody noted who: matched by CIDR rules only.
pub const IDENTITY_MASQUERADED: IdentityId = IdentityId(4);
