//! The state of a character device: frontends on one side, on the other a peer that comes and goes.
//!
//! Output goes to the host at once where the host takes it, and else into a bounded buffer that the
//! main loop empties; input is read only as far as the frontend that it is for has room. With
//! nothing to do there is no wake-up.

use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::Weak;
use std::time::Instant;

use board::device::{Notifier, Tag};
use board::event::{Brake, EventTarget, LoopHandle, Readiness, Watch};
use rustix::event::{PollFd, PollFlags, Timespec, poll};

use super::backend::HotKey;
use super::buffer::Buffer;
use super::error::cause;
use super::host::HostFd;
use super::mux::{Mux, Typed};
use super::source::{Fixed, Peer, Source};

/// How much output waits for a slow reader before the frontend has to.
const OUTPUT_LIMIT: usize = 64 * 1024;
/// The same where the VM clock is driven by instructions: the vCPU waits from `OUTPUT_LIMIT` on, so
/// that no frontend has to, which the guest would see.
const DRIVEN_OUTPUT_LIMIT: usize = 2 * OUTPUT_LIMIT;
/// How much input waits for a slow frontend before the host has to.
const INPUT_LIMIT: usize = 4096;

pub(super) const INPUT: Tag = Tag(0);
pub(super) const OUTPUT: Tag = Tag(1);
pub(super) const ARRIVAL: Tag = Tag(2);
pub(super) const HANG_UP: Tag = Tag(3);

/// What must wait until the lock is gone.
pub(super) enum Call {
    HotKey(HotKey),
    Report(String),
}

/// The device's identity for the loop.
pub(super) struct Hooks {
    pub(super) events: LoopHandle,
    pub(super) target: Weak<dyn EventTarget>,
}

impl Hooks {
    fn watch(&self, fd: RawFd, tag: Tag) -> io::Result<Watch> {
        self.events.watch(fd, Readiness::empty(), self.target.clone(), tag)
    }

    fn post(&self, tag: Tag) {
        self.events.post_event(self.target.clone(), tag);
    }
}

/// One direction of a peer. The watch goes before the fd that it is on.
struct Half {
    watch: Watch,
    fd: HostFd,
}

struct Link {
    input: Option<Half>,
    output: Option<Half>,
    filename: String,
    hangs_up: bool,
    /// The peer's input is at its end, and so will the link be once the output is out.
    ended: bool,
}

pub(super) struct PortState {
    attached: bool,
    notifier: Option<Notifier>,
    input: Buffer,
    /// The last read found less than it asked for.
    hungry: bool,
    /// The last write was not taken whole.
    blocked: bool,
    broken: bool,
    focus: Option<bool>,
}

impl PortState {
    fn new() -> Self {
        Self {
            attached: true,
            notifier: None,
            input: Buffer::new(INPUT_LIMIT),
            hungry: true,
            blocked: false,
            broken: false,
            focus: None,
        }
    }

    pub(super) fn set_notifier(&mut self, notifier: Notifier) {
        if !self.input.is_empty() || self.broken || self.focus.is_some() {
            notifier.notify();
        }
        self.notifier = Some(notifier);
    }

    pub(super) fn read(&mut self, data: &mut [u8]) -> usize {
        let n = self.input.take(data);
        self.hungry = n < data.len();
        n
    }

    pub(super) fn take_break(&mut self) -> bool {
        std::mem::take(&mut self.broken)
    }

    pub(super) fn take_focus(&mut self) -> Option<bool> {
        self.focus.take()
    }

    fn notify(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.notify();
        }
    }

    fn set_focus(&mut self, focus: bool) {
        self.focus = Some(focus);
        self.notify();
    }
}

/// All that is behind the lock.
pub(super) struct State {
    label: String,
    hooks: Hooks,
    /// The watch goes before the source, which owns the fd.
    arrivals: Option<Watch>,
    source: Box<dyn Source>,
    link: Option<Link>,
    output: Buffer,
    /// Pulled while much output waits for a slow reader.
    brake: Brake,
    ports: Vec<PortState>,
    /// The port that input is for.
    focus: usize,
    mux: Option<Mux>,
    calls: Vec<Call>,
}

impl State {
    pub(super) fn new(
        label: &str,
        hooks: Hooks,
        source: Box<dyn Source>,
        mux: Option<Mux>,
    ) -> Self {
        let driven = hooks.events.clock().is_driven();
        Self {
            label: label.to_owned(),
            brake: hooks.events.brake(),
            hooks,
            arrivals: None,
            source,
            link: None,
            output: Buffer::new(if driven { DRIVEN_OUTPUT_LIMIT } else { OUTPUT_LIMIT }),
            ports: Vec::new(),
            focus: 0,
            mux,
            calls: Vec::new(),
        }
    }

    /// Takes up its first peer, and begins to look out for others.
    pub(super) fn open(&mut self, peer: Option<Peer>) -> io::Result<()> {
        if let Some(fd) = self.source.arrivals() {
            self.arrivals = Some(self.hooks.watch(fd, ARRIVAL)?);
        }
        match peer {
            Some(peer) => self.connect(peer),
            None => Ok(()),
        }
    }

    /// Writes out what is buffered, until `deadline` at most, and lets go of the host.
    pub(super) fn close(&mut self, deadline: Instant) {
        self.drain(deadline);
        self.disconnect();
        self.arrivals = None;
        self.source = Box::new(Fixed(self.source.filename()));
    }

    pub(super) fn port(&mut self, index: usize) -> &mut PortState {
        &mut self.ports[index]
    }

    pub(super) fn has_frontend(&self) -> bool {
        self.ports.iter().any(|port| port.attached)
    }

    pub(super) fn is_mux(&self) -> bool {
        self.mux.is_some()
    }

    pub(super) fn take_calls(&mut self) -> Vec<Call> {
        std::mem::take(&mut self.calls)
    }

    /// A new frontend's index, unless there is one and the backend is not multiplexed.
    pub(super) fn attach(&mut self) -> Option<usize> {
        let free = self.ports.iter().position(|port| !port.attached);
        if self.mux.is_none() && free.is_none() && !self.ports.is_empty() {
            return None;
        }
        let index = free.unwrap_or(self.ports.len());
        match self.ports.get_mut(index) {
            Some(port) => *port = PortState::new(),
            None => self.ports.push(PortState::new()),
        }
        if !self.ports[self.focus].attached {
            self.focus = index;
        }
        if self.focus == index && self.link.is_some() {
            self.ports[index].set_focus(true);
        }
        Some(index)
    }

    pub(super) fn detach(&mut self, index: usize) {
        self.ports[index] = PortState { attached: false, ..PortState::new() };
        if self.focus == index {
            self.next_focus();
        }
    }

    /// Gives the focus to the next frontend, if there is another.
    fn next_focus(&mut self) {
        let n = self.ports.len();
        let next = (1..n).map(|i| (self.focus + i) % n).find(|&i| self.ports[i].attached);
        let Some(next) = next else { return };
        let old = std::mem::replace(&mut self.focus, next);
        if self.link.is_some() {
            if self.ports[old].attached {
                self.ports[old].set_focus(false);
            }
            self.ports[next].set_focus(true);
        }
    }

    pub(super) fn filename(&self) -> String {
        match &self.link {
            Some(link) => link.filename.clone(),
            None => self.source.filename(),
        }
    }

    /// The columns of the terminal that output goes to.
    pub(super) fn width(&self) -> Option<u16> {
        let half = self.link.as_ref()?.output.as_ref()?;
        let size = rustix::termios::tcgetwinsize(&half.fd).ok()?;
        Some(size.ws_col).filter(|columns| *columns > 0)
    }

    /// Sets the watches, and the brake, to what there is to do.
    pub(super) fn update_interest(&mut self) {
        self.brake.set(self.output.len() >= OUTPUT_LIMIT);
        let room = self.ports.get(self.focus).is_some_and(|p| p.attached && p.input.room() > 0);
        let when = |wanted, what| if wanted { what } else { Readiness::empty() };
        if let Some(link) = &self.link {
            if let Some(half) = &link.input {
                half.watch.set_interest(when(room, Readiness::READ));
            }
            if let Some(half) = &link.output {
                half.watch.set_interest(when(!self.output.is_empty(), Readiness::WRITE));
            }
        }
        if let Some(watch) = &self.arrivals {
            watch.set_interest(when(self.link.is_none(), Readiness::READ));
        }
    }

    fn connect(&mut self, peer: Peer) -> io::Result<()> {
        let half = |fd: HostFd, tag| -> io::Result<Half> {
            Ok(Half { watch: self.hooks.watch(fd.as_raw_fd(), tag)?, fd })
        };
        self.link = Some(Link {
            input: peer.input.map(|fd| half(fd, INPUT)).transpose()?,
            output: peer.output.map(|fd| half(fd, OUTPUT)).transpose()?,
            filename: peer.filename,
            hangs_up: peer.hangs_up,
            ended: false,
        });
        if let Some(port) = self.ports.get_mut(self.focus).filter(|port| port.attached) {
            port.set_focus(true);
        }
        Ok(())
    }

    fn disconnect(&mut self) {
        if self.link.take().is_none() {
            return;
        }
        self.discard_output();
        if let Some(mux) = &mut self.mux {
            mux.reset();
        }
        if let Some(port) = self.ports.get_mut(self.focus).filter(|port| port.attached) {
            port.set_focus(false);
        }
    }

    /// Somebody may have come.
    pub(super) fn welcome(&mut self) {
        if self.link.is_some() {
            return;
        }
        match self.source.accept().and_then(|peer| self.connect(peer)) {
            Ok(()) => {}
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                if let Some(watch) = &self.arrivals {
                    watch.drained(Readiness::READ);
                }
            }
            // It still waits, and so would the loop for ever without pause.
            Err(e) if is_exhaustion(&e) => {
                self.arrivals = None;
                let text = format!("{}: no more clients are accepted: {}", self.label, cause(&e));
                self.calls.push(Call::Report(text));
            }
            // That client has gone away already.
            Err(_) => {}
        }
    }

    /// The peer has ended its input; what is buffered for it may still go out first.
    pub(super) fn hang_up(&mut self) {
        if self.link.as_ref().is_some_and(|link| link.ended) && self.output.is_empty() {
            self.disconnect();
        }
    }

    /// Reads what the frontend that has the focus has room for.
    pub(super) fn pull(&mut self) {
        let Some(half) = self.link.as_ref().and_then(|link| link.input.as_ref()) else { return };
        let Some(port) = self.ports.get(self.focus) else { return };
        let mut bytes = [0; INPUT_LIMIT];
        let room = port.input.room();
        if room == 0 {
            return;
        }
        match half.fd.read(&mut bytes[..room]) {
            Ok(0) => self.end_input(),
            Ok(n) => self.distribute(&bytes[..n]),
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                half.watch.drained(Readiness::READ);
            }
            // A terminal that hung up, a connection that was reset.
            Err(_) => self.end_input(),
        }
    }

    fn end_input(&mut self) {
        let Some(link) = &mut self.link else { return };
        link.input = None;
        if link.hangs_up {
            link.ended = true;
            // A frontend that was just given the last input answers it first.
            self.hooks.post(HANG_UP);
        }
    }

    fn distribute(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            let typed = match &mut self.mux {
                Some(mux) => mux.typed(byte),
                None => Some(Typed::Byte(byte)),
            };
            match typed {
                Some(Typed::Byte(byte)) => self.ports[self.focus].input.push_all(&[byte]),
                Some(command) => self.command(command),
                None => {}
            }
        }
        for port in &mut self.ports {
            if port.hungry && !port.input.is_empty() {
                port.hungry = false;
                port.notify();
            }
        }
    }

    fn command(&mut self, command: Typed) {
        match command {
            Typed::Byte(_) => {}
            Typed::Help => self.say(Mux::help),
            Typed::Timestamps => {
                if let Some(mux) = &mut self.mux {
                    mux.toggle_stamps();
                }
            }
            Typed::Break => {
                let port = &mut self.ports[self.focus];
                port.broken = true;
                port.notify();
            }
            Typed::Switch => self.next_focus(),
            Typed::SaveDisks => self.calls.push(Call::HotKey(HotKey::SaveDisks)),
            Typed::Quit => {
                self.say(|_| "\r\nvmm: terminated\r\n".to_owned());
                self.calls.push(Call::HotKey(HotKey::Quit));
            }
        }
    }

    /// Output of the multiplexer's own, which does not wait for room.
    fn say(&mut self, text: impl FnOnce(&Mux) -> String) {
        let Some(text) = self.mux.as_ref().map(text) else { return };
        let sent = self.send(text.as_bytes());
        if self.has_output() {
            self.output.push_all(&text.as_bytes()[sent..]);
        }
    }

    fn has_output(&self) -> bool {
        self.link.as_ref().is_some_and(|link| link.output.is_some())
    }

    pub(super) fn write(&mut self, index: usize, data: &[u8]) -> usize {
        let taken = match &self.mux {
            Some(mux) if mux.stamps() => self.send_stamped(data),
            _ => self.send(data),
        };
        self.ports[index].blocked = taken < data.len();
        taken
    }

    fn send_stamped(&mut self, data: &[u8]) -> usize {
        let mut taken = 0;
        for line in data.split_inclusive(|&byte| byte == b'\n') {
            if let Some(stamp) = self.mux.as_ref().and_then(Mux::stamp) {
                if self.output.room() <= stamp.len() {
                    break;
                }
                self.send(stamp.as_bytes());
            }
            let n = self.send(line);
            if let Some(mux) = &mut self.mux {
                mux.wrote(&line[..n]);
            }
            taken += n;
            if n < line.len() {
                break;
            }
        }
        taken
    }

    /// Sends what the host takes, buffers what there is room for, and returns how much that was.
    fn send(&mut self, data: &[u8]) -> usize {
        let sent = match self.output.is_empty() {
            true => self.send_now(data),
            false => 0,
        };
        match self.has_output() {
            true => sent + self.output.push(&data[sent..]),
            false => data.len(),
        }
    }

    /// Sends until the host takes no more.
    fn send_now(&mut self, data: &[u8]) -> usize {
        let mut sent = 0;
        while sent < data.len() {
            let Some(half) = self.link.as_ref().and_then(|link| link.output.as_ref()) else {
                break;
            };
            match half.fd.write(&data[sent..]) {
                Ok(n) => sent += n,
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    half.watch.drained(Readiness::WRITE);
                    break;
                }
                Err(e) => self.lose_output(&e),
            }
        }
        sent
    }

    /// Sends from the buffer until the host takes no more.
    pub(super) fn push(&mut self) {
        while !self.output.is_empty() {
            let Some(half) = self.link.as_ref().and_then(|link| link.output.as_ref()) else {
                break;
            };
            match half.fd.write(self.output.front()) {
                Ok(n) => self.output.consume(n),
                Err(e) if e.kind() == io::ErrorKind::WouldBlock => {
                    half.watch.drained(Readiness::WRITE);
                    break;
                }
                Err(e) => self.lose_output(&e),
            }
        }
        self.offer_room();
        if self.output.is_empty() && self.link.as_ref().is_some_and(|link| link.ended) {
            // A frontend that was just offered room uses it first.
            self.hooks.post(HANG_UP);
        }
    }

    /// Tells frontends that wait for room, once there is enough of it to be worth the call.
    fn offer_room(&mut self) {
        if self.output.len() <= self.output.limit() / 2 {
            for port in self.ports.iter_mut().filter(|port| port.blocked) {
                port.blocked = false;
                port.notify();
            }
        }
    }

    fn discard_output(&mut self) {
        self.output.clear();
        self.offer_room();
    }

    /// The host takes no output any more.
    fn lose_output(&mut self, error: &io::Error) {
        let Some(link) = &mut self.link else { return };
        link.output = None;
        if link.hangs_up {
            // The peer is gone, which the end of its input will tell once that has been read.
            if link.input.is_none() {
                self.hooks.post(HANG_UP);
            }
        } else {
            let (label, filename) = (&self.label, &link.filename);
            let cause = cause(error);
            let text = format!("{label}: cannot write to {filename}: {cause}: output is lost");
            self.calls.push(Call::Report(text));
        }
        self.discard_output();
    }

    /// Sends from the buffer, waiting for the host until `deadline`.
    fn drain(&mut self, deadline: Instant) {
        loop {
            self.push();
            let left = deadline.saturating_duration_since(Instant::now());
            let half = self.link.as_ref().and_then(|link| link.output.as_ref());
            let Some(half) = half.filter(|_| !self.output.is_empty() && !left.is_zero()) else {
                return;
            };
            let timeout = Timespec {
                tv_sec: left.as_secs().min(i32::MAX as u64) as i64,
                tv_nsec: left.subsec_nanos().into(),
            };
            // An error or a hang-up shows at the next write.
            let _ = poll(&mut [PollFd::new(&half.fd, PollFlags::OUT)], Some(&timeout));
        }
    }
}

/// Whether the host has run out of what it takes to accept a client.
fn is_exhaustion(error: &io::Error) -> bool {
    let code = error.raw_os_error();
    [libc::EMFILE, libc::ENFILE, libc::ENOMEM, libc::ENOBUFS, libc::ENOSPC]
        .map(Some)
        .contains(&code)
}
