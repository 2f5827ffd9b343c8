//! Cases: an instruction that is placed once and run with many operands.

use cpu::bare::UserState;
use iced_x86::{
    ConditionCode, Instruction, InstructionInfoFactory, MemorySize, Mnemonic, OpAccess, OpKind,
    Register, UsedMemory,
};

use crate::common::{self, Rng};
use crate::form::{self, Encoded};
use crate::lane::{Lane, RW_PAGES};
use crate::values;

/// A memory access of an instruction.
#[derive(Clone, Copy, Debug)]
struct Access {
    base: Option<Part>,
    index: Option<Part>,
    /// Bytes of an index in a vector register, and how many there are.
    vsib: Option<(usize, usize)>,
    scale: u64,
    displacement: u64,
    narrow: bool,
    bytes: u64,
}

/// A general register of an address, or a vector register.
#[derive(Clone, Copy, Debug)]
struct Part {
    number: usize,
    mask: u64,
}

impl Access {
    fn new(m: &UsedMemory) -> Self {
        let part = |r: Register| {
            let mask = match r.size() {
                1 => 0xFF,
                4 => 0xFFFF_FFFF,
                _ => u64::MAX,
            };
            (r != Register::None).then(|| Part { number: r.full_register().number(), mask })
        };
        let vsib = m.index().is_vector_register().then(|| {
            let size = m.vsib_size() as usize;
            (size, m.index().size() / size)
        });
        Self {
            base: part(m.base()),
            index: part(m.index()),
            vsib,
            scale: u64::from(m.scale()),
            displacement: m.displacement(),
            narrow: m.address_size() == iced_x86::CodeSize::Code32,
            bytes: match m.memory_size() {
                MemorySize::Unknown => 16,
                size => size.size().clamp(1, 512) as u64,
            },
        }
    }

    /// The address, element `i` of a vector of indices.
    fn address(&self, s: &UserState, i: usize) -> u64 {
        let reg = |p: Part| s.gpr[p.number] & p.mask;
        let base = self.base.map_or(0, reg).wrapping_add(self.displacement);
        let index = match (self.index, self.vsib) {
            (Some(p), Some((size, _))) => values::index(s, p.number, i, size),
            (Some(p), None) => reg(p),
            (None, _) => 0,
        };
        let sum = base.wrapping_add(index.wrapping_mul(self.scale));
        if self.narrow { sum & 0xFFFF_FFFF } else { sum }
    }

    fn harmless(&self, s: &UserState, lane: Lane) -> bool {
        let count = self.vsib.map_or(1, |(_, count)| count);
        (0..count).all(|i| lane.harmless(self.address(s, i)))
    }
}

/// Operands that only some values make interesting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bias {
    None,
    /// A quotient that fits.
    Division,
    /// CL is a count.
    Count,
    /// CL is a count below 16.
    SmallCount,
    /// The accumulator is often equal to the destination.
    CompareExchange,
    /// EAX and EDX are lengths of strings.
    Lengths,
    /// RCX counts.
    Repeat,
    /// The register is a bit offset.
    BitString(usize, u64),
}

/// Where an indirect branch finds its target.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Indirect {
    No,
    Register(usize),
    Memory,
}

/// An instruction that is ready to be run.
#[derive(Clone, Debug)]
pub(crate) struct Template {
    pub(crate) instr: Instruction,
    pub(crate) bytes: Vec<u8>,
    /// Where it is placed.
    pub(crate) at: u64,
    /// Where it may branch to.
    pub(crate) target: Option<u64>,
    /// Flags that it leaves undefined.
    pub(crate) undefined: u64,
    lane: Lane,
    accesses: Vec<Access>,
    /// Registers that it reads, by number.
    gprs: u32,
    vectors: u32,
    x87: bool,
    float: bool,
    /// Memory operands must be aligned.
    aligned: bool,
    string: bool,
    bias: Bias,
    indirect: Indirect,
}

impl Template {
    /// A case of `encoded`, or `None` if it cannot run on the host.
    pub(crate) fn new(
        mut encoded: Encoded,
        at: u64,
        lane: Lane,
        rng: &mut Rng,
        factory: &mut InstructionInfoFactory,
    ) -> Option<Self> {
        if form::odd(&encoded.instr) || form::exclusion(&encoded.instr).is_some() {
            return None;
        }
        aim(&mut encoded, at, lane, rng)?;
        let instr = encoded.instr;
        let branch = instr.flow_control() != iced_x86::FlowControl::Next;
        if branch
            && encoded.bytes[..3.min(encoded.bytes.len() - 1)]
                .iter()
                .any(|b| matches!(b, 0x66 | 0xF2 | 0xF3))
        {
            // Intel's processors ignore the operand size of near branches; REP is reserved.
            return None;
        }
        let info = factory.info(&instr);
        let (mut gprs, mut vectors) = (0, 0);
        for used in info.used_registers() {
            let (r, write) = (used.register(), used.access() == OpAccess::Write);
            if r.is_gpr() && !write {
                gprs |= 1 << r.full_register().number();
            } else if r.is_vector_register() {
                vectors |= 1 << (r.number() & 15);
            }
        }
        let operands = || (0..instr.op_count()).map(|n| instr.op_register(n));
        let mmx = operands().any(|r| r.is_mm());
        let name = format!("{:?}", instr.mnemonic());
        let mnemonic = instr.mnemonic();
        use Mnemonic as M;
        let bias = match mnemonic {
            M::Div | M::Idiv => Bias::Division,
            M::Cmpxchg | M::Cmpxchg8b | M::Cmpxchg16b => Bias::CompareExchange,
            M::Pcmpestri
            | M::Pcmpestrm
            | M::Vpcmpestri
            | M::Vpcmpestrm
            | M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Vpcmpestri64
            | M::Vpcmpestrm64 => Bias::Lengths,
            M::Bt | M::Bts | M::Btr | M::Btc if instr.op0_kind() == OpKind::Memory => {
                let r = instr.op1_register();
                if r == Register::None {
                    Bias::None
                } else {
                    let full = r.full_register();
                    if is_address(&instr, full) {
                        return None;
                    }
                    Bias::BitString(r.number(), r.size() as u64)
                }
            }
            M::Loop | M::Loope | M::Loopne | M::Jrcxz | M::Jecxz => Bias::Repeat,
            _ if instr.is_string_instruction() => Bias::Repeat,
            M::Shld | M::Shrd if instr.op1_register().size() == 2 => {
                // A count above the width leaves the result undefined.
                if is_address(&instr, Register::RCX)
                    || instr.op2_register() == Register::None && instr.immediate8() & 0x1F > 15
                {
                    return None;
                }
                Bias::SmallCount
            }
            _ if operands().any(|r| r == Register::CL) => Bias::Count,
            _ => Bias::None,
        };
        let indirect = match mnemonic {
            M::Ret => Indirect::Memory,
            M::Jmp | M::Call if instr.op0_kind() == OpKind::Memory => Indirect::Memory,
            M::Jmp | M::Call if instr.op0_kind() == OpKind::Register => {
                Indirect::Register(instr.op0_register().number())
            }
            _ => Indirect::No,
        };
        Some(Self {
            accesses: info.used_memory().iter().map(Access::new).collect(),
            undefined: undefined(&instr),
            at,
            target: branch.then(|| lane.target()),
            lane,
            gprs,
            vectors,
            x87: mmx || operands().any(|r| r.is_st()) || name.starts_with('F') || name == "Wait",
            float: vectors != 0,
            aligned: vectors != 0 && !name.contains('u') && instr.memory_size().size() >= 16,
            string: instr.is_string_instruction(),
            bias,
            indirect,
            bytes: encoded.bytes,
            instr,
        })
    }

    /// Whether all that it accesses, given `s`, is the lane's.
    pub(crate) fn harmless(&self, s: &UserState) -> bool {
        let far = |a: &Access| {
            // A bit string reaches beyond its operand.
            let at = a.address(s, 0);
            self.lane.harmless(at.wrapping_sub(0x1_0000))
                && self.lane.harmless(at.wrapping_add(0x1_0000))
        };
        self.accesses.iter().all(|a| a.harmless(s, self.lane))
            && (!matches!(self.bias, Bias::BitString(..)) || self.accesses.iter().all(far))
    }

    /// Whether it accesses memory.
    pub(crate) fn has_memory(&self) -> bool {
        !self.accesses.is_empty()
    }

    /// Gives the state new operands; false if it must not run with these. Both sides' data pages
    /// are at hand for what must be in memory.
    pub(crate) fn operands(&self, rng: &mut Rng, s: &mut UserState, data: [&mut [u8]; 2]) -> bool {
        s.rip = self.at;
        s.rflags = rng.next() & values::ARITH | 0x202;
        if self.string && rng.below(4) == 0 {
            s.rflags |= values::DF;
        }
        let mut mask = self.gprs;
        while mask != 0 {
            s.gpr[mask.trailing_zeros() as usize] = rng.edge();
            mask &= mask - 1;
        }
        let mut mask = self.vectors;
        while mask != 0 {
            values::vector(rng, s, mask.trailing_zeros() as usize);
            mask &= mask - 1;
        }
        if self.x87 {
            values::x87(rng, s);
        }
        if self.float {
            values::mxcsr(rng, s);
        }
        self.bias(rng, s);
        let mut assigned = 0_u32;
        for access in &self.accesses {
            self.point(access, rng, s, &mut assigned);
        }
        if let Indirect::Register(n) = self.indirect {
            s.gpr[n] = self.destination(rng, s);
        }
        if !self.harmless(s) {
            return false;
        }
        self.memory(rng, s, data)
    }

    fn bias(&self, rng: &mut Rng, s: &mut UserState) {
        match self.bias {
            Bias::None => {}
            Bias::Division => match rng.below(8) {
                0..=2 => s.gpr[2] = 0,
                3..=4 => s.gpr[2] = ((s.gpr[0] as i64) >> 63) as u64,
                5..=6 => {
                    s.gpr[2] = rng.below(1000);
                    s.gpr[0] = s.gpr[0] & !0xFF00 | rng.below(2) << 8;
                }
                _ => {}
            },
            Bias::Count => s.gpr[1] = s.gpr[1] & !0xFF | rng.next() & 0xFF,
            Bias::SmallCount => s.gpr[1] = s.gpr[1] & !0xFF | rng.next() & 0xEF,
            Bias::CompareExchange => {}
            Bias::Lengths => {
                for n in [0, 2] {
                    if rng.below(4) != 0 {
                        s.gpr[n] = rng.below(40).wrapping_sub(20);
                    }
                }
            }
            Bias::Repeat => {
                s.gpr[1] = match rng.below(8) {
                    0 => 0,
                    1 => 1,
                    2 if !self.string => rng.edge(),
                    3 => rng.below(300),
                    _ => rng.below(20),
                };
            }
            Bias::BitString(n, size) => {
                let bits = if rng.below(2) == 0 { 128 } else { 0x4000 };
                let offset = rng.below(2 * bits).wrapping_sub(bits);
                let mask = if size == 8 { u64::MAX } else { (1 << (8 * size)) - 1 };
                s.gpr[n] = rng.edge() & !mask | offset & mask;
            }
        }
    }

    /// Has an access lead somewhere, by its base register.
    fn point(&self, access: &Access, rng: &mut Rng, s: &mut UserState, assigned: &mut u32) {
        // Of two operands that fault, which comes first depends on the processor.
        let first = *assigned == 0;
        let goal = if first || access.bytes > 64 {
            values::place(rng, self.lane, access.bytes, self.aligned)
        } else {
            values::calm(rng, self.lane)
        };
        if let (Some(p), Some((size, count))) = (access.index, access.vsib) {
            for i in 0..count {
                let small = rng.below(0x400).wrapping_sub(0x200);
                values::set_index(s, p.number, i, size, small);
            }
        }
        let bit = |p: Part| 1_u32 << p.number;
        if let (Some(p), None) = (access.index, access.vsib)
            && *assigned & bit(p) == 0
            && access.base.is_none_or(|b| b.number != p.number)
        {
            let small = rng.below(0x100).wrapping_sub(0x80);
            s.gpr[p.number] = if p.mask == 0xFFFF_FFFF { small & p.mask } else { small };
            *assigned |= bit(p);
        }
        let Some(base) = access.base else { return };
        if *assigned & bit(base) != 0 {
            return;
        }
        *assigned |= bit(base);
        s.gpr[base.number] = 0;
        let same = access.vsib.is_none() && access.index.is_some_and(|i| i.number == base.number);
        s.gpr[base.number] = if same {
            goal.wrapping_sub(access.displacement) / (1 + access.scale)
        } else {
            goal.wrapping_sub(access.address(s, 0))
        };
        if access.narrow {
            s.gpr[base.number] &= 0xFFFF_FFFF;
        }
    }

    fn destination(&self, rng: &mut Rng, s: &UserState) -> u64 {
        // Of two faults, which comes first depends on the processor.
        let stack = s.gpr[4].wrapping_sub(self.lane.data());
        if !(8..RW_PAGES << 12).contains(&stack) {
            return self.lane.target();
        }
        match rng.below(16) {
            0 => self.lane.data(),
            1 => self.lane.data_end() + 5,
            2 => 0x8000_0000_0000,
            _ => self.lane.target(),
        }
    }

    /// Puts into memory what must be there.
    fn memory(&self, rng: &mut Rng, s: &mut UserState, data: [&mut [u8]; 2]) -> bool {
        let Some(access) = self.accesses.first() else { return true };
        let offset = access.address(s, 0).wrapping_sub(self.lane.data());
        let len = RW_PAGES << 12;
        let within = offset < len && offset + 16 <= len;
        if self.indirect == Indirect::Memory {
            // Some other bytes could lead anywhere.
            if !within {
                return offset >= self.lane.data_end() - self.lane.data();
            }
            let to = self.destination(rng, s).to_le_bytes();
            for side in data {
                side[offset as usize..][..8].copy_from_slice(&to);
            }
        } else if self.bias == Bias::CompareExchange && rng.below(2) == 0 {
            if within {
                let at = |i: usize| {
                    let bytes = &data[0][offset as usize + i..][..8];
                    u64::from_le_bytes(std::array::from_fn(|i| bytes[i]))
                };
                s.gpr[0] = at(0);
                match self.instr.mnemonic() {
                    Mnemonic::Cmpxchg8b => s.gpr[2] = at(4),
                    Mnemonic::Cmpxchg16b => s.gpr[2] = at(8),
                    _ => {}
                }
            }
            return self.harmless(s);
        }
        true
    }
}

/// Whether `register` is part of the memory operand's address.
fn is_address(instr: &Instruction, register: Register) -> bool {
    instr.memory_base().full_register() == register
        || instr.memory_index().full_register() == register
}

/// The flags that `instr` leaves undefined.
fn undefined(instr: &Instruction) -> u64 {
    let rotate = matches!(instr.mnemonic(), Mnemonic::Rcl | Mnemonic::Rcr);
    // By any count but 1, even one that rotates all the way round.
    common::undefined_flags(instr) | if rotate { values::OF } else { 0 }
}

/// Points a displacement at data, a branch at the target.
fn aim(encoded: &mut Encoded, at: u64, lane: Lane, rng: &mut Rng) -> Option<()> {
    let instr = &encoded.instr;
    let next = at + encoded.bytes.len() as u64;
    let (offset, size) = encoded.displacement;
    let value = if instr.op0_kind() == OpKind::NearBranch64 {
        lane.target().wrapping_sub(next)
    } else if (0..instr.op_count()).any(|n| instr.op_kind(n) == OpKind::Memory)
        && matches!(instr.memory_base(), Register::None | Register::RIP | Register::EIP)
    {
        let size = instr.memory_size().size().max(1) as u64;
        let aligned = size >= 16 && rng.below(4) != 0;
        let goal = values::place(rng, lane, size, aligned);
        if instr.memory_base() == Register::None { goal } else { goal.wrapping_sub(next) }
    } else {
        return Some(());
    };
    let bits = 64 - 8 * size as u32;
    if ((value << bits) as i64 >> bits) as u64 != value {
        return None;
    }
    encoded.bytes[offset..offset + size].copy_from_slice(&value.to_le_bytes()[..size]);
    let code = encoded.instr.code();
    *encoded = form::decode(&encoded.bytes, at)?;
    (encoded.instr.code() == code).then_some(())
}

/// A block under construction: what earlier instructions left behind.
#[derive(Default)]
pub(crate) struct Sequence {
    pub(crate) bytes: Vec<u8>,
    written: u32,
    pub(crate) undefined: u64,
}

impl Sequence {
    /// Adds `template` if its addresses and its result depend on nothing that is not the same on
    /// both sides.
    pub(crate) fn add(
        &mut self,
        template: &Template,
        s: &UserState,
        factory: &mut InstructionInfoFactory,
    ) -> bool {
        let instr = &template.instr;
        let info = factory.info(instr);
        let changed =
            |r: Register| r.is_gpr() && self.written >> r.full_register().number() & 1 != 0;
        let memory = info
            .used_memory()
            .iter()
            .any(|m| changed(m.base()) || changed(m.index()) || m.index().is_vector_register());
        let reads = common::flags(instr.rflags_read())
            | if instr.condition_code() == ConditionCode::None { 0 } else { values::ARITH };
        use Mnemonic as M;
        if memory
            || template.target.is_some()
            || !template.harmless(s)
            || instr.is_string_instruction()
            || reads & self.undefined != 0 && instr.rflags_read() != 0
            || matches!(template.bias, Bias::BitString(n, _) if s.gpr[n] > 0x4000 || changed(instr.op1_register()))
            || template.bias == Bias::SmallCount && (s.gpr[1] & 0x1F > 15 || changed(Register::CL))
            || matches!(instr.mnemonic(), M::Lahf | M::Pushf | M::Pushfq | M::Pause)
            // With REX.B, PAUSE is an exchange that the decoder does not know; what the others
            // leave after a fault differs by processor.
            || crate::excuse::of(instr).is_some()
            || crate::excuse::loose(instr)
        {
            return false;
        }
        for r in info.used_registers() {
            if r.register().is_gpr() && !matches!(r.access(), OpAccess::Read | OpAccess::CondRead) {
                self.written |= 1 << r.register().full_register().number();
            }
        }
        // A shift by a count of zero leaves the flags as they are.
        if !matches!(template.bias, Bias::Count | Bias::SmallCount) {
            self.undefined &= !common::flags(instr.rflags_modified());
        }
        self.undefined |= template.undefined;
        self.bytes.extend_from_slice(&template.bytes);
        true
    }
}
