//! `--device virtio-...`: virtio devices, in QEMU's spelling.
//!
//! `virtio-rng-pci` is one on PCI, `virtio-rng-device` one on MMIO, `virtio-rng` whichever the
//! machine has.

use devices::virtio::RingOptions;

use super::ConfigError;
use super::device::{DeviceSpec, DeviceType};
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

const ID: (&str, &str) = ("id=ID", "its name in the monitor");
const INDIRECT: (&str, &str) = ("indirect_desc=on|off", "offer indirect descriptors (on)");
const EVENT_IDX: (&str, &str) = ("event_idx=on|off", "offer the event index (on)");

const RNG_PROPS: &[(&str, &str)] = &[ID, INDIRECT, EVENT_IDX];

/// The rows of the table.
pub(super) const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "virtio-rng",
        help: "random numbers from the host, on PCI or MMIO as the machine has it",
        props: RNG_PROPS,
        parse: |props| device(props, "virtio-rng", Transport::Machine, rng),
    },
    DeviceType {
        name: "virtio-rng-device",
        help: "the same on MMIO (--machine microvm)",
        props: RNG_PROPS,
        parse: |props| device(props, "virtio-rng-device", Transport::Mmio, rng),
    },
    DeviceType {
        name: "virtio-rng-pci",
        help: "the same on PCI",
        props: RNG_PROPS,
        parse: |props| device(props, "virtio-rng-pci", Transport::Pci, rng),
    },
];

fn device(
    props: &mut Props,
    name: &'static str,
    transport: Transport,
    kind: fn(&mut Props) -> Result<VirtioKind, ConfigError>,
) -> Result<DeviceSpec, ConfigError> {
    let id = props.take("id");
    let options = RingOptions {
        indirect: props.take_switch("indirect_desc")?.unwrap_or(true),
        event_idx: props.take_switch("event_idx")?.unwrap_or(true),
    };
    let kind = kind(props)?;
    Ok(DeviceSpec::Virtio(VirtioSpec { name, id, transport, options, kind }))
}

fn rng(_props: &mut Props) -> Result<VirtioKind, ConfigError> {
    Ok(VirtioKind::Rng)
}
