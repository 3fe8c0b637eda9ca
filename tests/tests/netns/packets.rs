//! Packets as real devices make and cut them: tags, fragments, offloaded segments, protocols that no socket here speaks.

use reeve_tests::frames::{Ends, SCTP, Tap, is_to_port};
use reeve_tests::lab::{Mode, Netns, Pod};
use reeve_tests::stage::counts::established_frames;
use reeve_tests::stage::{RECORD_PATIENCE, Stage, shop};
use reeve_tests::traffic::PATIENCE;
use serde_json::{Value, json};
use std::io::{self, ErrorKind, Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpStream, UdpSocket};

fn between(stage: &Stage, from: &Pod, to: &Pod) -> Ends {
    let next_hop = if stage.node.mode() == Mode::Bridged { to.mac() } else { from.gateway_mac() };
    Ends {
        source_mac: from.mac().expect("a hardware address"),
        destination_mac: next_hop.expect("a next hop"),
        source: from.v4(),
        destination: to.v4(),
    }
}

fn tagged(frame: &[u8], tag: [u8; 2]) -> Vec<u8> {
    [&frame[..12], &[0x81, 0], &tag, &frame[12..]].concat()
}

/// Frames in VLANs go nowhere, the last one, without a tag, is heard first.
#[track_caller]
fn check_tagged(stage: &mut Stage, mouth: &Tap, ends: &Ends, hearer: &Pod, leaves: bool) {
    let mut ear = Tap::open(hearer.netns(), "eth0").expect("an ear");
    let dropped = |stage: &mut Stage| {
        stage.settled(); // looks anew
        stage.agent().metric("reeve_datapath_packets_total", &[("state", "not_ip")]).expect("metrics")
    };
    let before = dropped(stage);
    // A VLAN, a priority tag, which many receivers take off, and both.
    let frame = ends.udp(40_001, 53, b"tagged");
    for tags in [vec![[0, 5]], vec![[0xe0, 0]], vec![[0, 5], [0, 6]]] {
        let sent = mouth.send(&tags.iter().fold(frame.clone(), |frame, tag| tagged(&frame, *tag)));
        // The device itself says that a frame on its way out was dropped; one that a pod sends is dropped behind it.
        assert_eq!(sent.is_ok(), leaves, "{tags:?}");
    }
    mouth.send(&ends.udp(40_002, 53, b"plain")).expect("sent");
    let heard = ear.capture(RECORD_PATIENCE, |frame| is_to_port(frame, 53)).expect("an ear").expect("a frame");
    assert!(heard.ends_with(b"plain"), "{heard:02x?}");
    let counted = dropped(stage) - before;
    assert!((counted - 3.0).abs() < 0.5, "all three are counted: {counted}");
}

#[test]
fn tagged_frames_of_a_pod_go_nowhere() {
    if crate::skipped() {
        return;
    }
    // A bridge passes tagged frames on as they are.
    let (mut stage, web, client, _) = shop("p-tag-from", Mode::Bridged);
    let ends = between(&stage, &client, &web);
    let mouth = Tap::open(client.netns(), "eth0").expect("a mouth");
    check_tagged(&mut stage, &mouth, &ends, &web, true);
}

#[test]
fn tagged_frames_to_a_pod_go_nowhere() {
    if crate::skipped() {
        return;
    }
    let (mut stage, web, _, _) = shop("p-tag-to", Mode::Routed);
    let ends = Ends {
        source_mac: web.gateway_mac().expect("a gateway"),
        destination_mac: web.mac().expect("a hardware address"),
        source: stage.node.v4(),
        destination: web.v4(),
    };
    let mouth = Tap::open(stage.node.netns(), web.host_side()).expect("a mouth");
    check_tagged(&mut stage, &mouth, &ends, &web, false);
}

/// Sends a datagram that no frame holds and waits for its echo.
fn large_exchange(netns: &Netns, to: SocketAddr) -> io::Result<bool> {
    let any = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = netns.run(|| UdpSocket::bind(any)).expect("a client can enter its namespace")?;
    socket.set_read_timeout(Some(PATIENCE))?;
    let message: Vec<u8> = (0..4_000_u16).flat_map(u16::to_be_bytes).collect();
    socket.send_to(&message, to)?;
    let mut answer = vec![0; 65_536];
    match socket.recv(&mut answer) {
        Ok(length) => Ok(answer[..length] == message),
        Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => Ok(false),
        Err(error) => Err(error),
    }
}

#[track_caller]
fn check_fragmented(name: &str, mode: Mode) {
    let (mut stage, web, client, guest) = shop(name, mode);
    for address in [web.v4(), web.v6()] {
        let to = SocketAddr::new(address, 53);
        let of = |line: &Value, event: &str| {
            line["event"] == event && line["destination"]["ip"] == address.to_string() && line["direction"] == "ingress"
        };
        stage.records().rest().expect("records");
        assert!(large_exchange(client.netns(), to).expect("sockets work"), "all of it comes back from {address}");
        let line = stage.records().wait_for(RECORD_PATIENCE, |line| of(line, "opened")).expect("a record");
        assert!(line["decision"].to_string().contains("web-clients"), "{line}");
        assert!(!large_exchange(guest.netns(), to).expect("sockets work"), "nothing of it reaches {address}");
        let line = stage.records().wait_for(RECORD_PATIENCE, |line| of(line, "denied")).expect("a record");
        assert_eq!((&line["destination"]["port"], &line["protocol"]), (&53.into(), &"UDP".into()), "{line}");
        // The parts behind share the fate of the first: they are no packets of their own to be told.
        let rest = stage.records().rest().expect("records");
        let strange: Vec<_> = rest.iter().filter(|line| line.to_string().contains("unknownFragment")).collect();
        assert!(strange.is_empty(), "{strange:?}");
    }
}

#[test]
fn datagrams_in_fragments_are_judged_by_their_ports_between_routed_pods() {
    if !crate::skipped() {
        check_fragmented("p-frag-routed", Mode::Routed);
    }
}

#[test]
fn datagrams_in_fragments_are_judged_by_their_ports_between_bridged_pods() {
    if !crate::skipped() {
        check_fragmented("p-frag-bridged", Mode::Bridged);
    }
}

#[test]
fn ports_of_sctp_count_though_its_checksum_does_not() {
    if crate::skipped() {
        return;
    }
    let mut stage = Stage::new("p-sctp", Mode::Routed);
    let web = stage.pod("web", &[("app", "web")]);
    let client = stage.pod("client", &[]);
    stage.policy(
        "signalling",
        &json!({ "podSelector": { "matchLabels": { "app": "web" } },
                 "ingress": [{ "ports": [{ "protocol": "SCTP", "port": 2905 }] }] }),
    );
    stage.start();
    let mut ear = Tap::open(web.netns(), "eth0").expect("an ear");
    let mouth = Tap::open(client.netns(), "eth0").expect("a mouth");
    let ends = between(&stage, &client, &web);
    let packet = |port: u16| {
        // Source port 7, a verification tag, a checksum that is wrong, an INIT chunk's header.
        let header = [&[0, 7][..], &port.to_be_bytes(), &[0, 0, 0, 1], &[0xba, 0xad, 0xba, 0xad], &[1, 0, 0, 4]];
        ends.other(SCTP, &header.concat())
    };
    stage.records().rest().expect("records");
    for port in [2_904, 2_905] {
        mouth.send(&packet(port)).expect("sent");
    }
    let heard = ear.capture(RECORD_PATIENCE, |frame| frame.get(23) == Some(&SCTP)).expect("an ear").expect("a frame");
    assert_eq!(heard[36..38], 2_905_u16.to_be_bytes(), "the first to arrive is the one that is allowed");
    for (port, event) in [(2_904, "denied"), (2_905, "opened")] {
        let told = |line: &Value| line["event"] == event && line["destination"]["port"] == port;
        let ingress = |line: &Value| told(line) && line["direction"] == "ingress";
        let line = stage.agent().records().wait_for(RECORD_PATIENCE, ingress).expect("a record");
        assert_eq!(line["protocol"], "SCTP", "{line}");
        assert!(line["decision"].to_string().contains("signalling"), "{line}");
    }
}

/// Sends so much and takes it back.
fn echoed(netns: &Netns, to: IpAddr, bytes: usize) -> io::Result<TcpStream> {
    let stream = netns.run(|| TcpStream::connect((to, 8080))).expect("a client can enter its namespace")?;
    stream.set_read_timeout(Some(RECORD_PATIENCE))?;
    stream.set_write_timeout(Some(RECORD_PATIENCE))?;
    let mut writer = stream.try_clone()?;
    let sender = std::thread::spawn(move || writer.write_all(&vec![0xab; bytes]));
    io::copy(&mut (&stream).take(u64::try_from(bytes).expect("small")), &mut io::sink())?;
    sender.join().expect("the sender does not panic")?;
    Ok(stream)
}

#[test]
fn segments_that_the_sender_offloads_are_counted_one_by_one() {
    const BYTES: usize = 1 << 20;
    if crate::skipped() {
        return;
    }
    let (mut stage, web, client, _) = shop("p-gso", Mode::Routed);
    let before = established_frames(&stage.node);
    let mut live = echoed(client.netns(), web.v4(), BYTES).expect("an echo");
    let runs = f64::from(u32::try_from(established_frames(&stage.node) - before).expect("small"));
    let port = live.local_addr().expect("an address").port();
    client.set_labels(&[]).expect("relabelled");
    stage.settled();
    live.write_all(b"one more").expect("the socket takes it");
    let cut = |line: &Value| line["event"] == "rejudged" && line["source"]["port"] == port;
    let line = stage.records().wait_for(RECORD_PATIENCE, cut).expect("a record");
    let count = |what: &str, way: &str| line[what][way].as_f64().expect("a number");
    let payload = f64::from(u32::try_from(BYTES).expect("small"));
    // A frame holds at most 1,448 bytes of the payload.
    assert!(count("packets", "forward") >= payload / 1_448.0, "{line}");
    assert!(count("packets", "back") >= payload / 1_448.0, "{line}");
    assert!(count("bytes", "forward") >= payload && count("bytes", "back") >= payload, "{line}");
    // Each end judges both ways; had nothing been offloaded, each packet would have been a run.
    let packets = 2.0 * (count("packets", "forward") + count("packets", "back"));
    assert!(runs < packets / 2.0, "{runs} runs for {packets} packets: {line}");
}
