//! What packets between two pods of a node cost on their whole way, against the same way without programs and against
//! rule sets that enforce the same.

use super::Sheet;
use super::measure::{Measure, Target};
use super::policies::Policies;
use super::rounds::round;
use super::rules::Rival;
use super::side::{Enforcer, Sides, Tracking};
use super::traffic::{Kind, Line, OneCore, SLICES, WARMING};

/// Policies where nobody else is compared with.
const POLICIES: Policies = Policies(100);
/// Policies that others enforce too.
const COMPARED: [Policies; 3] = [Policies(1), Policies(100), Policies(1_000)];

/// What a side is compared with, and in whose favour a ratio is told.
struct Comparison {
    name: String,
    ours: Enforcer,
    theirs: Enforcer,
}

const NFTABLES: Enforcer = Enforcer::Rules(Rival::Nftables);
const IPTABLES: Enforcer = Enforcer::Rules(Rival::Iptables);

fn plain(kind: Kind) -> [Comparison; 3] {
    let comparison = |name: String, ours| Comparison { name, ours, theirs: Enforcer::Nobody };
    [
        comparison(format!("path/{}", kind.word()), Enforcer::Reeve),
        comparison(format!("path/{}-floor", kind.word()), Enforcer::Empty),
        comparison(format!("path/{}-noise", kind.word()), Enforcer::NobodyAgain),
    ]
}

fn compared(policies: Policies, kind: Kind) -> [Comparison; 6] {
    let name = |what: &str| format!("rivals/{}-{}-{what}", kind.word(), policies.0);
    let to = |what, theirs| Comparison { name: name(what), ours: Enforcer::Reeve, theirs };
    let of = |what, ours| Comparison { name: name(what), ours, theirs: Enforcer::Nobody };
    [
        to("by-nftables", NFTABLES),
        to("by-iptables", IPTABLES),
        of("reeve-by-plain", Enforcer::Reeve),
        of("nftables-by-plain", NFTABLES),
        of("iptables-by-plain", IPTABLES),
        of("noise", Enforcer::NobodyAgain),
    ]
}

fn what(kind: Kind) -> &'static str {
    match kind {
        Kind::UdpSend => "time of send() of a datagram",
        Kind::TcpRequest => "time of a request and its response on a busy core",
        Kind::TcpConnect => "time of connecting, a request, its response and closing",
        Kind::TcpThroughput => "bytes a second of one connection",
        Kind::TcpThroughputNoTso => "bytes a second of one connection without segmentation offload",
    }
}

/// Against the same devices without programs.
pub fn measures() -> Vec<Measure> {
    let target = |kind| match kind {
        Kind::UdpSend => Target::AtMost(1.10),
        Kind::TcpRequest => Target::AtMost(1.05),
        Kind::TcpConnect => Target::AtMost(1.06),
        Kind::TcpThroughput => Target::AtLeast(0.97),
        Kind::TcpThroughputNoTso => Target::AtLeast(0.88),
    };
    let of = |kind| {
        let [ours, floor, noise] = plain(kind);
        let how = format!("{}, pod to pod on one node, by that without programs", what(kind));
        let again = format!("{}, without programs on another such node: what differs is noise", what(kind));
        let empty = format!("{}, with programs that do nothing at the same hooks", what(kind));
        [
            Measure::new(ours.name, "ratio", how).target(target(kind)),
            Measure::new(floor.name, "ratio", empty),
            Measure::new(noise.name, "ratio", again),
        ]
    };
    Kind::ALL.into_iter().flat_map(of).collect()
}

/// Against rules of others, connection tracking and Services everywhere.
pub fn rivals() -> Vec<Measure> {
    let mut all = Vec::new();
    for policies in COMPARED {
        for kind in Kind::ALL {
            for one in compared(policies, kind) {
                let how = format!("{}, {:?} by {:?}, {} policies", what(kind), one.ours, one.theirs, policies.0);
                let measure = Measure::new(one.name, "ratio", how);
                let ahead = if kind.is_throughput() { Target::Above(1.0) } else { Target::Below(1.0) };
                all.push(if one.theirs == Enforcer::Nobody { measure } else { measure.target(ahead) });
            }
        }
    }
    all
}

/// See [`measures`].
pub fn run(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    let enforcers = [Enforcer::Nobody, Enforcer::NobodyAgain, Enforcer::Empty, Enforcer::Reeve];
    let sides = Sides::new("bench", &enforcers, POLICIES, Tracking::None)?;
    for kind in Kind::ALL {
        compare(sheet, &sides, kind, &plain(kind))?;
    }
    Ok(())
}

/// See [`rivals`].
pub fn run_rivals(sheet: &mut Sheet<'_>) -> anyhow::Result<()> {
    for policies in COMPARED {
        let wanted = |kind: &Kind| compared(policies, *kind).iter().any(|one| sheet.wants(&one.name));
        let kinds: Vec<Kind> = Kind::ALL.into_iter().filter(wanted).collect();
        if kinds.is_empty() {
            continue;
        }
        let enforcers = [Enforcer::Nobody, Enforcer::NobodyAgain, Enforcer::Reeve, NFTABLES, IPTABLES];
        let sides = Sides::new("bench-rivals", &enforcers, policies, Tracking::WithServices)?;
        for kind in kinds {
            compare(sheet, &sides, kind, &compared(policies, kind))?;
        }
    }
    Ok(())
}

/// One kind of traffic on all sides in turn.
fn compare(sheet: &mut Sheet<'_>, sides: &Sides, kind: Kind, comparisons: &[Comparison]) -> anyhow::Result<()> {
    if !comparisons.iter().any(|one| sheet.wants(&one.name)) {
        return Ok(());
    }
    let _core = OneCore::last()?;
    let mut ratios = vec![Vec::new(); comparisons.len()];
    for _ in 0..sheet.rounds() {
        // Anew in each round: what a connection came to by chance is not a side's.
        let mut lines = sides.all.iter().map(|side| Line::open(side, kind)).collect::<anyhow::Result<Vec<_>>>()?;
        round(&mut lines, WARMING, Line::slice)?;
        let medians = round(&mut lines, SLICES, Line::slice)?;
        let of = |enforcer| {
            let index = sides.all.iter().position(|side| side.enforcer == enforcer);
            medians[index.expect("every side that is compared is there")]
        };
        for (one, ratios) in comparisons.iter().zip(&mut ratios) {
            let ratio = of(one.ours) / of(one.theirs);
            ratios.push(if kind.is_throughput() { 1.0 / ratio } else { ratio });
        }
    }
    for (one, ratios) in comparisons.iter().zip(ratios) {
        sheet.put(&one.name, ratios);
    }
    Ok(())
}
