//! `--device virtio-...`: virtio devices, in QEMU's spelling.
//!
//! `virtio-rng-pci` is one on PCI, `virtio-rng-device` one on MMIO, `virtio-rng` whichever the
//! machine has.

use board::pci::Devfn;
use devices::pci::msix::MAX_VECTORS;
use devices::virtio::RingOptions;

use super::ConfigError;
use super::device::{ADDR, DeviceSpec, DeviceType, take_addr};
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

/// Which virtio device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum VirtioKind {
    /// `virtio-rng`.
    Rng,
}

const VECTORS: (&str, &str) =
    ("vectors=N", "MSI-X vectors on PCI (one a queue and one more); 0 for none");
const INDIRECT: (&str, &str) = ("indirect_desc=on|off", "offer indirect descriptors (on)");
const EVENT_IDX: (&str, &str) = ("event_idx=on|off", "offer the event index (on)");

/// Properties of all of them, on MMIO and on PCI.
const ON_MMIO: &[(&str, &str)] = &[INDIRECT, EVENT_IDX];
const ON_PCI: &[(&str, &str)] = &[ADDR, VECTORS, INDIRECT, EVENT_IDX];

/// The rows of the table.
pub(super) const TYPES: &[DeviceType] = &[
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
