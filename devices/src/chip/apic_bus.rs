//! The bus among the local APICs of the software CPU, and the mailboxes in which messages wait for
//! the vCPU's thread (Intel SDM vol. 3, 11.6.2 and 11.11).
//!
//! A local APIC belongs to its vCPU's thread. Others put a message into its mailbox, which is made
//! of atomics, and kick the vCPU; how the APIC can be addressed stands in the mailbox as well.
//!
//! Among the candidates for a lowest-priority message the vector decides, as the chipsets do that
//! hash it: an interrupt stays where its handler's data is warm.

use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock, Weak};

use board::accel::{ApicBus, Kicker};
use board::device::Tag;
use board::event::EventTarget;
use board::time::ClockKind;
use board::{ApicEvent, LoopHandle, Msi, MsiSink, VmTime};

use super::lapic::Lapic;

/// How a message is to be taken (table 11-3). SMIs, remote reads and ExtINT, which has no wire in
/// this machine but LINT0, are ignored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Delivery {
    Fixed,
    LowestPriority,
    Nmi,
    Init,
    Startup,
}

impl Delivery {
    pub(super) fn of(mode: u64) -> Option<Self> {
        Some(match mode {
            0 => Self::Fixed,
            1 => Self::LowestPriority,
            4 => Self::Nmi,
            5 => Self::Init,
            6 => Self::Startup,
            _ => return None,
        })
    }

    /// Whether the message is an interrupt with a vector of its own.
    pub(super) fn has_vector(self) -> bool {
        matches!(self, Self::Fixed | Self::LowestPriority)
    }
}

/// Whom a message is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Destination {
    All,
    /// All but the APIC with this id.
    Others(u32),
    /// An APIC id.
    Physical(u32),
    /// Logical ids, as the receiver's mode understands them.
    Logical(u32),
}

/// A message on the bus.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Message {
    pub(super) destination: Destination,
    pub(super) delivery: Delivery,
    pub(super) vector: u8,
    /// Level-triggered: its end is broadcast.
    pub(super) level: bool,
}

impl Message {
    /// The message that `msi` means, if it is one for local APICs.
    fn decode(msi: Msi) -> Option<Self> {
        if msi.address >> 20 != 0xFEE {
            return None;
        }
        let id = (msi.address >> 12) as u32 & 0xFF;
        let (logical, hint) = (msi.address >> 2 & 1 != 0, msi.address >> 3 & 1 != 0);
        let delivery = match Delivery::of(u64::from(msi.data >> 8 & 7))? {
            // The redirection hint makes a group of the destinations.
            Delivery::Fixed if hint => Delivery::LowestPriority,
            Delivery::Startup => return None,
            delivery => delivery,
        };
        let destination = match logical {
            _ if id == 0xFF => Destination::All,
            true => Destination::Logical(id),
            false => Destination::Physical(id),
        };
        let level = msi.data >> 15 & 1 != 0;
        Some(Self { destination, delivery, vector: msi.data as u8, level })
    }
}

/// How messages find an APIC.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Address {
    /// Globally enabled.
    pub(super) enabled: bool,
    /// Enabled by software: it accepts interrupts.
    pub(super) accepts: bool,
    pub(super) x2apic: bool,
    /// The xAPIC's logical ids are flat, else clusters.
    pub(super) flat: bool,
    /// Logical destination register.
    pub(super) ldr: u32,
}

impl Address {
    fn pack(self) -> u64 {
        let flags = [self.enabled, self.accepts, self.x2apic, self.flat];
        let flags = flags.iter().rev().fold(0, |bits, flag| bits << 1 | u64::from(*flag));
        flags << 32 | u64::from(self.ldr)
    }

    fn unpack(bits: u64) -> Self {
        let flag = |i: u32| bits >> (32 + i) & 1 != 0;
        Self {
            enabled: flag(0),
            accepts: flag(1),
            x2apic: flag(2),
            flat: flag(3),
            ldr: bits as u32,
        }
    }

    /// Whether the APIC is among those that the logical destination names (11.6.2.2, 11.12.10.2).
    fn matches(self, destination: u32) -> bool {
        if self.x2apic {
            return self.ldr >> 16 == destination >> 16 && self.ldr & destination & 0xFFFF != 0;
        }
        let id = self.ldr >> 24;
        if self.flat {
            id & destination & 0xFF != 0
        } else {
            let cluster = destination >> 4 & 0xF;
            (cluster == 0xF || id >> 4 == cluster) && id & destination & 0xF != 0
        }
    }
}

/// What a mailbox holds besides vectors.
mod signal {
    pub(super) const INIT: u32 = 1;
    pub(super) const NMI: u32 = 1 << 1;
    pub(super) const TIMER: u32 = 1 << 2;
    pub(super) const STARTUP: u32 = 1 << 3;
    /// The startup vector.
    pub(super) const VECTOR: u32 = 0xFF << 8;
}

/// Where messages wait for a local APIC.
#[derive(Debug)]
pub(super) struct Mailbox {
    id: u32,
    address: AtomicU64,
    /// Something has been posted since the owner last looked.
    news: AtomicBool,
    irr: [AtomicU32; 8],
    /// Trigger mode of the vectors in `irr`.
    tmr: [AtomicU32; 8],
    signals: AtomicU32,
    kicker: Kicker,
}

impl Mailbox {
    fn new(id: u32, kicker: Kicker) -> Self {
        Self {
            id,
            address: AtomicU64::new(0),
            news: AtomicBool::new(false),
            irr: Default::default(),
            tmr: Default::default(),
            signals: AtomicU32::new(0),
            kicker,
        }
    }

    fn post(&self, message: &Message) {
        let (word, bit) = (usize::from(message.vector / 32), 1 << (message.vector % 32));
        match message.delivery {
            Delivery::Fixed | Delivery::LowestPriority => {
                if message.level {
                    self.tmr[word].fetch_or(bit, Ordering::SeqCst);
                } else {
                    self.tmr[word].fetch_and(!bit, Ordering::SeqCst);
                }
                self.irr[word].fetch_or(bit, Ordering::SeqCst);
            }
            Delivery::Nmi => self.signal(signal::NMI, signal::NMI),
            // What was to start before the INIT does not.
            Delivery::Init => {
                self.signal(signal::INIT | signal::STARTUP | signal::VECTOR, signal::INIT);
            }
            Delivery::Startup => self.signal(
                signal::STARTUP | signal::VECTOR,
                signal::STARTUP | u32::from(message.vector) << 8,
            ),
        }
        self.announce();
    }

    /// Sets the bits of `mask` to those of `value`.
    fn signal(&self, mask: u32, value: u32) {
        let _ = self
            .signals
            .fetch_update(Ordering::SeqCst, Ordering::SeqCst, |old| Some(old & !mask | value));
    }

    fn announce(&self) {
        self.news.store(true, Ordering::SeqCst);
        self.kicker.kick();
    }

    /// Takes all vectors, as (vector, level-triggered). Whether the timer has fired comes back.
    pub(super) fn take(&self, mut each: impl FnMut(u8, bool)) -> bool {
        if !self.news.swap(false, Ordering::SeqCst) {
            return false;
        }
        for (word, (irr, tmr)) in self.irr.iter().zip(&self.tmr).enumerate() {
            let mut bits = irr.swap(0, Ordering::SeqCst);
            let level = tmr.load(Ordering::SeqCst);
            while bits != 0 {
                let bit = bits.trailing_zeros();
                bits &= bits - 1;
                each(word as u8 * 32 + bit as u8, level >> bit & 1 != 0);
            }
        }
        self.signals.fetch_and(!signal::TIMER, Ordering::SeqCst) & signal::TIMER != 0
    }

    /// Takes one event that is not a vector, INIT first.
    pub(super) fn take_event(&self) -> Option<ApicEvent> {
        if self.signals.load(Ordering::SeqCst) & !signal::TIMER == 0 {
            return None;
        }
        for (bits, event) in [
            (signal::INIT, ApicEvent::Init),
            (signal::STARTUP | signal::VECTOR, ApicEvent::Startup(0)),
            (signal::NMI, ApicEvent::Nmi),
        ] {
            let old = self.signals.fetch_and(!bits, Ordering::SeqCst);
            if old & bits & !signal::VECTOR != 0 {
                return Some(match event {
                    ApicEvent::Startup(_) => ApicEvent::Startup((old >> 8) as u8),
                    event => event,
                });
            }
        }
        None
    }

    /// Forgets vectors, and with `all` events too.
    pub(super) fn clear(&self, all: bool) {
        self.irr.iter().for_each(|word| word.store(0, Ordering::SeqCst));
        if all {
            self.signals.store(0, Ordering::SeqCst);
        }
    }

    /// Publishes how messages find the APIC.
    pub(super) fn publish(&self, address: Address) {
        self.address.store(address.pack(), Ordering::SeqCst);
    }

    fn address(&self) -> Address {
        Address::unpack(self.address.load(Ordering::SeqCst))
    }

    fn is_meant(&self, destination: Destination) -> bool {
        let address = self.address();
        address.enabled
            && match destination {
                Destination::All => true,
                Destination::Others(id) => id != self.id,
                Destination::Physical(id) => id == self.id,
                Destination::Logical(ids) => address.matches(ids),
            }
    }
}

/// The main loop says that the timer is due.
impl EventTarget for Mailbox {
    fn event(&self, _tag: Tag, _now: VmTime) {
        self.signal(signal::TIMER, signal::TIMER);
        self.announce();
    }
}

/// The local APICs of a machine, as all others see them.
#[derive(Debug, Default)]
pub struct LocalApics {
    mailboxes: RwLock<Vec<Arc<Mailbox>>>,
}

impl LocalApics {
    /// A bus with no APIC yet.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Makes the local APIC with id `id`, in the state after reset. Its timer runs on `events`;
    /// `kicker` has its vCPU look at what arrives.
    pub fn add(self: &Arc<Self>, id: u32, kicker: Kicker, events: &LoopHandle) -> Lapic {
        let mailbox = Arc::new(Mailbox::new(id, kicker));
        let target: Weak<dyn EventTarget> = Arc::downgrade(&(mailbox.clone() as Arc<_>));
        let timer = events.timer(ClockKind::Virtual, target, Tag(0));
        self.mailboxes.write().unwrap_or_else(PoisonError::into_inner).push(mailbox.clone());
        Lapic::new(id, mailbox, self.clone(), timer)
    }

    pub(super) fn deliver(&self, message: &Message) {
        let mailboxes = self.mailboxes.read().unwrap_or_else(PoisonError::into_inner);
        let meant = || mailboxes.iter().filter(|mailbox| mailbox.is_meant(message.destination));
        if message.delivery == Delivery::LowestPriority {
            let candidates = || meant().filter(|mailbox| mailbox.address().accepts);
            // An APIC may be disabled meanwhile: then nobody accepts the message.
            let chosen = usize::from(message.vector).checked_rem(candidates().count());
            if let Some(mailbox) = chosen.and_then(|n| candidates().nth(n)) {
                mailbox.post(message);
            }
        } else {
            meant().for_each(|mailbox| mailbox.post(message));
        }
    }
}

impl MsiSink for LocalApics {
    fn send(&self, msi: Msi) {
        if let Some(message) = Message::decode(msi) {
            self.deliver(&message);
        }
    }
}

impl ApicBus for LocalApics {}
