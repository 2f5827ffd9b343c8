//! `ring0`: instructions that a KVM which emulates ring 0 lacks, executed in ring 0, each with a look at its result. What CPUID
//! does not offer is left out, or with `all` executed too. The last line but one names what has been checked.

#![no_std]
#![no_main]

use core::arch::asm;
use core::arch::x86_64::{__cpuid, __cpuid_count};
use core::cell::UnsafeCell;
use core::sync::atomic::{AtomicU64, Ordering::SeqCst};
use runtime::interrupts::{self, Frame, Shared};
use runtime::start::selector;
use runtime::{Verdict, boot, fail, guest, say};

guest!("ring0", main);

/// Memory for operands and for the XSAVE area, aligned for all of them.
#[repr(C, align(64))]
struct Area([u64; 512]);

static AREA: Shared<Area> = Shared(UnsafeCell::new(Area([0; 512])));

fn area() -> *mut u64 {
    AREA.0.get().cast()
}

/// Writes quadwords to the area and returns its address.
fn put(words: &[u64]) -> *mut u64 {
    for (i, word) in words.iter().enumerate() {
        // SAFETY: the callers write a few words of the 512; one processor runs.
        unsafe { area().add(i).write_volatile(*word) }
    }
    area()
}

fn get(i: usize) -> u64 {
    // SAFETY: the callers read below 512.
    unsafe { area().add(i).read_volatile() }
}

/// How often each of the vectors below 4 and 0x80 came.
static SEEN: [AtomicU64; 5] = [const { AtomicU64::new(0) }; 5];

fn count(frame: &mut Frame) {
    SEEN[(frame.vector as usize).min(4)].fetch_add(1, SeqCst);
}

fn seen(i: usize) -> u64 {
    SEEN[i].load(SeqCst)
}

const SMAP: u64 = 1 << 21;
const PCIDE: u64 = 1 << 17;
const OSXSAVE: u64 = 1 << 18;

fn cr4() -> u64 {
    let value;
    // SAFETY: reads a register.
    unsafe { asm!("mov {}, cr4", out(reg) value, options(nomem, nostack)) }
    value
}

fn set_cr4(value: u64) {
    // SAFETY: only bits are set that CPUID offers, none of which changes what memory means.
    unsafe { asm!("mov cr4, {}", in(reg) value, options(nostack)) }
}

type Check = fn() -> bool;

/// A CPUID leaf, subleaf, register (EAX to EDX) and bit; `ALWAYS` for what every processor has.
type Feature = (u32, u32, usize, u32);

const ALWAYS: Feature = (1, 0, 3, 26);
const AVX: Feature = (1, 0, 2, 28);

const RDTSCP: Feature = (0x8000_0001, 0, 3, 27);
const RDPID: Feature = (7, 0, 2, 22);

/// Sets IA32_TSC_AUX, if it is there, and returns what it holds.
fn set_aux(value: u64) -> u64 {
    if !has(RDTSCP) && !has(RDPID) {
        return 0;
    }
    runtime::port::wrmsr(0xc000_0103, value);
    value
}

fn has((leaf, sub, register, bit): Feature) -> bool {
    let top = __cpuid(leaf & 0x8000_0000).eax;
    let r = __cpuid_count(leaf, sub);
    top >= leaf && [r.eax, r.ebx, r.ecx, r.edx][register] >> bit & 1 != 0
}

const CHECKS: &[(&str, Feature, Check)] = &[
    ("int3", ALWAYS, || {
        // SAFETY: the handler changes nothing.
        unsafe { asm!("int3") }
        seen(3) == 1
    }),
    ("int", ALWAYS, || {
        // SAFETY: as above.
        unsafe { asm!("int 0x80", "int 0x80") }
        seen(4) == 2
    }),
    ("icebp", ALWAYS, || {
        // SAFETY: as above; it raises #DB.
        unsafe { asm!(".byte 0xf1") }
        seen(1) == 1
    }),
    ("cmpxchg16b", (1, 0, 2, 13), || {
        let at = put(&[1, 2]);
        let (low, high, equal): (u64, u64, u8);
        // SAFETY: 16 aligned bytes; rbx is put back.
        unsafe {
            asm!("xchg rbx, {new}", "lock cmpxchg16b [{at}]", "sete {equal}", "mov rbx, {new}",
                at = in(reg) at, new = inout(reg) 7u64 => _, equal = out(reg_byte) equal,
                inout("rax") 1u64 => low, inout("rdx") 2u64 => high, in("rcx") 8u64)
        }
        equal == 1 && (low, high) == (1, 2) && (get(0), get(1)) == (7, 8)
    }),
    ("clac stac", (7, 0, 1, 20), || {
        set_cr4(cr4() | SMAP);
        let (set, clear): (u64, u64);
        // SAFETY: no page of ring 3 is accessed while AC is clear.
        unsafe {
            asm!("stac", "pushfq", "pop {set}", "clac", "pushfq", "pop {clear}",
                set = out(reg) set, clear = out(reg) clear)
        }
        set_cr4(cr4() & !SMAP);
        set >> 18 & 1 == 1 && clear >> 18 & 1 == 0
    }),
    ("popcnt", (1, 0, 2, 23), || {
        let v: u64;
        // SAFETY: registers only.
        unsafe { asm!("popcnt {}, {}", out(reg) v, in(reg) 0xf0f0_1234_0000_0001u64) }
        v == 14
    }),
    ("crc32", (1, 0, 2, 20), || {
        let v: u64;
        // SAFETY: registers only.
        unsafe { asm!("crc32 {}, {}", inout(reg) u64::from(!0u32) => v, in(reg) 0x3837_3635_3433_3231u64) }
        v == 0x9f78_7f65
    }),
    ("andn bextr blsi blsr blsmsk", (7, 0, 1, 3), || {
        let (a, b, c, d, e): (u64, u64, u64, u64, u64);
        // SAFETY: registers only.
        unsafe {
            asm!("andn {a}, {x}, {y}", "bextr {b}, {y}, {control}", "blsi {c}, {x}", "blsr {d}, {x}",
                "blsmsk {e}, {x}", x = in(reg) 0xff00u64, y = in(reg) 0x12_3456u64,
                control = in(reg) 0x0808u64, a = out(reg) a, b = out(reg) b, c = out(reg) c,
                d = out(reg) d, e = out(reg) e)
        }
        (a, b, c, d, e) == (0x12_0056, 0x34, 0x100, 0xfe00, 0x1ff)
    }),
    ("bzhi pdep pext rorx mulx sarx", (7, 0, 1, 8), || {
        let (a, b, c, d, low, high, e): (u64, u64, u64, u64, u64, u64, i64);
        // SAFETY: registers only.
        unsafe {
            asm!("bzhi {a}, {x}, {n}", "pdep {b}, {y}, {x}", "pext {c}, {x}, {x}", "rorx {d}, {x}, 4",
                "mulx {high}, {low}, {x}", "sarx {e}, {m}, {n}", x = in(reg) 0xf0f0u64,
                y = in(reg) 0x35u64, n = in(reg) 8u64, m = in(reg) -512i64, in("rdx") 1u64 << 60,
                a = out(reg) a, b = out(reg) b, c = out(reg) c, d = out(reg) d, low = out(reg) low,
                high = out(reg) high, e = out(reg) e)
        }
        (a, b, c, d) == (0xf0, 0x3050, 0xff, 0xf0f) && (low, high, e) == (0, 0xf0f, -2)
    }),
    ("adcx adox", (7, 0, 1, 19), || {
        let (a, b): (u64, u64);
        // SAFETY: registers only.
        unsafe {
            asm!("xor {t:e}, {t:e}", "adcx {a}, {x}", "adox {b}, {x}", "adcx {a}, {t}",
                t = out(reg) _, x = in(reg) u64::MAX, a = inout(reg) 2u64 => a, b = inout(reg) 0u64 => b)
        }
        (a, b) == (2, u64::MAX)
    }),
    ("rdtscp", RDTSCP, || {
        let expected = set_aux(0x5a5a);
        let before = runtime::port::rdtsc();
        let (low, high, aux): (u64, u64, u64);
        // SAFETY: registers only.
        unsafe { asm!("rdtscp", out("rax") low, out("rdx") high, out("rcx") aux) }
        let now = high << 32 | low;
        aux == expected && before <= now && now <= runtime::port::rdtsc()
    }),
    ("invpcid", (7, 0, 1, 10), || {
        let pcid = cr4() & PCIDE;
        let at = put(&[0, 0x40_0000]);
        // SAFETY: it drops translations, which are found again.
        unsafe { asm!("invpcid {}, [{}]", in(reg) 2u64, in(reg) at) }
        cr4() & PCIDE == pcid
    }),
    ("xgetbv", (1, 0, 2, 26), || {
        let (low, high): (u32, u32);
        // SAFETY: CR4.OSXSAVE is set.
        unsafe { asm!("xgetbv", in("ecx") 0, out("eax") low, out("edx") high) }
        low & 3 == 3 && high == 0
    }),
    ("xsave xrstor", (1, 0, 2, 26), || {
        let (before, after): (u64, u64);
        put(&[0; 104]);
        // SAFETY: the area has room for x87, SSE and AVX; XMM registers hold nothing here.
        unsafe {
            asm!("movq xmm3, {x}", "xsave64 [{at}]", "pxor xmm3, xmm3", "movq {before}, xmm3",
                "xrstor64 [{at}]", "movq {after}, xmm3", x = in(reg) 0x1122_3344_5566_7788u64,
                at = in(reg) area(), before = out(reg) before, after = out(reg) after,
                in("eax") 3, in("edx") 0, out("xmm3") _)
        }
        // XMM3 in the legacy region, XSTATE_BV.
        (before, after) == (0, 0x1122_3344_5566_7788) && get(26) == after && get(64) & 2 == 2
    }),
    ("xsaveopt", (0xd, 1, 0, 0), || {
        put(&[0; 104]);
        // SAFETY: as above.
        unsafe {
            asm!("movq xmm3, {x}", "xsaveopt64 [{at}]", x = in(reg) 77u64, at = in(reg) area(),
                in("eax") 2, in("edx") 0, out("xmm3") _)
        }
        get(26) == 77 && get(64) & 2 == 2
    }),
    ("xsavec", (0xd, 1, 0, 1), || {
        put(&[0; 104]);
        // SAFETY: as above.
        unsafe {
            asm!("movq xmm3, {x}", "xsavec64 [{at}]", x = in(reg) 78u64, at = in(reg) area(),
                in("eax") 2, in("edx") 0, out("xmm3") _)
        }
        // XCOMP_BV says that the format is the compacted one.
        get(26) == 78 && get(65) >> 63 == 1
    }),
    ("fninit fwait fldcw fnstcw fnstsw fnclex", ALWAYS, || {
        let at = put(&[0x027f, 0]);
        let status: u16;
        // SAFETY: the x87 unit holds nothing here.
        unsafe {
            asm!("fninit", "fldcw [{at}]", "fldz", "fld1", "fdivrp st(1), st", "fwait",
                "fnstcw [{at} + 8]", "fnclex", "fnstsw ax", at = in(reg) at, out("ax") status,
                out("st(0)") _, out("st(1)") _)
        }
        get(1) & 0xffff == 0x27f && status & 0x3f == 0
    }),
    ("x87 arithmetic", ALWAYS, || {
        let at = put(&[144, 0, 0]);
        // SAFETY: as above.
        unsafe {
            asm!("fninit", "fild qword ptr [{at}]", "fsqrt", "fld1", "faddp", "fistp qword ptr [{at} + 8]",
                "fldpi", "fstp tbyte ptr [{at} + 16]", at = in(reg) at, out("st(0)") _, out("st(1)") _)
        }
        get(1) == 13 && get(2) == 0xc90f_daa2_2168_c235 && get(3) & 0xffff == 0x4000
    }),
    ("emms", ALWAYS, || {
        let v: u64;
        // SAFETY: as above.
        unsafe {
            asm!("movq mm0, {x}", "paddb mm0, mm0", "movq {v}, mm0", "emms", x = in(reg) 0x0102_0304_0506_0780u64,
                v = out(reg) v, out("mm0") _)
        }
        v == 0x0204_0608_0a0c_0e00
    }),
    ("ldmxcsr stmxcsr", ALWAYS, || {
        let at = put(&[0x3f80, 0x1f80, 0]);
        // SAFETY: all exceptions stay masked, and rounding goes back to nearest.
        unsafe {
            asm!("ldmxcsr [{at}]", "stmxcsr [{at} + 16]", "ldmxcsr [{at} + 8]", at = in(reg) at)
        }
        get(2) == 0x3f80
    }),
    ("verr verw", ALWAYS, || {
        let (read, write, not): (u8, u8, u8);
        // SAFETY: looks at descriptors.
        unsafe {
            asm!("verr {c:x}", "sete {read}", "verw {d:x}", "sete {write}", "verw {c:x}", "sete {not}",
                c = in(reg) selector::CODE, d = in(reg) selector::USER_DATA, read = out(reg_byte) read,
                write = out(reg_byte) write, not = out(reg_byte) not)
        }
        (read, write, not) == (1, 1, 0)
    }),
    ("lar lsl", ALWAYS, || {
        let (rights, limit, none): (u32, u32, u8);
        // SAFETY: looks at descriptors.
        unsafe {
            asm!("lar {r:e}, {c:e}", "lsl {l:e}, {t:e}", "lar {c:e}, {z:e}", "sete {none}", c = inout(reg) u32::from(selector::CODE) => _,
                t = in(reg) u32::from(selector::TSS), z = in(reg) 0u32, r = out(reg) rights, l = out(reg) limit,
                none = out(reg_byte) none)
        }
        // A TSS with a map for 1024 ports.
        rights & 0xf0_f800 == 0xa0_9800 && limit == 104 + 128 && none == 0
    }),
    ("monitor mwait", (1, 0, 2, 3), || {
        // SAFETY: nothing is awaited: the write comes before.
        unsafe {
            asm!("monitor", "mov qword ptr [rax], 1", "mwait", in("rax") area(), in("rcx") 0, in("rdx") 0)
        }
        get(0) == 1
    }),
    ("addps mulpd cvttsd2si", ALWAYS, || {
        let at = put(&[0x4000_0000_3f80_0000, 0x4080_0000_4040_0000, 0x4008_0000_0000_0000, 0]);
        let (low, int): (u64, u64);
        // SAFETY: XMM registers hold nothing here.
        unsafe {
            asm!("movups xmm0, [{at}]", "addps xmm0, xmm0", "movq {low}, xmm0", "movsd xmm1, [{at} + 16]",
                "mulpd xmm1, xmm1", "cvttsd2si {int}, xmm1", at = in(reg) at, low = out(reg) low,
                int = out(reg) int, out("xmm0") _, out("xmm1") _)
        }
        (low, int) == (0x4080_0000_4000_0000, 9)
    }),
    ("pshufb", (1, 0, 2, 9), || {
        let at = put(&[0x0706_0504_0302_0100, 0, 0x0001_0203_0405_0607, 0]);
        let v: u64;
        // SAFETY: as above; the operand is aligned.
        unsafe {
            asm!("movups xmm0, [{at}]", "pshufb xmm0, [{at} + 16]", "movq {v}, xmm0", at = in(reg) at,
                v = out(reg) v, out("xmm0") _)
        }
        v == 0x0001_0203_0405_0607
    }),
    ("pmulld pinsrq", (1, 0, 2, 19), || {
        let v: u64;
        // SAFETY: as above.
        unsafe {
            asm!("movq xmm0, {x}", "pinsrq xmm0, {x}, 1", "pmulld xmm0, xmm0", "pextrq {v}, xmm0, 1",
                x = in(reg) 0x0000_0003_0001_0000u64, v = out(reg) v, out("xmm0") _)
        }
        v == 0x0000_0009_0000_0000
    }),
    ("aesenc", (1, 0, 2, 25), || {
        let v: u64;
        // SAFETY: as above.
        unsafe { asm!("pxor xmm0, xmm0", "pxor xmm1, xmm1", "aesenc xmm0, xmm1", "movq {v}, xmm0", v = out(reg) v, out("xmm0") _, out("xmm1") _) }
        v == 0x6363_6363_6363_6363
    }),
    ("pclmulqdq", (1, 0, 2, 1), || {
        let v: u64;
        // SAFETY: as above.
        unsafe { asm!("movq xmm0, {x}", "pclmulqdq xmm0, xmm0, 0", "movq {v}, xmm0", x = in(reg) 7u64, v = out(reg) v, out("xmm0") _) }
        v == 0x15
    }),
    ("vaddps vpermilps vzeroupper", AVX, || {
        let at = put(&[0x4000_0000_3f80_0000; 4]);
        let v: u64;
        // SAFETY: as above, and XCR0 has AVX.
        unsafe {
            asm!("vmovups ymm0, [{at}]", "vaddps ymm1, ymm0, ymm0", "vpermilps ymm1, ymm1, 0xb1",
                "vmovups [{at} + 32], ymm1", "vzeroupper", at = in(reg) at, out("ymm0") _, out("ymm1") _)
        }
        v = get(7);
        v == 0x4000_0000_4080_0000
    }),
    ("vpaddq", (7, 0, 1, 5), || {
        let at = put(&[5, 6, 7, u64::MAX]);
        // SAFETY: as above.
        unsafe {
            asm!("vmovdqu ymm0, [{at}]", "vpaddq ymm0, ymm0, ymm0", "vmovdqu [{at} + 32], ymm0", "vzeroupper",
                at = in(reg) at, out("ymm0") _)
        }
        (get(4), get(7)) == (10, u64::MAX - 1)
    }),
    ("clwb", (7, 0, 1, 24), || {
        let at = put(&[9]);
        // SAFETY: changes nothing.
        unsafe { asm!("clwb [{}]", in(reg) at) }
        get(0) == 9
    }),
    ("clzero", (0x8000_0008, 0, 1, 0), || {
        put(&[9; 16]);
        // SAFETY: 64 bytes of the area.
        unsafe { asm!("clzero", in("rax") area().add(1)) }
        (get(0), get(7), get(8)) == (0, 0, 9)
    }),
    ("enter leave", ALWAYS, || {
        let (depth, link): (u64, u64);
        // SAFETY: LEAVE undoes what ENTER did; RBP has a stack to point to meanwhile.
        unsafe {
            asm!("push rbp", "mov rbp, rsp", "mov {t}, rsp", "enter 32, 2", "mov {link}, [rbp - 8]",
                "mov {depth}, {t}", "sub {depth}, rsp", "leave", "sub {link}, {t}", "pop rbp", t = out(reg) _,
                depth = out(reg) depth, link = out(reg) link)
        }
        // RBP, two display entries and 32 bytes; the first display entry is the outer frame.
        depth == 8 + 16 + 32 && link == 0
    }),
    ("movbe", (1, 0, 2, 22), || {
        let at = put(&[0x1122_3344_5566_7788]);
        let v: u64;
        // SAFETY: reads the area.
        unsafe { asm!("movbe {}, [{}]", out(reg) v, in(reg) at) }
        v == 0x8877_6655_4433_2211
    }),
    ("rdpid", RDPID, || {
        let expected = set_aux(0xa5a5);
        let v: u64;
        // SAFETY: registers only.
        unsafe { asm!("rdpid {}", out(reg) v) }
        v == expected
    }),
];

/// Instructions that such a KVM executes as others without telling: their results are printed, not checked.
fn silent() {
    let (trailing, leading): (u64, u64);
    // SAFETY: registers only. Processors without them execute BSF and BSR.
    unsafe {
        asm!("tzcnt {}, {}", out(reg) trailing, in(reg) 0x50u64);
        asm!("lzcnt {}, {}", out(reg) leading, in(reg) 0x50u64);
    }
    let offered = (has((7, 0, 1, 3)), has((0x8000_0001, 0, 2, 5)));
    say!("tzcnt ", trailing, if offered.0 { " offered" } else { "" }, " lzcnt ", leading, if offered.1 { " offered" } else { "" });
}

fn main() -> Verdict {
    for vector in [1, 3, 0x80] {
        interrupts::handle(vector, count);
    }
    if has((1, 0, 2, 26)) {
        set_cr4(cr4() | OSXSAVE);
        let components = if has(AVX) { 7u32 } else { 3 };
        // SAFETY: CPUID offers these components.
        unsafe { asm!("xsetbv", in("ecx") 0, in("eax") components, in("edx") 0) }
    }
    let mut done = 0u64;
    for (name, feature, check) in CHECKS {
        if !has(*feature) && !boot::has("all") {
            say!("not offered: ", *name);
            continue;
        }
        if !check() {
            fail(name);
        }
        done += 1;
    }
    silent();
    say!("checked ", done, " of ", CHECKS.len() as u64);
    Ok(())
}
