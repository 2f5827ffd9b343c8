//! What the program tells the user on stderr.

use std::io::Write;

use board::VcpuState;
use board::accel::InternalError;
use board::memory::MemoryMap;
use devices::chardev::terminal;

use crate::{inspect, paging};

fn print(text: &str) {
    let end = terminal::line_end(rustix::stdio::stderr());
    let mut text = text.trim_end().replace('\n', end);
    text += end;
    // In one piece, so that threads do not mix their lines; nobody is told when stderr is gone.
    let _ = std::io::stderr().write_all(text.as_bytes());
}

/// Something worth knowing.
pub fn note(line: &str) {
    print(&format!("vmm: {line}"));
}

/// Something went wrong.
pub fn error(error: &dyn std::error::Error) {
    print(&format!("vmm: {}", without_numbers(&error.to_string())));
}

/// The text without the numbers that the standard library adds to the system's errors.
fn without_numbers(text: &str) -> String {
    const NUMBER: &str = " (os error ";
    let mut parts = text.split(NUMBER);
    let mut out = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.split_once(')') {
            Some((number, rest)) if number.parse::<u32>().is_ok() => out += rest,
            _ => out += &[NUMBER, part].concat(),
        }
    }
    out
}

/// A line or more of the log.
pub(crate) fn log(text: &str) {
    print(text);
}

/// The registers as `info registers` shows them.
pub fn registers(state: &VcpuState) -> String {
    inspect::registers(state).to_string()
}

/// An accelerator could not go on: what, where, and the instruction.
pub fn internal_error(id: u32, error: &InternalError, state: &VcpuState, memory: &MemoryMap) {
    print(&describe(id, error, state, memory));
}

fn describe(id: u32, error: &InternalError, state: &VcpuState, memory: &MemoryMap) -> String {
    let mut text = format!("vmm: vCPU {id}: {}\n", error.what);
    let rip = state.linear_rip();
    let mut code = error.instruction.clone();
    if code.is_empty() {
        // As much as is mapped, at most the longest instruction.
        code = (1..=15)
            .rev()
            .find_map(|len| {
                let mut bytes = vec![0; len];
                paging::read_linear(state, memory, rip, &mut bytes).ok().map(|()| bytes)
            })
            .unwrap_or_default();
    }
    let bytes: Vec<_> = code.iter().map(|byte| format!("{byte:02x}")).collect();
    match monitor::instruction(state.code_width() as u32, rip, &code) {
        Some(instruction) => {
            text += &format!("at {rip:#x}: {}    (bytes: {})\n", instruction.text, bytes.join(" "));
        }
        None => text += &format!("at {rip:#x}: no readable instruction\n"),
    }
    text += &registers(state);
    text += "The machine is stopped (internal-error); the monitor still answers, system_reset starts anew.";
    text
}

#[cfg(test)]
mod tests {
    use board::GuestRam;
    use board::vcpu::Segment;

    use super::*;

    #[test]
    fn an_internal_error_tells_what_where_and_the_instruction() {
        let ram = GuestRam::new(1 << 20).unwrap();
        ram.write(0x1000, &[0xCF]).unwrap();
        let flat = Segment { selector: 8, base: 0, limit: u32::MAX, attributes: 0xC09B };
        let mut state = VcpuState { rip: 0x1000, cr0: 0x11, ..VcpuState::default() };
        state.segments.cs = flat;
        let what = "KVM internal error: emulation failure".to_owned();
        let mut error = InternalError { what, resumable: false, instruction: Vec::new() };
        let map = MemoryMap::new(&ram);
        let text = describe(1, &error, &state, &map);
        let first: Vec<_> = text.lines().take(2).collect();
        assert_eq!(first[0], "vmm: vCPU 1: KVM internal error: emulation failure");
        assert!(first[1].starts_with("at 0x1000: iret"), "{text}");
        assert!(first[1].contains("(bytes: cf 00 00"), "{text}");
        assert!(text.contains("\nEAX=") && text.contains("EIP="), "{text}");
        assert!(text.ends_with("system_reset starts anew."), "{text}");
        // What the accelerator has read counts, not what is in memory now.
        error.instruction = vec![0xF4];
        let text = describe(0, &error, &state, &map);
        assert!(text.contains("at 0x1000: hlt") && text.contains("(bytes: f4)"), "{text}");
        error.instruction.clear();
        state.rip = 0xD000_0000;
        assert!(
            describe(0, &error, &state, &map).contains("at 0xd0000000: no readable instruction")
        );
    }

    #[test]
    fn errors_have_words_and_no_numbers() {
        for (text, plain) in [
            (
                "cannot open x: No such file (os error 2)\ncheck",
                "cannot open x: No such file\ncheck",
            ),
            (
                "cannot write x (Is a directory (os error 21)): a",
                "cannot write x (Is a directory): a",
            ),
            ("a file (os error x) and (os error 1", "a file (os error x) and (os error 1"),
            ("", ""),
        ] {
            assert_eq!(without_numbers(text), plain);
        }
    }
}
