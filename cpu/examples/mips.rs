//! How fast the interpreter is: instruction rates of small 64-bit loops.
//!
//! `cargo run --release -p cpu --example mips`

use board::memory::{GuestRam, MemoryMap};
use board::vcpu::{MpState, Segment};
use board::{Accel, Clock, Vcpu};
use cpu::{NoMachine, SoftAccel};

/// Seconds of CPU time of this thread, so that other load does not count.
fn cpu_time() -> f64 {
    let mut t = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: `t` is writable.
    unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &mut t) };
    t.tv_sec as f64 + t.tv_nsec as f64 / 1e9
}

/// Name, code of the loop's body without the counter, rounds.
const LOOPS: &[(&str, &[u8], u64)] = &[
    // add rax,rbx; xor rdx,rax; lea rsi,[rax+rdx*4]; shr rsi,3; add rbx,rsi; and rax,rdx
    (
        "registers",
        &[
            0x48, 0x01, 0xD8, 0x48, 0x31, 0xC2, 0x48, 0x8D, 0x34, 0x90, 0x48, 0xC1, 0xEE, 0x03,
            0x48, 0x01, 0xF3, 0x48, 0x21, 0xD0,
        ],
        40_000_000,
    ),
    // mov rbx,[rdi]; add rbx,rcx; mov [rdi+8],rbx; mov eax,[rdi+8]; add [rdi],eax
    (
        "memory",
        &[0x48, 0x8B, 0x1F, 0x48, 0x01, 0xCB, 0x48, 0x89, 0x5F, 0x08, 0x8B, 0x47, 0x08, 0x01, 0x07],
        40_000_000,
    ),
    // call +2; jmp +1; ret (out of line)
    ("calls", &[0xE8, 2, 0, 0, 0, 0xEB, 1, 0xC3], 30_000_000),
    // addsd xmm0,xmm1; mulsd xmm1,xmm2; movups [rdi],xmm0; paddd xmm3,xmm4
    (
        "vector",
        &[0xF2, 0x0F, 0x58, 0xC1, 0xF2, 0x0F, 0x59, 0xCA, 0x0F, 0x11, 0x07, 0x66, 0x0F, 0xFE, 0xDC],
        3_000_000,
    ),
    // add [rip+0x800],rcx: data in the page of the code
    ("own page", &[0x48, 0x01, 0x0D, 0x00, 0x08, 0, 0], 3_000_000),
    // add [rip+0x20],rcx: data within 64 bytes of the code
    ("own line", &[0x48, 0x01, 0x0D, 0x20, 0, 0, 0], 3_000_000),
];

fn main() {
    for (name, body, rounds) in LOOPS {
        let ram = GuestRam::new(4 << 20).expect("4 MiB of RAM");
        let accel = SoftAccel::new(Clock::running(), None);
        accel.set_memory(&MemoryMap::new(&ram)).expect("the software CPU takes any map");
        let mut vcpu = accel.add(0, &accel.supported_cpuid());
        let write = |at: u64, data: &[u8]| ram.write(at, data).expect("within RAM");
        write(0x1000, &0x2003_u64.to_le_bytes());
        write(0x2000, &0x3003_u64.to_le_bytes());
        write(0x3000, &0x83_u64.to_le_bytes());
        let mut code = body.to_vec();
        code.extend_from_slice(&[0x48, 0xFF, 0xC9, 0x0F, 0x85]);
        code.extend_from_slice(&(-(code.len() as i32 + 4)).to_le_bytes());
        code.push(0xF4);
        write(0x1_0000, &code);
        let mut state = vcpu.save().expect("saving cannot fail");
        let flat = |attributes| Segment { selector: 8, base: 0, limit: u32::MAX, attributes };
        state.segments.cs = flat(0xA09B);
        state.segments.ss = flat(0xC093);
        state.segments.ds = flat(0xC093);
        state.segments.es = flat(0xC093);
        state.cr0 = 0x8005_0033;
        state.cr3 = 0x1000;
        state.cr4 = 0x620;
        state.efer = 0xD00;
        state.rip = 0x1_0000;
        state.gpr = [1; 16];
        state.gpr[1] = *rounds;
        state.gpr[4] = 0x9000;
        state.gpr[7] = 0x8000;
        state.mp_state = MpState::Runnable;
        vcpu.restore(&state).expect("a legal state");
        let start = cpu_time();
        let exit = vcpu.run(&NoMachine).expect("the host does not fail");
        let seconds = cpu_time() - start;
        let mips = vcpu.instructions() as f64 / seconds / 1e6;
        println!("{name:10} {mips:8.0} million instructions/s   ({exit:?})");
    }
}
