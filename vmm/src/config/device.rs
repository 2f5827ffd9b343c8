//! `--device`: the devices that a user can add, with their properties.

use board::Devfn;

use crate::suggest::nearest;

use super::ConfigError;
use super::help::rows;
use super::props::{Props, parse_size};
use super::virtio::{self, VirtioPortSpec, VirtioSpec};

/// A device to add.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum DeviceSpec {
    /// `isa-debug-exit`.
    DebugExit {
        /// First port.
        iobase: u16,
        /// Ports, 1 to 8.
        iosize: u8,
    },
    /// `isa-debugcon`.
    Debugcon {
        /// The port.
        iobase: u16,
        /// What a read gives.
        readback: u8,
        /// The id of its backend.
        chardev: String,
    },
    /// `isa-serial`.
    Serial {
        /// First port.
        iobase: u16,
        /// ISA interrupt.
        irq: u8,
        /// The id of its backend.
        chardev: String,
    },
    /// `pvpanic`.
    Pvpanic {
        /// The port.
        ioport: u16,
    },
    /// `virtio-...`.
    Virtio(VirtioSpec),
    /// `virtconsole`, `virtserialport`.
    VirtioPort(VirtioPortSpec),
    /// A device on the PCI bus.
    Pci(PciSpec),
}

/// A device on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PciSpec {
    /// `id=`, by which `device_del` names it.
    pub id: Option<String>,
    /// `addr=`; the lowest free slot otherwise.
    pub addr: Option<Devfn>,
    /// What it is.
    pub kind: PciKind,
}

/// The kinds of devices on the PCI bus.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PciKind {
    /// `pci-testdev`.
    TestDevice {
        /// Bytes of its BAR 2.
        size: u64,
    },
}

impl PciKind {
    /// The name of its type, as `--device` knows it.
    pub fn name(&self) -> &'static str {
        match self {
            Self::TestDevice { .. } => "pci-testdev",
        }
    }
}

/// A row of the table: a type that `--device` knows.
pub(super) struct DeviceType {
    pub(super) name: &'static str,
    pub(super) help: &'static str,
    /// Properties with their values, and how they are explained.
    pub(super) props: &'static [(&'static str, &'static str)],
    pub(super) parse: fn(&mut Props) -> Result<DeviceSpec, ConfigError>,
}

pub(super) const ADDR: (&str, &str) =
    ("addr=SLOT[.FN]", "its place on the bus, in hexadecimal (a free slot)");

const CHARDEV: (&str, &str) = ("chardev=ID", "the backend that --chardev makes (needed)");

const TYPES: &[DeviceType] = &[
    DeviceType {
        name: "isa-debug-exit",
        help: "a write of N to it ends vmm with status N * 2 + 1",
        props: &[
            ("iobase=PORT", "the first port (0x501)"),
            ("iosize=N", "how many ports, 1 to 8 (2)"),
        ],
        parse: |props| {
            Ok(DeviceSpec::DebugExit {
                iobase: port(props, "iobase", 0x501)?,
                iosize: props.take_number("iosize", 1..=8)?.unwrap_or(2) as u8,
            })
        },
    },
    DeviceType {
        name: "isa-debugcon",
        help: "what is written to its port goes to a backend",
        props: &[
            CHARDEV,
            ("iobase=PORT", "the port (0xe9)"),
            ("readback=BYTE", "what a read gives (0xe9)"),
        ],
        parse: |props| {
            Ok(DeviceSpec::Debugcon {
                iobase: port(props, "iobase", 0xE9)?,
                readback: props.take_number("readback", 0..=0xFF)?.unwrap_or(0xE9) as u8,
                chardev: props.take("chardev").ok_or_else(|| props.missing("chardev"))?,
            })
        },
    },
    DeviceType {
        name: "isa-serial",
        help: "a serial port, 16550A",
        props: &[
            CHARDEV,
            ("index=N", "take the port and interrupt of COM1 (0, the default) to COM4 (3)"),
            ("iobase=PORT", "the first of its eight ports"),
            ("irq=N", "its ISA interrupt, 1 to 15"),
        ],
        parse: |props| {
            const STANDARD: [(u16, u8); 4] = [(0x3F8, 4), (0x2F8, 3), (0x3E8, 4), (0x2E8, 3)];
            let index = props.take_number("index", 0..=3)?.unwrap_or(0) as usize;
            let (iobase, irq) = STANDARD[index];
            Ok(DeviceSpec::Serial {
                iobase: port(props, "iobase", iobase)?,
                irq: props.take_number("irq", 1..=15)?.unwrap_or(irq.into()) as u8,
                chardev: props.take("chardev").ok_or_else(|| props.missing("chardev"))?,
            })
        },
    },
    DeviceType {
        name: "pvpanic",
        help: "the guest reports a panic of its kernel",
        props: &[("ioport=PORT", "the port (0x505)")],
        parse: |props| Ok(DeviceSpec::Pvpanic { ioport: port(props, "ioport", 0x505)? }),
    },
    DeviceType {
        name: "pci-testdev",
        help: "a PCI device with all that a test of PCI needs",
        props: &[ADDR, ("membar=SIZE", "bytes of its BAR 2 (4K)")],
        parse: |props| {
            let size = props.take("membar").map(|text| {
                let size = parse_size(&text, 1).filter(|n| n.is_power_of_two() && *n >= 4096);
                size.ok_or_else(|| props.bad("membar", &text, "a power of two from 4K on"))
            });
            pci(props, PciKind::TestDevice { size: size.transpose()?.unwrap_or(4096) })
        },
    },
];

/// A device on the PCI bus, with the properties that all of them have.
fn pci(props: &mut Props, kind: PciKind) -> Result<DeviceSpec, ConfigError> {
    Ok(DeviceSpec::Pci(PciSpec { id: None, addr: take_addr(props)?, kind }))
}

/// A place on the PCI bus.
pub(super) fn take_addr(props: &mut Props) -> Result<Option<Devfn>, ConfigError> {
    // There is one bus.
    if let Some(bus) = props.take("bus")
        && bus != "pci.0"
        && bus != "pcie.0"
    {
        return Err(props.bad("bus", &bus, "pci.0, which is the only bus"));
    }
    let addr = props.take("addr").map(|text| {
        parse_addr(&text).ok_or_else(|| {
            props.bad("addr", &text, "SLOT or SLOT.FUNCTION, up to 1f.7 in hexadecimal")
        })
    });
    addr.transpose()
}

/// Reads `SLOT` or `SLOT.FUNCTION`, in hexadecimal with or without 0x.
fn parse_addr(text: &str) -> Option<Devfn> {
    let hex = |text: &str| u8::from_str_radix(text.strip_prefix("0x").unwrap_or(text), 16).ok();
    let (slot, function) = text.split_once('.').unwrap_or((text, "0"));
    let (slot, function) = (hex(slot)?, hex(function)?);
    (slot < 32 && function < 8).then(|| Devfn::new(slot, function))
}

fn port(props: &mut Props, key: &'static str, default: u16) -> Result<u16, ConfigError> {
    Ok(props.take_number(key, 0..=0xFFF8)?.map_or(default, |n| n as u16))
}

impl DeviceSpec {
    /// Reads `TYPE[,prop=value...]`.
    ///
    /// # Errors
    /// Names the nearest known type or property.
    pub fn parse(text: &str) -> Result<Self, ConfigError> {
        let (name, mut props) = Props::with_head("--device", text);
        let kind = DeviceType::find(name)?;
        // `id` names the device for the monitor.
        let id = props.take("id");
        let mut spec = (kind.parse)(&mut props)?;
        match &mut spec {
            Self::Pci(spec) => spec.id = id,
            Self::Virtio(spec) => spec.id = id,
            _ => {}
        }
        props.finish()?;
        Ok(spec)
    }

    /// What `--device help` prints.
    pub fn help() -> String {
        rows(DeviceType::all().map(|t| (t.name, t.help)))
    }

    /// What `--device TYPE,help` prints.
    ///
    /// # Errors
    /// When there is no such type.
    pub fn type_help(name: &str) -> Result<String, ConfigError> {
        let kind = DeviceType::find(name.to_owned())?;
        Ok(format!("{}: {}\n{}", kind.name, kind.help, rows(kind.props.iter().copied())))
    }
}

impl DeviceType {
    fn all() -> impl Iterator<Item = &'static Self> {
        TYPES.iter().chain(virtio::TYPES)
    }

    fn find(name: String) -> Result<&'static Self, ConfigError> {
        Self::all().find(|t| t.name == name).ok_or_else(|| {
            let names = || Self::all().map(|t| t.name);
            ConfigError::UnknownName {
                option: "--device",
                near: nearest(&name, names()).map(str::to_owned),
                known: names().collect::<Vec<_>>().join(", "),
                name,
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_have_defaults_and_properties() {
        assert_eq!(
            DeviceSpec::parse("isa-debug-exit,iobase=0xf4,iosize=4").unwrap(),
            DeviceSpec::DebugExit { iobase: 0xF4, iosize: 4 }
        );
        assert_eq!(DeviceSpec::parse("pvpanic").unwrap(), DeviceSpec::Pvpanic { ioport: 0x505 });
        assert_eq!(
            DeviceSpec::parse("isa-serial,index=1,chardev=c0,id=x").unwrap(),
            DeviceSpec::Serial { iobase: 0x2F8, irq: 3, chardev: "c0".into() }
        );
    }

    #[test]
    fn every_property_that_help_names_is_known() {
        for t in DeviceType::all() {
            let mut props = Props::with_head("--device", "x,chardev=c,drive=d").1;
            (t.parse)(&mut props).unwrap();
            for (prop, _) in t.props {
                let key = prop.split('=').next().unwrap();
                assert!(props.knows(key), "{} {key}", t.name);
            }
        }
    }

    #[test]
    fn bad_ones_are_refused_with_the_nearest() {
        for (text, expected) in [
            ("isa-debug-exi", "did you mean 'isa-debug-exit'?"),
            ("isa-debug-exit,ibase=1", "did you mean 'iobase'?"),
            ("isa-debug-exit,iosize=9", "a number from 1 to 8"),
            ("isa-debugcon", "lacks chardev"),
            ("", "there is no ''"),
        ] {
            let error = DeviceSpec::parse(text).unwrap_err().to_string();
            assert!(error.contains(expected), "{text}: {error}");
        }
    }
}
