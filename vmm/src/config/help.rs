//! What `help` in place of an option's argument prints.

use devices::chardev::BackendSpec;

use crate::cli::Cli;
use crate::cpuid::CpuModel;

use super::net::{kind_help, netdev_help};
use super::{ACCELS, ConfigError, DeviceSpec, LOG_ITEMS, MACHINES};

/// Rows of names with their explanations.
pub(super) fn rows<'a>(rows: impl Iterator<Item = (&'a str, &'a str)>) -> String {
    rows.map(|(name, help)| format!("{name:<16} {help}\n")).collect()
}

fn is_help(word: &str) -> bool {
    matches!(word, "help" | "?")
}

/// The help that the command line asks for, if it does, as `--machine help`.
///
/// # Errors
/// When it asks for help about something that there is not.
pub fn help(cli: &Cli) -> Result<Option<String>, ConfigError> {
    // `TYPE,help` is about the type.
    let about = |text: &str| {
        let (head, rest) = text.split_once(',')?;
        rest.split(',').any(is_help).then(|| head.to_owned())
    };
    if is_help(&cli.machine) {
        return Ok(Some(rows(MACHINES.iter().map(|(name, _, help)| (*name, *help)))));
    }
    if about(&cli.machine).is_some() {
        let properties = [
            ("kernel-irqchip=", "split: KVM has the local APICs alone (the default); on: all"),
            ("acpi=on|off", "give the guest ACPI tables (on)"),
            ("pci=on|off", "a PCI bus (on for pc, which alone can have it)"),
        ];
        return Ok(Some(rows(properties.into_iter())));
    }
    if is_help(&cli.cpu) {
        return Ok(Some(CpuModel::help()));
    }
    if cli.accel.as_deref().is_some_and(is_help) {
        return Ok(Some(rows(ACCELS.iter().map(|(name, _, help)| (*name, *help)))));
    }
    for device in &cli.device {
        if is_help(device) {
            return Ok(Some(DeviceSpec::help()));
        }
        if let Some(name) = about(device) {
            return DeviceSpec::type_help(&name).map(Some);
        }
    }
    for netdev in cli.netdev.iter().chain(&cli.nic) {
        if is_help(netdev) {
            return Ok(Some(netdev_help()));
        }
        if let Some(name) = about(netdev) {
            return kind_help(&name).map(Some);
        }
    }
    if cli.chardev.iter().any(|text| is_help(text)) {
        return Ok(Some(BackendSpec::keyed_help()));
    }
    if cli.display.as_deref().is_some_and(is_help) {
        return Ok(Some(rows([("none", "no display: the only one")].into_iter())));
    }
    if cli.log_items.as_deref().is_some_and(is_help) {
        return Ok(Some(rows(LOG_ITEMS.into_iter())));
    }
    Ok(None)
}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use super::*;

    fn help_of(line: &str) -> Option<String> {
        let args = std::iter::once("vmm").chain(line.split_whitespace()).map(OsString::from);
        help(&Cli::read(args).unwrap()).unwrap()
    }

    #[test]
    fn help_lists_what_there_is() {
        for (line, word) in [
            ("-machine help", "microvm"),
            ("-M ?", "microvm"),
            ("-machine pc,help", "kernel-irqchip="),
            ("-cpu help", " avx2 "),
            ("-accel help", "soft"),
            ("-device help", "pvpanic"),
            ("-device pvpanic -device isa-debugcon,help", "readback="),
            ("-chardev help", "socket"),
            ("-display help", "none"),
            ("-d help", "cpu_reset"),
        ] {
            let text = help_of(line).unwrap_or_else(|| panic!("{line}"));
            assert!(text.contains(word) && text.ends_with('\n'), "{line}: {text}");
            assert!(text.lines().all(|row| row.len() < 100), "{line}: {text}");
        }
        assert_eq!(help_of("-kernel help -append help -device pvpanic"), None);
    }
}
