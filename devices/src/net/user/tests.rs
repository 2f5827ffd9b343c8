//! The user network seen by a guest that makes its frames by hand.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream, UdpSocket};

use super::packet::{
    Checksum, Datagram, ETHERNET, ETHERTYPE_ARP, ETHERTYPE_IPV4, IPV4, Ipv4, be16, be32, checksum,
    protocol, put_ethernet,
};
use crate::net::frame::{MacAddress, NetHeader, Offloads};
use crate::net::testing::{Frame, GUEST, Guest, MAC};
use crate::net::{Forward, GuestForward, NetdevKind, NetdevSpec, Protocol, Target, UserConfig};

const HOST: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);
const DNS: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 3);
const FIN: u8 = 1;
const SYN: u8 = 2;
const RST: u8 = 4;
const ACK: u8 = 16;

fn guest(config: UserConfig) -> Guest {
    let mut guest = Guest::new(NetdevKind::User(config), Offloads::empty());
    guest.send(&arp(1, GUEST, HOST));
    guest.until(|(_, frame)| (be16(frame, 12) == ETHERTYPE_ARP).then_some(()));
    guest
}

fn arp(op: u8, from: Ipv4Addr, to: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 42];
    put_ethernet(&mut frame, MacAddress::BROADCAST, MacAddress(MAC), ETHERTYPE_ARP);
    frame[14..22].copy_from_slice(&[0, 1, 8, 0, 6, 4, 0, op]);
    frame[22..28].copy_from_slice(&MAC);
    frame[28..32].copy_from_slice(&from.octets());
    frame[38..42].copy_from_slice(&to.octets());
    frame
}

fn ip_frame(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, payload, 0, false)
}

fn fragment(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: u8,
    payload: &[u8],
    offset: usize,
    more: bool,
) -> Vec<u8> {
    let mut frame = vec![0; ETHERNET + IPV4];
    put_ethernet(
        &mut frame,
        MacAddress([0x52, 0x55, 10, 0, 2, 2]),
        MacAddress(MAC),
        ETHERTYPE_IPV4,
    );
    let total = IPV4 + payload.len();
    let ip = Ipv4 {
        from,
        to,
        protocol,
        ttl: 64,
        id: 9,
        header: IPV4,
        total,
        offset,
        more_fragments: more,
    };
    ip.put((offset / 8) as u16 | u16::from(more) << 13, &mut frame[ETHERNET..]);
    frame.extend(payload);
    frame
}

/// The IP header and payload of a frame; its checksums are right.
fn ip_of((header, frame): &Frame) -> Option<(Ipv4, Vec<u8>)> {
    if be16(frame, 12) != ETHERTYPE_IPV4 {
        return None;
    }
    let ip = Ipv4::parse(&frame[ETHERNET..], frame.len() - ETHERNET).expect("a sound IP header");
    let payload = frame[ETHERNET + ip.header..ETHERNET + ip.total].to_vec();
    if matches!(ip.protocol, protocol::UDP | protocol::TCP) && !ip.is_fragment() {
        let mut sum = Checksum::default();
        sum.add_pseudo(ip.from, ip.to, ip.protocol, payload.len());
        if header.flags & NetHeader::NEEDS_CSUM == 0 {
            sum.add(&payload);
            assert_eq!(sum.finish(), 0, "the checksum of {ip:?}");
        } else {
            let at = usize::from(header.csum_start + header.csum_offset) - ETHERNET - ip.header;
            assert_eq!(be16(&payload, at), sum.sum());
        }
    }
    Some((ip, payload))
}

fn udp_frame(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let bytes = Datagram { from, to, payload }.to_bytes();
    ip_frame(*from.ip(), *to.ip(), protocol::UDP, &bytes)
}

fn udp_of(frame: &Frame) -> Option<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
    let (ip, bytes) = ip_of(frame)?;
    let datagram = Datagram::parse(&ip, &bytes).filter(|_| ip.protocol == protocol::UDP)?;
    Some((datagram.from, datagram.to, datagram.payload.to_vec()))
}

#[test]
fn arp_answers_for_the_networks_hosts_only() {
    let mut guest = guest(UserConfig::default());
    guest.send(&arp(1, GUEST, Ipv4Addr::new(10, 0, 2, 77)));
    guest.send(&arp(1, GUEST, DNS));
    let answer = guest.until(|(_, frame)| Some(frame.clone()));
    assert_eq!(answer[20..22], [0, 2]);
    assert_eq!(answer[22..32], [0x52, 0x55, 10, 0, 2, 3, 10, 0, 2, 3]);
    assert_eq!(answer[..6], MAC);
}

fn dhcp(kind: u8, options: &[u8]) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..8].copy_from_slice(&[1, 1, 6, 0, 0xDE, 0xAD, 0xBE, 0xEF]);
    message[28..34].copy_from_slice(&MAC);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    message.extend(options);
    message.push(255);
    let from = SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68);
    udp_frame(from, SocketAddrV4::new(Ipv4Addr::BROADCAST, 67), &message)
}

fn option(message: &[u8], wanted: u8) -> Option<Vec<u8>> {
    let mut rest = &message[240..];
    while let [code, len, tail @ ..] = rest {
        if *code == 255 {
            break;
        }
        let (value, tail) = tail.split_at((*len).into());
        if *code == wanted {
            return Some(value.to_vec());
        }
        rest = tail;
    }
    None
}

#[test]
fn dhcp_gives_address_router_and_name_server() {
    let config = UserConfig { hostname: Some("box".into()), ..UserConfig::default() };
    let mut guest = Guest::new(NetdevKind::User(config), Offloads::empty());
    guest.send(&dhcp(1, &[]));
    let (from, to, offer) = guest.until(udp_of);
    assert_eq!((*from.ip(), from.port(), to.port()), (HOST, 67, 68));
    assert_eq!(offer[4..8], [0xDE, 0xAD, 0xBE, 0xEF]);
    assert_eq!(offer[16..20], GUEST.octets());
    assert_eq!(option(&offer, 53), Some(vec![2]));
    assert_eq!(option(&offer, 1), Some(vec![255, 255, 255, 0]));
    assert_eq!(option(&offer, 3), Some(HOST.octets().to_vec()));
    assert_eq!(option(&offer, 6), Some(DNS.octets().to_vec()));
    assert_eq!(option(&offer, 12), Some(b"box".to_vec()));
    guest.send(&dhcp(3, &[50, 4, 10, 0, 2, 15, 54, 4, 10, 0, 2, 2]));
    let (_, _, ack) = guest.until(udp_of);
    assert_eq!(option(&ack, 53), Some(vec![5]));
    guest.send(&dhcp(3, &[50, 4, 10, 0, 2, 99]));
    let (_, to, nak) = guest.until(udp_of);
    assert_eq!((option(&nak, 53), *to.ip()), (Some(vec![6]), Ipv4Addr::BROADCAST));
}

#[test]
fn the_gateway_answers_pings() {
    let mut guest = guest(UserConfig::default());
    let mut echo = vec![8, 0, 0, 0, 0x12, 0x34, 0, 1];
    echo.extend((0..2000).map(|n| n as u8));
    let sum = checksum(&echo);
    echo[2..4].copy_from_slice(&sum.to_be_bytes());
    // It is too long for one frame, on the way there and on the way back.
    guest.send(&fragment(GUEST, HOST, protocol::ICMP, &echo[..1480], 0, true));
    guest.send(&fragment(GUEST, HOST, protocol::ICMP, &echo[1480..], 1480, false));
    let mut got = Vec::new();
    guest.until(|frame| {
        let (ip, bytes) = ip_of(frame)?;
        assert_eq!(ip.offset, got.len());
        got.extend(bytes);
        (!ip.more_fragments).then_some(())
    });
    assert_eq!((got[0], got.len()), (0, echo.len()));
    assert_eq!((checksum(&got), &got[4..]), (0, &echo[4..]));
}

#[test]
fn udp_goes_to_the_host_and_back() {
    let host = UdpSocket::bind("127.0.0.1:0").unwrap();
    let port = host.local_addr().unwrap().port();
    let mut guest = guest(UserConfig::default());
    let (from, to) = (SocketAddrV4::new(GUEST, 5000), SocketAddrV4::new(HOST, port));
    guest.send(&udp_frame(from, to, b"hello"));
    let mut bytes = [0; 100];
    let (len, peer) = host.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"hello");
    host.send_to(b"hello, guest", peer).unwrap();
    assert_eq!(guest.until(udp_of), (to, from, b"hello, guest".to_vec()));
    // The same port of the guest is the same socket to everybody.
    guest.send(&udp_frame(from, to, b"again"));
    assert_eq!(host.recv_from(&mut bytes).unwrap().1, peer);
    // A wrong checksum is nobody's datagram.
    let mut wrong = udp_frame(from, to, b"wrong");
    *wrong.last_mut().unwrap() ^= 1;
    guest.send(&wrong);
    guest.send(&udp_frame(from, to, b"right"));
    let (len, _) = host.recv_from(&mut bytes).unwrap();
    assert_eq!(&bytes[..len], b"right");
    let lines = guest.netdev.with_user(|user| user.info()).unwrap();
    assert_eq!((lines.len(), lines[0].protocol, lines[0].to_port), (1, "UDP", port));
}

#[test]
fn a_forwarded_udp_port_leads_to_the_guest() {
    let free = UdpSocket::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let forward = Forward { protocol: Protocol::Udp, host: free, guest: GUEST, guest_port: 7 };
    let mut guest = guest(UserConfig { forwards: vec![forward], ..UserConfig::default() });
    let client = UdpSocket::bind("127.0.0.1:0").unwrap();
    client.send_to(b"ping", free).unwrap();
    let (from, to, bytes) = guest.until(udp_of);
    let there = SocketAddrV4::new(HOST, client.local_addr().unwrap().port());
    assert_eq!((from, to, &bytes[..]), (there, SocketAddrV4::new(GUEST, 7), &b"ping"[..]));
    guest.send(&udp_frame(to, from, b"pong"));
    let mut bytes = [0; 100];
    let (len, from) = client.recv_from(&mut bytes).unwrap();
    assert_eq!((&bytes[..len], from), (&b"pong"[..], free));
    let removed = guest.netdev.with_user(|user| user.remove_forward(Protocol::Udp, free));
    assert_eq!(removed, Some(true));
    UdpSocket::bind(free).expect("the port is free again");
}

#[test]
fn names_are_asked_of_the_hosts_server() {
    // A server that is not at port 53 cannot be named, so this one is the host's own, if it has one.
    let mut guest = guest(UserConfig { restrict: true, ..UserConfig::default() });
    let from = SocketAddrV4::new(GUEST, 5000);
    guest.send(&udp_frame(from, SocketAddrV4::new(DNS, 53), &[0; 12]));
    guest.send(&udp_frame(from, SocketAddrV4::new(HOST, 9), b"x"));
    guest.settle();
    assert!(guest.inbox.is_empty(), "restrict=on lets nothing out");
    assert!(guest.netdev.with_user(|user| user.info()).unwrap().is_empty());
}

/// The guest's end of a TCP connection.
struct Tcp {
    guest: Guest,
    from: SocketAddrV4,
    to: SocketAddrV4,
    seq: u32,
    ack: u32,
    window: u16,
}

#[derive(Debug)]
struct Got {
    seq: u32,
    ack: u32,
    flags: u8,
    window: u16,
    payload: Vec<u8>,
    header: NetHeader,
}

fn tcp_of(frame: &Frame) -> Option<(SocketAddrV4, SocketAddrV4, Got)> {
    let (ip, bytes) = ip_of(frame)?;
    if ip.protocol != protocol::TCP {
        return None;
    }
    let header = usize::from(bytes[12] >> 4) * 4;
    let got = Got {
        seq: be32(&bytes, 4),
        ack: be32(&bytes, 8),
        flags: bytes[13],
        window: be16(&bytes, 14),
        payload: bytes[header..].to_vec(),
        header: frame.0,
    };
    let from = SocketAddrV4::new(ip.from, be16(&bytes, 0));
    Some((from, SocketAddrV4::new(ip.to, be16(&bytes, 2)), got))
}

impl Tcp {
    fn new(guest: Guest, from: SocketAddrV4, to: SocketAddrV4) -> Self {
        Self { guest, from, to, seq: 1000, ack: 0, window: 0xFFFF }
    }

    /// Connects; the answer to SYN.
    fn connect(guest: Guest, port: u16) -> (Self, Got) {
        let to = SocketAddrV4::new(HOST, port);
        let mut this = Self::new(guest, SocketAddrV4::new(GUEST, 40_000), to);
        this.emit(SYN, &[]);
        let got = this.next();
        if got.flags == SYN | ACK {
            this.seq += 1;
            this.ack = got.seq.wrapping_add(1);
            this.emit(ACK, &[]);
        }
        (this, got)
    }

    fn segment(&self, flags: u8, payload: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::new();
        bytes.extend(self.from.port().to_be_bytes());
        bytes.extend(self.to.port().to_be_bytes());
        bytes.extend(self.seq.to_be_bytes());
        bytes.extend(self.ack.to_be_bytes());
        let syn = flags & SYN != 0;
        bytes.extend([if syn { 6 << 4 } else { 5 << 4 }, flags]);
        bytes.extend(self.window.to_be_bytes());
        bytes.extend([0; 4]);
        if syn {
            bytes.extend([2, 4, 0x05, 0xB4]);
        }
        bytes.extend(payload);
        let mut sum = Checksum::default();
        sum.add_pseudo(*self.from.ip(), *self.to.ip(), protocol::TCP, bytes.len());
        sum.add(&bytes);
        bytes[16..18].copy_from_slice(&sum.finish().to_be_bytes());
        ip_frame(*self.from.ip(), *self.to.ip(), protocol::TCP, &bytes)
    }

    fn emit(&mut self, flags: u8, payload: &[u8]) {
        let frame = self.segment(flags, payload);
        self.guest.send(&frame);
    }

    fn next(&mut self) -> Got {
        self.guest.until(|frame| tcp_of(frame).map(|(_, _, got)| got))
    }

    fn send(&mut self, payload: &[u8]) {
        self.emit(ACK, payload);
        self.seq = self.seq.wrapping_add(payload.len() as u32);
    }

    /// Takes what comes in order and acknowledges it until there are `len` bytes, or FIN.
    fn read(&mut self, len: usize) -> Vec<u8> {
        let mut data = Vec::new();
        while data.len() < len {
            let got = self.next();
            if got.seq != self.ack {
                self.emit(ACK, &[]);
                continue;
            }
            self.ack = self.ack.wrapping_add(got.payload.len() as u32);
            data.extend(&got.payload);
            if got.flags & FIN != 0 {
                self.ack = self.ack.wrapping_add(1);
            }
            if !got.payload.is_empty() || got.flags & FIN != 0 {
                self.emit(ACK, &[]);
            }
            if got.flags & FIN != 0 {
                break;
            }
        }
        data
    }

    fn connections(&self) -> usize {
        self.guest.netdev.with_user(|user| user.connections()).unwrap()
    }
}

fn listener() -> (TcpListener, u16) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let port = listener.local_addr().unwrap().port();
    (listener, port)
}

fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251) as u8).collect()
}

#[test]
fn a_connection_goes_both_ways_and_ends_in_order() {
    let (listener, port) = listener();
    let (mut tcp, answer) = Tcp::connect(guest(UserConfig::default()), port);
    assert_eq!(answer.flags, SYN | ACK);
    let (mut peer, _) = listener.accept().unwrap();
    tcp.send(b"hello ");
    tcp.send(b"host");
    let mut bytes = [0; 10];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"hello host");
    assert_eq!(tcp.next().ack, tcp.seq, "one acknowledgement for both");
    peer.write_all(&pattern(100_000)).unwrap();
    assert_eq!(tcp.read(100_000), pattern(100_000));
    let line = &tcp.guest.netdev.with_user(|user| user.info()).unwrap()[0];
    assert_eq!((line.protocol, &line.state[..]), ("TCP", "ESTABLISHED"));
    drop(peer);
    assert!(tcp.read(1).is_empty());
    tcp.emit(FIN | ACK, &[]);
    tcp.seq = tcp.seq.wrapping_add(1);
    assert_eq!(tcp.next().ack, tcp.seq);
    assert_eq!(tcp.connections(), 0);
}

#[test]
fn the_guests_end_comes_to_the_host_behind_all_data() {
    let (listener, port) = listener();
    let (mut tcp, _) = Tcp::connect(guest(UserConfig::default()), port);
    let (mut peer, _) = listener.accept().unwrap();
    tcp.emit(FIN | ACK, b"last words");
    tcp.seq = tcp.seq.wrapping_add(11);
    let mut text = String::new();
    peer.read_to_string(&mut text).unwrap();
    assert_eq!(text, "last words");
    // The other direction is open still.
    peer.write_all(b"bye").unwrap();
    assert_eq!(tcp.read(3), b"bye");
    drop(peer);
    tcp.read(1);
    tcp.guest.settle();
    assert_eq!(tcp.connections(), 0);
}

#[test]
fn what_nobody_serves_is_refused_and_resets_pass() {
    let (listener, port) = listener();
    drop(listener);
    let (tcp, answer) = Tcp::connect(guest(UserConfig::default()), port);
    assert_eq!((answer.flags, answer.ack), (RST | ACK, tcp.seq + 1));
    assert_eq!(tcp.connections(), 0);

    let (listener, port) = self::listener();
    let (mut tcp, _) = Tcp::connect(guest(UserConfig::default()), port);
    let (mut peer, _) = listener.accept().unwrap();
    tcp.emit(RST | ACK, &[]);
    assert_eq!(tcp.connections(), 0);
    let error = peer.read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset);

    let (mut tcp, _) = Tcp::connect(guest(UserConfig::default()), port);
    let (peer, _) = listener.accept().unwrap();
    rustix::net::sockopt::set_socket_linger(&peer, Some(std::time::Duration::ZERO)).unwrap();
    drop(peer);
    let got = tcp.next();
    assert_eq!((got.flags & RST, tcp.connections()), (RST, 0));
    // A segment of no connection.
    tcp.emit(ACK, b"?");
    let got = tcp.next();
    assert_eq!((got.flags, got.seq), (RST, tcp.ack));
}

#[test]
fn what_the_guest_loses_comes_again() {
    let (listener, port) = listener();
    let (mut tcp, _) = Tcp::connect(guest(UserConfig::default()), port);
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&pattern(20_000)).unwrap();
    // The first segment is lost; three times the guest says that it waits for it.
    let lost = tcp.next();
    assert_eq!((lost.seq, lost.payload.len()), (tcp.ack, 1460));
    for _ in 0..3 {
        tcp.emit(ACK, &[]);
    }
    assert_eq!(tcp.read(20_000), pattern(20_000));
    // Without a word from the guest, a time-out does it.
    peer.write_all(b"tail").unwrap();
    assert_eq!(tcp.next().payload, b"tail");
    assert_eq!(tcp.next().payload, b"tail");
    // From the guest: a hole is not skipped.
    let behind = Tcp { seq: tcp.seq + 4, guest: guest(UserConfig::default()), ..tcp };
    let frame = behind.segment(ACK, b"5678");
    tcp = Tcp { seq: behind.seq - 4, guest: tcp.guest, ..behind };
    tcp.guest.send(&frame);
    assert_eq!(tcp.next().ack, tcp.seq);
    tcp.send(b"1234");
    tcp.send(b"5678");
    let mut bytes = [0; 8];
    peer.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"12345678");
}

#[test]
fn windows_hold_back_both_ends() {
    let (listener, port) = listener();
    let (mut tcp, _) = Tcp::connect(guest(UserConfig::default()), port);
    let (mut peer, _) = listener.accept().unwrap();
    // The guest has no room: it is asked with a byte, and then gets the rest.
    tcp.window = 0;
    tcp.emit(ACK, &[]);
    peer.write_all(&pattern(5000)).unwrap();
    let probe = tcp.next();
    assert_eq!((probe.seq, probe.payload.len()), (tcp.ack, 1));
    tcp.emit(ACK, &[]);
    tcp.window = 0xFFFF;
    tcp.emit(ACK, &[]);
    assert_eq!(tcp.read(5000), pattern(5000));
    // The host does not read: the window closes, nothing is lost, and it opens again.
    let mut sent: Vec<u8> = Vec::new();
    let chunk = pattern(1460);
    loop {
        tcp.send(&chunk);
        sent.extend(&chunk);
        tcp.guest.receive();
        let last = tcp.guest.inbox.drain(..).filter_map(|f| tcp_of(&f)).next_back();
        let Some((_, _, got)) = last else { continue };
        if got.window < 1460 {
            let taken = sent.len() - tcp.seq.wrapping_sub(got.ack) as usize;
            sent.truncate(taken);
            tcp.seq = got.ack;
            break;
        }
        assert!(sent.len() < 64 << 20, "what waits has a bound");
    }
    let reader = std::thread::spawn(move || {
        let mut all = vec![0; sent.len()];
        peer.read_exact(&mut all).unwrap();
        assert!(all == sent);
        peer
    });
    tcp.guest.until(|f| tcp_of(f).filter(|(_, _, got)| got.window > 10_000).map(|_| ()));
    while !reader.is_finished() {
        tcp.guest.settle();
    }
    reader.join().unwrap();
}

#[test]
fn large_segments_pass_whole_with_offloads() {
    let (listener, port) = listener();
    let all = Offloads::all();
    let mut big = Guest::new(NetdevKind::User(UserConfig::default()), all);
    big.send(&arp(1, GUEST, HOST));
    let (mut tcp, _) = Tcp::connect(big, port);
    let (mut peer, _) = listener.accept().unwrap();
    peer.write_all(&pattern(30_000)).unwrap();
    let first = tcp.next();
    assert!(first.payload.len() > 1460);
    assert_eq!(first.header.gso_type, NetHeader::GSO_TCPV4);
    assert_eq!((first.header.gso_size, first.header.hdr_len), (1460, 54));
    assert_eq!((first.header.csum_start, first.header.csum_offset), (34, 16));
    // The guest's own, with a checksum that is not finished.
    tcp.ack = first.seq.wrapping_add(first.payload.len() as u32);
    let mut frame = tcp.segment(ACK, &pattern(40_000));
    frame[50] ^= 0x55;
    let header =
        NetHeader { flags: NetHeader::NEEDS_CSUM, gso_type: 1, gso_size: 1460, ..first.header };
    tcp.guest.send_with(header, &frame);
    let mut bytes = vec![0; 40_000];
    peer.read_exact(&mut bytes).unwrap();
    assert!(bytes == pattern(40_000));
}

#[test]
fn a_forwarded_port_leads_to_the_guest_and_back() {
    let free = listener().0.local_addr().unwrap();
    let forward = Forward {
        protocol: Protocol::Tcp,
        host: free,
        guest: Ipv4Addr::UNSPECIFIED,
        guest_port: 22,
    };
    let config = UserConfig { forwards: vec![forward], ..UserConfig::default() };
    // Nobody has heard of the guest yet: it is asked for.
    let mut guest = Guest::new(NetdevKind::User(config), Offloads::empty());
    let mut client = TcpStream::connect(free).unwrap();
    guest.until(|(_, f)| {
        (be16(f, 12) == ETHERTYPE_ARP && f[38..42] == GUEST.octets()).then_some(())
    });
    guest.send(&arp(2, GUEST, HOST));
    let (from, to, syn) = guest.until(tcp_of);
    assert_eq!((*from.ip(), to, syn.flags), (HOST, SocketAddrV4::new(GUEST, 22), SYN));
    let mut tcp = Tcp::new(guest, to, from);
    tcp.ack = syn.seq.wrapping_add(1);
    tcp.emit(SYN | ACK, &[]);
    tcp.seq += 1;
    assert_eq!(tcp.next().flags, ACK);
    client.write_all(b"in").unwrap();
    assert_eq!(tcp.read(2), b"in");
    tcp.send(b"out");
    let mut bytes = [0; 3];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"out");
    let lines = tcp.guest.netdev.with_user(|user| user.info()).unwrap();
    assert_eq!((lines[0].from_port, lines[0].to_port), (free.port(), 22));
    assert_eq!((&lines[1].state[..], lines[1].to), ("HOST_FORWARD", GUEST));
    // Ended while the machine runs: nobody else comes in, and the connection goes on.
    let end = |host: SocketAddr| {
        tcp.guest.netdev.with_user(|user| user.remove_forward(Protocol::Tcp, host)).unwrap()
    };
    assert!(end(free) && !end(free));
    assert!(TcpStream::connect(free).is_err());
    client.write_all(b"!").unwrap();
    assert_eq!(tcp.read(1), b"!");
}

#[test]
fn an_address_can_lead_to_a_command() {
    let server = Ipv4Addr::new(10, 0, 2, 100);
    let target = Target::Command("tr a-z A-Z".into());
    let forwards = vec![GuestForward { server, port: 7, target }];
    let config = UserConfig { guest_forwards: forwards, restrict: true, ..UserConfig::default() };
    let mut tcp =
        Tcp::new(guest(config), SocketAddrV4::new(GUEST, 1234), SocketAddrV4::new(server, 7));
    tcp.emit(SYN, &[]);
    let answer = tcp.next();
    assert_eq!(answer.flags, SYN | ACK);
    tcp.seq += 1;
    tcp.ack = answer.seq.wrapping_add(1);
    tcp.emit(FIN | ACK, b"shout");
    tcp.seq += 6;
    assert_eq!(tcp.read(5), b"SHOUT");
}

#[test]
fn a_card_without_room_gets_its_frames_later() {
    let mut guest = guest(UserConfig::default());
    guest.room = 0;
    for _ in 0..3 {
        guest.send(&arp(1, GUEST, HOST));
    }
    guest.settle();
    assert!(guest.inbox.is_empty());
    guest.room = 2;
    guest.settle();
    assert_eq!(guest.inbox.len(), 2);
    guest.room = 9;
    guest.settle();
    assert_eq!(guest.inbox.len(), 3);
    // Frames that nobody takes do not pile up.
    guest.room = 0;
    for _ in 0..5000 {
        guest.send(&arp(1, GUEST, HOST));
    }
    guest.room = usize::MAX;
    guest.inbox.clear();
    guest.settle();
    assert!((1..=512).contains(&guest.inbox.len()), "{}", guest.inbox.len());
}

#[test]
fn names_and_places_that_do_not_fit_are_refused() {
    let mut guest = guest(UserConfig::default());
    let mut error = |config| {
        let spec = NetdevSpec { id: "m".to_owned(), kind: NetdevKind::User(config) };
        guest.netdevs.add(&spec).err().expect("an error").to_string()
    };
    let outside = UserConfig { dns: Ipv4Addr::new(10, 0, 3, 3), ..UserConfig::default() };
    assert!(error(outside).contains("dns=10.0.3.3 is no host of 10.0.2.0/24"));
    let same = UserConfig { dns: HOST, ..UserConfig::default() };
    assert!(error(same).contains("dns and host are both 10.0.2.2"));
    let (_listener, port) = listener();
    let host = SocketAddr::from(([127, 0, 0, 1], port));
    let taken = Forward { protocol: Protocol::Tcp, host, guest: GUEST, guest_port: 1 };
    let message = error(UserConfig { forwards: vec![taken], ..UserConfig::default() });
    assert!(message.contains("Could not set up host forwarding rule"), "{message}");
}
