//! Stubs: host functions that execute one guest instruction on a [`Context`].

use std::mem::offset_of;

use iced_x86::{
    Decoder, DecoderOptions, Encoder, EncodingKind, Instruction, InstructionInfoFactory, Mnemonic,
    OpAccess, OpKind, Register,
};

use super::Context;

/// Bytes of executable memory for all stubs of a vCPU.
const CODE_SIZE: usize = 1 << 20;

/// Executable memory.
pub(crate) struct Code {
    base: *mut u8,
    used: usize,
}

impl Code {
    pub(crate) fn new() -> Self {
        Self { base: std::ptr::null_mut(), used: 0 }
    }

    /// Has the memory at hand.
    ///
    /// # Errors
    /// What mmap says; a hardened host may refuse memory that is writable and executable.
    pub(crate) fn reserve(&mut self) -> std::io::Result<()> {
        if !self.base.is_null() {
            return Ok(());
        }
        let (read, write, exec) = (libc::PROT_READ, libc::PROT_WRITE, libc::PROT_EXEC);
        let flags = libc::MAP_PRIVATE | libc::MAP_ANONYMOUS;
        // SAFETY: a new mapping at an address of the kernel's choice touches no other memory.
        let base = unsafe {
            libc::mmap(std::ptr::null_mut(), CODE_SIZE, read | write | exec, flags, -1, 0)
        };
        if base == libc::MAP_FAILED {
            return Err(std::io::Error::last_os_error());
        }
        self.base = base.cast();
        Ok(())
    }

    /// Copies `bytes` to executable memory; `None` when it is full or the host refuses.
    fn add(&mut self, bytes: &[u8]) -> Option<*const u8> {
        self.reserve().ok()?;
        if self.used + bytes.len() > CODE_SIZE {
            return None;
        }
        // SAFETY: the range lies within the mapping, behind everything that was added before.
        let at = unsafe {
            let at = self.base.add(self.used);
            std::ptr::copy_nonoverlapping(bytes.as_ptr(), at, bytes.len());
            at
        };
        self.used = (self.used + bytes.len()).next_multiple_of(16);
        Some(at)
    }

    /// Whether there is little room left.
    pub(crate) fn nearly_full(&self) -> bool {
        // One block's worth: 32 stubs of some 600 bytes at most.
        self.used > CODE_SIZE - (32 << 10)
    }

    /// Forgets everything. No stub may be used any more.
    pub(crate) fn clear(&mut self) {
        self.used = 0;
    }
}

impl Drop for Code {
    fn drop(&mut self) {
        if !self.base.is_null() {
            // SAFETY: the mapping was made by `add` with this size.
            unsafe { libc::munmap(self.base.cast(), CODE_SIZE) };
        }
    }
}

/// Which state an instruction belongs to, and so what must be enabled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Unit {
    X87,
    Mmx,
    Sse,
    Avx,
}

/// An instruction ready to run on the host.
#[derive(Debug)]
pub(crate) struct Stub {
    code: *const u8,
    pub(crate) unit: Unit,
    /// It uses MMX registers, or the host may act as if it did.
    pub(crate) mmx: bool,
    /// It uses MXCSR.
    pub(crate) float: bool,
    /// Bytes of the memory operand, 0 without one.
    pub(crate) memory: u64,
    pub(crate) reads: bool,
    pub(crate) writes: bool,
    /// Alignment that the memory operand must have.
    pub(crate) align: u64,
    /// Arithmetic flags that it changes.
    pub(crate) flags: u64,
    /// For each slot of [`Context::gpr`]: the guest's register, and whether it is written.
    pub(crate) gpr: [Option<(Register, bool)>; 5],
    /// Vector register that is written, for taking back what raised an exception.
    pub(crate) target: Option<usize>,
}

impl Stub {
    /// Runs it.
    #[inline(always)]
    pub(crate) fn run(&self, context: &mut Context) {
        // SAFETY: `code` is a complete function made by `build`; it touches `context`, registers
        // that the calling convention leaves to it, and the x87 unit, which is the guest's.
        unsafe {
            let f: unsafe extern "sysv64" fn(*mut Context) = std::mem::transmute(self.code);
            f(context);
        }
    }
}

/// Slots of [`Context::gpr`] and the host registers that they are in.
const SLOTS: [Register; 5] =
    [Register::R10, Register::R11, Register::RAX, Register::RCX, Register::RDX];

fn mem(offset: usize, memory: &mut Vec<u8>, reg: u8) {
    memory.push(0x80 | (reg & 7) << 3);
    memory.extend_from_slice(&(offset as u32).to_le_bytes());
}

/// MOV between a general register (by number) and `[r8 + offset]`.
fn mov_gpr(out: &mut Vec<u8>, number: u8, offset: usize, store: bool) {
    out.extend_from_slice(&[0x49 | (number >> 3) << 2, if store { 0x89 } else { 0x8B }]);
    mem(offset, out, number);
}

/// MOVUPS or VMOVDQU between a vector register and its place in the context.
fn mov_vector(out: &mut Vec<u8>, number: u8, wide: bool, store: bool) {
    if wide {
        let byte1 = if number < 8 { 0xC1 } else { 0x41 };
        // The base register is R8, so the inverted B bit is clear.
        out.extend_from_slice(&[0xC4, byte1 & !0x20, 0x7E, if store { 0x7F } else { 0x6F }]);
    } else {
        let rex = 0x41 | (number >> 3) << 2;
        out.extend_from_slice(&[rex, 0x0F, if store { 0x11 } else { 0x10 }]);
    }
    mem(offset_of!(Context, ymm) + 32 * number as usize, out, number);
}

fn is_vector(register: Register) -> bool {
    // A VEX instruction is said to write the ZMM register, as it clears what lies above.
    register.is_vector_register()
}

fn unit(instr: &Instruction) -> Option<Unit> {
    match instr.encoding() {
        EncodingKind::VEX => return Some(Unit::Avx),
        EncodingKind::Legacy => {}
        _ => return None,
    }
    let operands = || (0..instr.op_count()).map(|n| instr.op_register(n));
    if operands().any(|r| r.is_st()) {
        return Some(Unit::X87);
    }
    let code = format!("{:?}", instr.code());
    // What begins with F and is not X87 has no stub, or vector operands.
    if code.starts_with('F') && !operands().any(is_vector) {
        return Some(Unit::X87);
    }
    // Conversions from and to MMX or general registers are SSE's.
    if code.starts_with("Cvt") {
        return Some(Unit::Sse);
    }
    if operands().any(is_vector) {
        return Some(Unit::Sse);
    }
    if operands().any(|r| r.is_mm()) { Some(Unit::Mmx) } else { None }
}

/// Whether the instruction computes on floating-point numbers under MXCSR.
fn is_float(name: &str) -> bool {
    let name = name.strip_prefix('v').unwrap_or(name);
    const STEMS: [&str; 22] = [
        "add", "sub", "mul", "div", "sqrt", "min", "max", "comis", "ucomis", "round", "dpp",
        "hadd", "hsub", "fmadd", "fmsub", "fnmadd", "fnmsub", "rcp", "rsqrt", "cmpp", "cmps",
        "addsub",
    ];
    name.starts_with("cvt") || STEMS.iter().any(|stem| name.starts_with(stem))
}

/// The alignment that a memory operand of `size` bytes must have.
fn alignment(instr: &Instruction, unit: Unit, size: u64) -> u64 {
    use Mnemonic as M;
    let m = instr.mnemonic();
    match unit {
        Unit::Sse if size == 16 => match m {
            M::Pcmpestri64
            | M::Pcmpestrm64
            | M::Movups
            | M::Movupd
            | M::Movdqu
            | M::Lddqu
            | M::Pcmpestri
            | M::Pcmpestrm
            | M::Pcmpistri
            | M::Pcmpistrm => 1,
            _ => 16,
        },
        Unit::Avx => match m {
            M::Vmovaps
            | M::Vmovapd
            | M::Vmovdqa
            | M::Vmovntdq
            | M::Vmovntps
            | M::Vmovntpd
            | M::Vmovntdqa => size,
            _ => 1,
        },
        _ => 1,
    }
}

/// The key under which a stub can be found again, and the encoded instruction; `None` for an
/// instruction that no stub can execute.
pub(crate) fn normalise(instr: &Instruction) -> Option<(Unit, Instruction, Vec<u8>)> {
    let unit = unit(instr)?;
    let mut host = *instr;
    host.set_segment_prefix(Register::None);
    let mut slot = 0;
    for n in 0..instr.op_count() {
        match instr.op_kind(n) {
            OpKind::Memory => {
                host.set_memory_base(Register::R8);
                host.set_memory_index(Register::None);
                host.set_memory_index_scale(1);
                host.set_memory_displacement64(offset_of!(Context, memory) as u64);
                host.set_memory_displ_size(8);
            }
            OpKind::Register if instr.op_register(n).is_gpr() => {
                let r = instr.op_register(n);
                let wide = if slot == 0 { Register::R10 } else { Register::R11 };
                let narrow = if slot == 0 { Register::R10D } else { Register::R11D };
                host.set_op_register(n, if r.size() == 8 { wide } else { narrow });
                slot += 1;
            }
            OpKind::MemorySegDI | OpKind::MemorySegEDI | OpKind::MemorySegRDI => return None,
            _ => {}
        }
    }
    let mut encoder = Encoder::new(64);
    encoder.encode(&host, 0).ok()?;
    let bytes = encoder.take_buffer();
    // What will run must be what was meant.
    let mut decoder = Decoder::new(64, &bytes, DecoderOptions::NONE);
    let again = decoder.decode();
    if again.mnemonic() != instr.mnemonic() || again.len() != bytes.len() {
        return None;
    }
    let mut key = bytes;
    key.insert(0, key.len() as u8);
    // General registers are replaced in the code, and so belong to the key.
    for n in 0..instr.op_count() {
        let r = instr.op_register(n);
        if instr.op_kind(n) == OpKind::Register && r.is_gpr() {
            key.push(r as u8);
        }
    }
    Some((unit, host, key))
}

/// Makes the stub of `instr`, which `normalise` has turned into `host` and `key`.
pub(crate) fn build(
    code: &mut Code,
    instr: &Instruction,
    unit: Unit,
    host: &Instruction,
    key: &[u8],
) -> Option<Stub> {
    let encoded = &key[1..=key[0] as usize];
    let mut factory = InstructionInfoFactory::new();
    let info = factory.info(host);
    let wide = unit == Unit::Avx;
    let float = matches!(unit, Unit::Sse | Unit::Avx)
        && is_float(&format!("{:?}", instr.mnemonic()).to_lowercase());

    let (mut used, mut written) = (0_u32, 0_u32);
    let mut implicit = [(false, false); 5];
    for register in info.used_registers() {
        let write = is_write(register.access());
        let r = register.register();
        if is_vector(r) {
            used |= 1 << r.number();
            written |= u32::from(write) << r.number();
        } else if let Some(i) = SLOTS.iter().position(|s| *s == r.full_register()) {
            implicit[i].0 = true;
            implicit[i].1 |= write;
        }
    }
    let mut gpr = [None; 5];
    let mut slot = 0;
    let (mut memory, mut reads, mut writes) = (0, false, false);
    for n in 0..instr.op_count() {
        match instr.op_kind(n) {
            OpKind::Register if instr.op_register(n).is_gpr() => {
                gpr[slot] = Some((instr.op_register(n), implicit[slot].1));
                slot += 1;
            }
            OpKind::Memory => {
                memory = instr.memory_size().size() as u64;
                let access = info.op_access(n);
                writes = is_write(access);
                reads = !matches!(access, OpAccess::Write | OpAccess::None | OpAccess::NoMemAccess);
            }
            _ => {}
        }
    }
    for i in 2..5 {
        if implicit[i].0 {
            gpr[i] = Some((SLOTS[i], implicit[i].1));
        }
    }
    if memory > 64 || slot > 2 {
        return None;
    }
    // Flags that come out undefined keep what the host gives.
    let flags = u64::from(modified_flags(instr));

    let mut out = vec![0x49, 0x89, 0xF8]; // mov r8, rdi
    for n in 0..16 {
        if used >> n & 1 != 0 {
            mov_vector(&mut out, n, wide, false);
        }
    }
    if instr.rflags_read() != 0 {
        // push [r8 + flags]; popfq
        out.extend_from_slice(&[0x41, 0xFF]);
        mem(offset_of!(Context, flags), &mut out, 6);
        out.push(0x9D);
    }
    for (i, host) in SLOTS.iter().enumerate() {
        if gpr[i].is_some() {
            mov_gpr(&mut out, host.number() as u8, offset_of!(Context, gpr) + 8 * i, false);
        }
    }
    out.extend_from_slice(encoded);
    if flags != 0 {
        // pushfq; pop [r8 + flags]
        out.extend_from_slice(&[0x9C, 0x41, 0x8F]);
        mem(offset_of!(Context, flags), &mut out, 0);
    }
    for (i, host) in SLOTS.iter().enumerate() {
        if gpr[i].is_some_and(|(_, written)| written) {
            mov_gpr(&mut out, host.number() as u8, offset_of!(Context, gpr) + 8 * i, true);
        }
    }
    for n in 0..16 {
        if written >> n & 1 != 0 {
            mov_vector(&mut out, n, wide, true);
        }
    }
    if wide {
        out.extend_from_slice(&[0xC5, 0xF8, 0x77]); // vzeroupper
    }
    out.push(0xC3);
    let align = alignment(instr, unit, memory);
    let target = (written != 0).then(|| written.trailing_zeros() as usize);
    let code = code.add(&out)?;
    let mmx = (0..instr.op_count()).any(|n| instr.op_register(n).is_mm())
        || matches!(instr.mnemonic(), Mnemonic::Cvtpi2ps);
    Some(Stub { code, unit, mmx, float, memory, reads, writes, align, flags, gpr, target })
}

fn is_write(access: OpAccess) -> bool {
    matches!(
        access,
        OpAccess::Write | OpAccess::ReadWrite | OpAccess::CondWrite | OpAccess::ReadCondWrite
    )
}

/// The arithmetic flags that `instr` changes, as bits of RFLAGS.
fn modified_flags(instr: &Instruction) -> u32 {
    use iced_x86::RflagsBits as B;
    let modified = instr.rflags_modified();
    [(B::CF, 1), (B::PF, 4), (B::AF, 0x10), (B::ZF, 0x40), (B::SF, 0x80), (B::OF, 0x800)]
        .into_iter()
        .filter(|(from, _)| modified & from != 0)
        .fold(0, |bits, (_, to)| bits | to)
}
