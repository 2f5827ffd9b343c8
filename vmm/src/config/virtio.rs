//! `--device virtio-...`: virtio devices, in QEMU's spelling.
//!
//! `virtio-rng-pci` is one on PCI, `virtio-rng-device` one on MMIO, `virtio-rng` whichever the
//! machine has.

use board::pci::Devfn;
use devices::block::OnError;
use devices::pci::msix::MAX_VECTORS;
use devices::virtio::RingOptions;
use devices::virtio::blk::BlkOptions;

use super::ConfigError;
use super::device::{ADDR, DeviceSpec, DeviceType, take_addr};
use super::drive;
use super::props::Props;

/// How the guest finds a virtio device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    /// PCI on `pc`, MMIO on `microvm`.
    Machine,
    /// PCI.
    Pci,
    /// MMIO.
    Mmio,
}

/// A virtio device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioSpec {
    /// What the user called it.
    pub name: &'static str,
    /// `id=`.
    pub id: Option<String>,
    /// `addr=`, on PCI.
    pub addr: Option<Devfn>,
    /// `vectors=`, on PCI.
    pub vectors: Option<u16>,
    /// How the guest finds it.
    pub transport: Transport,
    /// The rings' features.
    pub options: RingOptions,
    /// Which device.
    pub kind: VirtioKind,
}

/// A disk for the guest.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlkSpec {
    /// The drive, by its id or its node's name.
    pub drive: String,
    /// The device's own options.
    pub options: BlkOptions,
    /// What becomes of reads that fail, in place of what the drive says.
    pub rerror: Option<OnError>,
    /// The same of other requests.
    pub werror: Option<OnError>,
    /// Bytes of a logical and of a physical block.
    pub blocks: (u32, u32),
}

/// Which virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioKind {
    /// `virtio-rng`.
    Rng,
    /// `virtio-blk`.
    Blk(BlkSpec),
}

const VECTORS: (&str, &str) =
    ("vectors=N", "MSI-X vectors on PCI (one a queue and one more); 0 for none");
const INDIRECT: (&str, &str) = ("indirect_desc=on|off", "offer indirect descriptors (on)");
const EVENT_IDX: (&str, &str) = ("event_idx=on|off", "offer the event index (on)");

/// Properties of all of them, on MMIO and on PCI.
const ON_MMIO: &[(&str, &str)] = &[INDIRECT, EVENT_IDX];
const ON_PCI: &[(&str, &str)] = &[ADDR, VECTORS, INDIRECT, EVENT_IDX];

/// Properties of virtio-blk, on MMIO and on PCI.
const BLK_ON_MMIO: &[(&str, &str)] =
    &[DRIVE, QUEUES, QUEUE_SIZE, SERIAL, WERROR, RERROR, LOGICAL, PHYSICAL, INDIRECT, EVENT_IDX];
const BLK_ON_PCI: &[(&str, &str)] = &[
    DRIVE, QUEUES, QUEUE_SIZE, SERIAL, WERROR, RERROR, LOGICAL, PHYSICAL, ADDR, VECTORS, INDIRECT,
    EVENT_IDX,
];
const DRIVE: (&str, &str) =
    ("drive=ID", "the disk, by --drive's id or --blockdev's node-name (needed)");
const QUEUES: (&str, &str) = ("num-queues=N", "request queues, 1 to 64 (1)");
const QUEUE_SIZE: (&str, &str) = ("queue-size=N", "descriptors of each, a power of two (256)");
const SERIAL: (&str, &str) = ("serial=TEXT", "the serial number, up to 20 bytes");
const WERROR: (&str, &str) = ("werror=WHAT", "report, ignore, stop or enospc (as the drive)");
const RERROR: (&str, &str) = ("rerror=WHAT", "report, ignore or stop (as the drive)");
const LOGICAL: (&str, &str) =
    ("logical_block_size=N", "bytes that a guest should not go below (512)");
const PHYSICAL: (&str, &str) =
    ("physical_block_size=N", "bytes that the host writes in one go (512)");

/// The device for `--drive if=virtio`.
pub(super) fn blk_for(drive: &str) -> DeviceSpec {
    DeviceSpec::Virtio(VirtioSpec {
        name: "virtio-blk",
        id: None,
        addr: None,
        vectors: None,
        transport: Transport::Machine,
        options: RingOptions { indirect: true, event_idx: true },
        kind: VirtioKind::Blk(BlkSpec {
            drive: drive.to_owned(),
            options: BlkOptions::default(),
            rerror: None,
            werror: None,
            blocks: (512, 512),
        }),
    })
}

/// The rows of the table.
pub(super) const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "virtio-blk",
        help: "a disk, on PCI or MMIO as the machine has it",
        props: BLK_ON_PCI,
        parse: |props| device(props, "virtio-blk", Transport::Machine, blk),
    },
    DeviceType {
        name: "virtio-blk-device",
        help: "the same on MMIO (--machine microvm)",
        props: BLK_ON_MMIO,
        parse: |props| device(props, "virtio-blk-device", Transport::Mmio, blk),
    },
    DeviceType {
        name: "virtio-blk-pci",
        help: "the same on PCI",
        props: BLK_ON_PCI,
        parse: |props| device(props, "virtio-blk-pci", Transport::Pci, blk),
    },
    DeviceType {
        name: "virtio-rng",
        help: "random numbers from the host, on PCI or MMIO as the machine has it",
        props: ON_PCI,
        parse: |props| device(props, "virtio-rng", Transport::Machine, rng),
    },
    DeviceType {
        name: "virtio-rng-device",
        help: "the same on MMIO (--machine microvm)",
        props: ON_MMIO,
        parse: |props| device(props, "virtio-rng-device", Transport::Mmio, rng),
    },
    DeviceType {
        name: "virtio-rng-pci",
        help: "the same on PCI",
        props: ON_PCI,
        parse: |props| device(props, "virtio-rng-pci", Transport::Pci, rng),
    },
];

fn device(
    props: &mut Props,
    name: &'static str,
    transport: Transport,
    kind: fn(&mut Props) -> Result<VirtioKind, ConfigError>,
) -> Result<DeviceSpec, ConfigError> {
    let on_pci = transport != Transport::Mmio;
    let addr = if on_pci { take_addr(props)? } else { None };
    let vectors = if on_pci { props.take_number("vectors", 0..=MAX_VECTORS.into())? } else { None };
    let vectors = vectors.map(|n| n as u16);
    let options = RingOptions {
        indirect: props.take_switch("indirect_desc")?.unwrap_or(true),
        event_idx: props.take_switch("event_idx")?.unwrap_or(true),
    };
    let kind = kind(props)?;
    Ok(DeviceSpec::Virtio(VirtioSpec { name, id: None, addr, vectors, transport, options, kind }))
}

fn rng(_props: &mut Props) -> Result<VirtioKind, ConfigError> {
    Ok(VirtioKind::Rng)
}

fn blk(props: &mut Props) -> Result<VirtioKind, ConfigError> {
    let drive = props.take("drive").ok_or_else(|| props.missing("drive"))?;
    let queues = props.take_number("num-queues", 1..=64)?.unwrap_or(1) as u16;
    let queue_size = props.take_number("queue-size", 2..=1024)?.unwrap_or(256) as u16;
    if !queue_size.is_power_of_two() {
        return Err(props.bad("queue-size", &queue_size.to_string(), "a power of two"));
    }
    let serial = drive::serial(props)?;
    let (rerror, werror) = drive::policies(props)?;
    let mut block = |key| -> Result<u32, ConfigError> {
        let size = props.take_number(key, 512..=32768)?.unwrap_or(512) as u32;
        match size.is_power_of_two() {
            true => Ok(size),
            false => Err(props.bad(key, &size.to_string(), "a power of two")),
        }
    };
    let logical = block("logical_block_size")?;
    let physical = block("physical_block_size")?.max(logical);
    Ok(VirtioKind::Blk(BlkSpec {
        drive,
        options: BlkOptions { queues, queue_size, serial },
        rerror,
        werror,
        blocks: (logical, physical),
    }))
}
