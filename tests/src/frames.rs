//! Ethernet frames: built by hand, put on a pod's wire and caught on another one.

pub mod random;
pub mod reading;

use std::io::{self, Read};
use std::mem;
use std::net::IpAddr;
use std::os::fd::AsRawFd;
use std::time::{Duration, Instant};

use anyhow::Context;
use etherparse::{IpNumber, PacketBuilder, PacketBuilderStep, ip_number};
use socket2::{Domain, Protocol, SockAddr, SockAddrStorage, Socket, Type};

use crate::lab::Netns;

/// Hears and speaks on one interface, below everything the kernel would check.
pub struct Tap {
    socket: Socket,
}

impl Tap {
    /// Opens an interface; frames that arrive from now on are kept until they are asked for.
    pub fn open(netns: &Netns, interface: &str) -> anyhow::Result<Self> {
        let socket = netns.run(|| open(interface))?;
        Ok(Self { socket: socket.with_context(|| format!("cannot open {interface} in {}", netns.name()))? })
    }

    /// Puts a frame on the wire.
    pub fn send(&self, frame: &[u8]) -> anyhow::Result<()> {
        let sent = self.socket.send(frame).context("cannot put a frame on the wire")?;
        anyhow::ensure!(sent == frame.len(), "{sent} of {} bytes were sent", frame.len());
        Ok(())
    }

    /// The first frame to arrive that `wanted` accepts; none if there is none until the deadline.
    pub fn capture(&mut self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> anyhow::Result<Option<Vec<u8>>> {
        let deadline = Instant::now() + patience;
        let mut bytes = vec![0; 65_536];
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.socket.set_read_timeout(Some(left))?;
            match self.socket.read(&mut bytes) {
                Ok(length) if wanted(&bytes[..length]) => return Ok(Some(bytes[..length].to_vec())),
                Ok(_) => {}
                Err(error) if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut) => {}
                Err(error) => return Err(error).context("cannot read a frame"),
            }
        }
    }
}

/// The two ends of a frame.
#[derive(Clone, Copy, Debug)]
pub struct Ends {
    /// Hardware address of the sender.
    pub source_mac: [u8; 6],
    /// Hardware address of the next hop.
    pub destination_mac: [u8; 6],
    /// The sender.
    pub source: IpAddr,
    /// The receiver, of the same family.
    pub destination: IpAddr,
}

impl Ends {
    fn ip(&self) -> PacketBuilderStep<etherparse::IpHeaders> {
        let ethernet = PacketBuilder::ethernet2(self.source_mac, self.destination_mac);
        match (self.source, self.destination) {
            (IpAddr::V4(source), IpAddr::V4(destination)) => ethernet.ipv4(source.octets(), destination.octets(), 64),
            (IpAddr::V6(source), IpAddr::V6(destination)) => ethernet.ipv6(source.octets(), destination.octets(), 64),
            _ => panic!("both ends of a frame are of one family: {self:?}"),
        }
    }

    /// A UDP datagram.
    pub fn udp(&self, source_port: u16, destination_port: u16, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().udp(source_port, destination_port).write(&mut frame, payload).expect("a vector takes any frame");
        frame
    }

    /// A TCP segment; the letters of `flags` are those of tcpdump: `S`, `F`, `R`, `P` and `.` for ACK.
    pub fn tcp(
        &self,
        source_port: u16,
        destination_port: u16,
        flags: &str,
        sequence: u32,
        acknowledged: u32,
    ) -> Vec<u8> {
        let mut frame = Vec::new();
        let mut tcp = self.ip().tcp(source_port, destination_port, sequence, 64_240);
        for flag in flags.chars() {
            tcp = match flag {
                'S' => tcp.syn(),
                'F' => tcp.fin(),
                'R' => tcp.rst(),
                'P' => tcp.psh(),
                '.' => tcp.ack(acknowledged),
                _ => panic!("no TCP flag is called {flag}"),
            };
        }
        tcp.write(&mut frame, &[]).expect("a vector takes any frame");
        frame
    }

    /// An ICMP echo request.
    pub fn echo_request(&self, identifier: u16, sequence: u16) -> Vec<u8> {
        let mut frame = Vec::new();
        let written = match self.source {
            IpAddr::V4(_) => self.ip().icmpv4_echo_request(identifier, sequence).write(&mut frame, b"reeve lab"),
            IpAddr::V6(_) => self.ip().icmpv6_echo_request(identifier, sequence).write(&mut frame, b"reeve lab"),
        };
        written.expect("a vector takes any frame");
        frame
    }

    /// Any payload under any protocol number.
    pub fn other(&self, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        self.ip().write(&mut frame, IpNumber(protocol), payload).expect("a vector takes any frame");
        frame
    }
}

/// Whether a frame is TCP or UDP to that port.
pub fn is_to_port(frame: &[u8], port: u16) -> bool {
    let Ok(packet) = etherparse::SlicedPacket::from_ethernet(frame) else { return false };
    match packet.transport {
        Some(etherparse::TransportSlice::Tcp(tcp)) => tcp.destination_port() == port,
        Some(etherparse::TransportSlice::Udp(udp)) => udp.destination_port() == port,
        _ => false,
    }
}

/// The hardware address of an interface of the calling thread's namespace.
pub(crate) fn hardware_address(interface: &str) -> io::Result<[u8; 6]> {
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    let mut request = interface_request(interface)?;
    // SAFETY: SIOCGIFHWADDR reads the name from and writes the address to an `ifreq`, which `request` is.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFHWADDR, &raw mut request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call has filled in this member of the union.
    let bytes = unsafe { request.ifr_ifru.ifru_hwaddr.sa_data };
    Ok(std::array::from_fn(|index| bytes[index].cast_unsigned()))
}

fn interface_request(interface: &str) -> io::Result<libc::ifreq> {
    // SAFETY: an `ifreq` is plain old data, for which zeroes are a value.
    let mut request: libc::ifreq = unsafe { mem::zeroed() };
    if interface.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(interface.bytes()) {
        *to = from.cast_signed();
    }
    Ok(request)
}

fn open(interface: &str) -> io::Result<Socket> {
    let index = rustix::net::netdevice::name_to_index(Socket::new(Domain::UNIX, Type::DGRAM, None)?, interface)?;
    let everything = u16::try_from(libc::ETH_P_ALL).expect("it is 3").to_be();
    // Protocol 0 hears nothing until the socket is bound, so that no frame of another interface gets in.
    let socket = Socket::new(Domain::PACKET, Type::RAW, Some(Protocol::from(0)))?;
    let mut storage = SockAddrStorage::zeroed();
    // SAFETY: the view is of `sockaddr_ll`, which is what the length below and the family say.
    let link = unsafe { storage.view_as::<libc::sockaddr_ll>() };
    link.sll_family = u16::try_from(libc::AF_PACKET).expect("it is 17");
    link.sll_protocol = everything;
    link.sll_ifindex = i32::try_from(index).expect("the kernel counts interfaces in an i32");
    let length = u32::try_from(mem::size_of::<libc::sockaddr_ll>()).expect("it is 20");
    // SAFETY: the storage holds an address of that length.
    socket.bind(&unsafe { SockAddr::new(storage, length) })?;
    ignore_outgoing(&socket)?;
    Ok(socket)
}

/// Without this a tap would hear itself.
fn ignore_outgoing(socket: &Socket) -> io::Result<()> {
    const PACKET_IGNORE_OUTGOING: libc::c_int = 23;
    let one: libc::c_int = 1;
    let length = u32::try_from(mem::size_of_val(&one)).expect("it is 4");
    // SAFETY: the option's value is an int, and its length is given.
    let result = unsafe {
        libc::setsockopt(socket.as_raw_fd(), libc::SOL_PACKET, PACKET_IGNORE_OUTGOING, (&raw const one).cast(), length)
    };
    if result < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// The number of SCTP, for [`Ends::other`].
pub const SCTP: u8 = ip_number::SCTP.0;

#[cfg(test)]
mod tests {
    use super::reading::{Part, Reading, Upper, read};
    use super::{Ends, random};
    use reeve_packet::env::Bytes;
    use reeve_packet::parse::{self, FRAGMENT_FIRST, FRAGMENT_LATER, FRAGMENT_NONE, Kind, Packet};
    use reeve_policy::image::mapped;
    use std::collections::BTreeMap;

    struct Frame<'a>(&'a [u8]);

    impl Bytes for Frame<'_> {
        fn load<const N: usize>(&self, offset: u32, into: &mut [u8; N]) -> bool {
            let at = usize::try_from(offset).expect("small");
            self.0.get(at..at + N).map(|bytes| into.copy_from_slice(bytes)).is_some()
        }
        fn head<const N: usize>(&self) -> Option<&[u8; N]> {
            self.0.first_chunk()
        }
        fn frame_bytes(&self) -> u32 {
            u32::try_from(self.0.len()).expect("a frame is small")
        }
        fn vlan(&self) -> bool {
            false
        }
        fn offloaded(&self) -> bool {
            false
        }
    }

    fn number(name: &str, otherwise: u64) -> u64 {
        let given = std::env::var(name);
        given.map_or(otherwise, |text| text.parse().unwrap_or_else(|error| panic!("{name}={text}: {error}")))
    }

    /// `REEVE_FRAMES` is how many (default 200,000), `REEVE_SEED` where the random numbers start (default 1).
    #[test]
    fn random_frames_are_read_as_another_implementation_reads_them() {
        let (count, seed) = (number("REEVE_FRAMES", 200_000), number("REEVE_SEED", 1));
        println!("{count} frames, REEVE_SEED={seed}");
        let mut rng = fastrand::Rng::with_seed(seed);
        let mut told: BTreeMap<&str, u64> = BTreeMap::new();
        let mut packet = Packet::default();
        for nth in 0..count {
            let (source, destination) = if rng.bool() { ("10.0.1.4", "10.0.0.2") } else { ("fd00:1::4", "fd00::2") };
            let ends = Ends {
                source_mac: [2; 6],
                destination_mac: [4; 6],
                source: source.parse().expect("an address"),
                destination: destination.parse().expect("an address"),
            };
            let shaped = random::frame(&ends, &mut rng);
            let want = read(&shaped.frame);
            let kind = parse::frame(&Frame(&shaped.frame), &mut packet);
            let at = || format!("REEVE_SEED={seed}, frame {nth}: {shaped:02x?}\n{want:?}\n{packet:?}");
            match want {
                Err(reason) => {
                    assert_eq!(kind, Kind::Malformed, "{}", at());
                    *told.entry(reason).or_default() += 1;
                }
                Ok(Reading::NotIp) => assert_eq!(kind, Kind::NotIp, "{}", at()),
                Ok(Reading::Arp) => assert_eq!(kind, Kind::Arp, "{}", at()),
                Ok(Reading::Ip(ip)) => {
                    assert_eq!(kind, Kind::Ip, "{}", at());
                    let addresses = (mapped(ip.source), mapped(ip.destination));
                    assert_eq!((packet.source, packet.destination), addresses, "{}", at());
                    assert_eq!((packet.protocol, packet.hop_limit), (ip.protocol, ip.hop_limit), "{}", at());
                    assert_eq!(packet.bytes, u32::try_from(ip.bytes).expect("small"), "{}", at());
                    let part = match packet.fragment {
                        FRAGMENT_NONE => Part::Whole,
                        FRAGMENT_FIRST => Part::First,
                        FRAGMENT_LATER => Part::Later(packet.fragment_edge),
                        other => panic!("{other} is no part of a packet"),
                    };
                    assert_eq!(part, ip.part, "{}", at());
                    let upper = if part != Part::First && part != Part::Whole {
                        Upper::Other
                    } else if packet.has_ports() {
                        Upper::Ports(packet.source_port, packet.destination_port)
                    } else if packet.is_icmp() {
                        Upper::Icmp(packet.icmp_type, packet.icmp_code)
                    } else {
                        Upper::Other
                    };
                    assert_eq!(upper, ip.upper, "{}", at());
                    *told.entry(shaped.shape).or_default() += 1;
                }
            }
        }
        println!("{told:#?}");
        // Every way to be unreadable and every shape was met, or the test says less than it seems to.
        for reason in [
            "a source route",
            "a fragment of a fragment",
            "an empty fragment",
            "a fragment beyond the largest packet",
            "a fragment that is cut at no multiple of 8 bytes",
            "a hop-by-hop header that is not the first",
            "more extension headers than anyone needs",
            "an option beyond the header",
            "ICMP of the other family",
            "an authentication header is cut off",
            "a jumbogram",
            "the total length contradicts the frame",
            "the payload length contradicts the frame",
            "SCTP is cut off",
            "no TCP header",
            "ipv6 extension headers",
            "ipv4 options",
            "ipv4 fragment",
        ] {
            assert!(count < 200_000 || told.contains_key(reason), "never met: {reason}");
        }
    }
}
