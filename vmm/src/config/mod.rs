//! What the command line asks for, understood and checked.

mod device;
mod drive;
mod error;
mod help;
mod icount;
pub mod net;
pub mod props;
mod rtc;
mod virtio;

use std::path::PathBuf;

use board::Clock;
use board::memory::PAGE_SIZE;
use devices::chardev::{BackendKind, BackendSpec};

use crate::cli::Cli;
use crate::cpuid::{CpuModel, Topology};
use crate::suggest::nearest;

pub use device::{DeviceSpec, PciKind, PciSpec};
pub use drive::{DriveSpec, Interface};
pub use error::ConfigError;
pub use help::help;
pub use icount::Icount;
pub use net::Networks;
pub use rtc::RtcConfig;
pub use virtio::{NetSpec, Transport, VirtioKind, VirtioPortSpec, VirtioSpec};

use props::{Props, parse_size};

/// The most vCPUs: xAPIC ids are 8 bits and 255 means all.
pub const MAX_CPUS: u32 = 255;

/// `--machine`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MachineKind {
    /// A PC.
    Pc,
    /// A PC without what a modern Linux does not need.
    Microvm,
}

/// Which accelerator the user wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum AccelChoice {
    /// KVM where it runs ring 0 natively, else the software CPU.
    Auto,
    /// KVM or nothing.
    Kvm,
    /// The software CPU.
    Soft,
}

/// A file for the guest, `--fw_cfg`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FwCfgFile {
    /// The name in the directory.
    pub name: String,
    /// Its contents.
    pub contents: Vec<u8>,
}

/// What `-d` logs.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogItems {
    /// Accesses to addresses where no device is.
    pub unimp: bool,
    /// The registers at each reset and triple fault.
    pub cpu_reset: bool,
}

/// A machine to be made.
#[derive(Clone, Debug)]
pub struct Config {
    /// `--kernel`.
    pub kernel: Option<PathBuf>,
    /// `--initrd`.
    pub initrd: Option<String>,
    /// `--append`.
    pub append: String,
    /// `--bios`.
    pub bios: Option<PathBuf>,
    /// Bytes of RAM.
    pub memory: u64,
    /// vCPUs and where they stand.
    pub topology: Topology,
    /// The kind of machine.
    pub machine: MachineKind,
    /// The kernel has the PICs and the I/O APIC; KVM only.
    pub kernel_irqchip: bool,
    /// The guest gets ACPI tables.
    pub acpi: bool,
    /// There is a PCI bus.
    pub pci: bool,
    /// What CPUID shows.
    pub cpu: CpuModel,
    /// The accelerator.
    pub accel: AccelChoice,
    /// Disks.
    pub drives: Vec<DriveSpec>,
    /// The VM clock follows the instructions executed.
    pub icount: Option<Icount>,
    /// Where the guest's random numbers come from, if not from the host.
    pub seed: Option<u64>,
    /// Devices besides those of the machine.
    pub devices: Vec<DeviceSpec>,
    /// The networks, and the cards that `--nic` stands for.
    pub networks: Networks,
    /// The real-time clock.
    pub rtc: RtcConfig,
    /// Files for the guest.
    pub fw_cfg: Vec<FwCfgFile>,
    /// The name for `info name`.
    pub name: Option<String>,
    /// The UUID; all zeros if none was given.
    pub uuid: [u8; 16],
    /// The first four serial ports; none where there is no such port.
    pub serials: Vec<Option<BackendSpec>>,
    /// The monitor in text form.
    pub monitor: Option<BackendSpec>,
    /// The monitor in JSON form.
    pub qmp: Vec<BackendSpec>,
    /// Where gdb attaches.
    pub gdb: Option<BackendSpec>,
    /// Backends for devices.
    pub chardevs: Vec<BackendSpec>,
    /// The escape key of multiplexed terminals.
    pub escape: u8,
    /// Do not start.
    pub paused: bool,
    /// End instead of resetting.
    pub no_reboot: bool,
    /// Stop instead of ending at power-off.
    pub no_shutdown: bool,
    /// Where the process id goes.
    pub pidfile: Option<PathBuf>,
    /// Go into the background.
    pub daemonize: bool,
    /// Confine the running machine.
    pub sandbox: bool,
    /// What is logged.
    pub log: LogItems,
    /// Where the log goes; stderr otherwise.
    pub log_file: Option<PathBuf>,
}

impl Config {
    /// Understands a command line.
    ///
    /// # Errors
    /// [`ConfigError`] with the cause and the remedy.
    pub fn new(cli: Cli) -> Result<Self, ConfigError> {
        let MachineOptions { machine, kernel_irqchip, acpi, pci } = parse_machine(&cli.machine)?;
        if cli.kernel.is_none() && cli.bios.is_none() {
            return Err(ConfigError::Conflict(
                "there is nothing to boot: give a kernel by --kernel FILE or firmware by --bios FILE"
                    .into(),
            ));
        }
        for (given, option) in
            [(cli.initrd.is_some(), "--initrd"), (cli.append.is_some(), "--append")]
        {
            if given && cli.kernel.is_none() {
                return Err(ConfigError::Conflict(format!("{option} needs a --kernel FILE")));
            }
        }
        if cli.kernel.is_some() && cli.bios.is_some() {
            return Err(ConfigError::Conflict(
                "--kernel and --bios exclude each other: a kernel is entered without firmware"
                    .into(),
            ));
        }
        if let Some(display) = cli.display.as_deref().filter(|d| *d != "none") {
            return Err(bad("--display", display, "a display that there is: none is the only one"));
        }
        let topology = parse_smp(&cli.smp)?;
        let icount = cli.icount.as_deref().map(Icount::parse).transpose()?;
        let accel = match (parse_accel(&cli)?, icount) {
            (AccelChoice::Auto, Some(_)) => AccelChoice::Soft,
            (accel, _) => accel,
        };
        if icount.is_some() {
            check_icount(accel, topology)?;
        }
        let seed = cli.seed.as_deref().map(|text| {
            props::parse_number(text)
                .ok_or_else(|| bad("--seed", text, "a number of at most 64 bits"))
        });
        let (serials, monitor) = parse_consoles(&cli)?;
        let backends = |list: &[String]| -> Result<Vec<_>, ConfigError> {
            list.iter().map(|text| Ok(BackendSpec::parse(text)?)).collect()
        };
        let escape = props::parse_number(&cli.echr).and_then(|n| u8::try_from(n).ok());
        let drives = parse_drives(&cli)?;
        let mut devices = implied_devices(&drives)?;
        for text in &cli.device {
            devices.push(DeviceSpec::parse(text)?);
        }
        let config = Self {
            drives,
            memory: parse_memory(&cli.memory)?,
            topology,
            machine,
            kernel_irqchip,
            acpi,
            pci,
            cpu: cli.cpu.parse()?,
            accel,
            devices,
            icount,
            seed: seed.transpose()?,
            networks: Networks::parse(&cli.netdev, &cli.nic, &cli.net)?,
            rtc: RtcConfig::parse(cli.rtc.as_deref().unwrap_or_default(), icount.is_some())?,
            fw_cfg: cli.fw_cfg.iter().map(|text| parse_fw_cfg(text)).collect::<Result<_, _>>()?,
            name: cli.name.as_deref().map(parse_name),
            uuid: cli.uuid.as_deref().map_or(Ok([0; 16]), parse_uuid)?,
            serials,
            monitor,
            qmp: backends(&cli.qmp)?,
            gdb: parse_gdb(&cli)?,
            chardevs: cli
                .chardev
                .iter()
                .map(|text| Ok(BackendSpec::parse_keyed(text)?))
                .collect::<Result<_, ConfigError>>()?,
            escape: escape
                .ok_or_else(|| bad("--echr", &cli.echr, "a character code from 0 to 255"))?,
            paused: cli.paused,
            no_reboot: cli.no_reboot,
            no_shutdown: cli.no_shutdown,
            pidfile: cli.pidfile,
            daemonize: cli.daemonize,
            sandbox: parse_sandbox(cli.sandbox.as_deref().unwrap_or("off"))?,
            log: parse_log(cli.log_items.as_deref().unwrap_or_default())?,
            log_file: cli.log_file,
            kernel: cli.kernel,
            initrd: cli.initrd,
            append: cli.append.unwrap_or_default(),
            bios: cli.bios,
        };
        if config.sandbox && config.networks.starts_programs() {
            return Err(ConfigError::Conflict(
                "--sandbox on lets vmm start no programs and connect to no unix sockets: leave out guestfwd to a command or path, reconnect to a path, or give downscript=no"
                    .into(),
            ));
        }
        if config.daemonize {
            config.check_background()?;
        }
        Ok(config)
    }

    /// The VM clock for the loop of a machine of this kind, standing at zero.
    pub fn clock(&self) -> Clock {
        if self.icount.is_some() { Clock::driven() } else { Clock::stopped() }
    }

    /// Nothing may need the terminal that `--daemonize` leaves.
    fn check_background(&self) -> Result<(), ConfigError> {
        let on_stdio = |spec: &BackendSpec| matches!(spec.kind, BackendKind::Stdio { .. });
        let consoles = self.serials.iter().flatten().chain(&self.monitor);
        let others = self.qmp.iter().chain(&self.gdb).chain(&self.chardevs);
        if consoles.chain(others).any(on_stdio) {
            return Err(ConfigError::Conflict(
                "--daemonize leaves the terminal: put consoles on unix:PATH,server,nowait or pty"
                    .into(),
            ));
        }
        if self.log != LogItems::default() && self.log_file.is_none() {
            return Err(ConfigError::Conflict(
                "--daemonize leaves the terminal: name a file for the log by -D FILE".into(),
            ));
        }
        Ok(())
    }
}

/// All drives, in the order in which they are given.
fn parse_drives(cli: &Cli) -> Result<Vec<DriveSpec>, ConfigError> {
    let mut drives: Vec<DriveSpec> = Vec::new();
    for text in &cli.drive {
        let count = |interface| drives.iter().filter(|drive| drive.interface == interface).count();
        let mut drive = DriveSpec::parse(text, count)?;
        if let Some(image) = drive.options.image.as_mut().filter(|_| cli.snapshot) {
            image.snapshot = true;
        }
        drives.push(drive);
    }
    drives.extend(drive::parse_blockdevs(&cli.blockdev)?);
    Ok(drives)
}

/// The devices that drives with if=virtio ask for.
fn implied_devices(drives: &[DriveSpec]) -> Result<Vec<DeviceSpec>, ConfigError> {
    let ours = drives.iter().filter(|drive| drive.interface == Interface::Virtio);
    ours.map(|drive| virtio::blk_for(&drive.options.id)).collect()
}

fn bad(option: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError::BadValue {
        option: option.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

/// Names, what they stand for, and how they are explained.
const MACHINES: [(&str, MachineKind, &str); 3] = [
    ("pc", MachineKind::Pc, "a PC (the default)"),
    ("q35", MachineKind::Pc, "the same"),
    ("microvm", MachineKind::Microvm, "a PC without what a modern Linux does not need"),
];

/// `--machine`, understood.
struct MachineOptions {
    machine: MachineKind,
    kernel_irqchip: bool,
    acpi: bool,
    pci: bool,
}

fn parse_machine(text: &str) -> Result<MachineOptions, ConfigError> {
    let mut props = Props::with_implied_key("--machine", text, "type");
    let name = props.take("type").unwrap_or_else(|| "pc".to_owned());
    let Some(&(_, machine, _)) = MACHINES.iter().find(|(n, ..)| *n == name) else {
        return Err(ConfigError::UnknownName {
            option: "--machine",
            near: nearest(&name, MACHINES.iter().map(|(n, ..)| *n)).map(str::to_owned),
            known: "pc (also called q35), microvm".to_owned(),
            name,
        });
    };
    let kernel_irqchip =
        props.take_choice("kernel-irqchip", &[("split", false), ("on", true)])?.unwrap_or(false);
    let acpi = props.take_switch("acpi")?.unwrap_or(true);
    let pci = props.take_switch("pci")?.unwrap_or(machine == MachineKind::Pc);
    props.finish()?;
    if pci && machine == MachineKind::Microvm {
        return Err(ConfigError::Conflict(
            "--machine microvm has no PCI bus: leave out pci=on, or ask for --machine pc".into(),
        ));
    }
    Ok(MachineOptions { machine, kernel_irqchip, acpi, pci })
}

/// Names, what they stand for, and how they are explained.
const ACCELS: [(&str, AccelChoice, &str); 4] = [
    ("auto", AccelChoice::Auto, "kvm where it runs the guest natively, else soft (the default)"),
    ("kvm", AccelChoice::Kvm, "the host's CPU, by /dev/kvm"),
    ("soft", AccelChoice::Soft, "a CPU in software"),
    ("tcg", AccelChoice::Soft, "the same"),
];

fn parse_accel(cli: &Cli) -> Result<AccelChoice, ConfigError> {
    let Some(name) = cli.accel.as_deref() else {
        return Ok(if cli.enable_kvm { AccelChoice::Kvm } else { AccelChoice::Auto });
    };
    let Some((_, choice, _)) = ACCELS.iter().find(|(n, ..)| *n == name) else {
        return Err(ConfigError::UnknownName {
            option: "--accel",
            name: name.to_owned(),
            near: nearest(name, ACCELS.iter().map(|(n, ..)| *n)).map(str::to_owned),
            known: "auto, kvm, soft (also called tcg)".to_owned(),
        });
    };
    if cli.enable_kvm && *choice == AccelChoice::Soft {
        return Err(ConfigError::Conflict(format!(
            "--enable-kvm and --accel {name} contradict each other: leave one out"
        )));
    }
    Ok(if cli.enable_kvm { AccelChoice::Kvm } else { *choice })
}

/// What `--icount` goes with.
fn check_icount(accel: AccelChoice, topology: Topology) -> Result<(), ConfigError> {
    if accel == AccelChoice::Kvm {
        return Err(ConfigError::Conflict(
            "--icount: KVM does not stop at an exact instruction: use --accel soft".into(),
        ));
    }
    if topology.cpus > 1 {
        return Err(ConfigError::Conflict(format!(
            "--icount: the order in which {} vCPUs execute differs from run to run: use --smp 1",
            topology.cpus
        )));
    }
    Ok(())
}

fn parse_memory(text: &str) -> Result<u64, ConfigError> {
    let mut props = Props::with_implied_key("--memory", text, "size");
    let text = props.take("size").unwrap_or_default();
    props.finish()?;
    let Some(size) = parse_size(&text, 1 << 20) else {
        return Err(bad("--memory", &text, "a size such as 256M or 2G"));
    };
    if size < 1 << 20 {
        return Err(bad("--memory", &text, "enough: a machine has at least 1M"));
    }
    Ok(size.next_multiple_of(PAGE_SIZE))
}

fn parse_smp(text: &str) -> Result<Topology, ConfigError> {
    let max = u64::from(MAX_CPUS);
    let mut props = Props::with_implied_key("--smp", text, "cpus");
    let mut number = |key| props.take_number(key, 1..=max).map(|n| n.map(|n| n as u32));
    let (cpus, sockets) = (number("cpus")?, number("sockets")?);
    let (cores, threads) = (number("cores")?, number("threads")?);
    if let Some(most) = number("maxcpus")?
        && cpus.is_some_and(|cpus| most != cpus)
    {
        return Err(ConfigError::Conflict(
            "--smp: vCPUs cannot be added later: leave out maxcpus".into(),
        ));
    }
    props.finish()?;
    // QEMU's rule: what is not given is 1, and cores make up for the rest.
    let (sockets, threads) = (sockets.unwrap_or(1), threads.unwrap_or(1));
    let cores = match (cores, cpus) {
        (Some(cores), _) => cores,
        (None, Some(cpus)) => (cpus / (sockets * threads)).max(1),
        (None, None) => 1,
    };
    let product = u64::from(sockets) * u64::from(cores) * u64::from(threads);
    let cpus = cpus.unwrap_or(product as u32);
    if u64::from(cpus) != product {
        return Err(ConfigError::Conflict(format!(
            "--smp: {sockets} sockets * {cores} cores * {threads} threads are not {cpus} cpus: make them agree"
        )));
    }
    if cpus > MAX_CPUS {
        return Err(bad("--smp", &cpus.to_string(), &format!("at most {MAX_CPUS}")));
    }
    let even = |n: u32, above: u32| n.is_power_of_two() || above == 1;
    if !even(threads, cores * sockets) || !even(cores, sockets) {
        return Err(ConfigError::Conflict(
            "--smp: threads, and with several sockets cores, have to be powers of two".into(),
        ));
    }
    Ok(Topology { cpus, sockets, cores, threads })
}

/// What `-s` means, and `gdbserver` without an argument.
pub const GDB_PORT: &str = "tcp::1234";

/// The serial ports and the monitor. Without a word about either, both are on the terminal.
type Consoles = (Vec<Option<BackendSpec>>, Option<BackendSpec>);

fn parse_consoles(cli: &Cli) -> Result<Consoles, ConfigError> {
    if cli.serial.len() > 4 {
        return Err(ConfigError::Conflict(
            "there are four serial ports: give --serial at most four times, or --device isa-serial"
                .into(),
        ));
    }
    let present = |spec: BackendSpec| (spec.kind != BackendKind::None).then_some(spec);
    let mut serials = Vec::new();
    for text in &cli.serial {
        serials.push(present(BackendSpec::parse(text)?));
    }
    let monitor = match cli.monitor.as_deref() {
        Some(text) => present(BackendSpec::parse(text)?),
        None => None,
    };
    if serials.is_empty() {
        let default = match cli.monitor.as_deref() {
            _ if cli.daemonize => "null",
            None => "mon:stdio",
            // The terminal is the monitor's.
            Some("stdio" | "mon:stdio") => "null",
            Some(_) => "stdio",
        };
        serials.push(present(BackendSpec::parse(default)?));
    }
    Ok((serials, monitor))
}

fn parse_gdb(cli: &Cli) -> Result<Option<BackendSpec>, ConfigError> {
    let text = cli.gdb.as_deref().or(cli.gdb_port.then_some(GDB_PORT));
    let spec = text.map(BackendSpec::parse_gdb).transpose()?;
    Ok(spec.filter(|spec| spec.kind != BackendKind::None))
}

fn parse_fw_cfg(text: &str) -> Result<FwCfgFile, ConfigError> {
    let mut props = Props::with_implied_key("--fw_cfg", text, "name");
    let name = props.take("name").ok_or_else(|| props.missing("name"))?;
    let (file, string) = (props.take("file"), props.take("string"));
    props.finish()?;
    if name.is_empty() || name.len() > 55 || !name.is_ascii() {
        return Err(bad("--fw_cfg,name", &name, "a name of 1 to 55 ASCII characters"));
    }
    let contents = match (file, string) {
        (Some(path), None) => std::fs::read(&path).map_err(|cause| ConfigError::File {
            option: "--fw_cfg",
            path,
            cause,
        })?,
        (None, Some(string)) => string.into_bytes(),
        _ => {
            return Err(ConfigError::Conflict(format!(
                "--fw_cfg {name} needs its contents: either file=PATH or string=TEXT"
            )));
        }
    };
    Ok(FwCfgFile { name, contents })
}

/// `--name NAME[,process=...,debug-threads=...]`: only the name matters here.
fn parse_name(text: &str) -> String {
    let mut props = Props::with_implied_key("--name", text, "guest");
    props.take("guest").unwrap_or_default()
}

fn parse_uuid(text: &str) -> Result<[u8; 16], ConfigError> {
    let wrong = || bad("--uuid", text, "a UUID such as 12345678-1234-1234-1234-123456789abc");
    let groups: Vec<_> = text.split('-').collect();
    let lengths: Vec<_> = groups.iter().map(|g| g.len()).collect();
    if lengths != [8, 4, 4, 4, 12] {
        return Err(wrong());
    }
    let digits: Vec<_> = groups.concat().chars().map(|c| c.to_digit(16)).collect();
    let mut uuid = [0; 16];
    for (byte, pair) in uuid.iter_mut().zip(digits.chunks_exact(2)) {
        let (Some(high), Some(low)) = (pair[0], pair[1]) else { return Err(wrong()) };
        *byte = (high << 4 | low) as u8;
    }
    Ok(uuid)
}

fn parse_sandbox(text: &str) -> Result<bool, ConfigError> {
    let mut props = Props::with_implied_key("--sandbox", text, "enable");
    let on = props.take_switch("enable")?.unwrap_or(true);
    // QEMU's finer switches: what they deny is denied here in any case.
    for key in ["obsolete", "elevateprivileges", "spawn", "resourcecontrol"] {
        props.take_choice(key, &[("deny", ())])?;
    }
    props.finish()?;
    Ok(on)
}

/// What `-d` logs: names and how they are explained.
/// What `-d` and `log` know.
pub const LOG_ITEMS: [(&str, &str); 3] = [
    ("unimp", "accesses to ports and addresses where no device is"),
    ("guest_errors", "the same"),
    ("cpu_reset", "the registers at each reset and triple fault"),
];

fn parse_log(text: &str) -> Result<LogItems, ConfigError> {
    let mut items = LogItems::default();
    for name in text.split(',').filter(|name| !name.is_empty()) {
        match name {
            "unimp" | "guest_errors" => items.unimp = true,
            "cpu_reset" => items.cpu_reset = true,
            _ => {
                let known = LOG_ITEMS.map(|(name, _)| name);
                return Err(ConfigError::UnknownName {
                    option: "-d",
                    name: name.to_owned(),
                    near: nearest(name, known).map(str::to_owned),
                    known: known.join(", "),
                });
            }
        }
    }
    Ok(items)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn config(line: &str) -> Result<Config, ConfigError> {
        let args = std::iter::once("vmm").chain(line.split_whitespace()).map(OsString::from);
        Config::new(Cli::read(args).unwrap())
    }

    fn error(line: &str) -> String {
        config(line).unwrap_err().to_string()
    }

    #[test]
    fn defaults_are_a_pc_with_its_console_on_the_terminal() {
        let c = config("--kernel k").unwrap();
        assert_eq!((c.memory, c.topology), (128 << 20, Topology::flat(1)));
        assert_eq!((c.machine, c.accel), (MachineKind::Pc, AccelChoice::Auto));
        let serial = c.serials[0].as_ref().unwrap();
        assert!(serial.mux && matches!(serial.kind, BackendKind::Stdio { signal: false }));
        assert!(c.monitor.is_none());
    }

    #[test]
    fn topologies_add_up() {
        let smp = |text: &str| config(&format!("--kernel k --smp {text}")).map(|c| c.topology);
        assert_eq!(smp("4").unwrap(), Topology::flat(4));
        assert_eq!(
            smp("8,sockets=2,threads=2").unwrap(),
            Topology { cpus: 8, sockets: 2, cores: 2, threads: 2 }
        );
        assert_eq!(smp("cores=3").unwrap(), Topology::flat(3));
        for text in ["0", "100000", "x", "4,cores=3", "6,sockets=2,cores=3", "2,maxcpus=4"] {
            assert!(smp(text).is_err(), "{text}");
        }
    }

    #[test]
    fn accelerators_have_two_names_and_one_shorthand() {
        let accel = |line: &str| config(&format!("--kernel k {line}")).map(|c| c.accel);
        assert_eq!(accel("--enable-kvm").unwrap(), AccelChoice::Kvm);
        assert_eq!(accel("--accel tcg").unwrap(), AccelChoice::Soft);
        assert!(accel("--accel soft --enable-kvm").is_err());
        assert!(error("--kernel k --accel kmv").contains("did you mean 'kvm'?"));
    }

    #[test]
    fn icount_needs_no_value_and_takes_the_software_cpu() {
        let c = config("--icount --seed 0x10 --kernel k").unwrap();
        assert_eq!((c.accel, c.seed), (AccelChoice::Soft, Some(16)));
        assert_eq!(c.icount, Some(Icount::parse("").unwrap()));
        assert!(!c.rtc.follows_host);
        assert_eq!(config("-icount shift=5 -kernel k").unwrap().icount.unwrap().shift, 5);
        assert_eq!(config("--kernel k").unwrap().icount, None);
    }

    #[test]
    fn uuids_and_names() {
        let c =
            config("--kernel k --uuid 00112233-4455-6677-8899-aabbccddeeff --name a,b=c").unwrap();
        assert_eq!(c.uuid[..3], [0x00, 0x11, 0x22]);
        assert_eq!(c.name.as_deref(), Some("a"));
        assert!(error("--kernel k --uuid 0011").contains("--uuid"));
        assert!(error("--kernel k --uuid g0112233-4455-6677-8899-aabbccddeeff").contains("--uuid"));
    }

    #[test]
    fn contradictions_are_refused() {
        for (line, expected) in [
            ("", "--kernel FILE"),
            ("--initrd x --bios b", "--initrd needs"),
            ("--kernel k --bios b", "exclude each other"),
            ("--kernel k --display gtk", "none is the only one"),
            ("--kernel k -m 0", "at least 1M"),
            ("--kernel k -m 12Q", "such as 256M"),
            ("--kernel k --machine cp", "did you mean 'pc'?"),
            ("--kernel k --machine pc,kernel-irqchip=off", "split or on"),
            ("--kernel k --daemonize --serial stdio", "leaves the terminal"),
            ("--kernel k --daemonize --chardev stdio,id=c", "leaves the terminal"),
            ("--kernel k --daemonize -d unimp", "-D FILE"),
            ("--kernel k -d everything", "known are"),
            ("--kernel k --sandbox maybe", "on or off"),
            ("--kernel k --sandbox on,spawn=allow", "deny"),
            ("--kernel k --icount --enable-kvm", "use --accel soft"),
            ("--kernel k --icount shift=3 --smp 2", "use --smp 1"),
            ("--kernel k --icount --rtc clock=host", "leave out clock=host"),
            ("--kernel k --seed x", "64 bits"),
            ("--kernel k --fw_cfg name=x", "file=PATH or string=TEXT"),
        ] {
            let error = error(line);
            assert!(error.contains(expected), "{line}: {error}");
        }
    }
}
