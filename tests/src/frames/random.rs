//! Frames as nobody would send them by accident: whole ones of every shape, and what is left when some bytes change.

use super::Ends;
use fastrand::Rng;

/// A frame and the name of the shape that it began as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Shaped {
    /// The shape before anything was changed.
    pub shape: &'static str,
    /// How many changes were made.
    pub changes: u32,
    /// The bytes.
    pub frame: Vec<u8>,
}

/// Numbers that mean something where a protocol or next header stands, and some that do not.
const PROTOCOLS: [u8; 18] = [0, 1, 2, 4, 6, 17, 33, 43, 44, 47, 50, 51, 58, 59, 60, 132, 136, 253];
const ETHERTYPES: [[u8; 2]; 7] = [[8, 0], [0x86, 0xdd], [8, 6], [0x81, 0], [0x88, 0xa8], [0x88, 0x47], [0, 46]];

/// A random frame between two ends: a third of them whole, the others changed in up to three places.
pub fn frame(ends: &Ends, rng: &mut Rng) -> Shaped {
    let (shape, mut frame) = whole(ends, rng);
    let changes = if rng.u8(..3) == 0 { 0 } else { rng.u32(1..=3) };
    for _ in 0..changes {
        change(&mut frame, rng);
    }
    Shaped { shape, changes, frame }
}

/// A frame that says what it is.
fn whole(ends: &Ends, rng: &mut Rng) -> (&'static str, Vec<u8>) {
    if rng.u8(..20) == 0 && ends.source.is_ipv4() {
        return ("arp", arp(ends));
    }
    let (name, protocol, payload) = upper(ends, rng);
    if ends.source.is_ipv4() {
        match rng.u8(..6) {
            0 => ("ipv4 options", with_options(ends, protocol, &payload, rng)),
            1 => ("ipv4 fragment", ipv4_fragment(ends, protocol, &payload, rng)),
            _ => (name, ip(ends, protocol, &payload)),
        }
    } else {
        let headers = if rng.bool() { 0 } else { rng.usize(1..=9) };
        if headers == 0 {
            return (name, ip(ends, protocol, &payload));
        }
        let (first, chain) = chain(headers, protocol, &payload, rng);
        ("ipv6 extension headers", ip(ends, first, &chain))
    }
}

/// A protocol with a header and some payload.
fn upper(ends: &Ends, rng: &mut Rng) -> (&'static str, u8, Vec<u8>) {
    let strip = |frame: Vec<u8>| frame[if ends.source.is_ipv4() { 34 } else { 54 }..].to_vec();
    let icmp = if ends.source.is_ipv4() { 1 } else { 58 };
    let payload = vec![0xab; rng.usize(..40)];
    let (from, to) = (rng.u16(..), rng.u16(..));
    match rng.u8(..8) {
        0 => ("udp", 17, strip(ends.udp(from, to, &payload))),
        1 => {
            let flags: String = "SFRP.".chars().filter(|_| rng.bool()).collect();
            ("tcp", 6, strip(ends.tcp(from, to, &flags, rng.u32(..), rng.u32(..))))
        }
        2 => ("echo request", icmp, strip(ends.echo_request(from, to))),
        3 => {
            let quoted = ends.udp(from, to, &payload);
            let message = [&[rng.u8(..), rng.u8(..16)][..], &[0; 6], &quoted[14..]].concat();
            ("icmp", icmp, message)
        }
        4 => ("sctp", 132, [&from.to_be_bytes()[..], &to.to_be_bytes(), &[0; 8], &payload].concat()),
        5 => ("udp-lite", 136, strip(ends.udp(from, to, &payload))),
        6 => ("discovery", icmp, [&[133 + rng.u8(..5), 0, 0, 0, 0, 0, 0, 0][..], &[0xfe; 16]].concat()),
        _ => ("other protocol", *rng.choice(&PROTOCOLS).expect("it is not empty"), payload),
    }
}

fn ip(ends: &Ends, protocol: u8, payload: &[u8]) -> Vec<u8> {
    // 253 is for experiments: the builder would look for the extension headers of others.
    let mut frame = ends.other(253, payload);
    frame[if ends.source.is_ipv4() { 23 } else { 20 }] = protocol;
    frame
}

fn with_options(ends: &Ends, protocol: u8, payload: &[u8], rng: &mut Rng) -> Vec<u8> {
    let words = rng.usize(1..=10);
    let mut options = Vec::new();
    while options.len() < words * 4 {
        let room = words * 4 - options.len();
        let kind = *rng.choice(&[0, 1, 7, 68, 131, 137, 148]).expect("it is not empty");
        if kind < 2 || room < 2 {
            options.push(kind & 1);
            continue;
        }
        let length = rng.usize(2..=room);
        options.extend([kind, u8::try_from(length).expect("at most 40")]);
        options.resize(options.len() + length - 2, 0);
    }
    let mut frame = ip(ends, protocol, &[&options[..], payload].concat());
    frame[14] = 0x45 + u8::try_from(words).expect("at most 10");
    frame
}

fn ipv4_fragment(ends: &Ends, protocol: u8, payload: &[u8], rng: &mut Rng) -> Vec<u8> {
    let mut payload = payload.to_vec();
    if rng.bool() {
        payload.resize(payload.len().next_multiple_of(8), 0);
    }
    let mut frame = ip(ends, protocol, &payload);
    let offset = if rng.bool() { 0 } else { rng.u16(..8_192) };
    frame[18..20].copy_from_slice(&rng.u16(..).to_be_bytes());
    frame[20..22].copy_from_slice(&(offset | u16::from(rng.bool()) << 13 | u16::from(rng.bool()) << 14).to_be_bytes());
    frame
}

/// So many extension headers before a payload, and the number of the first one.
fn chain(headers: usize, protocol: u8, payload: &[u8], rng: &mut Rng) -> (u8, Vec<u8>) {
    let mut bytes = payload.to_vec();
    let mut next = protocol;
    for at in (0..headers).rev() {
        let kind = *rng.choice(&[43, 44, 51, 60, 60, 60]).expect("it is not empty");
        let kind = if at == 0 && rng.bool() { 0 } else { kind };
        let header = match kind {
            44 => {
                bytes.resize(if rng.bool() { bytes.len().next_multiple_of(8) } else { bytes.len() }, 0);
                let offset = if rng.bool() { 0 } else { rng.u16(..8_192) << 3 };
                let field = (offset | u16::from(rng.bool())).to_be_bytes();
                vec![next, 0, field[0], field[1], 0, 0, 0, rng.u8(..)]
            }
            51 => {
                let words = rng.u8(..4);
                let mut header = vec![next, words];
                header.resize((usize::from(words) + 2) * 4, 0);
                header
            }
            _ => {
                let eights = rng.u8(..3);
                let mut header = vec![next, eights, if kind == 43 { 4 } else { 1 }, u8::from(rng.u8(..4) == 0)];
                header.resize((usize::from(eights) + 1) * 8, 0);
                header
            }
        };
        bytes = [header, bytes].concat();
        next = kind;
    }
    (next, bytes)
}

fn arp(ends: &Ends) -> Vec<u8> {
    let mut frame = [&ends.destination_mac[..], &ends.source_mac, &[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]].concat();
    let (std::net::IpAddr::V4(sender), std::net::IpAddr::V4(target)) = (ends.source, ends.destination) else {
        panic!("ARP is of IPv4: {ends:?}")
    };
    frame.extend(ends.source_mac);
    frame.extend(sender.octets());
    frame.extend([0; 6]);
    frame.extend(target.octets());
    frame
}

/// One change: bytes cut off or added, or a field set to what it should not be.
fn change(frame: &mut Vec<u8>, rng: &mut Rng) {
    if frame.len() < 16 {
        return;
    }
    let header = 14..frame.len().min(14 + 60);
    match rng.u8(..8) {
        0 => frame.truncate(rng.usize(14..frame.len())),
        1 => frame.resize(frame.len() + rng.usize(1..40), 0),
        2 => frame[12..14].copy_from_slice(rng.choice(&ETHERTYPES).expect("it is not empty")),
        3 => {
            // A length field a little off.
            let at = if frame[12..14] == [8, 0] { 16 } else { 18 };
            if let Some(field) = frame.get_mut(at..at + 2) {
                let length = u16::from_be_bytes([field[0], field[1]]);
                let length =
                    if rng.u8(..4) == 0 { rng.u16(..32) } else { length.wrapping_add(rng.u16(..5)).wrapping_sub(2) };
                field.copy_from_slice(&length.to_be_bytes());
            }
        }
        4 => {
            let at = if frame[12..14] == [8, 0] { 23 } else { 20 };
            if let Some(field) = frame.get_mut(at) {
                *field = *rng.choice(&PROTOCOLS).expect("it is not empty");
            }
        }
        5 => frame[14] = rng.u8(..),
        6 => frame[rng.usize(header)] ^= 1 << rng.u8(..8),
        _ => {
            let at = rng.usize(header);
            frame[at] = rng.u8(..);
        }
    }
}
