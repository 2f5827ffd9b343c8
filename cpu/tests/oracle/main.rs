//! The host as an oracle: random instructions run natively in ring 3 and in the interpreter, and
//! must leave the same registers, flags, vector state, memory, and raise the same faults.
//!
//! Both sides see the same linear addresses: the code slot and the data pages are mapped where the
//! guest's page tables map them too. Instructions are random bytes that decode to something both
//! sides may run; their memory operands lie in the data pages or in the hole round these.
//!
//! `ORACLE_CASES` and `ORACLE_SEED` choose how much and what; a failure prints its seed.

#[path = "../common/mod.rs"]
mod common;
mod native;
mod pick;
mod soft;

use std::collections::BTreeMap;

use common::Rng;
use iced_x86::{
    CpuidFeature, Decoder, DecoderError, DecoderOptions, Instruction, InstructionInfoFactory,
    Mnemonic, Register,
};
use native::Native;
use pick::{Sequence, acceptable, fits, random_bytes};
use soft::Soft;

/// Linear addresses, the same on both sides.
const CODE: u64 = 0x1000_0000;
const SLOT: u64 = CODE + 0x800;
const DATA: u64 = 0x2000_0000;
const DATA_LEN: u64 = 0x2000;
const HOLE: u64 = 0x10_0000;
/// State of the native side.
const CONTEXT: u64 = 0x3000_0000;

/// The XSAVE components that both sides have: x87, SSE, AVX.
const AREA: usize = 832;
const ARITH: u64 = 0x8D5;

/// What an instruction left behind.
#[derive(Clone, Debug, PartialEq)]
struct Outcome {
    gpr: [u64; 16],
    flags: u64,
    /// x87 (without instruction pointers), MXCSR, XMM and upper halves.
    vector: Vec<u8>,
    /// Vector, error code, CR2, offset of the instruction.
    fault: Option<(u8, u32, u64, u64)>,
}

/// The parts of an XSAVE area that are compared; components in their initial state are zeros.
fn comparable(area: &[u8]) -> Vec<u8> {
    let present = area[512];
    let mut out = area.to_vec();
    if present & 1 == 0 {
        out[..24].fill(0);
        out[..2].copy_from_slice(&0x37F_u16.to_le_bytes());
        out[32..160].fill(0);
    }
    if present & 2 == 0 {
        out[160..416].fill(0);
    }
    if present & 4 == 0 {
        out[576..832].fill(0);
    }
    // FOP, FIP, FDP and MXCSR_MASK.
    out[5..24].fill(0);
    out[28..32].fill(0);
    for st in 0..8 {
        out[42 + 16 * st..48 + 16 * st].fill(0);
    }
    out[416..576].fill(0);
    out
}

/// What an instruction finds.
#[derive(Clone, Debug)]
struct Input {
    gpr: [u64; 16],
    flags: u64,
    fcw: u16,
    fsw: u16,
    ftw: u8,
    st: [[u8; 10]; 8],
    mxcsr: u32,
    ymm: [[u8; 32]; 16],
}

impl Input {
    fn area(&self) -> [u8; AREA] {
        let mut a = [0; AREA];
        a[..2].copy_from_slice(&self.fcw.to_le_bytes());
        a[2..4].copy_from_slice(&self.fsw.to_le_bytes());
        a[4] = self.ftw;
        a[24..28].copy_from_slice(&self.mxcsr.to_le_bytes());
        for (i, st) in self.st.iter().enumerate() {
            a[32 + 16 * i..42 + 16 * i].copy_from_slice(st);
        }
        for (i, ymm) in self.ymm.iter().enumerate() {
            a[160 + 16 * i..176 + 16 * i].copy_from_slice(&ymm[..16]);
            a[576 + 16 * i..592 + 16 * i].copy_from_slice(&ymm[16..]);
        }
        a[512] = 7;
        a
    }

    fn random(rng: &mut Rng) -> Self {
        let mut gpr: [u64; 16] = std::array::from_fn(|_| match rng.below(8) {
            0..=3 => DATA + rng.below(DATA_LEN),
            4 => rng.below(64),
            _ => rng.edge(),
        });
        // Alignment matters to many instructions.
        for r in &mut gpr {
            if rng.below(2) == 0 && (DATA..DATA + DATA_LEN).contains(r) {
                *r &= !63;
            }
        }
        if rng.below(8) != 0 {
            gpr[4] = DATA + 0x1000 + rng.below(64) * 8;
        }
        gpr[5] = DATA + 0x1000 + rng.below(64) * 8;
        let mut ymm = [[0; 32]; 16];
        for r in &mut ymm {
            for chunk in r.chunks_exact_mut(8) {
                chunk.copy_from_slice(&rng.float_or_edge().to_le_bytes());
            }
        }
        let top = rng.below(8) as u16;
        let mut st = [[0; 10]; 8];
        for r in &mut st {
            let exponent = match rng.below(6) {
                0 => 0,
                1 => 0x7FFF,
                2 => rng.next() as u16 & 0x7FFF,
                _ => 0x3FF0 + rng.below(0x40) as u16,
            };
            let mantissa = rng.edge() | if exponent == 0 { 0 } else { 1 << 63 };
            r[..8].copy_from_slice(&mantissa.to_le_bytes());
            r[8..].copy_from_slice(&(exponent | (rng.next() as u16 & 0x8000)).to_le_bytes());
        }
        let fcw = if rng.below(4) == 0 { 0x40 | rng.next() as u16 & 0xF00 | 0x3F } else { 0x37F };
        let mxcsr = 0x1F80 | if rng.below(4) == 0 { rng.next() as u32 & 0xE07F } else { 0 };
        Self {
            gpr,
            flags: rng.next() & ARITH | 0x202,
            fcw,
            fsw: top << 11 | rng.next() as u16 & 0x4700,
            ftw: if rng.below(2) == 0 { 0xFF } else { rng.next() as u8 },
            st,
            mxcsr,
            ymm,
        }
    }
}

/// Where processors differ among themselves: what may differ from the host, and why.
fn excuse(instr: &Instruction, host: &mut Outcome, guest: &mut Outcome) {
    let mmx = (0..instr.op_count()).any(|n| instr.op_register(n).is_mm());
    if host.fault.is_some() && mmx {
        // A store of MMX that faults has set TOP and the tags on some processors already.
        host.vector[..160].fill(0);
        guest.vector[..160].fill(0);
    }
    match instr.mnemonic() {
        // A store that faults has set MXCSR's flags on some processors already.
        Mnemonic::Vcvtps2ph if host.fault.is_some() => {
            host.vector[24] |= 0x3F;
            guest.vector[24] |= 0x3F;
        }
        // Of an element that crosses pages, CR2 names any byte in the page that faults.
        Mnemonic::Vmaskmovps
        | Mnemonic::Vmaskmovpd
        | Mnemonic::Vpmaskmovd
        | Mnemonic::Vpmaskmovq => {
            for fault in [&mut host.fault, &mut guest.fault].into_iter().flatten() {
                fault.2 &= !0xFFF;
            }
        }
        // Whether bytes that are not selected fault is the implementation's choice, and which of
        // the bytes in the page that faults CR2 names.
        Mnemonic::Maskmovq | Mnemonic::Maskmovdqu | Mnemonic::Vmaskmovdqu
            if host.fault.is_some() =>
        {
            *host = guest.clone();
        }
        _ => {}
    }
}

fn compare(host: &Outcome, guest: &Outcome, ignored: u64) -> Option<String> {
    if host.fault != guest.fault {
        return Some(format!("fault: host {:x?}, guest {:x?}", host.fault, guest.fault));
    }
    for i in 0..16 {
        if host.gpr[i] != guest.gpr[i] {
            return Some(format!("gpr {i}: host {:#x}, guest {:#x}", host.gpr[i], guest.gpr[i]));
        }
    }
    if (host.flags ^ guest.flags) & !ignored != 0 {
        return Some(format!("flags: host {:#x}, guest {:#x}", host.flags, guest.flags));
    }
    let at = host.vector.iter().zip(&guest.vector).position(|(a, b)| a != b)?;
    let show = |v: &[u8]| format!("{:02X?}", &v[at & !15..(at & !15) + 16]);
    Some(format!(
        "vector state at {at}: host {}, guest {}",
        show(&host.vector),
        show(&guest.vector)
    ))
}

/// The two sides, with equal contents of the data pages.
struct Sides {
    native: Native,
    soft: Soft,
    features: Vec<CpuidFeature>,
    factory: InstructionInfoFactory,
}

/// The native side has one set of addresses, so one test at a time.
static ONE: std::sync::Mutex<()> = std::sync::Mutex::new(());

impl Sides {
    fn new(rng: &mut Rng) -> (Self, &'static mut [u8]) {
        let mut soft = Soft::new();
        let native = Native::new();
        // SAFETY: `Native::new` mapped the data pages; only native code writes them otherwise,
        // between uses of the slice, and one test at a time.
        let data = unsafe { std::slice::from_raw_parts_mut(DATA as *mut u8, DATA_LEN as usize) };
        for chunk in data.chunks_exact_mut(8) {
            chunk.copy_from_slice(&rng.float_or_edge().to_le_bytes());
        }
        soft.data().copy_from_slice(data);
        let (features, factory) = (common::offered(), InstructionInfoFactory::new());
        (Self { native, soft, features, factory }, data)
    }
}

fn setting(name: &str, default: u64) -> u64 {
    std::env::var(name).ok().and_then(|v| v.parse().ok()).unwrap_or(default)
}

#[test]
fn blocks_of_instructions_agree_too() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let cases = setting("ORACLE_CASES", if cfg!(debug_assertions) { 10_000 } else { 100_000 }) / 10;
    let seed = setting("ORACLE_SEED", 1);
    println!("seed {seed}, {cases} blocks");
    let mut rng = Rng::new(seed);
    let (mut sides, data) = Sides::new(&mut rng);
    for case in 0..cases {
        let input = Input::random(&mut rng);
        let wanted = 2 + rng.below(19) as usize;
        let (mut block, mut count) = (Sequence::default(), 0);
        while count < wanted {
            let bytes = random_bytes(&mut rng);
            let at = SLOT + block.bytes.len() as u64;
            let mut decoder = Decoder::with_ip(64, &bytes, at, DecoderOptions::NONE);
            let instr = decoder.decode();
            if decoder.last_error() == DecoderError::None
                && instr.memory_base() != Register::RIP
                && acceptable(&instr, &input, &mut sides.factory, &sides.features)
                && fits(&instr, &mut sides.factory, &mut block)
            {
                block.bytes.extend_from_slice(&bytes[..instr.len()]);
                count += 1;
            }
        }
        let host = sides.native.run(&block.bytes, &input);
        let guest = sides.soft.run(&block.bytes, &input);
        // After a fault in the middle, flags that were undefined before it are as well.
        let ignored = if host.fault.is_some() { ARITH } else { block.undefined };
        let problem = compare(&host, &guest, ignored);
        let (bytes, gpr) = (&block.bytes, input.gpr);
        assert!(
            problem.is_none(),
            "seed {seed}, block {case}: {problem:?}\n{bytes:02X?}\n{gpr:x?}"
        );
        assert!(
            data == sides.soft.data(),
            "seed {seed}, block {case}: memory\n{bytes:02X?}\n{gpr:x?}"
        );
    }
}

#[test]
fn the_host_and_the_interpreter_agree() {
    let _one = ONE.lock().unwrap_or_else(|e| e.into_inner());
    let cases = setting("ORACLE_CASES", if cfg!(debug_assertions) { 20_000 } else { 200_000 });
    let seed = setting("ORACLE_SEED", 1);
    println!("seed {seed}, {cases} cases");
    let mut rng = Rng::new(seed);
    let (mut sides, data) = Sides::new(&mut rng);
    let Sides { native, soft, features, factory } = &mut sides;

    let mut failures: BTreeMap<String, (u32, String)> = BTreeMap::new();
    let mut covered: BTreeMap<String, u32> = BTreeMap::new();
    let mut done = 0;
    let mut input = Input::random(&mut rng);
    let mut fresh = true;
    while done < cases {
        // Most bytes are no acceptable instruction; what they would have found serves the next.
        if !std::mem::replace(&mut fresh, true) {
            input = Input::random(&mut rng);
        }
        let bytes = random_bytes(&mut rng);
        let mut decoder = Decoder::with_ip(64, &bytes, SLOT, DecoderOptions::NONE);
        let instr = decoder.decode();
        if decoder.last_error() != DecoderError::None
            || !acceptable(&instr, &input, factory, features)
        {
            continue;
        }
        done += 1;
        fresh = false;
        let bytes = &bytes[..instr.len()];
        let before = data.to_vec();
        let host = native.run(bytes, &input);
        let guest = soft.run(bytes, &input);
        *covered.entry(format!("{:?}", instr.code())).or_default() += 1;
        let ignored = common::undefined_flags(&instr);
        let (mut host, mut guest) = (host, guest);
        excuse(&instr, &mut host, &mut guest);
        if instr.mnemonic() == Mnemonic::Fbstp && host.fault.is_some() {
            // Some processors have stored the part in the first page already.
            data.copy_from_slice(&before);
        }
        let mut problem = compare(&host, &guest, ignored);
        if data != soft.data() {
            let at = data.iter().zip(soft.data()).position(|(a, b)| a != b).unwrap_or(0);
            problem = Some(format!("memory differs at {at:#x}"));
        }
        if let Some(problem) = problem {
            let entry = failures.entry(format!("{:?}", instr.code())).or_insert_with(|| {
                (
                    0,
                    format!(
                        "{bytes:02X?} {problem}\n    flags {:#x} gpr {:x?}",
                        input.flags, input.gpr
                    ),
                )
            });
            entry.0 += 1;
            data.copy_from_slice(&before);
            soft.data().copy_from_slice(&before);
        }
    }
    println!("{} different codes", covered.len());
    if !failures.is_empty() {
        for (code, (count, example)) in &failures {
            println!("{code}: {count} of {}; {example}", covered[code]);
        }
        panic!("seed {seed}: {} codes differ", failures.len());
    }
}
