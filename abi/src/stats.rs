//! Counters that the programs keep per CPU.

macro_rules! stats {
    ($($(#[$doc:meta])* $name:ident = $value:expr, $label:expr;)+) => {
        $($(#[$doc])* pub const $name: u32 = $value;)+
        /// Every counter with its label value in metrics.
        pub const ALL: &[(u32, &str)] = &[$(($name, $label)),+];
    };
}

stats! {
    /// Packets allowed from the flow's entry (hot path).
    ALLOWED_ESTABLISHED = 0, "allowed_established";
    /// Packets allowed by a new judgement.
    ALLOWED_JUDGED = 1, "allowed_judged";
    /// Packets denied by a new judgement.
    DENIED_JUDGED = 2, "denied_judged";
    /// Packets denied from the denied tuple's entry.
    DENIED_REPEATED = 3, "denied_repeated";
    /// Packets whose interface has no endpoint (let through: not ours).
    NO_ENDPOINT = 4, "no_endpoint";
    /// ARP and neighbour discovery let through.
    NEIGHBOUR = 5, "neighbour";
    /// Live flows judged again after a change.
    REJUDGED = 6, "rejudged";
    /// Events the ring buffer had no room for.
    EVENTS_LOST = 7, "events_lost";
    /// Flow entries that could not be written.
    FLOWS_LOST = 8, "flows_lost";
    /// Denied tuples that could not be written.
    DENIED_LOST = 9, "denied_lost";
    /// Counts that found no row at all: neither of their own nor a reserved one.
    EDGES_LOST = 10, "edges_lost";
    /// Torn reads of an endpoint that a retry mended.
    ENDPOINT_RETRIES = 11, "endpoint_retries";
    /// Packets denied because an endpoint stayed unreadable or a row was missing.
    INCONSISTENT = 12, "inconsistent";
    /// Malformed packets dropped.
    MALFORMED = 13, "malformed";
    /// Non-IP packets dropped.
    NOT_IP = 14, "not_ip";
    /// Forged neighbour discovery, ARP, router advertisements and redirects dropped.
    FORGED_NEIGHBOUR = 15, "forged_neighbour";
    /// Fragments whose ports could not be remembered.
    FRAGMENTS_LOST = 16, "fragments_lost";
    /// ICMP errors let through because they quote a live flow.
    RELATED_ICMP = 17, "related_icmp";
    /// Packets of pods sent on to be judged where their destination is known.
    PENDING = 18, "pending";
    /// Packets denied because what their mark refers to is gone.
    MARK_LOST = 19, "mark_lost";
    /// Packets to Services from outside whose client was noted.
    CLIENT_NOTED = 20, "client_noted";
    /// Foreign marks taken off packets that entered the node.
    MARK_CLEARED = 21, "mark_cleared";
    /// Counts that went to a reserved row, as `EDGES` had no room.
    EDGES_OVERFLOWED = 22, "edges_overflowed";
    /// Flows let through because the other orientation is allowed while programs of two generations are attached.
    EITHER_ORIENTATION = 23, "either_orientation";
    /// Flows denied because their endpoint had used up its share of the flow table.
    FLOW_BUDGET = 24, "flow_budget";
}

/// Number of entries of map `STATS`.
pub const COUNT: u32 = 25;
