//! isa-debugcon: a port that prints each byte written to it (the "E9 hack" of Bochs).
//!
//! The port has no status register, so that a guest cannot be made to wait. What the backend does
//! not take is kept and goes out when there is room again. Nothing is lost while a reader is slow;
//! of a reader that has stopped reading, the last [`BACKLOG`] bytes are kept.

use std::collections::VecDeque;

use board::device::{Attach, Device, Region, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::{Paused, VmTime};
use serde::{Deserialize, Serialize};

use crate::chardev::CharPort;

/// Bytes that are kept at most for a backend that does not take them: 4 MiB.
pub const BACKLOG: usize = 4 << 20;

/// What a read gives, so that a guest can tell that the port is there.
pub const READBACK: u8 = 0xE9;

/// The port.
pub struct DebugCon {
    port: Box<dyn CharPort>,
    backlog: VecDeque<u8>,
    readback: u8,
}

impl DebugCon {
    /// The one region, one byte.
    pub const PORT: Region = Region(0);

    const ROOM: Tag = Tag(0);

    /// A debug console that prints to `port`, and whose port reads as `readback`, usually
    /// [`READBACK`].
    pub fn new(attach: &Attach, mut port: Box<dyn CharPort>, readback: u8) -> Self {
        port.set_notifier(attach.notifier(Self::ROOM));
        Self { port, backlog: VecDeque::new(), readback }
    }

    fn flush(&mut self) {
        while !self.backlog.is_empty() {
            let (front, _) = self.backlog.as_slices();
            let offered = front.len();
            let taken = self.port.write(front);
            self.backlog.drain(..taken);
            if taken < offered {
                break;
            }
        }
    }
}

impl Device for DebugCon {
    fn read(&mut self, _region: Region, _offset: u64, data: &mut [u8]) {
        data.fill(self.readback);
    }

    fn write(&mut self, _region: Region, _offset: u64, data: &[u8]) {
        let waits = !self.backlog.is_empty();
        self.backlog.extend(data);
        let excess = self.backlog.len().saturating_sub(BACKLOG);
        self.backlog.drain(..excess);
        // While output waits, the backend is full and says when that changes.
        if !waits {
            self.flush();
        }
    }

    fn event(&mut self, _tag: Tag, _now: VmTime) {
        self.flush();
    }

    /// What waits is on its way to the host already.
    fn reset(&mut self) {}

    fn pause(&mut self) -> Paused {
        self.flush();
        Paused::Done
    }

    fn resume(&mut self) {
        self.flush();
    }

    fn snapshot(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }
}

/// A saved [`DebugCon`].
#[derive(Debug, Serialize, Deserialize)]
pub struct DebugConV1 {
    /// Output that the backend has not taken.
    pub backlog: Vec<u8>,
}

impl Snapshot for DebugCon {
    const KIND: &'static str = "isa-debugcon";
    const VERSION: u32 = 1;
    type State = DebugConV1;

    fn save(&self) -> DebugConV1 {
        let Self { port: _, backlog, readback: _ } = self;
        DebugConV1 { backlog: backlog.iter().copied().collect() }
    }

    fn restore(&mut self, state: DebugConV1) -> Result<(), StateError> {
        self.backlog = state.backlog.into();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use board::device::Notifier;

    use super::super::testing::Bench;
    use super::*;

    /// A backend that takes as many bytes as it has room for.
    #[derive(Clone, Default)]
    struct Paper(Arc<Mutex<Sheet>>);

    #[derive(Default)]
    struct Sheet {
        text: Vec<u8>,
        room: usize,
        notifier: Option<Notifier>,
    }

    impl Paper {
        fn make_room(&self, room: usize) {
            let mut sheet = self.0.lock().unwrap();
            sheet.room = room;
            sheet.notifier.as_ref().unwrap().notify();
        }

        fn text(&self) -> Vec<u8> {
            self.0.lock().unwrap().text.clone()
        }
    }

    impl CharPort for Paper {
        fn set_notifier(&mut self, notifier: Notifier) {
            self.0.lock().unwrap().notifier = Some(notifier);
        }

        fn write(&mut self, data: &[u8]) -> usize {
            let mut sheet = self.0.lock().unwrap();
            let taken = data.len().min(sheet.room);
            sheet.room -= taken;
            sheet.text.extend(&data[..taken]);
            taken
        }

        fn read(&mut self, _data: &mut [u8]) -> usize {
            0
        }

        fn take_break(&mut self) -> bool {
            false
        }
    }

    fn console(room: usize) -> (Bench, Paper) {
        let paper = Paper::default();
        let bench = Bench::plug(|attach| DebugCon::new(attach, Box::new(paper.clone()), READBACK));
        paper.0.lock().unwrap().room = room;
        (bench, paper)
    }

    fn print(bench: &Bench, text: &[u8]) {
        for &byte in text {
            bench.write(DebugCon::PORT, 0, byte);
        }
    }

    #[test]
    fn output_goes_through_at_once_and_a_read_shows_the_port() {
        let (bench, paper) = console(100);
        print(&bench, b"hello");
        assert_eq!(paper.text(), b"hello");
        assert_eq!(bench.read(DebugCon::PORT, 0), 0xE9);
    }

    #[test]
    fn a_slow_reader_loses_nothing() {
        let (mut bench, paper) = console(3);
        let sent: Vec<u8> = (0..5000).map(|i| (i % 251) as u8).collect();
        let (early, late) = sent.split_at(4000);
        print(&bench, early);
        assert_eq!(paper.text(), &sent[..3]);
        paper.make_room(2000);
        bench.deliver();
        assert_eq!(paper.text(), &sent[..2003]);
        print(&bench, late);
        paper.make_room(usize::MAX);
        bench.deliver();
        assert_eq!(paper.text(), sent);
    }

    #[test]
    fn of_a_reader_that_has_stopped_the_last_bytes_are_kept() {
        let (mut bench, paper) = console(0);
        for chunk in 0..BACKLOG / 8 + 1 {
            let data = (chunk as u64).to_le_bytes();
            bench.slot.lock().write(DebugCon::PORT, 0, &data);
        }
        paper.make_room(usize::MAX);
        bench.deliver();
        let text = paper.text();
        assert_eq!((text.len(), &text[..8]), (BACKLOG, &1_u64.to_le_bytes()[..]));
    }

    #[test]
    fn output_that_waits_is_saved() {
        let (bench, _) = console(2);
        print(&bench, b"abcdef");
        let (other, paper) = console(100);
        bench.copy_to(&other);
        other.slot.lock().resume();
        assert_eq!(paper.text(), b"cdef");
    }
}
