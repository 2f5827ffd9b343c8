//! `--device virtio-...`: virtio devices, in QEMU's spelling.
//!
//! `virtio-rng-pci` is one on PCI, `virtio-rng-device` one on MMIO, `virtio-rng` whichever the
//! machine has.

use board::pci::Devfn;
use devices::block::OnError;
use devices::net::{MacAddress, Offloads};
use devices::pci::msix::MAX_VECTORS;
use devices::virtio::RingOptions;
use devices::virtio::balloon::BalloonOptions;
use devices::virtio::console::MAX_PORTS;

use super::ConfigError;
use super::device::{ADDR, DeviceSpec, DeviceType, take_addr};
use super::drive;
use super::net::take_mac;
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
    /// `virtio-net`.
    Net(NetSpec),
    /// `virtio-rng`.
    Rng,
    /// `virtio-blk`.
    Block {
        /// `drive=`.
        drive: String,
        /// `serial=`, in place of the drive's.
        serial: Option<String>,
        /// `num-queues=`; one a vCPU on PCI otherwise.
        queues: Option<u16>,
        /// `queue-size=`.
        queue_size: u16,
        /// `rerror=`, in place of the drive's.
        rerror: Option<OnError>,
        /// `werror=`, in place of the drive's.
        werror: Option<OnError>,
        /// `logical_block_size=` and `physical_block_size=`, bytes.
        blocks: (u32, u32),
    },
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

/// A network card's own properties.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NetSpec {
    /// `netdev=`: the backend; without one the cable leads nowhere.
    pub netdev: Option<String>,
    /// `mac=`.
    pub mac: Option<MacAddress>,
    /// `mq=`.
    pub mq: bool,
    /// `rx_queue_size=`.
    pub rx_queue_size: u16,
    /// `tx_queue_size=`.
    pub tx_queue_size: u16,
    /// `mrg_rxbuf=`.
    pub mrg_rxbuf: bool,
    /// `ctrl_vq=`.
    pub ctrl_vq: bool,
    /// `csum=` and its like: for the guest's frames, and for frames to it.
    pub offloads: (Offloads, Offloads),
    /// `host_mtu=`.
    pub host_mtu: Option<u16>,
}

impl Default for NetSpec {
    fn default() -> Self {
        Self {
            netdev: None,
            mac: None,
            mq: false,
            rx_queue_size: 256,
            tx_queue_size: 256,
            mrg_rxbuf: true,
            ctrl_vq: true,
            offloads: (Offloads::all(), Offloads::all()),
            host_mtu: None,
        }
    }
}

const VECTORS: (&str, &str) =
    ("vectors=N", "MSI-X vectors on PCI (one a queue and one more); 0 for none");
const INDIRECT: (&str, &str) = ("indirect_desc=on|off", "offer indirect descriptors (on)");
const EVENT_IDX: (&str, &str) = ("event_idx=on|off", "offer the event index (on)");

const DRIVE: (&str, &str) = ("drive=ID", "the drive that --drive or --blockdev makes (needed)");
const SERIAL: (&str, &str) = ("serial=TEXT", "its serial number, up to 20 characters");
const NUM_QUEUES: (&str, &str) =
    ("num-queues=N", "request queues, 1 to 64 (one a vCPU on PCI, 1 on MMIO)");
const QUEUE_SIZE: (&str, &str) =
    ("queue-size=N", "descriptors of a queue, a power of two from 4 to 1024 (256)");
const PORTS: (&str, &str) = ("max_ports=N", "the most ports, 1 to 31 (as many as there are)");
const ON_OOM: (&str, &str) =
    ("deflate-on-oom=on|off", "the guest takes pages back before it runs out (off)");
const REPORTING: (&str, &str) =
    ("free-page-reporting=on|off", "the guest's free pages go back to the host (off)");

/// Properties of all of them, on MMIO and on PCI.
const ON_MMIO: &[(&str, &str)] = &[INDIRECT, EVENT_IDX];
const ON_PCI: &[(&str, &str)] = &[ADDR, VECTORS, INDIRECT, EVENT_IDX];

macro_rules! net_props {
    ($($first:expr),*) => {
        &[
            $($first,)*
            ("netdev=ID", "the backend that --netdev makes"),
            ("mac=ADDR", "its Ethernet address (52:54:00:12:34:56, counting up)"),
            ("mq=on|off", "as many queue pairs as the backend has (off)"),
            ("rx_queue_size=N", "descriptors of a receive queue, a power of two up to 1024 (256)"),
            ("tx_queue_size=N", "the same of a transmit queue (256)"),
            ("mrg_rxbuf=on|off", "large frames may take several buffers (on)"),
            ("ctrl_vq=on|off", "offer the control queue (on)"),
            ("csum=on|off", "take frames with unfinished checksums (on)"),
            ("host_tso4=on|off", "take large frames; also host_tso6, host_ecn (on)"),
            ("guest_csum=on|off", "give frames with unfinished checksums (on)"),
            ("guest_tso4=on|off", "give large frames; also guest_tso6, guest_ecn (on)"),
            ("host_mtu=N", "the MTU that the guest is told of"),
        ]
    };
}

const NET_ON_MMIO: &[(&str, &str)] = net_props!(INDIRECT, EVENT_IDX);
const NET_ON_PCI: &[(&str, &str)] = net_props!(ADDR, VECTORS, INDIRECT, EVENT_IDX);
const WERROR: (&str, &str) = ("werror=WHAT", "report, ignore, stop or enospc (as the drive)");
const RERROR: (&str, &str) = ("rerror=WHAT", "report, ignore or stop (as the drive)");
const LOGICAL: (&str, &str) =
    ("logical_block_size=N", "bytes that a guest should not go below (512)");
const PHYSICAL: (&str, &str) =
    ("physical_block_size=N", "bytes that the host writes in one go (512)");
const BLOCK_MMIO: &[(&str, &str)] = &[
    DRIVE, SERIAL, NUM_QUEUES, QUEUE_SIZE, WERROR, RERROR, LOGICAL, PHYSICAL, INDIRECT, EVENT_IDX,
];
const BLOCK_PCI: &[(&str, &str)] = &[
    DRIVE, SERIAL, NUM_QUEUES, QUEUE_SIZE, WERROR, RERROR, LOGICAL, PHYSICAL, ADDR, VECTORS,
    INDIRECT, EVENT_IDX,
];
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

/// The device for `--drive if=virtio`.
pub(super) fn blk_for(drive: &str) -> Result<DeviceSpec, ConfigError> {
    DeviceSpec::parse(&format!("virtio-blk,drive={}", drive.replace(',', ",,")))
}

/// The rows of the table.
pub(super) const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "virtio-net",
        help: "a network card, on PCI or MMIO as the machine has it",
        props: NET_ON_PCI,
        parse: |props| device(props, "virtio-net", Transport::Machine, net),
    },
    DeviceType {
        name: "virtio-net-device",
        help: "the same on MMIO (--machine microvm)",
        props: NET_ON_MMIO,
        parse: |props| device(props, "virtio-net-device", Transport::Mmio, net),
    },
    DeviceType {
        name: "virtio-net-pci",
        help: "the same on PCI",
        props: NET_ON_PCI,
        parse: |props| device(props, "virtio-net-pci", Transport::Pci, net),
    },
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
        name: "virtio-blk",
        help: "a disk, on PCI or MMIO as the machine has it",
        props: BLOCK_PCI,
        parse: |props| device(props, "virtio-blk", Transport::Machine, block),
    },
    DeviceType {
        name: "virtio-blk-device",
        help: "the same on MMIO (--machine microvm)",
        props: BLOCK_MMIO,
        parse: |props| device(props, "virtio-blk-device", Transport::Mmio, block),
    },
    DeviceType {
        name: "virtio-blk-pci",
        help: "the same on PCI",
        props: BLOCK_PCI,
        parse: |props| device(props, "virtio-blk-pci", Transport::Pci, block),
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
        help: "terminals and ports (virtconsole, virtserialport), on PCI or MMIO",
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

fn net(props: &mut Props) -> Result<VirtioKind, ConfigError> {
    const SIZES: [(&str, u16); 6] =
        [("16", 16), ("32", 32), ("64", 64), ("128", 128), ("256", 256), ("512", 512)];
    let mut size = |key| match props.take(key) {
        None => Ok(256),
        Some(text) if text == "1024" => Ok(1024),
        Some(text) => SIZES
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, size)| *size)
            .ok_or_else(|| props.bad(key, &text, "a power of two from 16 to 1024")),
    };
    let (rx_queue_size, tx_queue_size) = (size("rx_queue_size")?, size("tx_queue_size")?);
    let mut offloads = (Offloads::all(), Offloads::all());
    for (key, of_guest, offload) in [
        ("csum", true, Offloads::CSUM),
        ("host_tso4", true, Offloads::TSO4),
        ("host_tso6", true, Offloads::TSO6),
        ("host_ecn", true, Offloads::ECN),
        ("guest_csum", false, Offloads::CSUM),
        ("guest_tso4", false, Offloads::TSO4),
        ("guest_tso6", false, Offloads::TSO6),
        ("guest_ecn", false, Offloads::ECN),
    ] {
        let on = props.take_switch(key)?.unwrap_or(true);
        let set = if of_guest { &mut offloads.0 } else { &mut offloads.1 };
        set.set(offload, on);
    }
    Ok(VirtioKind::Net(NetSpec {
        netdev: props.take("netdev"),
        mac: take_mac(props, "mac")?,
        mq: props.take_switch("mq")?.unwrap_or(false),
        rx_queue_size,
        tx_queue_size,
        mrg_rxbuf: props.take_switch("mrg_rxbuf")?.unwrap_or(true),
        ctrl_vq: props.take_switch("ctrl_vq")?.unwrap_or(true),
        offloads,
        host_mtu: props.take_number("host_mtu", 68..=65_535)?.map(|mtu| mtu as u16),
    }))
}

fn block(props: &mut Props) -> Result<VirtioKind, ConfigError> {
    let drive = props.take("drive").ok_or_else(|| props.missing("drive"))?;
    let serial = drive::serial(props)?;
    let queues = props.take_number("num-queues", 1..=64)?.map(|n| n as u16);
    let size = props.take_number("queue-size", 4..=1024)?.unwrap_or(256);
    if !size.is_power_of_two() {
        return Err(props.bad("queue-size", &size.to_string(), "a power of two from 4 to 1024"));
    }
    let (rerror, werror) = drive::policies(props)?;
    let mut block_size = |key| -> Result<u32, ConfigError> {
        let size = props.take_number(key, 512..=32768)?.unwrap_or(512);
        match size.is_power_of_two() {
            true => Ok(size as u32),
            false => Err(props.bad(key, &size.to_string(), "a power of two from 512 to 32768")),
        }
    };
    let logical = block_size("logical_block_size")?;
    let physical = block_size("physical_block_size")?.max(logical);
    Ok(VirtioKind::Block {
        drive,
        serial,
        queues,
        queue_size: size as u16,
        rerror,
        werror,
        blocks: (logical, physical),
    })
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
        assert_eq!(
            virtio("virtio-blk-pci,drive=d,serial=S1,num-queues=2,queue-size=64").kind,
            VirtioKind::Block {
                drive: "d".into(),
                serial: Some("S1".into()),
                queues: Some(2),
                queue_size: 64,
                rerror: None,
                werror: None,
                blocks: (512, 512),
            }
        );
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
            ("virtio-blk-pci", "lacks drive"),
            ("virtio-blk,drive=d,queue-size=100", "a power of two"),
            ("virtio-blk,drive=d,serial=012345678901234567890", "up to 20 bytes"),
            ("virtio-blk-device,drive=d,addr=3", "has no property 'addr'"),
            ("virtio-bkl-pci,drive=d", "did you mean 'virtio-blk-pci'?"),
            ("virtconsole", "lacks chardev"),
            ("virtconsole,chardev=c,bus=s", "ID.0"),
            ("virtio-serial,max_ports=32", "from 1 to 31"),
        ] {
            let error = DeviceSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
