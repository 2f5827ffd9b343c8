//! Doorbells for accelerators that have none of their own: what ioeventfd is to KVM.
//!
//! A vCPU's thread looks here before it looks at the bus. Semantics are those of Linux,
//! Documentation/virt/kvm/api.rst, 4.59 KVM_IOEVENTFD.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{PoisonError, RwLock};

use board::AccelError;
use board::accel::{Doorbell, Doorbells, Space};

struct Entry {
    bell: Doorbell,
    /// The number of the fd as it was given, by which it is removed.
    given: RawFd,
    eventfd: File,
}

/// Which writes ring which eventfd.
#[derive(Default)]
pub struct DoorbellTable {
    /// Whether there is any: most machines have none on this path.
    any: AtomicBool,
    entries: RwLock<Vec<Entry>>,
}

impl DoorbellTable {
    /// Rings the doorbell that the write of `data` to `address` is meant for. False: there is none,
    /// and the write goes on to the bus.
    pub fn ring(&self, space: Space, address: u64, data: &[u8]) -> bool {
        if !self.any.load(Ordering::Acquire) {
            return false;
        }
        let entries = self.entries.read().unwrap_or_else(PoisonError::into_inner);
        let Some(entry) = entries.iter().find(|entry| entry.bell.hears(space, address, data))
        else {
            return false;
        };
        // An eventfd fails only when it has been rung 2^64 - 2 times and nobody has looked.
        let _ = (&entry.eventfd).write_all(&1_u64.to_ne_bytes());
        true
    }
}

trait Hears {
    fn hears(&self, space: Space, address: u64, data: &[u8]) -> bool;
}

impl Hears for Doorbell {
    fn hears(&self, space: Space, address: u64, data: &[u8]) -> bool {
        let value = || data.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte));
        (self.space, self.address) == (space, address)
            && (self.width == 0 || usize::from(self.width) == data.len())
            && self.value.is_none_or(|wanted| wanted == value())
    }
}

impl Doorbells for DoorbellTable {
    fn add(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        let failed = |cause| AccelError::Host { call: format!("add doorbell {bell:x?}"), cause };
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        if entries.iter().any(|entry| entry.bell == bell) {
            return Err(failed(io::ErrorKind::AlreadyExists.into()));
        }
        let given = eventfd.as_raw_fd();
        let eventfd = eventfd.try_clone_to_owned().map_err(failed)?.into();
        entries.push(Entry { bell, given, eventfd });
        self.any.store(true, Ordering::Release);
        Ok(())
    }

    fn remove(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        let mut entries = self.entries.write().unwrap_or_else(PoisonError::into_inner);
        let given = eventfd.as_raw_fd();
        let known = entries.iter().position(|e| e.bell == bell && e.given == given);
        let index = known.ok_or_else(|| AccelError::Host {
            call: format!("remove doorbell {bell:x?}"),
            cause: io::ErrorKind::NotFound.into(),
        })?;
        entries.swap_remove(index);
        self.any.store(!entries.is_empty(), Ordering::Release);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::fd::AsFd;

    use super::*;

    fn eventfd() -> File {
        let flags = rustix::event::EventfdFlags::NONBLOCK;
        File::from(rustix::event::eventfd(0, flags).unwrap())
    }

    fn rings(mut eventfd: &File) -> u64 {
        let mut count = [0; 8];
        eventfd.read(&mut count).map_or(0, |_| u64::from_ne_bytes(count))
    }

    #[test]
    fn a_write_rings_the_doorbell_that_it_matches() {
        let table = DoorbellTable::default();
        let (any, exact) = (eventfd(), eventfd());
        let bell = |address, width, value| Doorbell { space: Space::Mmio, address, width, value };
        let (anything, word) = (bell(0x1000, 0, None), bell(0x2000, 2, Some(0x0102)));
        table.add(anything, any.as_fd()).unwrap();
        table.add(word, exact.as_fd()).unwrap();
        for (space, address, data, heard) in [
            (Space::Mmio, 0x1000, &[1_u8][..], true),
            (Space::Mmio, 0x1000, &[1, 2, 3, 4], true),
            (Space::Mmio, 0x1001, &[1], false),
            (Space::Pio, 0x1000, &[1], false),
            (Space::Mmio, 0x2000, &[2, 1], true),
            (Space::Mmio, 0x2000, &[3, 1], false),
            (Space::Mmio, 0x2000, &[2, 1, 0, 0], false),
        ] {
            assert_eq!(table.ring(space, address, data), heard, "{space:?} {address:#x} {data:?}");
        }
        assert_eq!((rings(&any), rings(&exact)), (2, 1));
        table.remove(anything, any.as_fd()).unwrap();
        assert!(!table.ring(Space::Mmio, 0x1000, &[1]));
        assert!(table.ring(Space::Mmio, 0x2000, &[2, 1]));
    }

    #[test]
    fn a_doorbell_is_added_and_removed_once() {
        let table = DoorbellTable::default();
        let (one, other) = (eventfd(), eventfd());
        let bell = Doorbell { space: Space::Pio, address: 0x10, width: 1, value: None };
        table.add(bell, one.as_fd()).unwrap();
        assert!(table.add(bell, other.as_fd()).is_err());
        assert!(table.remove(bell, other.as_fd()).is_err());
        table.remove(bell, one.as_fd()).unwrap();
        assert!(table.remove(bell, one.as_fd()).is_err());
    }
}
