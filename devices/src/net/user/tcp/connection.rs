//! One TCP connection of the guest, and the host's socket behind it (RFC 9293, 3.10).
//!
//! The wire to the guest loses nothing of itself, so there is no congestion control: what the
//! guest's window has room for is sent. What the guest drops is sent again after three duplicate
//! acknowledgements or a time-out (RFC 5681, 3.2; RFC 6298). Payload to the host goes to its socket
//! straight out of the guest's memory; what the socket does not take waits in a ring, whose room is
//! the window that the guest sees. Payload from the host waits in another ring until the guest has
//! acknowledged it.

use std::io::{self, IoSliceMut};
use std::net::SocketAddrV4;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::Child;
use std::time::Duration;

use board::event::{Readiness, Watch};
use board::time::VmTime;
use rustix::io::Errno;

use super::segment::{HEADERS, Outgoing, Segment, flag};
use crate::net::backend::Sink;
use crate::net::frame::{Gather, Offloads};
use crate::net::user::packet::{IPV4, MTU};
use crate::net::user::ring::Ring;
use crate::net::user::wire::Wire;

/// Bytes on their way in each direction.
const CAPACITY: usize = 256 << 10;
/// Bytes of payload that a connection may send before others have their turn.
const SHARE: usize = 256 << 10;
/// Our MSS: what an Ethernet frame has room for.
const MSS: u16 = (MTU - IPV4 - super::segment::TCP) as u16;
/// The MSS of a guest that names none (RFC 9293, 3.7.1).
const DEFAULT_MSS: u16 = 536;
/// The least that is believed.
const MIN_MSS: u16 = 64;
/// The scale of our window: `CAPACITY` needs at least 3.
const SCALE: u8 = 4;
/// The first time-out (RFC 6298, 2), the shortest and the longest.
const RTO: Duration = Duration::from_secs(1);
const MIN_RTO: Duration = Duration::from_millis(200);
const MAX_RTO: Duration = Duration::from_secs(60);
/// Time-outs in a row after which the guest is gone.
const MAX_RETRIES: u32 = 10;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
    /// The guest has sent SYN; the host's connection is being made.
    Connecting,
    /// The host's connection stands; the guest gets SYN-ACK.
    SynReceived,
    /// A host's client has come; the guest gets SYN.
    SynSent,
    /// Both ends have agreed; they may be closing.
    Established,
}

/// What becomes of a connection after a step.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It goes on.
    Keep,
    /// It is over.
    Remove,
    /// It is over, and the guest gets RST.
    Reset,
    /// The host cannot reach the other end; the guest gets the ICMP code.
    Unreachable(u8),
}

/// How far emitting has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Emitted {
    /// There is nothing more now.
    All,
    /// There is more; others have their turn.
    Share,
    /// The card has no room.
    Refused,
}

pub(super) struct Connection {
    pub(super) guest: SocketAddrV4,
    pub(super) remote: SocketAddrV4,
    pub(super) state: State,
    /// A client of the host began it.
    inbound: bool,
    /// It waits for its turn to emit.
    pub(super) queued: bool,
    /// When something is to be done again.
    pub(super) deadline: Option<VmTime>,
    /// It goes before the socket.
    watch: Watch,
    socket: OwnedFd,
    child: Option<Child>,

    // From the host to the guest.
    from_host: Ring,
    snd_una: u32,
    snd_nxt: u32,
    /// The highest that `snd_nxt` was.
    snd_max: u32,
    snd_wnd: u32,
    snd_scale: u8,
    mss: u16,
    dup_acks: u8,
    host_readable: bool,
    host_eof: bool,
    fin_acked: bool,

    // From the guest to the host.
    to_host: Ring,
    rcv_nxt: u32,
    /// The window that the guest was told of last ends here.
    rcv_edge: u32,
    scaled: bool,
    ack_due: bool,
    guest_fin: bool,
    host_shut: bool,

    /// The segment whose way there and back is being timed: its end, and when it was sent.
    timed: Option<(u32, VmTime)>,
    /// The smoothed round trip time and its variation, once there is a measurement.
    round_trip: Option<(Duration, Duration)>,
    rto: Duration,
    retries: u32,
}

/// `a` is before `b`.
fn before(a: u32, b: u32) -> bool {
    (a.wrapping_sub(b) as i32) < 0
}

impl Connection {
    /// A connection that the guest begins with `syn`; `socket` is being connected.
    pub(super) fn outbound(syn: &Segment, isn: u32, socket: OwnedFd, watch: Watch) -> Self {
        let mut this = Self::new(syn.from, syn.to, isn, socket, watch);
        this.state = State::Connecting;
        this.inbound = false;
        this.accept_syn(syn);
        this.update_interest();
        this
    }

    /// A connection that a client of the host begins.
    pub(super) fn inbound(
        guest: SocketAddrV4,
        remote: SocketAddrV4,
        isn: u32,
        socket: OwnedFd,
        watch: Watch,
    ) -> Self {
        Self::new(guest, remote, isn, socket, watch)
    }

    fn new(
        guest: SocketAddrV4,
        remote: SocketAddrV4,
        isn: u32,
        socket: OwnedFd,
        watch: Watch,
    ) -> Self {
        Self {
            guest,
            remote,
            state: State::SynSent,
            inbound: true,
            queued: false,
            deadline: None,
            watch,
            socket,
            child: None,
            from_host: Ring::new(CAPACITY),
            snd_una: isn,
            snd_nxt: isn,
            snd_max: isn,
            snd_wnd: 0,
            snd_scale: 0,
            mss: DEFAULT_MSS,
            dup_acks: 0,
            host_readable: false,
            host_eof: false,
            fin_acked: false,
            to_host: Ring::new(CAPACITY),
            rcv_nxt: 0,
            rcv_edge: 0,
            // We offer it; the guest's SYN says whether it is used.
            scaled: true,
            ack_due: false,
            guest_fin: false,
            host_shut: false,
            timed: None,
            round_trip: None,
            rto: RTO,
            retries: 0,
        }
    }

    /// The command behind the socket, which ends with the connection.
    pub(super) fn set_child(&mut self, child: Child) {
        self.child = Some(child);
    }

    fn accept_syn(&mut self, syn: &Segment) {
        self.rcv_nxt = syn.seq.wrapping_add(1);
        self.rcv_edge = self.rcv_nxt;
        self.scaled = syn.scale.is_some();
        self.snd_scale = syn.scale.unwrap_or(0);
        self.mss = syn.mss.unwrap_or(DEFAULT_MSS).clamp(MIN_MSS, MSS);
        self.snd_wnd = syn.window.into();
    }

    pub(super) fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// Bytes that wait for the guest and for the host.
    pub(super) fn waiting(&self) -> (usize, usize) {
        (self.from_host.len(), self.to_host.len())
    }

    /// The address of the host's that a client came to, if one began the connection.
    pub(super) fn host_end(&self) -> Option<SocketAddrV4> {
        let name = self.inbound.then(|| rustix::net::getsockname(&self.socket).ok()).flatten();
        name.and_then(|name| SocketAddrV4::try_from(name).ok())
    }

    /// The state's name as the monitor shows it.
    pub(super) fn state_name(&self) -> &'static str {
        match self.state {
            State::Connecting | State::SynSent => "SYN_SENT",
            State::SynReceived => "SYN_RCVD",
            State::Established => match (self.guest_fin, self.host_eof) {
                (false, false) => "ESTABLISHED",
                (true, false) => "CLOSE_WAIT",
                (false, true) if self.fin_acked => "FIN_WAIT_2",
                (false, true) => "FIN_WAIT_1",
                (true, true) => "LAST_ACK",
            },
        }
    }

    /// Whether the host's end is gone and the guest's is not, so that it may make room for others.
    pub(super) fn is_leftover(&self) -> bool {
        self.fin_acked
    }

    fn update_interest(&self) {
        let mut interest = Readiness::empty();
        interest.set(Readiness::WRITE, self.state == State::Connecting || !self.to_host.is_empty());
        let wants = self.state == State::Established && !self.host_readable && !self.host_eof;
        interest.set(Readiness::READ, wants);
        self.watch.set_interest(interest);
    }

    fn room(&self) -> u32 {
        // Unscaled, a window has 16 bits.
        let most = if self.scaled { u32::MAX } else { 0xFFFF };
        (self.to_host.room() as u32).min(most)
    }

    fn in_flight(&self) -> u32 {
        self.snd_nxt.wrapping_sub(self.snd_una)
    }

    /// Whether both ends have said all, and know it.
    pub(super) fn is_over(&self) -> bool {
        self.guest_fin && self.host_shut && self.fin_acked && !self.ack_due
    }

    /// Whether there is something to emit, or to read for that.
    pub(super) fn wants_turn(&self) -> bool {
        match self.state {
            State::Connecting => false,
            State::SynReceived | State::SynSent => self.snd_nxt == self.snd_una,
            State::Established => self.ack_due || self.can_send() || self.can_read(),
        }
    }

    fn can_read(&self) -> bool {
        self.host_readable && !self.host_eof && self.from_host.room() > 0
    }

    /// Bytes that can be sent now, and whether FIN can.
    fn sendable(&self) -> (usize, bool) {
        let flight = self.in_flight() as usize;
        let unsent = self.from_host.len().saturating_sub(flight);
        let window = (self.snd_wnd as usize).saturating_sub(flight);
        let mut len = unsent.min(window);
        // A sliver is worth a segment only if it is all there is, or nothing else goes on
        // (RFC 9293, 3.8.6.2.1).
        if len < unsent && len < usize::from(self.mss) && flight > 0 {
            len = 0;
        }
        let fin = self.host_eof && !self.fin_acked && flight <= self.from_host.len();
        (len, fin && len == unsent)
    }

    fn can_send(&self) -> bool {
        let (len, fin) = self.sendable();
        len > 0 || fin
    }

    /// The host's socket is ready for something.
    pub(super) fn event(&mut self) -> Verdict {
        let ready = self.watch.readiness();
        if self.state == State::Connecting {
            if !ready.contains(Readiness::WRITE) {
                return Verdict::Keep;
            }
            match rustix::net::sockopt::socket_error(&self.socket) {
                Ok(Ok(())) => self.state = State::SynReceived,
                Ok(Err(e)) | Err(e) => return refused(e),
            }
        }
        self.host_readable |= ready.contains(Readiness::READ);
        let verdict = match ready.contains(Readiness::WRITE) {
            true => self.flush(),
            false => Verdict::Keep,
        };
        self.update_interest();
        verdict
    }

    /// Writes what waits for the host.
    fn flush(&mut self) -> Verdict {
        let told = self.rcv_edge.wrapping_sub(self.rcv_nxt);
        let narrow = !self.to_host.is_empty() && told < CAPACITY as u32 / 4;
        while !self.to_host.is_empty() {
            let [first, _] = self.to_host.get(0, CAPACITY);
            match rustix::net::send(&self.socket, first, rustix::net::SendFlags::NOSIGNAL) {
                Ok(len) => self.to_host.consume(len),
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => {
                    self.watch.drained(Readiness::WRITE);
                    break;
                }
                Err(_) => return Verdict::Reset,
            }
        }
        if narrow && self.to_host.room() >= CAPACITY / 2 {
            self.ack_due = true;
        }
        self.shut_if_done();
        if self.is_over() { Verdict::Remove } else { Verdict::Keep }
    }

    fn shut_if_done(&mut self) {
        if self.guest_fin && self.to_host.is_empty() && !self.host_shut {
            self.host_shut = true;
            // A peer that is gone already says ENOTCONN.
            let _ = rustix::net::shutdown(&self.socket, rustix::net::Shutdown::Write);
        }
    }

    /// The guest's segment; `pieces` is a vector to use.
    pub(super) fn segment(
        &mut self,
        segment: &Segment,
        frame: Gather<'_>,
        now: VmTime,
        pieces: &mut Vec<libc::iovec>,
    ) -> Verdict {
        match self.state {
            // The guest's SYN again, or impatience.
            State::Connecting => {
                return if segment.has(flag::RST) { Verdict::Remove } else { Verdict::Keep };
            }
            State::SynSent => {
                let answers = segment.has(flag::ACK)
                    && segment.ack == self.snd_una.wrapping_add(1)
                    && self.snd_max == segment.ack;
                if !answers {
                    return Verdict::Keep;
                }
                if segment.has(flag::RST) {
                    return Verdict::Remove;
                }
                if !segment.has(flag::SYN) {
                    return Verdict::Keep;
                }
                self.accept_syn(segment);
                self.ack_due = true;
                self.establish(segment);
                // The window of a SYN is never scaled.
                self.snd_wnd = segment.window.into();
                return Verdict::Keep;
            }
            State::SynReceived | State::Established => {}
        }
        let window = self.rcv_edge.wrapping_sub(self.rcv_nxt).max(1);
        let begins = segment.seq.wrapping_sub(self.rcv_nxt);
        if segment.has(flag::RST) {
            // RFC 5961, 3.2.
            return match begins {
                0 => Verdict::Remove,
                n if n < window => {
                    self.ack_due = true;
                    Verdict::Keep
                }
                _ => Verdict::Keep,
            };
        }
        if segment.has(flag::SYN) {
            if self.state == State::SynReceived
                && segment.seq.wrapping_add(1) == self.rcv_nxt
                && !segment.has(flag::ACK)
            {
                // It has not heard of our answer.
                self.snd_nxt = self.snd_una;
            } else {
                self.ack_due = true;
            }
            return Verdict::Keep;
        }
        if !segment.has(flag::ACK) {
            return Verdict::Keep;
        }
        if self.state == State::SynReceived {
            if segment.ack != self.snd_una.wrapping_add(1) || segment.ack != self.snd_max {
                return Verdict::Reset;
            }
            self.establish(segment);
        }
        self.acknowledge(segment, now);
        self.payload(segment, frame, pieces)
    }

    fn establish(&mut self, segment: &Segment) {
        self.state = State::Established;
        self.snd_una = segment.ack;
        self.snd_nxt = segment.ack;
        self.snd_max = segment.ack;
        self.deadline = None;
        self.retries = 0;
        self.rto = RTO;
        self.update_interest();
    }

    /// What the guest has got of ours, and what it has room for.
    fn acknowledge(&mut self, segment: &Segment, now: VmTime) {
        if before(self.snd_max, segment.ack) {
            // Of what was never sent (RFC 9293, 3.10.7.4).
            self.ack_due = true;
            return;
        }
        if before(segment.ack, self.snd_una) {
            return;
        }
        let wnd = u32::from(segment.window) << self.snd_scale;
        let acked = segment.ack.wrapping_sub(self.snd_una) as usize;
        if acked > 0 {
            let data = acked.min(self.from_host.len());
            self.from_host.consume(data);
            self.fin_acked |= acked > data;
            self.snd_una = segment.ack;
            if before(self.snd_nxt, self.snd_una) {
                self.snd_nxt = self.snd_una;
            }
            self.dup_acks = 0;
            self.retries = 0;
            self.measure(now);
            self.deadline = (self.snd_una != self.snd_max).then(|| now + self.rto);
        } else if segment.span() == 0 && wnd == self.snd_wnd && self.in_flight() > 0 {
            self.dup_acks = self.dup_acks.saturating_add(1);
            if self.dup_acks == 3 {
                self.timed = None;
                self.snd_nxt = self.snd_una;
            }
        }
        self.snd_wnd = wnd;
        if wnd == 0 {
            // It is there, and has not taken the byte that asked.
            self.retries = 0;
            self.snd_nxt = self.snd_una;
        }
    }

    /// RFC 6298, 2: the time-out follows from how long acknowledgements take.
    fn measure(&mut self, now: VmTime) {
        if let Some((end, sent)) = self.timed
            && !before(self.snd_una, end)
        {
            self.timed = None;
            let sample = now.since(sent);
            self.round_trip = Some(match self.round_trip {
                None => (sample, sample / 2),
                Some((smooth, variation)) => {
                    (smooth * 7 / 8 + sample / 8, variation * 3 / 4 + smooth.abs_diff(sample) / 4)
                }
            });
        }
        self.rto = match self.round_trip {
            Some((smooth, variation)) => (smooth + variation * 4).clamp(MIN_RTO, MAX_RTO),
            None => RTO,
        };
    }

    /// What the guest sends.
    fn payload(
        &mut self,
        segment: &Segment,
        frame: Gather<'_>,
        pieces: &mut Vec<libc::iovec>,
    ) -> Verdict {
        if segment.span() == 0 {
            // A probe of whether we are alive.
            self.ack_due |= before(segment.seq, self.rcv_nxt);
            return if self.is_over() { Verdict::Remove } else { Verdict::Keep };
        }
        self.ack_due = true;
        let old = self.rcv_nxt.wrapping_sub(segment.seq) as usize;
        if self.guest_fin || before(self.rcv_nxt, segment.seq) || old > segment.len {
            // Something is missing in front of it, or all of it is known.
            return Verdict::Keep;
        }
        let wanted = segment.len - old;
        let len = wanted.min(self.room() as usize);
        let mut sent = 0;
        if self.to_host.is_empty() && len > 0 {
            pieces.clear();
            frame.cut(segment.payload + old, len, pieces);
            sent = match self.send(pieces) {
                Ok(sent) => sent,
                Err(Errno::AGAIN) => {
                    self.watch.drained(Readiness::WRITE);
                    0
                }
                Err(_) => return Verdict::Reset,
            };
        }
        if sent < len {
            let mut chunk = [0; 4096];
            let (mut at, end) = (segment.payload + old + sent, segment.payload + old + len);
            while at < end {
                let want = chunk.len().min(end - at);
                let got = frame.read_at(at, &mut chunk[..want]);
                at += self.to_host.push(&chunk[..got]);
                if got < want {
                    break;
                }
            }
            self.update_interest();
        }
        self.rcv_nxt = self.rcv_nxt.wrapping_add(len as u32);
        if segment.has(flag::FIN) && len == wanted {
            self.rcv_nxt = self.rcv_nxt.wrapping_add(1);
            self.guest_fin = true;
            self.shut_if_done();
        }
        Verdict::Keep
    }

    fn send(&self, pieces: &mut [libc::iovec]) -> Result<usize, Errno> {
        // SAFETY: a msghdr of zeros is one without address, data and control message.
        let mut message: libc::msghdr = unsafe { std::mem::zeroed() };
        message.msg_iov = pieces.as_mut_ptr();
        message.msg_iovlen = pieces.len().min(libc::UIO_MAXIOV as usize);
        let flags = libc::MSG_NOSIGNAL | libc::MSG_DONTWAIT;
        loop {
            // SAFETY: the pieces are parts of a Gather, which are readable memory.
            let sent = unsafe { libc::sendmsg(self.socket.as_raw_fd(), &message, flags) };
            match usize::try_from(sent) {
                Ok(sent) => return Ok(sent),
                Err(_) => match Errno::from_io_error(&io::Error::last_os_error()) {
                    Some(Errno::INTR) => {}
                    errno => return Err(errno.unwrap_or(Errno::IO)),
                },
            }
        }
    }

    /// Reads from the host what there is room for.
    fn fill(&mut self) -> Result<(), Verdict> {
        let [first, second] = self.from_host.space();
        let mut pieces = [IoSliceMut::new(first), IoSliceMut::new(second)];
        match rustix::io::readv(&self.socket, &mut pieces) {
            Ok(0) => self.host_eof = true,
            Ok(len) => self.from_host.commit(len),
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                self.watch.drained(Readiness::READ);
                self.host_readable = false;
            }
            Err(_) => return Err(Verdict::Reset),
        }
        if !self.can_read() {
            self.update_interest();
        }
        Ok(())
    }

    /// Gives segments to the card. `Err`: the connection is over.
    pub(super) fn emit(
        &mut self,
        wire: &mut Wire,
        sink: &mut Sink<'_>,
        now: VmTime,
    ) -> Result<Emitted, Verdict> {
        let Some(mac) = wire.neighbour(*self.guest.ip()) else {
            wire.ask_for(*self.guest.ip());
            self.deadline.get_or_insert(now + self.rto);
            return Ok(Emitted::All);
        };
        let flags = match self.state {
            State::Connecting => return Ok(Emitted::All),
            State::SynSent => flag::SYN,
            State::SynReceived => flag::SYN | flag::ACK,
            State::Established => 0,
        };
        if flags != 0 {
            if self.snd_nxt != self.snd_una {
                return Ok(Emitted::All);
            }
            let scale = self.scaled.then_some(SCALE);
            let out = Outgoing {
                window: self.room().min(0xFFFF) as u16,
                syn: Some((MSS, scale)),
                ..self.outgoing(flags, [&[], &[]])
            };
            if !out.emit(wire, mac, sink) {
                return Ok(Emitted::Refused);
            }
            self.rcv_edge = self.rcv_nxt.wrapping_add(self.room().min(0xFFFF));
            self.advance(1, now);
            return Ok(Emitted::All);
        }
        let mss = usize::from(self.mss);
        let most = match wire.offloads.contains(Offloads::CSUM | Offloads::TSO4) {
            true => (usize::from(u16::MAX) - HEADERS) / mss * mss,
            false => mss,
        };
        let mut share = SHARE;
        loop {
            let (mut len, mut fin) = self.sendable();
            // A large segment costs as much as a small one: see whether there is more.
            if len < most && self.can_read() && self.from_host.room() >= CAPACITY / 4 {
                self.fill()?;
                (len, fin) = self.sendable();
            }
            if len == 0 && !fin {
                break;
            }
            let whole = len;
            len = len.min(most);
            fin &= len == whole;
            let mut flags = flag::ACK;
            if fin {
                flags |= flag::FIN;
            }
            if len == whole && len > 0 {
                flags |= flag::PSH;
            }
            let payload = self.from_host.get(self.in_flight() as usize, len);
            if !self.outgoing(flags, payload).emit(wire, mac, sink) {
                return Ok(Emitted::Refused);
            }
            self.has_acknowledged();
            self.advance(len as u32 + u32::from(fin), now);
            share = share.saturating_sub(len);
            if share == 0 {
                return Ok(Emitted::Share);
            }
        }
        if self.ack_due {
            if !self.outgoing(flag::ACK, [&[], &[]]).emit(wire, mac, sink) {
                return Ok(Emitted::Refused);
            }
            self.has_acknowledged();
        }
        if self.is_over() {
            return Err(Verdict::Remove);
        }
        // With its window closed the guest is asked from time to time (RFC 9293, 3.8.6.1).
        if self.deadline.is_none() && !self.from_host.is_empty() {
            self.deadline = Some(now + self.rto);
        }
        Ok(if self.can_read() && self.can_send() { Emitted::Share } else { Emitted::All })
    }

    fn outgoing<'a>(&self, flags: u8, payload: [&'a [u8]; 2]) -> Outgoing<'a> {
        let scale = if self.scaled { SCALE } else { 0 };
        Outgoing {
            from: self.remote,
            to: self.guest,
            seq: self.snd_nxt,
            ack: if flags & flag::ACK != 0 { self.rcv_nxt } else { 0 },
            flags,
            window: (self.room() >> scale).min(0xFFFF) as u16,
            syn: None,
            payload,
            mss: self.mss.into(),
        }
    }

    fn has_acknowledged(&mut self) {
        let scale = if self.scaled { SCALE } else { 0 };
        self.ack_due = false;
        self.rcv_edge = self.rcv_nxt.wrapping_add(self.room() >> scale << scale);
    }

    fn advance(&mut self, by: u32, now: VmTime) {
        self.snd_nxt = self.snd_nxt.wrapping_add(by);
        if before(self.snd_max, self.snd_nxt) {
            self.snd_max = self.snd_nxt;
            self.timed.get_or_insert((self.snd_nxt, now));
        }
        self.deadline.get_or_insert(now + self.rto);
    }

    /// Its time is over: what is not acknowledged is sent again.
    pub(super) fn time_out(&mut self) -> Verdict {
        self.deadline = None;
        self.dup_acks = 0;
        self.timed = None;
        if self.state == State::Established
            && self.snd_wnd == 0
            && !self.from_host.is_empty()
            && self.in_flight() == 0
        {
            // One byte beyond the window makes the guest say how large that is now.
            self.snd_wnd = 1;
            return Verdict::Keep;
        }
        let asking = self.state == State::SynSent && self.snd_max == self.snd_una;
        // What was not even given to the card (a machine that is stopped) says nothing of the guest.
        if self.snd_nxt != self.snd_una || asking {
            self.retries += 1;
            if self.retries > MAX_RETRIES {
                return Verdict::Reset;
            }
            self.rto = (self.rto * 2).min(MAX_RTO);
        }
        self.snd_nxt = self.snd_una;
        Verdict::Keep
    }

    /// The last words to the guest: sequence and acknowledgement numbers.
    pub(super) fn reset_numbers(&self) -> (u32, u32) {
        (self.snd_max, self.rcv_nxt)
    }

    /// Makes the host's peer see a reset rather than an end.
    pub(super) fn abort(&self) {
        // Without a connection there is nothing to abort.
        let _ = rustix::net::sockopt::set_socket_linger(&self.socket, Some(Duration::ZERO));
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; either way it is waited for.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// What the guest is told when the host cannot connect.
fn refused(error: Errno) -> Verdict {
    const NET: u8 = 0;
    const HOST: u8 = 1;
    match error {
        Errno::NETUNREACH => Verdict::Unreachable(NET),
        Errno::HOSTUNREACH | Errno::TIMEDOUT | Errno::HOSTDOWN => Verdict::Unreachable(HOST),
        _ => Verdict::Reset,
    }
}
