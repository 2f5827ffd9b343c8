//! What a virtio device is to the core, whichever transport shows it to the guest.

use std::any::Any;

use board::device::{Paused, Tag};
use board::state::ErasedSnapshot;
use board::time::VmTime;

use super::Io;

/// What tells devices apart (Virtio 1.2, 5 "Device Types").
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Kind {
    /// The device id.
    pub id: u16,
    /// `virtio-blk`.
    pub name: &'static str,
    /// The PCI class code: class, subclass, programming interface.
    pub class: [u8; 3],
}

/// The network card.
pub const NET: Kind = Kind { id: 1, name: "virtio-net", class: [0x02, 0x00, 0x00] };
/// The disk.
pub const BLOCK: Kind = Kind { id: 2, name: "virtio-blk", class: [0x01, 0x00, 0x00] };
/// Serial ports and terminals.
pub const CONSOLE: Kind = Kind { id: 3, name: "virtio-serial", class: [0x07, 0x80, 0x00] };
/// The source of entropy.
pub const ENTROPY: Kind = Kind { id: 4, name: "virtio-rng", class: [0x00, 0xFF, 0x00] };
/// The memory balloon.
pub const BALLOON: Kind = Kind { id: 5, name: "virtio-balloon", class: [0x00, 0xFF, 0x00] };
/// A shared folder.
pub const NINE_P: Kind = Kind { id: 9, name: "virtio-9p", class: [0x00, 0x02, 0x00] };
/// Sockets between host and guest.
pub const VSOCK: Kind = Kind { id: 19, name: "vhost-vsock", class: [0x00, 0x02, 0x00] };

/// A virtio device without its transport.
///
/// It is called with its transport's lock held and acts through [`Io`]. It is called for its queues
/// only between `activate` and `reset`, and not while the machine is stopped.
///
/// Event tags below [`FIRST_CORE_TAG`](super::FIRST_CORE_TAG) are its own.
pub trait VirtioDevice: Any + Send {
    /// Which device it is.
    fn kind(&self) -> Kind;

    /// The feature bits of the device type that it offers. The core adds those of the rings.
    fn features(&self) -> u64;

    /// The largest size of each queue, powers of two up to 1024.
    fn queue_sizes(&self) -> Vec<u16>;

    /// Reads the device-specific configuration at `offset`; what lies behind its end is zero.
    fn read_config(&self, offset: usize, data: &mut [u8]);

    /// Writes to the device-specific configuration.
    fn write_config(&mut self, _offset: usize, _data: &[u8], _io: &mut Io<'_>) {}

    /// The driver is ready (DRIVER_OK). [`Io::features`] are what it has accepted. Each queue that
    /// it uses is notified once right after this.
    fn activate(&mut self, _io: &mut Io<'_>) {}

    /// The driver has put buffers into `queue`, or may have.
    fn notify(&mut self, queue: usize, io: &mut Io<'_>);

    /// A timer, an fd or a notifier of the device. It comes also while the device is not active and
    /// while the machine is stopped.
    fn event(&mut self, _tag: Tag, _now: VmTime, _io: &mut Io<'_>) {}

    /// The driver resets the device. All queues forget their buffers; a chain that is pushed after
    /// this is ignored. With `Pending`, a request still reads or writes guest memory: the driver
    /// sees the reset end, and `activate` comes, once the device has called [`Io::drained`].
    fn reset(&mut self) -> Paused;

    /// The machine is being stopped: the device takes no more buffers. With `Pending`, it is asked
    /// again a little later, and looks for finished requests each time.
    fn pause(&mut self, _io: &mut Io<'_>) -> Paused {
        Paused::Done
    }

    /// The machine runs again; after a restore this comes in place of `activate`, also for a device
    /// that is not active. All queues are notified after this.
    fn resume(&mut self, _io: &mut Io<'_>) {}

    /// The device's own state, apart from its rings.
    fn state(&self) -> Option<&dyn ErasedSnapshot> {
        None
    }

    /// The same, to restore.
    fn state_mut(&mut self) -> Option<&mut dyn ErasedSnapshot> {
        None
    }

    /// Names of the device type's feature bits, for the monitor: bit and name without the prefix,
    /// such as `BLK_F_FLUSH`.
    fn feature_names(&self) -> &'static [(u32, &'static str)] {
        &[]
    }
}

/// Reads `data` at `offset` of a configuration structure; what lies behind its end is zero.
pub fn read_bytes(config: &[u8], offset: usize, data: &mut [u8]) {
    let from = config.get(offset..).unwrap_or_default();
    let len = from.len().min(data.len());
    data[..len].copy_from_slice(&from[..len]);
    data[len..].fill(0);
}
