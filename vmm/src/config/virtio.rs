//! `--device virtio-...`: virtio devices, in QEMU's spelling.
//!
//! `virtio-rng-pci` is one on PCI, `virtio-rng-device` one on MMIO, `virtio-rng` whichever the
//! machine has.

use board::pci::Devfn;
use devices::pci::msix::MAX_VECTORS;
use devices::virtio::RingOptions;
use devices::virtio::balloon::BalloonOptions;
use devices::virtio::console::MAX_PORTS;

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
    /// `virtio-serial`: what ports are plugged into.
    Serial {
        /// `max_ports=`; as many as are needed otherwise.
        max_ports: Option<u32>,
    },
    /// `virtio-balloon`.
    Balloon(BalloonOptions),
}

/// `virtconsole` or `virtserialport`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VirtioPortSpec {
    /// What the user called it.
    pub type_name: &'static str,
    /// The guest makes a terminal of it.
    pub console: bool,
    /// The id of its backend.
    pub chardev: String,
    /// `name=`, which the guest shows.
    pub name: Option<String>,
    /// `nr=`; the first free number otherwise.
    pub number: Option<u32>,
    /// The id of the `virtio-serial` that it is part of; the first one otherwise.
    pub bus: Option<String>,
}

const VECTORS: (&str, &str) =
    ("vectors=N", "MSI-X vectors on PCI (one a queue and one more); 0 for none");
const INDIRECT: (&str, &str) = ("indirect_desc=on|off", "offer indirect descriptors (on)");
const EVENT_IDX: (&str, &str) = ("event_idx=on|off", "offer the event index (on)");

const PORTS: (&str, &str) = ("max_ports=N", "the most ports, 1 to 31 (as many as there are)");
const ON_OOM: (&str, &str) =
    ("deflate-on-oom=on|off", "the guest takes pages back before it runs out (off)");
const REPORTING: (&str, &str) =
    ("free-page-reporting=on|off", "the guest's free pages go back to the host (off)");

/// Properties of all of them, on MMIO and on PCI.
const ON_MMIO: &[(&str, &str)] = &[INDIRECT, EVENT_IDX];
const ON_PCI: &[(&str, &str)] = &[ADDR, VECTORS, INDIRECT, EVENT_IDX];

const SERIAL_MMIO: &[(&str, &str)] = &[PORTS, INDIRECT, EVENT_IDX];
const SERIAL_PCI: &[(&str, &str)] = &[PORTS, ADDR, VECTORS, INDIRECT, EVENT_IDX];
const BALLOON_MMIO: &[(&str, &str)] = &[ON_OOM, REPORTING, INDIRECT, EVENT_IDX];
const BALLOON_PCI: &[(&str, &str)] = &[ON_OOM, REPORTING, ADDR, VECTORS, INDIRECT, EVENT_IDX];

const PORT_PROPS: &[(&str, &str)] = &[
    ("chardev=ID", "the backend that --chardev makes (needed)"),
    ("name=NAME", "the name that the guest shows"),
    ("nr=N", "its number (the first free one)"),
    ("bus=ID.0", "the virtio-serial that it is part of (the first one)"),
];

/// The rows of the table.
pub(super) const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "virtio-balloon",
        help: "takes memory from the guest and gives it back, on PCI or MMIO",
        props: BALLOON_PCI,
        parse: |props| device(props, "virtio-balloon", Transport::Machine, balloon),
    },
    DeviceType {
        name: "virtio-balloon-device",
        help: "the same on MMIO (--machine microvm)",
        props: BALLOON_MMIO,
        parse: |props| device(props, "virtio-balloon-device", Transport::Mmio, balloon),
    },
    DeviceType {
        name: "virtio-balloon-pci",
        help: "the same on PCI",
        props: BALLOON_PCI,
        parse: |props| device(props, "virtio-balloon-pci", Transport::Pci, balloon),
    },
    DeviceType {
        name: "virtio-rng",
        help: "random numbers from the host, on PCI or MMIO",
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
    DeviceType {
        name: "virtio-serial",
        help: "what virtconsole and virtserialport are part of",
        props: SERIAL_PCI,
        parse: |props| device(props, "virtio-serial", Transport::Machine, serial),
    },
    DeviceType {
        name: "virtio-serial-device",
        help: "the same on MMIO (--machine microvm)",
        props: SERIAL_MMIO,
        parse: |props| device(props, "virtio-serial-device", Transport::Mmio, serial),
    },
    DeviceType {
        name: "virtio-serial-pci",
        help: "the same on PCI",
        props: SERIAL_PCI,
        parse: |props| device(props, "virtio-serial-pci", Transport::Pci, serial),
    },
    DeviceType {
        name: "virtconsole",
        help: "a terminal of virtio-serial: hvc0 in Linux",
        props: PORT_PROPS,
        parse: |props| port(props, "virtconsole", true),
    },
    DeviceType {
        name: "virtserialport",
        help: "a port of virtio-serial: /dev/virtio-ports/NAME in Linux",
        props: PORT_PROPS,
        parse: |props| port(props, "virtserialport", false),
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

fn serial(props: &mut Props) -> Result<VirtioKind, ConfigError> {
    let most = u64::from(MAX_PORTS);
    let max_ports = props.take_number("max_ports", 1..=most)?.map(|n| n as u32);
    Ok(VirtioKind::Serial { max_ports })
}

fn balloon(props: &mut Props) -> Result<VirtioKind, ConfigError> {
    Ok(VirtioKind::Balloon(BalloonOptions {
        deflate_on_oom: props.take_switch("deflate-on-oom")?.unwrap_or(false),
        free_page_reporting: props.take_switch("free-page-reporting")?.unwrap_or(false),
    }))
}

fn port(
    props: &mut Props,
    type_name: &'static str,
    console: bool,
) -> Result<DeviceSpec, ConfigError> {
    let chardev = props.take("chardev").ok_or_else(|| props.missing("chardev"))?;
    let name = props.take("name");
    let number = props.take_number("nr", 0..=u64::from(MAX_PORTS) - 1)?.map(|n| n as u32);
    let bus = props.take("bus").map(|bus| match bus.strip_suffix(".0") {
        Some(id) => Ok(id.to_owned()),
        None => Err(props.bad("bus", &bus, "ID.0, ID being that of a virtio-serial")),
    });
    let bus = bus.transpose()?;
    Ok(DeviceSpec::VirtioPort(VirtioPortSpec { type_name, console, chardev, name, number, bus }))
}

fn rng(_props: &mut Props) -> Result<VirtioKind, ConfigError> {
    Ok(VirtioKind::Rng)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn virtio(text: &str) -> VirtioSpec {
        match DeviceSpec::parse(text) {
            Ok(DeviceSpec::Virtio(spec)) => spec,
            other => panic!("{text}: {other:?}"),
        }
    }

    #[test]
    fn names_say_how_the_guest_finds_a_device() {
        for (text, transport) in [
            ("virtio-rng", Transport::Machine),
            ("virtio-rng-device,event_idx=off", Transport::Mmio),
            ("virtio-rng-pci,addr=5.1,vectors=0", Transport::Pci),
        ] {
            let spec = virtio(text);
            assert_eq!((spec.transport, spec.kind), (transport, VirtioKind::Rng));
        }
        assert!(!virtio("virtio-rng,indirect_desc=off").options.indirect);
        assert_eq!(virtio("virtio-rng,id=r").id.as_deref(), Some("r"));
    }

    #[test]
    fn each_kind_has_its_properties() {
        let options = BalloonOptions { deflate_on_oom: true, free_page_reporting: false };
        assert_eq!(virtio("virtio-balloon,deflate-on-oom=on").kind, VirtioKind::Balloon(options));
        let Ok(DeviceSpec::VirtioPort(port)) =
            DeviceSpec::parse("virtserialport,chardev=c,name=agent,nr=3,bus=s.0")
        else {
            panic!("it is a port");
        };
        assert_eq!((port.number, port.bus.as_deref()), (Some(3), Some("s")));
    }

    #[test]
    fn mistakes_name_what_is_right() {
        for (text, expected) in [
            ("virtio-rng-device,addr=3", "has no property 'addr'"),
            ("virtio-rgn-pci", "did you mean 'virtio-rng-pci'?"),
            ("virtconsole", "lacks chardev"),
            ("virtconsole,chardev=c,bus=s", "ID.0"),
            ("virtio-serial,max_ports=32", "from 1 to 31"),
        ] {
            let error = DeviceSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
