//! The block device (Virtio 1.2, 5.2): several queues, each with a channel of its own to the drive.

use std::collections::VecDeque;
use std::sync::Arc;

use board::GuestRam;
use board::device::{Attach, Paused, Tag};
use board::state::{ErasedSnapshot, Snapshot, StateError};
use board::time::VmTime;
use serde::{Deserialize, Serialize};

use super::Io;
use super::chain::{Chain, Segment, parts};
use super::device::{BLOCK, Kind, VirtioDevice, read_bytes};
use crate::block::{BlockError, Channel, Claim, Completion, Disk, GuestRange, Op, Request, Status};

/// Feature bits (5.2.3).
mod feature {
    pub(super) const SEG_MAX: u64 = 1 << 2;
    pub(super) const RO: u64 = 1 << 5;
    pub(super) const BLK_SIZE: u64 = 1 << 6;
    pub(super) const FLUSH: u64 = 1 << 9;
    pub(super) const TOPOLOGY: u64 = 1 << 10;
    pub(super) const MQ: u64 = 1 << 12;
    pub(super) const DISCARD: u64 = 1 << 13;
    pub(super) const WRITE_ZEROES: u64 = 1 << 14;
}

const FEATURE_NAMES: &[(u32, &str)] = &[
    (2, "BLK_F_SEG_MAX"),
    (5, "BLK_F_RO"),
    (6, "BLK_F_BLK_SIZE"),
    (9, "BLK_F_FLUSH"),
    (10, "BLK_F_TOPOLOGY"),
    (12, "BLK_F_MQ"),
    (13, "BLK_F_DISCARD"),
    (14, "BLK_F_WRITE_ZEROES"),
];

/// Request types (5.2.6).
mod kind {
    pub(super) const IN: u32 = 0;
    pub(super) const OUT: u32 = 1;
    pub(super) const FLUSH: u32 = 4;
    pub(super) const GET_ID: u32 = 8;
    pub(super) const DISCARD: u32 = 11;
    pub(super) const WRITE_ZEROES: u32 = 13;
}

/// Request status (5.2.6).
const OK: u8 = 0;
const IOERR: u8 = 1;
const UNSUPP: u8 = 2;

/// Bytes of the header in front of a request, and of the answer to GET_ID.
const HEADER: u32 = 16;
const ID_BYTES: usize = 20;
/// Bytes of a sector, the unit of addresses.
const SECTOR: u64 = 512;
/// The most sectors of one discard or write-zeroes: 2 GiB.
const MAX_UNMAP_SECTORS: u32 = 1 << 22;
/// A range may be unmapped.
const UNMAP: u32 = 1;

/// The tag of the drive's word that its size has changed; tags below are queues'.
const RESIZED: u32 = 1 << 16;

/// How the device is set up.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkOptions {
    /// Request queues, 1 to 1024.
    pub queues: u16,
    /// Descriptors of each, a power of two up to 1024.
    pub queue_size: u16,
    /// What GET_ID answers in place of the drive's own serial number.
    pub serial: Option<String>,
}

impl Default for BlkOptions {
    fn default() -> Self {
        Self { queues: 1, queue_size: 256, serial: None }
    }
}

/// A request that the drive has, or will have again.
struct Pending {
    queue: usize,
    chain: Chain,
}

/// Requests by token.
#[derive(Default)]
struct Table {
    slots: Vec<Option<Pending>>,
    free: Vec<usize>,
}

impl Table {
    fn add(&mut self, pending: Pending) -> u64 {
        let index = self.free.pop().unwrap_or_else(|| {
            self.slots.push(None);
            self.slots.len() - 1
        });
        self.slots[index] = Some(pending);
        index as u64
    }

    fn take(&mut self, token: u64) -> Option<Pending> {
        let pending = self.slots.get_mut(token as usize)?.take()?;
        self.free.push(token as usize);
        Some(pending)
    }

    fn clear(&mut self) {
        *self = Self::default();
    }
}

/// The device.
pub struct Blk {
    disk: Arc<Disk>,
    options: BlkOptions,
    /// One a queue. They go before the claim that they are part of.
    channels: Vec<Channel>,
    _claim: Arc<Claim>,
    pending: Table,
    /// What the drive has not done and gets again when the machine goes on.
    held: VecDeque<Pending>,
    /// Queue and head of each request in flight when the device was saved.
    restored: Vec<(u16, u16)>,
    /// A reset waits for what is in flight.
    resetting: bool,
    /// Kept for their room.
    batch: Vec<Request>,
    done: Vec<Completion>,
}

/// What becomes of a chain.
enum Step {
    /// The drive has work to do.
    Submit(Op, u64, Vec<GuestRange>),
    /// It is done, with this status.
    Answer(u8),
    /// It is no request.
    Malformed,
}

impl Blk {
    /// A device on `disk`; `owner` is how others are told who has it.
    ///
    /// # Errors
    /// [`BlockError::InUse`].
    pub fn new(
        disk: &Arc<Disk>,
        ram: &GuestRam,
        owner: &str,
        options: BlkOptions,
        attach: &Attach,
    ) -> Result<Self, BlockError> {
        let claim = disk.claim(ram, owner, attach.notifier(Tag(RESIZED)))?;
        let channels = (0..u32::from(options.queues))
            .map(|queue| claim.channel(attach.notifier(Tag(queue))))
            .collect();
        Ok(Self {
            disk: disk.clone(),
            options,
            channels,
            _claim: claim,
            pending: Table::default(),
            held: VecDeque::new(),
            restored: Vec::new(),
            resetting: false,
            batch: Vec::new(),
            done: Vec::new(),
        })
    }

    /// Understands a request.
    fn step(&self, chain: &Chain, io: &Io<'_>) -> Step {
        let Some(header) = chain.read_array::<{ HEADER as usize }>(io.ram(), 0) else {
            return Step::Malformed;
        };
        let (Some(data_in), data_out) =
            (chain.writable_len().checked_sub(1), chain.readable_len() - HEADER)
        else {
            return Step::Malformed;
        };
        let [t0, t1, t2, t3, _, _, _, _, sector @ ..] = header;
        let offset = u64::from_le_bytes(sector).checked_mul(SECTOR);
        let offset = offset.unwrap_or(u64::MAX);
        let ranges = |part: &[Segment], from, len| -> Vec<GuestRange> {
            parts(part, from, len)
                .map(|segment| GuestRange { gpa: segment.address, len: segment.len })
                .collect()
        };
        match u32::from_le_bytes([t0, t1, t2, t3]) {
            kind::IN => Step::Submit(Op::Read, offset, ranges(chain.writable(), 0, data_in)),
            kind::OUT => {
                Step::Submit(Op::Write, offset, ranges(chain.readable(), HEADER, data_out))
            }
            kind::FLUSH => Step::Submit(Op::Flush, 0, Vec::new()),
            kind::GET_ID => {
                let serial = self.disk.properties().serial;
                let serial = self.options.serial.as_ref().unwrap_or(&serial);
                let mut id = [0; ID_BYTES];
                let len = serial.len().min(ID_BYTES);
                id[..len].copy_from_slice(&serial.as_bytes()[..len]);
                chain.write_at(io.ram(), 0, &id[..ID_BYTES.min(data_in as usize)]);
                Step::Answer(OK)
            }
            kind @ (kind::DISCARD | kind::WRITE_ZEROES) => {
                self.unmap(chain, io, kind == kind::DISCARD, data_out)
            }
            _ => Step::Answer(UNSUPP),
        }
    }

    /// A discard or write-zeroes, of one range as the configuration says.
    fn unmap(&self, chain: &Chain, io: &Io<'_>, discard: bool, data_out: u32) -> Step {
        let Some(range) = chain.read_array::<16>(io.ram(), HEADER).filter(|_| data_out == 16)
        else {
            return Step::Answer(UNSUPP);
        };
        let word = |at: usize| {
            u32::from_le_bytes([range[at], range[at + 1], range[at + 2], range[at + 3]])
        };
        let sector = u64::from(word(0)) | u64::from(word(4)) << 32;
        let (sectors, flags) = (word(8), word(12));
        if flags & !UNMAP != 0 || (discard && flags != 0) {
            return Step::Answer(UNSUPP);
        }
        let Some(offset) = sector.checked_mul(SECTOR).filter(|_| sectors <= MAX_UNMAP_SECTORS)
        else {
            return Step::Answer(IOERR);
        };
        let len = u64::from(sectors) * SECTOR;
        let op = match discard {
            true => Op::Discard { len },
            false => Op::WriteZeroes { len, unmap: flags & UNMAP != 0 },
        };
        Step::Submit(op, offset, Vec::new())
    }

    /// Sees to a chain: puts it into the batch for the drive, or answers it.
    fn take_on(&mut self, queue: usize, chain: Chain, io: &mut Io<'_>) {
        match self.step(&chain, io) {
            Step::Submit(op, offset, buffers) => {
                let token = self.pending.add(Pending { queue, chain });
                self.batch.push(Request { op, offset, buffers, token });
            }
            Step::Answer(status) => answer(queue, chain, status, io),
            Step::Malformed => io.fail("a block request without header or status"),
        }
    }

    fn submit(&mut self, queue: usize) {
        if !self.batch.is_empty() {
            self.channels[queue].submit(self.batch.drain(..));
        }
    }

    /// Gives back what the drive has finished for `queue`.
    fn reap(&mut self, queue: usize, io: &mut Io<'_>) {
        let mut done = std::mem::take(&mut self.done);
        let Some(channel) = self.channels.get_mut(queue) else { return };
        channel.take(&mut done);
        for Completion { token, status } in done.drain(..) {
            let Some(pending) = self.pending.take(token) else { continue };
            let status = match status {
                Status::Done => OK,
                Status::Error => IOERR,
                Status::Unsupported => UNSUPP,
                Status::Again => {
                    self.held.push_back(pending);
                    continue;
                }
            };
            answer(pending.queue, pending.chain, status, io);
        }
        self.done = done;
        io.signal(queue);
    }

    /// Whether the drive still works on something.
    fn is_busy(&self) -> bool {
        self.channels.iter().any(|channel| channel.in_flight() > 0)
    }

    fn config(&self) -> [u8; 60] {
        let properties = self.disk.properties();
        let mut config = [0; 60];
        let mut put = |at: usize, bytes: &[u8]| config[at..at + bytes.len()].copy_from_slice(bytes);
        put(0, &properties.sectors.to_le_bytes());
        put(12, &self.seg_max().to_le_bytes());
        put(20, &properties.logical_block.to_le_bytes());
        let per_physical = (properties.physical_block / properties.logical_block.max(1)).max(1);
        put(24, &[per_physical.ilog2() as u8]);
        // The smallest I/O that is no read-modify-write, in logical blocks.
        put(26, &(per_physical as u16).to_le_bytes());
        put(32, &[u8::from(properties.write_cache)]);
        put(34, &self.options.queues.to_le_bytes());
        let sectors_per_block = (properties.logical_block / SECTOR as u32).max(1);
        put(36, &MAX_UNMAP_SECTORS.to_le_bytes());
        put(40, &1_u32.to_le_bytes());
        put(44, &sectors_per_block.to_le_bytes());
        put(48, &MAX_UNMAP_SECTORS.to_le_bytes());
        put(52, &1_u32.to_le_bytes());
        put(56, &[1]);
        config
    }

    /// Buffers of a request: a chain has a header and a status besides.
    fn seg_max(&self) -> u32 {
        u32::from(self.options.queue_size).saturating_sub(2).max(1)
    }
}

/// Gives a chain back with its status.
fn answer(queue: usize, chain: Chain, status: u8, io: &mut Io<'_>) {
    let written = chain.writable_len();
    chain.write_at(io.ram(), written.saturating_sub(1), &[status]);
    io.push(queue, chain, written);
}

impl VirtioDevice for Blk {
    fn kind(&self) -> Kind {
        BLOCK
    }

    fn features(&self) -> u64 {
        use feature::{BLK_SIZE, DISCARD, FLUSH, MQ, RO, SEG_MAX, TOPOLOGY, WRITE_ZEROES};
        let properties = self.disk.properties();
        let mut features = SEG_MAX | BLK_SIZE | TOPOLOGY;
        for (wanted, bits) in [
            (properties.write_cache, FLUSH),
            (self.options.queues > 1, MQ),
            (properties.readonly, RO),
            (!properties.readonly && properties.discard, DISCARD),
            (!properties.readonly, WRITE_ZEROES),
        ] {
            if wanted {
                features |= bits;
            }
        }
        features
    }

    fn queue_sizes(&self) -> Vec<u16> {
        vec![self.options.queue_size; self.options.queues.into()]
    }

    fn read_config(&self, offset: usize, data: &mut [u8]) {
        read_bytes(&self.config(), offset, data);
    }

    fn notify(&mut self, queue: usize, io: &mut Io<'_>) {
        io.serve(queue, |io, chain| self.take_on(queue, chain, io));
        self.submit(queue);
    }

    fn event(&mut self, tag: Tag, _now: VmTime, io: &mut Io<'_>) {
        if tag.0 == RESIZED {
            return io.config_changed();
        }
        self.reap(tag.0 as usize, io);
        if self.resetting && !self.is_busy() {
            self.resetting = false;
            self.held.clear();
            io.drained();
        }
    }

    fn reset(&mut self) -> Paused {
        // What has not been started comes back; what has been may still write to guest memory.
        for channel in &mut self.channels {
            channel.pause();
        }
        self.pending.clear();
        self.held.clear();
        self.restored.clear();
        self.resetting = self.is_busy();
        if self.resetting { Paused::Pending } else { Paused::Done }
    }

    fn pause(&mut self, io: &mut Io<'_>) -> Paused {
        for queue in 0..self.channels.len() {
            self.channels[queue].pause();
            self.reap(queue, io);
        }
        match self.is_busy() {
            true => Paused::Pending,
            false => Paused::Done,
        }
    }

    fn resume(&mut self, io: &mut Io<'_>) {
        for channel in &mut self.channels {
            channel.resume();
        }
        for (queue, head) in std::mem::take(&mut self.restored) {
            if let Some(chain) = io.take_up(queue.into(), head) {
                self.held.push_back(Pending { queue: queue.into(), chain });
            }
        }
        for Pending { queue, chain } in std::mem::take(&mut self.held) {
            self.take_on(queue, chain, io);
            self.submit(queue);
            io.signal(queue);
        }
    }

    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        Some(self)
    }

    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        Some(self)
    }

    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        FEATURE_NAMES
    }
}

/// The saved state: the drive's contents are not part of it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct BlkV1 {
    /// Queue and head of each request that is to be submitted again.
    in_flight: Vec<(u16, u16)>,
}

impl Snapshot for Blk {
    const KIND: &'static str = "virtio-blk";
    const VERSION: u32 = 1;
    type State = BlkV1;

    fn save(&self) -> BlkV1 {
        let Self {
            disk: _,
            options: _,
            channels: _,
            _claim,
            pending,
            held,
            restored,
            resetting: _,
            batch: _,
            done: _,
        } = self;
        let pending = pending.slots.iter().flatten().chain(held);
        let place = |p: &Pending| (p.queue as u16, p.chain.head());
        BlkV1 { in_flight: pending.map(place).chain(restored.iter().copied()).collect() }
    }

    fn restore(&mut self, state: BlkV1) -> Result<(), StateError> {
        let BlkV1 { in_flight } = state;
        if let Some((queue, _)) = in_flight.iter().find(|(queue, _)| *queue >= self.options.queues)
        {
            let cause = format!("a request of queue {queue}");
            return Err(StateError::Damaged { kind: Self::KIND, cause });
        }
        self.pending.clear();
        self.held.clear();
        self.restored = in_flight;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
