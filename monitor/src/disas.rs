//! Disassembly in AT&T syntax, laid out as HMP's `x/i` shows it.

use std::fmt::Write;

use iced_x86::{
    Decoder, DecoderOptions, Formatter, FormatterOperandOptions, FormatterOptionsProvider,
    GasFormatter, Mnemonic, NumberFormattingOptions, OpKind,
};
use serde::Serialize;

use crate::error::CommandError;

/// The longest instruction there is (Intel SDM vol. 2A, 2.3.11).
const MAX_LEN: usize = 15;
const PAGE: u64 = 4096;

/// Reads memory at an address: virtual memory of some vCPU, or physical.
pub(crate) type Read<'a> = dyn FnMut(u64, &mut [u8]) -> Result<(), CommandError> + 'a;

/// An instruction.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Instruction {
    /// Where it is.
    pub addr: u64,
    /// Its bytes.
    pub bytes: Vec<u8>,
    /// Mnemonic, padded to a column, and operands.
    pub text: String,
}

/// The first instruction in `code`, which lies at `addr` and is `bits` (16, 32 or 64) bit code.
/// `None` where `code` ends before the instruction does.
pub fn instruction(bits: u32, addr: u64, code: &[u8]) -> Option<Instruction> {
    let code = &code[..code.len().min(MAX_LEN)];
    let mut decoder = Decoder::with_ip(bits, code, addr, DecoderOptions::NONE);
    if !decoder.can_decode() {
        return None;
    }
    let decoded = decoder.decode();
    if decoded.is_invalid() {
        if decoder.last_error() == iced_x86::DecoderError::NoMoreBytes && code.len() < MAX_LEN {
            return None;
        }
        let text = format!("{:<8} {:#04x}", ".byte", code[0]);
        return Some(Instruction { addr, bytes: code[..1].to_vec(), text });
    }
    let text = text(&decoded);
    Some(Instruction { addr, bytes: code[..decoded.len()].to_vec(), text })
}

/// Mnemonic and operands as the `binutils` and LLVM families write them. Where those differ, as
/// LLVM does: QEMU's monitor prints its text.
fn text(decoded: &iced_x86::Instruction) -> String {
    let mut formatter = GasFormatter::with_options(None, Some(Box::new(Numbers)));
    let options = formatter.options_mut();
    options.set_uppercase_hex(false);
    options.set_gas_show_mnemonic_size_suffix(true);
    options.set_gas_space_after_memory_operand_comma(true);
    options.set_space_after_operand_separator(true);
    options.set_show_useless_prefixes(true);
    options.set_branch_leading_zeros(false);
    options.set_rip_relative_addresses(true);
    let (mut mnemonic, mut operands) = (String::new(), String::new());
    formatter.format_mnemonic(decoded, &mut mnemonic);
    formatter.format_all_operands(decoded, &mut operands);
    if decoded.mnemonic() == Mnemonic::Nop && decoded.op0_kind() != OpKind::Memory {
        mnemonic = "nop".to_owned();
        operands.clear();
    } else if has_no_suffix(&mnemonic, decoded) {
        mnemonic.pop();
    }
    if matches!(decoded.op0_kind(), OpKind::FarBranch16 | OpKind::FarBranch32) {
        operands = operands.replace(", ", ":");
    }
    format!("{mnemonic:<8} {operands}")
}

/// Instructions that the formatter gives a size suffix, and LLVM does not.
fn has_no_suffix(mnemonic: &str, decoded: &iced_x86::Instruction) -> bool {
    use Mnemonic::{Arpl, Enter, Fldenv, Fnstcw, Fnstenv, Leave, Loop, Loope, Loopne};
    let is_setcc = mnemonic.starts_with("set") && decoded.op_count() == 1;
    is_setcc
        || matches!(
            decoded.mnemonic(),
            Arpl | Enter | Fldenv | Fnstcw | Fnstenv | Leave | Loop | Loope | Loopne
        )
}

/// How numbers are shown: with a sign where the instruction extends an immediate that is no mask;
/// far addresses in hexadecimal throughout.
struct Numbers;

impl FormatterOptionsProvider for Numbers {
    fn operand_options(
        &mut self,
        instruction: &iced_x86::Instruction,
        _: u32,
        operand: Option<u32>,
        _: &mut FormatterOperandOptions,
        number: &mut NumberFormattingOptions<'_>,
    ) {
        use OpKind::{Immediate8to16, Immediate8to32, Immediate8to64, Immediate32to64};
        let is_mask =
            matches!(instruction.mnemonic(), Mnemonic::And | Mnemonic::Or | Mnemonic::Xor);
        let kind = operand.map(|operand| instruction.op_kind(operand));
        let is_extended = matches!(
            kind,
            Some(Immediate8to16 | Immediate8to32 | Immediate8to64 | Immediate32to64)
        );
        if is_extended {
            number.signed_number = !is_mask;
        }
        if matches!(kind, Some(OpKind::FarBranch16 | OpKind::FarBranch32)) {
            number.small_hex_numbers_in_decimal = false;
        }
    }
}

/// Up to `count` instructions from `addr` on, and where reading failed, if it did.
pub(crate) fn from_memory(
    bits: u32,
    addr: u64,
    count: usize,
    read: &mut Read<'_>,
) -> (Vec<Instruction>, Option<u64>) {
    let mut instructions = Vec::new();
    let mut code = Vec::new();
    let mut at = addr;
    let mut more = true;
    while instructions.len() < count {
        // A page at a time: the next one may not be there, and need not.
        while more && code.len() < MAX_LEN {
            let from = at.wrapping_add(code.len() as u64);
            let mut page = vec![0; (PAGE - from % PAGE) as usize];
            more = read(from, &mut page).is_ok();
            if more {
                code.append(&mut page);
            }
        }
        let Some(next) = instruction(bits, at, &code) else {
            return (instructions, Some(at));
        };
        code.drain(..next.bytes.len());
        at = at.wrapping_add(next.bytes.len() as u64);
        instructions.push(next);
    }
    (instructions, None)
}

impl Instruction {
    /// The address, eight bytes a line, the text: as HMP prints it, with a line break at the end.
    pub fn render(&self, out: &mut String) {
        let mut at = self.addr;
        for (line, bytes) in self.bytes.chunks(8).enumerate() {
            let hex = bytes.iter().fold(String::new(), |mut hex, byte| {
                write!(hex, "{byte:02x} ").expect("a String takes all");
                hex
            });
            let rendered = match line {
                0 => writeln!(out, "{at:#010x}:  {hex:<24} {}", self.text),
                _ => writeln!(out, "{at:#010x}:  {}", hex.trim_end()),
            };
            rendered.expect("a String takes all");
            at = at.wrapping_add(bytes.len() as u64);
        }
    }
}
