//! Packets of every shape through the programs in the kernel: nothing unreadable passes, nothing readable is misread.

use super::world::{self, POD, REMOTE, WORLD};
use super::{ALLOW_IN, ALLOW_OUT, CLIENT, DENY_IN, FAMILIES, HOST, closed};
use reeve_abi::config::Config;
use reeve_abi::decision;
use reeve_abi::event::{EVENT_DENIED, EVENT_OPENED};
use reeve_abi::stats;
use reeve_packet::env::Hook;
use reeve_tests::frames::reading::{Ip, Part, Reading, Upper, read};
use reeve_tests::frames::{Ends, random};
use reeve_tests::kernel::Action::{self, Continue, Drop};
use reeve_tests::kernel::Held;
use std::collections::BTreeMap;
use std::net::IpAddr;

const MALFORMED: Option<(u8, reeve_abi::ids::DecisionId)> = Some((EVENT_DENIED, decision::MALFORMED_PACKET));

fn number(name: &str, otherwise: u64) -> u64 {
    let given = std::env::var(name);
    given.map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
}

/// The frame with bytes replaced from `at` on.
fn patched(frame: &[u8], at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + bytes.len()].copy_from_slice(bytes);
    frame
}

/// An IP packet of any protocol number, extension headers included.
fn ip(ends: &Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    // 253 is for experiments: the builder would look for the extension headers of others.
    patched(&ends.other(253, payload), if ends.source.is_ipv4() { 23 } else { 20 }, &[protocol])
}

/// What becomes of a frame that every policy lets through, by its reading.
#[derive(Debug, PartialEq)]
enum Fate {
    Opened {
        protocol: u8,
        port: u16,
    },
    Refused(reeve_abi::ids::DecisionId),
    /// Without a record.
    Unrecorded(Action),
}

fn fate_of(reading: Result<Reading, &str>, pod: [IpAddr; 2], hook: Hook) -> Fate {
    let ip = match reading {
        Err(_) => return Fate::Refused(decision::MALFORMED_PACKET),
        Ok(Reading::NotIp) => return Fate::Unrecorded(Drop),
        // The generator's ARP packets speak for their senders; some are changed behind what ARP says.
        Ok(Reading::Arp) => return Fate::Unrecorded(Continue),
        Ok(Reading::Ip(ip)) => ip,
    };
    let from_pod = hook == Hook::FromPod;
    if let Some(fate) = discovered(&ip, from_pod) {
        return fate;
    }
    if from_pod && !pod.contains(&ip.source) {
        return Fate::Refused(decision::SPOOFED_SOURCE);
    }
    if matches!(ip.part, Part::Later(_)) {
        return Fate::Refused(decision::UNKNOWN_FRAGMENT);
    }
    let port = match ip.upper {
        Upper::Ports(_, to) => to,
        Upper::Icmp(kind, code) => u16::from_be_bytes([kind, code]),
        Upper::Other => 0,
    };
    Fate::Opened { protocol: ip.protocol, port }
}

/// What is a neighbour's or router's message, and so not for policy.
fn discovered(ip: &Ip, from_pod: bool) -> Option<Fate> {
    let Upper::Icmp(kind, _) = ip.upper else { return None };
    let forged = Some(Fate::Refused(decision::FORGED_NEIGHBOUR));
    if ip.source.is_ipv4() {
        return if from_pod && matches!(kind, 5 | 9) { forged } else { None };
    }
    if !matches!(kind, 133..=137) || ip.hop_limit != 255 {
        return None;
    }
    // The generator's messages have no whole options and no honest target.
    if ip.part == Part::First || from_pod { forged } else { Some(Fate::Unrecorded(Continue)) }
}

/// `REEVE_FRAMES` is how many (default 10,000 at each hook), `REEVE_SEED` where the random numbers start (default 1).
#[test]
fn random_frames_get_the_fate_that_their_reading_asks_for() {
    let Some(mut world) = closed() else { return };
    let (count, seed) = (number("REEVE_FRAMES", 10_000), number("REEVE_SEED", 1));
    println!("{count} frames at each hook, REEVE_SEED={seed}");
    world.select(0, 0).unwrap();
    world.kernel.config().put(&0, &Config { deny_report_ns: 0, ..Config::DEFAULT }).unwrap();
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut told: BTreeMap<String, u64> = BTreeMap::new();
    for nth in 0..count * 2 {
        let (hook, v6) = (if nth % 2 == 0 { Hook::ToPod } else { Hook::FromPod }, rng.bool());
        let ends = if hook == Hook::ToPod { WORLD.to(POD, v6) } else { POD.to(WORLD, v6) };
        let mut shaped = random::frame(&ends, &mut rng);
        if rng.u8(..8) == 0 && v6 && shaped.frame.len() > 21 {
            shaped.frame[21] = 255;
        }
        let reading = read(&shaped.frame);
        // A test run wants the IP header whole, and reads what the Ethernet header says to know of which kind.
        let least = match shaped.frame.get(12..14) {
            Some([8, 0]) => 34,
            Some([0x86, 0xdd]) => 54,
            _ => 15,
        };
        if shaped.frame.len() < least {
            continue;
        }
        let want = fate_of(reading, [POD.ip(false), POD.ip(true)], hook);
        let by = if hook == Hook::ToPod { world::UPLINK } else { world::POD_DEVICE };
        let outcome = world.kernel.run(hook, &shaped.frame, world::POD_DEVICE, by).unwrap();
        let got = match (&outcome.events[..], outcome.action) {
            ([], action) => Fate::Unrecorded(action),
            ([event], Continue) if event.kind == EVENT_OPENED => {
                Fate::Opened { protocol: event.protocol, port: u16::try_from(event.port).unwrap() }
            }
            ([event], Drop) if event.kind == EVENT_DENIED => Fate::Refused(event.decision),
            (events, action) => panic!("{action:?} with {events:#?}"),
        };
        // What ARP and solicitations say inside is for tests of their own: they may be forged or not.
        let inside = match reading {
            Ok(Reading::Arp) => got == Fate::Refused(decision::FORGED_NEIGHBOUR),
            Ok(Reading::Ip(ip)) => {
                matches!(ip.upper, Upper::Icmp(135, _))
                    && ip.source == POD.ip(true)
                    && matches!(got, Fate::Opened { .. })
            }
            _ => false,
        };
        assert!(
            got == want || inside,
            "REEVE_SEED={seed}, frame {nth} at {hook:?}: {shaped:02x?}\n{reading:?}\n{want:?}\n{outcome:?}"
        );
        *told
            .entry(match &got {
                Fate::Opened { protocol, .. } => format!("opened, protocol {protocol}"),
                other => format!("{other:?}"),
            })
            .or_default() += 1;
        world.kernel.flows().clear().unwrap();
        world.kernel.fragments().clear().unwrap();
        if nth % 512 == 0 {
            world.kernel.forget().unwrap();
        }
    }
    println!("{told:#?}");
    assert!(told.len() > 10, "{told:#?}");
}

#[test]
fn ports_behind_extension_headers_and_options_are_the_ones_judged() {
    let Some(mut world) = closed() else { return };
    world.select(0, 0).unwrap();
    let udp = REMOTE.to(POD, true).udp(40_000, 53, b"question")[54..].to_vec();
    let chain = [&[60, 0, 1, 4, 0, 0, 0, 0][..], &[43, 1], &[0; 14], &[51, 0], &[0; 6], &[17, 1], &[0; 10], &udp];
    let ends = REMOTE.to(POD, true);
    let behind_six = ip(&ends, 0, &chain.concat());
    let ends = REMOTE.to(POD, false);
    let behind_options = patched(&ip(&ends, 17, &[&[148, 4, 0, 0][..], &udp].concat()), 14, &[0x46]);
    for frame in [behind_six, behind_options] {
        let event = world.pod_gets(&frame).events[0];
        assert_eq!((event.kind, event.protocol, event.port), (EVENT_OPENED, 17, 53));
        assert_eq!(event.ports, world::ports(53, 40_000));
    }
}

#[test]
fn a_packet_on_its_way_elsewhere_is_malformed() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    let udp = POD.to(REMOTE, true).udp(40_000, 53, b"")[54..].to_vec();
    for (left, action, told) in [(1, Drop, MALFORMED), (0, Continue, Some((EVENT_OPENED, ALLOW_OUT)))] {
        let route = [&[17, 2, 4, left][..], &[0; 20], &udp].concat();
        world.check_from_pod(&ip(&POD.to(REMOTE, true), 43, &route), action, told);
    }
    world.kernel.forget().unwrap();
    let ends = POD.to(REMOTE, false);
    for (kind, action, told) in [(131, Drop, MALFORMED), (7, Continue, Some((EVENT_OPENED, ALLOW_OUT)))] {
        let options = [&[kind, 7, 4, 0, 0, 0, 0, 0][..], &udp].concat();
        world.check_from_pod(&patched(&ip(&ends, 17, &options), 14, &[0x47]), action, told);
    }
}

#[test]
fn a_fragment_that_reaches_into_the_first_is_malformed() {
    let Some(mut world) = closed() else { return };
    for v6 in FAMILIES {
        let [first, later] = world::fragments(CLIENT.to(POD, v6), 40_000, 53);
        world.check_to_pod(&first, Continue, Some((EVENT_OPENED, ALLOW_IN)));
        // The first one again, longer: what followed it now lies inside of it.
        let whole = CLIENT.to(POD, v6).udp(40_000, 53, b"sixteen bytes :)");
        let longer = if v6 {
            let header = &first[54..62];
            ip(&CLIENT.to(POD, v6), 44, &[header, &whole[54..70]].concat())
        } else {
            let frame = ip(&CLIENT.to(POD, v6), 17, &whole[34..50]);
            patched(&frame, 18, &first[18..22])
        };
        world.check_to_pod(&longer, Continue, None);
        world.check_to_pod(&later, Drop, MALFORMED);
        world.check_to_pod(&first, Continue, None);
        world.check_to_pod(&later, Continue, None);
        world.kernel.forget().unwrap();
    }
}

#[test]
fn what_only_looks_like_discovery_is_judged_and_what_is_passes() {
    let Some(mut world) = closed() else { return };
    let hops = |frame: Vec<u8>, limit: u8| patched(&frame, 21, &[limit]);
    let to = |ip: &str| Ends { destination: ip.parse().unwrap(), ..POD.to(WORLD, true) };
    let report = |ends: &Ends| ends.other(58, &[&[143, 0][..], &[0; 22]].concat());
    let from_link = Ends { source: "fe80::2".parse().unwrap(), ..to("ff02::16") };
    world.check_from_pod(&hops(report(&from_link), 1), Continue, None);
    let denied = Some((EVENT_DENIED, world::DENY_OUT));
    world.check_from_pod(&hops(report(&to("2001:db8::9")), 64), Drop, denied);
    world.kernel.forget().unwrap();
    let target = |kind: u8, address: IpAddr| {
        let IpAddr::V6(address) = address else { panic!("discovery is of IPv6") };
        [&[kind, 0, 0, 0, 0, 0, 0, 0][..], &address.octets()].concat()
    };
    let solicit = |ends: &Ends, about| hops(ends.other(58, &target(135, about)), 255);
    world.check_from_pod(&solicit(&POD.to(HOST, true), HOST.ip(true)), Continue, None);
    world.check_from_pod(&solicit(&POD.to(WORLD, true), WORLD.ip(true)), Drop, denied);
    world.kernel.forget().unwrap();
    let forged = Some((EVENT_DENIED, decision::FORGED_NEIGHBOUR));
    let unspecified = Ends { source: "::".parse().unwrap(), ..to("ff02::1:ff00:3") };
    world.check_from_pod(&solicit(&unspecified, CLIENT.ip(true)), Drop, forged);
    world.check_from_pod(&solicit(&unspecified, POD.ip(true)), Continue, None);
    let redirect = |kind: u8| POD.to(CLIENT, false).other(1, &[kind, 1, 0, 0, 10, 0, 0, 2]);
    world.allow_out(CLIENT);
    world.check_from_pod(&redirect(5), Drop, forged);
    world.check_from_pod(&redirect(3), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
}

#[test]
fn an_offloaded_packet_counts_as_those_that_it_is_cut_into() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    for v6 in FAMILIES {
        let mut frame = POD.to(REMOTE, v6).tcp(40_000, 443, ".", 1, 1);
        frame.resize(frame.len() + 3_000, 0xab);
        let bytes = u64::try_from(frame.len() - 14).unwrap();
        let (at, length) = if v6 { (18, bytes - 40) } else { (16, bytes) };
        let frame = patched(&frame, at, &u16::try_from(length).unwrap().to_be_bytes());
        let held = Held::Offloaded { segments: 3, size: 1_000 };
        let run = |world: &mut world::World, frame: &[u8], held| {
            world.kernel.run_held(Hook::FromPod, frame, world::POD_DEVICE, world::POD_DEVICE, held).unwrap()
        };
        assert_eq!(run(&mut world, &frame, held).action, Continue);
        // More than 64 KiB do not fit the length field, which then says 0.
        assert_eq!(run(&mut world, &patched(&frame, at, &[0, 0]), held).action, Continue);
        let flow = world.kernel.flows().all().unwrap()[0].1;
        assert_eq!((flow.packets, flow.bytes), ([6, 0], [2 * bytes, 0]));
        let outcome = run(&mut world, &patched(&frame, at, &[0, 0]), Held::Whole);
        assert_eq!((outcome.action, outcome.events[0].decision), (Drop, decision::MALFORMED_PACKET));
        world.kernel.forget().unwrap();
    }
}

#[test]
fn the_longest_and_the_shortest_packets_are_read() {
    let Some(mut world) = closed() else { return };
    world.select(0, 0).unwrap();
    let empty = ip(&POD.to(REMOTE, true), 59, &[]);
    world.check_from_pod(&empty, Continue, Some((EVENT_OPENED, decision::NO_POLICY_SELECTS)));
    for v6 in FAMILIES {
        let bare = ip(&POD.to(REMOTE, v6), 47, &[]);
        world.check_from_pod(&bare, Continue, Some((EVENT_OPENED, decision::NO_POLICY_SELECTS)));
        let long = POD.to(REMOTE, v6).udp(1, 2, &[0xab; 3_000]);
        world.check_from_pod(&long, Continue, Some((EVENT_OPENED, decision::NO_POLICY_SELECTS)));
    }
    // Nothing behind the Ethernet header.
    assert_eq!(world.kernel.stat(stats::MALFORMED).unwrap(), 0);
    let only = &POD.to(REMOTE, false).udp(1, 2, b"")[..12];
    let frame = [only, &[0x88, 0xcc, 0]].concat();
    world.check_from_pod(&frame, Drop, None);
    assert_eq!(world.kernel.stat(stats::NOT_IP).unwrap(), 1);
}

#[test]
fn a_syn_with_fin_from_the_other_side_is_judged_by_itself() {
    let Some(mut world) = closed() else { return };
    world.allow_out(REMOTE);
    for v6 in FAMILIES {
        let out = POD.to(REMOTE, v6);
        world.check_from_pod(&out.tcp(40_000, 443, "S", 1, 0), Continue, Some((EVENT_OPENED, ALLOW_OUT)));
        let back = REMOTE.to(POD, v6);
        world.check_to_pod(&back.tcp(443, 40_000, "SF", 1, 0), Drop, Some((EVENT_DENIED, DENY_IN)));
        world.check_to_pod(&back.tcp(443, 40_000, "F.", 1, 2), Continue, None);
    }
}

#[test]
fn what_the_ring_buffer_has_no_room_for_is_counted_and_the_verdict_stands() {
    const RUNS: u32 = 20_000;
    let Some(mut world) = closed() else { return };
    world.kernel.config().put(&0, &Config { deny_report_ns: 0, ..Config::DEFAULT }).unwrap();
    let frame = REMOTE.to(POD, false).udp(1, 2, b"four");
    world.kernel.measure(Hook::ToPod, &frame, world::POD_DEVICE, world::UPLINK, RUNS).unwrap();
    let outcome = world.kernel.run(Hook::ToPod, &frame, world::POD_DEVICE, world::UPLINK).unwrap();
    assert_eq!(outcome.action, Drop);
    let lost = world.kernel.stat(stats::EVENTS_LOST).unwrap();
    assert!(lost > 0, "{} records found room", outcome.events.len());
    assert_eq!(u64::try_from(outcome.events.len()).unwrap() + lost, u64::from(RUNS) + 1, "each is told or counted");
    // Exact all the same: who denied whom, and how often.
    let edges = world.kernel.edges().all().unwrap();
    assert_eq!((edges.len(), edges[0].0.decision, edges[0].1.packets), (1, DENY_IN, [u64::from(RUNS) + 1, 0]));
    // Read since: there is room again.
    world.check_to_pod(&frame, Drop, Some((EVENT_DENIED, DENY_IN)));
}
