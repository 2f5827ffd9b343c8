//! The command line: QEMU's names, in GNU's spelling and in QEMU's.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::{CommandFactory, FromArgMatches, Parser, ValueEnum};

/// A lightweight machine emulator.
#[derive(Parser, Debug)]
#[command(
    name = "vmm",
    version,
    about = "A lightweight machine emulator: boots an x86-64 kernel with a console into the machine",
    after_help = "Every long option is also taken with one dash, as QEMU spells it: -kernel, -smp 2.\n\
        \"help\" as the value of --machine, --cpu, --accel, --device, --netdev, --chardev or -d lists what there is.\n\
        On the console, Ctrl-A c switches to the monitor and back, Ctrl-A x quits, Ctrl-A h helps.",
    max_term_width = 100
)]
pub struct Cli {
    /// The kernel: bzImage, ELF (PVH or the 64-bit boot protocol) or multiboot
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub kernel: Option<PathBuf>,
    /// The initial RAM disk; for multiboot modules "FILE ARGS,FILE ARGS"
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub initrd: Option<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", help_heading = "Boot")]
    pub append: Option<String>,
    /// A firmware image, which runs from the reset vector
    #[arg(long, value_name = "FILE", help_heading = "Boot")]
    pub bios: Option<PathBuf>,

    /// RAM: a number of MiB, or with a suffix K, M, G, T
    #[arg(
        short,
        long,
        value_name = "[size=]SIZE",
        default_value = "128M",
        help_heading = "Machine"
    )]
    pub memory: String,
    /// vCPUs: N or cpus=N,sockets=,cores=,threads=
    #[arg(long, value_name = "N", default_value = "1", help_heading = "Machine")]
    pub smp: String,
    /// The machine: pc or microvm, and kernel-irqchip=split|on, acpi=on|off, pci=on|off
    #[arg(short = 'M', long, value_name = "TYPE", default_value = "pc", help_heading = "Machine")]
    pub machine: String,
    /// The CPU: host, max, x86-64-v1, -v2, -v3, then ,+FEATURE ,-FEATURE
    #[arg(long, value_name = "MODEL", default_value = "host", help_heading = "Machine")]
    pub cpu: String,
    /// The accelerator: auto, kvm or soft (also called tcg)
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub accel: Option<String>,
    /// Insist on KVM, as --accel kvm
    #[arg(long, help_heading = "Machine")]
    pub enable_kvm: bool,
    /// Add a device: TYPE,prop=value; "help" lists them
    #[arg(long, value_name = "TYPE", help_heading = "Machine")]
    pub device: Vec<String>,
    /// A network: user,id=ID,... or tap, socket, stream; "help" lists them
    #[arg(long, value_name = "KIND,id=ID", help_heading = "Network")]
    pub netdev: Vec<String>,
    /// A network and a card on it: KIND,mac=,model=,... as for --netdev; none is the default
    #[arg(long, value_name = "KIND", help_heading = "Network")]
    pub nic: Vec<String>,
    /// The old form: --net nic,macaddr= --net user,...; or none
    #[arg(long, value_name = "nic|KIND", help_heading = "Network")]
    pub net: Vec<String>,

    /// The real-time clock: base=utc|localtime|DATE, clock=host|vm
    #[arg(long, value_name = "base=,clock=", help_heading = "Machine")]
    pub rtc: Option<String>,
    /// The clock follows the instructions executed, so that a run repeats: [shift=]N|auto (an
    /// instruction takes 2^N ns), sleep=on|off (whether an idle guest takes its time); one vCPU
    #[arg(
        long,
        value_name = "shift=,sleep=",
        num_args = 0..=1,
        default_missing_value = "auto",
        help_heading = "Machine"
    )]
    pub icount: Option<String>,
    /// The guest's random numbers come from this number instead of from the host
    #[arg(long, value_name = "N", help_heading = "Machine")]
    pub seed: Option<String>,
    /// Give the guest a file: name=opt/NAME,file=PATH or ,string=TEXT
    #[arg(long = "fw_cfg", alias = "fw-cfg", value_name = "name=", help_heading = "Machine")]
    pub fw_cfg: Vec<String>,
    /// A disk: file=FILE,format=raw|qcow2,if=virtio|none,id=,readonly=on,cache=,aio=,discard=unmap,
    /// snapshot=on,werror=,rerror=,bps=,iops=,serial=
    #[arg(long, value_name = "file=FILE", help_heading = "Disks")]
    pub drive: Vec<String>,
    /// A disk for --device virtio-blk,drive=NAME: driver=qcow2,node-name=NAME,file.filename=FILE
    #[arg(long, value_name = "driver=,node-name=", help_heading = "Disks")]
    pub blockdev: Vec<String>,
    /// All drives write to files that are thrown away
    #[arg(long, help_heading = "Disks")]
    pub snapshot: bool,

    /// The machine's name
    #[arg(long, value_name = "NAME", help_heading = "Machine")]
    pub name: Option<String>,
    /// The machine's UUID
    #[arg(long, value_name = "UUID", help_heading = "Machine")]
    pub uuid: Option<String>,

    /// A serial port's backend: stdio, mon:stdio, pty, file:PATH, pipe:PATH,
    /// unix:PATH[,server][,nowait], tcp:HOST:PORT[,server][,nowait], null, none
    #[arg(long, value_name = "BACKEND", help_heading = "Console")]
    pub serial: Vec<String>,
    /// The monitor's backend, or none
    #[arg(long, value_name = "BACKEND", help_heading = "Console")]
    pub monitor: Option<String>,
    /// A backend for the monitor's JSON form
    #[arg(long, value_name = "BACKEND", help_heading = "Console")]
    pub qmp: Vec<String>,
    /// Make a backend for --device: KIND,id=ID,...
    #[arg(long, value_name = "KIND,id=ID", help_heading = "Console")]
    pub chardev: Vec<String>,
    /// The escape key of multiplexed terminals, 1 for Ctrl-A
    #[arg(long, value_name = "CODE", default_value = "1", help_heading = "Console")]
    pub echr: String,
    /// No graphics, serial port and monitor on the terminal: the default
    #[arg(long, help_heading = "Console")]
    pub nographic: bool,
    /// The display: none
    #[arg(long, value_name = "none", help_heading = "Console")]
    pub display: Option<String>,

    /// Do not start the vCPUs: the monitor's cont does
    #[arg(short = 'S', help_heading = "Running")]
    pub paused: bool,
    /// Let gdb attach: tcp::PORT, unix:PATH, stdio, pty or none
    #[arg(long, value_name = "BACKEND", help_heading = "Running")]
    pub gdb: Option<String>,
    /// Let gdb attach on port 1234, as --gdb tcp::1234
    #[arg(short = 's', conflicts_with = "gdb", help_heading = "Running")]
    pub gdb_port: bool,
    /// End instead of resetting the machine
    #[arg(long, help_heading = "Running")]
    pub no_reboot: bool,
    /// Stop instead of ending when the guest powers off
    #[arg(long, help_heading = "Running")]
    pub no_shutdown: bool,
    /// Write the process id to a file
    #[arg(long, value_name = "FILE", help_heading = "Running")]
    pub pidfile: Option<PathBuf>,
    /// Go into the background once the machine is made
    #[arg(long, help_heading = "Running")]
    pub daemonize: bool,
    /// Leave the running machine no files and few system calls: on or off
    #[arg(long, value_name = "on|off", help_heading = "Running")]
    pub sandbox: Option<String>,
    /// Log: unimp, cpu_reset; "help" lists them
    #[arg(short = 'd', value_name = "ITEMS", help_heading = "Running")]
    pub log_items: Option<String>,
    /// Where the log goes instead of stderr
    #[arg(short = 'D', value_name = "FILE", help_heading = "Running")]
    pub log_file: Option<PathBuf>,

    /// Print the man page, a shell's completions or the monitor's reference
    #[arg(long, value_name = "KIND", hide = true)]
    pub generate: Option<Generate>,
}

/// What `--generate` prints.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum Generate {
    /// The man page.
    Man,
    /// Completions for bash.
    Bash,
    /// Completions for zsh.
    Zsh,
    /// Completions for fish.
    Fish,
    /// The reference of the monitor's commands: docs/monitor.md.
    Monitor,
}

/// A command line that did not lead to a machine.
#[derive(Debug)]
pub enum Early {
    /// Text that was asked for: help or version.
    Print(String),
    /// One or two lines with the cause and the remedy.
    Error(String),
}

impl Cli {
    /// Reads a command line, the program's name first.
    ///
    /// # Errors
    /// [`Early`]: help, version, or what is wrong.
    pub fn read(args: impl IntoIterator<Item = OsString>) -> Result<Self, Early> {
        let mut command = Self::command();
        // Fills in what clap derives, such as the short form of --help.
        command.build();
        let args = gnu_spelling(&command, args);
        let matches = command.try_get_matches_from(args).map_err(|e| early(&e))?;
        Self::from_arg_matches(&matches).map_err(|e| early(&e))
    }

    /// Prints a man page, completions or the monitor's reference.
    ///
    /// # Errors
    /// When stdout does not take it.
    pub fn generate(kind: Generate, out: &mut dyn std::io::Write) -> std::io::Result<()> {
        let mut command = Self::command();
        let mut text = Vec::new();
        let shell = match kind {
            Generate::Man => {
                clap_mangen::Man::new(command).render(&mut text)?;
                return out.write_all(&text);
            }
            Generate::Monitor => return out.write_all(monitor::reference().as_bytes()),
            Generate::Bash => clap_complete::Shell::Bash,
            Generate::Zsh => clap_complete::Shell::Zsh,
            Generate::Fish => clap_complete::Shell::Fish,
        };
        clap_complete::generate(shell, &mut command, "vmm", &mut text);
        out.write_all(&text)
    }
}

/// Turns `-kernel` into `--kernel` for each long option. The value of an option is left as it is,
/// and joined to the option if it starts with a dash and is none itself: `--append=-x`.
fn gnu_spelling(
    command: &clap::Command,
    args: impl IntoIterator<Item = OsString>,
) -> Vec<OsString> {
    let find = |text: &str| {
        let name = text.trim_start_matches('-').split('=').next().unwrap_or_default();
        let mut letters = name.chars();
        let short = letters.next().filter(|_| letters.next().is_none());
        let single = text.starts_with('-') && !text.starts_with("--");
        command.get_arguments().find(|a| {
            single && short.is_some() && a.get_short() == short
                || a.get_long() == Some(name)
                || a.get_all_aliases().is_some_and(|aliases| aliases.contains(&name))
        })
    };
    let mut out: Vec<OsString> = Vec::new();
    let mut wants_value = false;
    for (index, arg) in args.into_iter().enumerate() {
        let text = arg.to_str().unwrap_or_default().to_owned();
        let option = find(&text).filter(|_| text.starts_with('-'));
        if index == 0 || !text.starts_with('-') || text == "-" {
            wants_value = false;
            out.push(arg);
        } else if wants_value && option.is_none() {
            wants_value = false;
            if let Some(last) = out.last_mut() {
                last.push("=");
                last.push(arg);
            }
        } else {
            wants_value =
                option.is_some_and(|a| a.get_action().takes_values()) && !text.contains('=');
            let single = !text.starts_with("--");
            let long = text.split('=').next().unwrap_or_default().len() > 2;
            let attached = text.chars().nth(1).is_some_and(|letter| {
                command.get_arguments().any(|a| a.get_short() == Some(letter))
            });
            // What is neither a long option nor a short one with its value is taken for a long one
            // that is misspelt.
            if single && long && (option.is_some() || !attached) {
                out.push(format!("-{text}").into());
            } else {
                out.push(arg);
            }
        }
    }
    out
}

/// clap's message in our form.
fn early(error: &clap::Error) -> Early {
    let get = |kind| match error.get(kind) {
        Some(ContextValue::String(s)) => s.clone(),
        Some(ContextValue::Strings(list)) => list.first().cloned().unwrap_or_default(),
        _ => String::new(),
    };
    let arg = get(ContextKind::InvalidArg);
    Early::Error(match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            return Early::Print(error.to_string());
        }
        ErrorKind::UnknownArgument => {
            let name = arg.trim_start_matches('-').split('=').next().unwrap_or_default();
            let command = Cli::command();
            let known = command.get_arguments().filter_map(|a| a.get_long());
            let hint = match crate::suggest::nearest(name, known) {
                Some(near) => format!("did you mean --{near}?"),
                None => "vmm --help lists the options".to_owned(),
            };
            if arg.starts_with('-') {
                format!("there is no option {arg}: {hint}")
            } else {
                format!("'{arg}' is no option: a kernel is given by --kernel FILE")
            }
        }
        ErrorKind::InvalidValue if get(ContextKind::InvalidValue).is_empty() => {
            format!("{arg} needs a value")
        }
        ErrorKind::InvalidValue => {
            let known = match error.get(ContextKind::ValidValue) {
                Some(ContextValue::Strings(names)) => names.join(", "),
                _ => String::new(),
            };
            format!("{arg}: there is no '{}': known are {known}", get(ContextKind::InvalidValue))
        }
        ErrorKind::ArgumentConflict => format!("{arg} was given twice: leave one out"),
        _ => {
            let text = error.to_string();
            let first = text.lines().next().unwrap_or_default();
            first.trim_start_matches("error: ").to_owned()
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(line: &str) -> Result<Cli, Early> {
        Cli::read(std::iter::once("vmm").chain(line.split_whitespace()).map(OsString::from))
    }

    fn error(line: &str) -> String {
        match read(line) {
            Err(Early::Error(text)) => text,
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_definition_is_sound() {
        Cli::command().debug_assert();
    }

    #[test]
    fn qemu_spelling_works() {
        let cli = read(
            "-kernel k -append quiet -smp 2 -enable-kvm -nographic -serial mon:stdio -m 1G -S \
             -fw_cfg name=a -machine pc -M microvm",
        );
        // -M after -machine is a repetition.
        assert!(matches!(cli, Err(Early::Error(_))));
        let cli = read(
            "-kernel k -append -quiet -smp 2 -enable-kvm -nographic -serial mon:stdio -m 1G -S \
             -fw_cfg name=a -M microvm -no-reboot --name=x",
        )
        .unwrap();
        assert_eq!(cli.kernel.as_deref(), Some("k".as_ref()));
        assert_eq!(cli.append.as_deref(), Some("-quiet"));
        assert_eq!((cli.smp.as_str(), cli.memory.as_str()), ("2", "1G"));
        assert!(cli.enable_kvm && cli.paused && cli.no_reboot);
        assert_eq!((cli.machine.as_str(), cli.name.as_deref()), ("microvm", Some("x")));
    }

    #[test]
    fn unknown_options_name_the_nearest() {
        assert_eq!(error("--kernal x"), "there is no option --kernal: did you mean --kernel?");
        assert_eq!(error("-no-rebot"), "there is no option --no-rebot: did you mean --no-reboot?");
        assert!(error("--qqqqq").contains("vmm --help"));
        assert!(error("bzImage").contains("--kernel FILE"));
        assert_eq!(error("--kernel"), "--kernel <FILE> needs a value");
        assert_eq!(error("-kernel -initrd x"), "--kernel <FILE> needs a value");
        assert_eq!(read("-m256M").unwrap().memory, "256M");
    }

    #[test]
    fn man_page_and_completions_come_from_the_definition() {
        for (kind, word) in [
            (Generate::Man, ".TH"),
            (Generate::Bash, "complete"),
            (Generate::Zsh, "#compdef"),
            (Generate::Fish, "complete -c vmm"),
        ] {
            let mut text = Vec::new();
            Cli::generate(kind, &mut text).unwrap();
            let text = String::from_utf8(text).unwrap();
            assert!(text.contains(word) && text.contains("enable"), "{kind:?}");
        }
    }

    #[test]
    fn the_committed_monitor_reference_is_fresh() {
        let mut text = Vec::new();
        Cli::generate(Generate::Monitor, &mut text).unwrap();
        let committed = include_str!("../../docs/monitor.md");
        assert!(
            text == committed.as_bytes(),
            "docs/monitor.md is stale: make it anew by vmm --generate monitor > docs/monitor.md"
        );
    }
}
