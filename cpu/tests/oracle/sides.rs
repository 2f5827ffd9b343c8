//! Both sides of a lane, and the comparison of what they leave behind.

use cpu::bare::{UserFault, UserState, XSAVE_SIZE};

use crate::common::Rng;
use crate::excuse::Excuse;
use crate::lane::{Lane, RO_PAGES, RW_PAGES};
use crate::native::{Context, Native};
use crate::report::Report;
use crate::soft::Soft;
use crate::values::{self, ARITH, DF};

/// What must be the same after a case.
pub(crate) struct Rule {
    /// Flags that need not.
    pub(crate) undefined: u64,
    pub(crate) excuse: Option<Excuse>,
    /// A dot product or VCVTPS2PH.
    pub(crate) loose: bool,
    /// Register that holds a mask, and the signs of its elements in 64 bits.
    pub(crate) mask: Option<(usize, u64)>,
    /// The case can write memory.
    pub(crate) memory: bool,
    /// Several instructions: after a fault in the middle, flags that were undefined before it are
    /// as well.
    pub(crate) block: bool,
}

/// Both sides of a lane.
pub(crate) struct Sides {
    pub(crate) lane: Lane,
    native: Native,
    pub(crate) soft: Soft,
    state: Box<UserState>,
    before: Vec<u8>,
    /// Where the instructions end, at their end or by a branch.
    end: u64,
    target: u64,
}

/// The parts of an XSAVE area that are compared, word by word: not FOP, FIP, FDP, MXCSR_MASK, what
/// lies behind the 80 bits of an x87 register, or what is reserved.
const COMPARED: [u64; XSAVE_SIZE / 8] = {
    let mut mask = [0; XSAVE_SIZE / 8];
    mask[0] = 0xFF_FFFF_FFFF;
    mask[3] = 0xFFFF_FFFF;
    let mut i = 0;
    while i < 8 {
        mask[4 + 2 * i] = u64::MAX;
        mask[5 + 2 * i] = 0xFFFF;
        i += 1;
    }
    let mut i = 20;
    while i < XSAVE_SIZE / 8 {
        if i < 52 || i >= 72 {
            mask[i] = u64::MAX;
        }
        i += 1;
    }
    mask
};

fn word(area: &[u8], i: usize) -> u64 {
    u64::from_le_bytes(std::array::from_fn(|n| area[8 * i + n]))
}

/// Words of the areas from `first` on whose bits under [`COMPARED`] differ.
fn difference(a: &[u8], b: &[u8], range: std::ops::Range<usize>) -> Option<usize> {
    let differs = |i: usize| (word(a, i) ^ word(b, i)) & COMPARED[i];
    if range.clone().fold(0, |all, i| all | differs(i)) == 0 {
        return None;
    }
    range.into_iter().find(|i| differs(*i) != 0)
}

impl Sides {
    pub(crate) fn new(lane: Lane) -> Self {
        let mut native = Native::new(lane);
        let mut soft = Soft::new(lane);
        // What is read-only stays as it is from now on.
        let mut rng = Rng::new(7);
        let all = RW_PAGES + RO_PAGES;
        for chunk in native.data(all).chunks_exact_mut(8) {
            chunk.copy_from_slice(&rng.float_or_edge().to_le_bytes());
        }
        native.seal();
        soft.data(all).copy_from_slice(native.data(all));
        let state = Box::new(values::state(&mut rng, lane));
        Self { lane, native, soft, state, before: Vec::new(), end: 0, target: 0 }
    }

    /// Gives both sides' data pages new contents, equal and with repetitions.
    pub(crate) fn fill(&mut self, rng: &mut Rng) {
        let data = self.native.data(RW_PAGES);
        let mut state = UserState { area: [0; _], gpr: [0; 16], rip: 0, rflags: 0 };
        for chunk in data.chunks_exact_mut(64) {
            for n in 0..4 {
                values::vector(rng, &mut state, n);
            }
            chunk.copy_from_slice(&state.area[160..224]);
        }
        let same = rng.next() as u8;
        data[0x400..0x600].fill(same);
        data[0xC00..0xC80].fill(same);
        self.soft.data(RW_PAGES).copy_from_slice(data);
    }

    /// Puts instructions at `at` on both sides.
    pub(crate) fn place(&mut self, at: u64, bytes: &[u8], target: Option<u64>) {
        self.native.place(at, bytes, target);
        self.soft.place(at, bytes, target);
        self.end = at + bytes.len() as u64;
        self.target = self.lane.target();
    }

    /// Runs what was placed `count` times with what `operands` makes of the state (given both
    /// sides' data), and compares. Returns how many cases were run.
    #[allow(clippy::too_many_arguments)]
    pub(crate) fn batch(
        &mut self,
        rule: &Rule,
        rng: &mut Rng,
        report: &mut Report,
        name: &str,
        bytes: &[u8],
        count: u64,
        mut operands: impl FnMut(&mut Rng, [&mut [u8]; 2], &mut UserState) -> bool,
    ) -> u64 {
        let start = rng.clone();
        if rule.memory {
            self.before.clear();
            self.before.extend_from_slice(self.native.data(RW_PAGES));
        }
        let mut run = 0;
        let mut careful = false;
        'again: loop {
            for _ in 0..count {
                // Both sides' data are apart from the state, but borrowed from the same values.
                let data = [self.native.data(RW_PAGES) as *mut [u8], self.soft.data(RW_PAGES)];
                // SAFETY: the two slices and the input are three places in memory, and nothing
                // runs meanwhile.
                let data = data.map(|slice| unsafe { &mut *slice });
                if !operands(rng, data, self.native.input()) {
                    continue;
                }
                run += 1;
                (*self.state).clone_from(self.native.input());
                let host = self.native.run();
                let fault = self.soft.run(&mut self.state);
                let ends = [self.end, self.target];
                let excused = settle(rule, report, host, &self.state, fault);
                let mut problem = if excused == Settled::Entirely {
                    None
                } else {
                    compare(rule, ends, host, &self.state, fault, excused)
                };
                report.faults += u64::from(host.fault[0] != 0);
                if excused != Settled::No {
                    self.level();
                } else if rule.memory && (careful || problem.is_some()) {
                    let pair = [self.native.data(RW_PAGES), self.soft.data(RW_PAGES)];
                    let at = pair[0].iter().zip(&*pair[1]).position(|(a, b)| a != b);
                    if let Some(at) = at {
                        let show = |side: &[u8]| format!("{:02X?}", &side[at & !7..(at & !7) + 8]);
                        problem.get_or_insert_with(|| {
                            let (host, guest) = (show(pair[0]), show(pair[1]));
                            format!("memory at {at:#x}: host {host}, guest {guest}")
                        });
                    }
                }
                if let Some(problem) = problem {
                    let input = self.native.input();
                    report.fail(name, || {
                        let area = &input.area;
                        format!(
                            "{bytes:02X?} {problem}\n    at {:#x}, flags {:#x}, fcw {:#x}, fsw {:#x}, mxcsr {:#x}, gpr {:x?}",
                            input.rip,
                            input.rflags,
                            word(area, 0) & 0xFFFF,
                            word(area, 0) >> 16 & 0xFFFF,
                            word(area, 3) & 0xFFFF_FFFF,
                            input.gpr
                        )
                    });
                    self.level();
                }
            }
            if !rule.memory || careful || *self.native.data(RW_PAGES) == *self.soft.data(RW_PAGES) {
                return run;
            }
            // Some case wrote something else: run the same ones again and find it.
            self.native.data(RW_PAGES).copy_from_slice(&self.before);
            self.level();
            rng.clone_from(&start);
            (careful, run) = (true, 0);
            continue 'again;
        }
    }

    /// Makes the guest's data the host's.
    fn level(&mut self) {
        let Self { native, soft, .. } = self;
        soft.data(RW_PAGES).copy_from_slice(native.data(RW_PAGES));
    }
}

/// How much of a case is excused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Settled {
    No,
    Entirely,
    X87,
    MxcsrFlags,
    /// The place within the page that CR2 names.
    Offset,
    Memory,
    /// All of the rule's mask register but signs.
    Mask,
}

/// Applies the rule's excuse, which is for faults only.
fn settle(
    rule: &Rule,
    report: &mut Report,
    host: &Context,
    guest: &UserState,
    fault: UserFault,
) -> Settled {
    if host.fault[0] == 20 {
        let (ours, theirs) = (word(&guest.area, 3), word(&host.area, 3));
        let range = theirs & 0xC00 != 0xC00 && theirs & 0x18 != 0;
        let precision = range && ours ^ theirs == 0x20;
        if precision || rule.loose && (ours != theirs || fault.vector != 19) {
            *report.excused.entry(Excuse::UnmaskedRange).or_default() += 1;
            return if fault.vector == 19 { Settled::MxcsrFlags } else { Settled::Entirely };
        }
    }
    let Some(excuse) = rule.excuse else { return Settled::No };
    let host = host.fault[0].wrapping_sub(1);
    let access = matches!(host, 12..=14 | 19);
    let applies = match excuse {
        Excuse::ByteMaskFault => access || fault.vector == 14,
        Excuse::ShaAlignment => fault.vector == 13 && host != 13,
        Excuse::MxcsrMask => fault.vector == 13 && host != 13,
        Excuse::ConvertPending => fault.vector == 16 && host != 16,
        _ => access,
    };
    if !applies {
        return Settled::No;
    }
    *report.excused.entry(excuse).or_default() += 1;
    match excuse {
        Excuse::MmxStoreFault => Settled::X87,
        Excuse::ConvertStoreFault => Settled::MxcsrFlags,
        Excuse::MaskedFaultAddress => Settled::Offset,
        Excuse::ByteMaskFault
        | Excuse::ShaAlignment
        | Excuse::ConvertPending
        | Excuse::MxcsrMask => Settled::Entirely,
        Excuse::UnmaskedRange => Settled::MxcsrFlags,
        Excuse::GatherMask => Settled::Mask,
        Excuse::FbstpFault => Settled::Memory,
    }
}

/// What differs between the sides, if anything does.
fn compare(
    rule: &Rule,
    [end, target]: [u64; 2],
    host: &Context,
    guest: &UserState,
    fault: UserFault,
    excused: Settled,
) -> Option<String> {
    // The guest ends in UD2 at one of the ends.
    let ended = fault.vector == 6 && (guest.rip == end || guest.rip == target);
    if host.fault[0] == 0 {
        let expected = if host.taken != 0 { target } else { end };
        if !ended || guest.rip != expected {
            return Some(format!(
                "host ends at {expected:#x}, guest {fault:x?} at {:#x}",
                guest.rip
            ));
        }
    } else {
        let [vector, error, mut address, rip] = host.fault;
        let mut fault = fault;
        if excused == Settled::Offset {
            address &= !0xFFF;
            fault.address &= !0xFFF;
        }
        let same = vector == u64::from(fault.vector) + 1
            && error == u64::from(fault.error)
            && address == fault.address
            && rip == guest.rip;
        if !same {
            return Some(format!(
                "fault: host ({}, {error:#x}, {address:#x}) at {rip:#x}, guest {fault:x?} at {:#x}",
                vector - 1,
                guest.rip
            ));
        }
    }
    for i in 0..16 {
        if host.gpr[i] != guest.gpr[i] {
            return Some(format!("gpr {i}: host {:#x}, guest {:#x}", host.gpr[i], guest.gpr[i]));
        }
    }
    let ignored = if rule.block && host.fault[0] != 0 { ARITH } else { rule.undefined };
    if (host.flags ^ guest.rflags) & (ARITH | DF) & !ignored != 0 {
        return Some(format!("flags: host {:#x}, guest {:#x}", host.flags, guest.rflags));
    }
    let first = if excused == Settled::X87 { 20 } else { 0 };
    let at = match difference(&host.area, &guest.area, first..XSAVE_SIZE / 8) {
        Some(3) if excused == Settled::MxcsrFlags => None,
        Some(at) if excused == Settled::Mask && (20..52).contains(&at) => {
            let n = rule.mask.filter(|(n, _)| at / 2 == 10 + n);
            let signs = n.map_or(u64::MAX, |(_, signs)| signs);
            ((word(&host.area, at) ^ word(&guest.area, at)) & signs != 0).then_some(at)
        }
        Some(at) if excused == Settled::Mask && at >= 72 => {
            let n = rule.mask.filter(|(n, _)| at / 2 == 36 + n);
            let signs = n.map_or(u64::MAX, |(_, signs)| signs);
            ((word(&host.area, at) ^ word(&guest.area, at)) & signs != 0).then_some(at)
        }
        at => at,
    }?;
    let show = |area: &[u8]| format!("{:02X?}", &area[(8 * at) & !15..][..16]);
    Some(format!("state at {}: host {}, guest {}", 8 * at, show(&host.area), show(&guest.area)))
}
