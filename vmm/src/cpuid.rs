//! What CPUID shows: the CPU model that the user chose, and where each vCPU stands.
//!
//! Source: Intel SDM vol. 2A, CPUID; AMD APM vol. 3, appendix E; the x86-64 psABI's levels.

use board::vcpu::{Cpuid, CpuidLeaf};

use crate::suggest::nearest;

/// One of the four output registers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Register {
    Eax,
    Ebx,
    Ecx,
    Edx,
}

impl Register {
    fn of(self, leaf: &mut CpuidLeaf) -> &mut u32 {
        match self {
            Self::Eax => &mut leaf.eax,
            Self::Ebx => &mut leaf.ebx,
            Self::Ecx => &mut leaf.ecx,
            Self::Edx => &mut leaf.edx,
        }
    }
}

/// A register full of feature flags; names by bit, empty where the bit is not for `--cpu`.
struct Word {
    function: u32,
    index: u32,
    register: Register,
    names: &'static [(u8, &'static str)],
}

/// Flags by the names that QEMU and Linux use.
#[rustfmt::skip]
const WORDS: &[Word] = &[
    Word {
        function: 1,
        index: 0,
        register: Register::Edx,
        names: &[
            (0, "fpu"),
            (1, "vme"),
            (2, "de"),
            (3, "pse"),
            (4, "tsc"),
            (5, "msr"),
            (6, "pae"),
            (7, "mce"),
            (8, "cx8"),
            (9, "apic"),
            (11, "sep"),
            (12, "mtrr"),
            (13, "pge"),
            (14, "mca"),
            (15, "cmov"),
            (16, "pat"),
            (17, "pse36"),
            (19, "clflush"),
            (23, "mmx"),
            (24, "fxsr"),
            (25, "sse"),
            (26, "sse2"),
            (27, "ss"),
            (28, "ht"),
        ],
    },
    Word {
        function: 1,
        index: 0,
        register: Register::Ecx,
        names: &[
            (0, "sse3"),
            (1, "pclmulqdq"),
            (3, "monitor"),
            (9, "ssse3"),
            (12, "fma"),
            (13, "cx16"),
            (17, "pcid"),
            (19, "sse4.1"),
            (20, "sse4.2"),
            (21, "x2apic"),
            (22, "movbe"),
            (23, "popcnt"),
            (24, "tsc-deadline"),
            (25, "aes"),
            (26, "xsave"),
            (28, "avx"),
            (29, "f16c"),
            (30, "rdrand"),
            (31, "hypervisor"),
        ],
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ebx,
        names: &[
            (0, "fsgsbase"),
            (1, "tsc_adjust"),
            (3, "bmi1"),
            (5, "avx2"),
            (7, "smep"),
            (8, "bmi2"),
            (9, "erms"),
            (10, "invpcid"),
            (16, "avx512f"),
            (17, "avx512dq"),
            (18, "rdseed"),
            (19, "adx"),
            (20, "smap"),
            (21, "avx512ifma"),
            (23, "clflushopt"),
            (24, "clwb"),
            (28, "avx512cd"),
            (29, "sha-ni"),
            (30, "avx512bw"),
            (31, "avx512vl"),
        ],
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Ecx,
        names: &[
            (1, "avx512vbmi"),
            (2, "umip"),
            (3, "pku"),
            (6, "avx512vbmi2"),
            (8, "gfni"),
            (9, "vaes"),
            (10, "vpclmulqdq"),
            (11, "avx512vnni"),
            (12, "avx512bitalg"),
            (14, "avx512-vpopcntdq"),
            (16, "la57"),
            (22, "rdpid"),
            (25, "cldemote"),
            (27, "movdiri"),
            (28, "movdir64b"),
        ],
    },
    Word {
        function: 7,
        index: 0,
        register: Register::Edx,
        names: &[
            (4, "fsrm"),
            (10, "md-clear"),
            (14, "serialize"),
            (22, "amx-bf16"),
            (23, "avx512-fp16"),
            (24, "amx-tile"),
            (25, "amx-int8"),
            (26, "spec-ctrl"),
            (27, "stibp"),
            (29, "arch-capabilities"),
            (31, "ssbd"),
        ],
    },
    Word {
        function: 0xD,
        index: 1,
        register: Register::Eax,
        names: &[(0, "xsaveopt"), (1, "xsavec"), (2, "xgetbv1"), (3, "xsaves")],
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Edx,
        names: &[
            (11, "syscall"),
            (20, "nx"),
            (22, "mmxext"),
            (25, "fxsr-opt"),
            (26, "pdpe1gb"),
            (27, "rdtscp"),
            (29, "lm"),
        ],
    },
    Word {
        function: 0x8000_0001,
        index: 0,
        register: Register::Ecx,
        names: &[
            (0, "lahf-lm"),
            (1, "cmp-legacy"),
            (4, "cr8legacy"),
            (5, "abm"),
            (6, "sse4a"),
            (7, "misalignsse"),
            (8, "3dnowprefetch"),
        ],
    },
    Word {
        function: 0x8000_0008,
        index: 0,
        register: Register::Ebx,
        names: &[(0, "clzero"), (2, "xsaveerptr"), (9, "wbnoinvd"), (12, "ibpb")],
    },
    Word {
        function: 0x4000_0001,
        index: 0,
        register: Register::Eax,
        names: &[
            (0, "kvmclock"),
            (3, "kvmclock2"),
            (4, "kvm-asyncpf"),
            (5, "kvm-steal-time"),
            (6, "kvm-pv-eoi"),
            (7, "kvm-pv-unhalt"),
            (9, "kvm-pv-tlb-flush"),
            (11, "kvm-pv-ipi"),
            (24, "kvmclock-stable-bit"),
        ],
    },
];

#[rustfmt::skip]
const V1: &[&str] = &[
    "fpu",
    "vme",
    "de",
    "pse",
    "tsc",
    "msr",
    "pae",
    "mce",
    "cx8",
    "apic",
    "sep",
    "mtrr",
    "pge",
    "mca",
    "cmov",
    "pat",
    "pse36",
    "clflush",
    "mmx",
    "fxsr",
    "sse",
    "sse2",
    "ht",
    "hypervisor",
    "x2apic",
    "tsc-deadline",
    "syscall",
    "nx",
    "lm",
    "kvmclock",
    "kvmclock2",
    "kvmclock-stable-bit",
];
const V2: &[&str] = &["cx16", "lahf-lm", "popcnt", "sse3", "sse4.1", "sse4.2", "ssse3"];
const V3: &[&str] =
    &["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "abm", "movbe", "xsave", "xsaveopt", "xgetbv1"];

/// A CPU model, before the user's `+feature` and `-feature`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Model {
    /// All that the accelerator and the host can do.
    Max,
    /// The features of an x86-64 psABI level and what a machine needs besides.
    Level(u8),
}

/// Names, what they stand for, and how they are explained.
const MODELS: &[(&str, Model, &str)] = &[
    ("host", Model::Max, "all that this host and the accelerator have (the default)"),
    ("max", Model::Max, "the same"),
    ("x86-64-v1", Model::Level(1), "the first 64-bit CPUs: SSE2"),
    ("qemu64", Model::Level(1), "the same"),
    ("x86-64-v2", Model::Level(2), "from about 2009 on: SSE4.2, POPCNT, CX16"),
    ("x86-64-v3", Model::Level(3), "from about 2015 on: AVX2, BMI, FMA, MOVBE"),
];

/// `--cpu MODEL[,+FEATURE][,-FEATURE][,FEATURE=on|off]`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CpuModel {
    model: Model,
    /// Names from [`WORDS`], on or off, in the order given.
    changes: Vec<(String, bool)>,
}

impl Default for CpuModel {
    fn default() -> Self {
        Self { model: Model::Max, changes: Vec::new() }
    }
}

/// Why a `--cpu` is refused.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum CpuError {
    /// No such model.
    #[error("--cpu: there is no model '{name}': {}", hint(.near))]
    Model {
        /// What was given.
        name: String,
        /// The closest known one.
        near: Option<&'static str>,
    },
    /// No such feature.
    #[error("--cpu: there is no feature '{name}': {}", hint(.near))]
    Feature {
        /// What was given.
        name: String,
        /// The closest known one.
        near: Option<&'static str>,
    },
    /// The accelerator or the host lacks a feature that was asked for with `+`.
    #[error("--cpu: this host or accelerator has no '{0}': leave out +{0}")]
    Lacking(String),
}

fn hint(near: &Option<&str>) -> String {
    match near {
        Some(name) => format!("did you mean '{name}'?"),
        None => "--cpu help lists them".to_owned(),
    }
}

fn find(name: &str) -> Option<(&'static Word, u32)> {
    let plain = |s: &str| s.replace(['_', '.'], "-");
    WORDS.iter().find_map(|word| {
        let (bit, _) = word.names.iter().find(|(_, n)| plain(n) == plain(name))?;
        Some((word, 1 << bit))
    })
}

impl std::str::FromStr for CpuModel {
    type Err = CpuError;

    fn from_str(text: &str) -> Result<Self, CpuError> {
        let mut words = text.split(',');
        let name = words.next().unwrap_or_default();
        let Some((_, model, _)) = MODELS.iter().find(|(n, ..)| *n == name) else {
            let names = MODELS.iter().map(|(n, ..)| *n);
            return Err(CpuError::Model { name: name.to_owned(), near: nearest(name, names) });
        };
        let mut changes = Vec::new();
        for word in words {
            let (feature, on) = match (word.strip_prefix('+'), word.strip_prefix('-')) {
                (Some(feature), _) => (feature, true),
                (_, Some(feature)) => (feature, false),
                _ => match word.split_once('=') {
                    Some((feature, "off")) => (feature, false),
                    Some((feature, "on")) => (feature, true),
                    _ => (word, true),
                },
            };
            if find(feature).is_none() {
                let names = WORDS.iter().flat_map(|w| w.names.iter().map(|(_, n)| *n));
                return Err(CpuError::Feature {
                    name: feature.to_owned(),
                    near: nearest(feature, names),
                });
            }
            changes.push((feature.to_owned(), on));
        }
        Ok(Self { model: *model, changes })
    }
}

impl CpuModel {
    /// What `--cpu help` prints.
    pub fn help() -> String {
        let mut text = "Models:\n".to_owned();
        for (name, _, help) in MODELS {
            text += &format!("  {name:<16} {help}\n");
        }
        text += "Features, each with + or - before it, separated by commas:";
        let mut column = usize::MAX;
        for (_, name) in WORDS.iter().flat_map(|word| word.names) {
            if column.saturating_add(name.len() + 1) > 79 {
                text += "\n ";
                column = 1;
            }
            column += name.len() + 1;
            text += &format!(" {name}");
        }
        text + "\n"
    }

    /// The model cut out of what is `supported`.
    ///
    /// # Errors
    /// [`CpuError::Lacking`].
    pub fn select(&self, supported: &Cpuid) -> Result<Cpuid, CpuError> {
        let mut cpuid = supported.clone();
        if let Model::Level(level) = self.model {
            let lists = [V1, V2, V3];
            let wanted: Vec<_> = lists.iter().take(level.into()).flat_map(|l| l.iter()).collect();
            for word in WORDS {
                let keep = word.names.iter().filter(|(_, name)| wanted.contains(&name));
                let mask = keep.fold(0, |mask, (bit, _)| mask | 1_u32 << bit);
                if let Some(leaf) = cpuid.get_mut(word.function, word.index) {
                    *word.register.of(leaf) &= mask;
                }
            }
        }
        for (name, on) in &self.changes {
            let Some((word, bit)) = find(name) else { continue };
            let offered = supported
                .get(word.function, word.index)
                .is_some_and(|leaf| *word.register.of(&mut leaf.clone()) & bit != 0)
                || on_request(supported, word, bit);
            match (on, cpuid.get_mut(word.function, word.index)) {
                (true, Some(leaf)) if offered => *word.register.of(leaf) |= bit,
                (true, _) => return Err(CpuError::Lacking(name.clone())),
                (false, Some(leaf)) => *word.register.of(leaf) &= !bit,
                (false, None) => {}
            }
        }
        without_orphans(&mut cpuid);
        Ok(cpuid)
    }
}

/// MONITOR and MWAIT, which no model has of itself: an idle guest that waits with them keeps a
/// CPU of the host busy. Leaf 5 says that the accelerator can execute them.
fn on_request(supported: &Cpuid, word: &Word, bit: u32) -> bool {
    (word.function, word.register, bit) == (1, Register::Ecx, 1 << 3)
        && supported.get(5, 0).is_some_and(|leaf| leaf.ebx != 0)
}

/// Without XSAVE there is no leaf 0xD, and nothing that lives in its components; without MONITOR
/// there is no leaf 5.
fn without_orphans(cpuid: &mut Cpuid) {
    if cpuid.get(1, 0).is_some_and(|leaf| leaf.ecx & 1 << 3 == 0) {
        cpuid.leaves.retain(|leaf| leaf.function != 5);
    }
    let xsave = cpuid.get(1, 0).is_some_and(|leaf| leaf.ecx & 1 << 26 != 0);
    if !xsave {
        cpuid.leaves.retain(|leaf| leaf.function != 0xD);
    }
}

/// How vCPUs are arranged: `--smp`. The APIC id of vCPU `i` is `i`, so the numbers of threads and
/// of cores are powers of two wherever there is more than one of the next level.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Topology {
    /// vCPUs in all.
    pub cpus: u32,
    /// Sockets.
    pub sockets: u32,
    /// Cores in a socket.
    pub cores: u32,
    /// Threads in a core.
    pub threads: u32,
}

impl Topology {
    /// `cpus` cores of one thread in one socket.
    pub const fn flat(cpus: u32) -> Self {
        Self { cpus, sockets: 1, cores: cpus, threads: 1 }
    }

    /// Socket, core and thread of vCPU `id`.
    pub const fn place(&self, id: u32) -> (u32, u32, u32) {
        let thread = id % self.threads;
        let core = id / self.threads % self.cores;
        (id / self.threads / self.cores, core, thread)
    }

    /// Bits of the APIC id below the core number, and below the socket number.
    fn shifts(&self) -> (u32, u32) {
        let log = |n: u32| n.next_power_of_two().trailing_zeros();
        (log(self.threads), log(self.threads) + log(self.cores))
    }

    /// What vCPU `id` shows: `cpuid` with its APIC id and place.
    pub fn apply(&self, cpuid: &Cpuid, id: u32) -> Cpuid {
        let mut cpuid = cpuid.clone();
        let (core_shift, socket_shift) = self.shifts();
        let per_socket = self.cores * self.threads;
        for leaf in &mut cpuid.leaves {
            match leaf.function {
                1 => {
                    leaf.ebx = leaf.ebx & 0xFFFF | per_socket.min(255) << 16 | id << 24;
                    // HTT: the count above is valid.
                    leaf.edx = leaf.edx & !(1 << 28) | u32::from(per_socket > 1) << 28;
                }
                4 => {
                    // Deterministic cache parameters: sharing threads and cores in the package.
                    let level = leaf.eax >> 5 & 7;
                    let sharing = if level >= 3 { per_socket } else { self.threads };
                    leaf.eax = leaf.eax & 0x3FFF
                        | (sharing.next_power_of_two() - 1) << 14
                        | (self.cores.next_power_of_two() - 1).min(63) << 26;
                }
                0x8000_0008 => {
                    // AMD: the number of threads, and the APIC id bits that number them.
                    let size =
                        if per_socket > 1 { socket_shift << 12 | (per_socket - 1) } else { 0 };
                    leaf.ecx = leaf.ecx & !0xFFFF | size & 0xFFFF;
                }
                0x8000_001E => {
                    leaf.eax = id;
                    leaf.ebx = id >> core_shift | (self.threads - 1) << 8;
                    leaf.ecx = 0;
                }
                _ => {}
            }
        }
        self.apply_extended(&mut cpuid, id, core_shift, socket_shift);
        cpuid
    }

    /// Leaves 0xB and 0x1F: the levels of the APIC id.
    fn apply_extended(&self, cpuid: &mut Cpuid, id: u32, core_shift: u32, socket_shift: u32) {
        for function in [0xB, 0x1F] {
            if !cpuid.leaves.iter().any(|leaf| leaf.function == function) {
                continue;
            }
            cpuid.leaves.retain(|leaf| leaf.function != function);
            let levels = [
                (core_shift, self.threads, 1),
                (socket_shift, self.cores * self.threads, 2),
                (0, 0, 0),
            ];
            for (index, (shift, count, kind)) in (0..).zip(levels) {
                cpuid.leaves.push(CpuidLeaf {
                    function,
                    index: Some(index),
                    eax: shift,
                    ebx: count,
                    ecx: index | kind << 8,
                    edx: id,
                });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all_ones() -> Cpuid {
        let leaf = |function, index| CpuidLeaf {
            function,
            index,
            eax: u32::MAX,
            ebx: u32::MAX,
            ecx: u32::MAX,
            edx: u32::MAX,
        };
        let plain = [1, 0x4000_0001, 0x8000_0001, 0x8000_0008, 0x8000_001E].map(|f| leaf(f, None));
        let indexed = [(4, 0), (7, 0), (0xB, 0), (0xD, 1)].map(|(f, i)| leaf(f, Some(i)));
        Cpuid { leaves: plain.into_iter().chain(indexed).collect() }
    }

    fn select(text: &str) -> Cpuid {
        text.parse::<CpuModel>().unwrap().select(&all_ones()).unwrap()
    }

    #[test]
    fn features_are_taken_away_and_added_by_name() {
        let cpuid = select("host,-cx16,sse4_2=off,-rdtscp");
        assert_eq!(cpuid.get(1, 0).unwrap().ecx, !(1 << 13 | 1 << 20));
        assert_eq!(cpuid.get(0x8000_0001, 0).unwrap().edx, !(1 << 27));
        let v2 = select("x86-64-v2,+aes");
        let ecx = v2.get(1, 0).unwrap().ecx;
        assert!(ecx & 1 << 23 != 0 && ecx & 1 << 25 != 0, "popcnt by level, aes by +");
        assert!(ecx & 1 << 28 == 0, "avx is of v3");
    }

    #[test]
    fn without_xsave_its_leaf_goes_too() {
        assert!(select("host").get(0xD, 1).is_some());
        assert!(select("host,-xsave").get(0xD, 1).is_none());
    }

    #[test]
    fn monitor_is_there_on_request_where_it_can_be() {
        let monitor = |cpuid: &Cpuid| cpuid.get(1, 0).unwrap().ecx >> 3 & 1;
        let one = CpuidLeaf { function: 1, ..Default::default() };
        let five = CpuidLeaf { function: 5, eax: 64, ebx: 64, ..Default::default() };
        let able = Cpuid { leaves: vec![one, five] };
        let select = |text: &str, from| text.parse::<CpuModel>().unwrap().select(from);
        let plain = select("max", &able).unwrap();
        assert_eq!((monitor(&plain), plain.get(5, 0)), (0, None));
        for text in ["max,+monitor", "x86-64-v2,+monitor"] {
            let with = select(text, &able).unwrap();
            assert_eq!((monitor(&with), with.get(5, 0).unwrap().ebx), (1, 64));
        }
        let lacking = select("max,+monitor", &Cpuid { leaves: vec![one] });
        assert_eq!(lacking.unwrap_err(), CpuError::Lacking("monitor".into()));
    }

    #[test]
    fn errors_name_the_nearest() {
        let error = |text: &str| text.parse::<CpuModel>().unwrap_err().to_string();
        assert!(error("hots").contains("did you mean 'host'"), "{}", error("hots"));
        assert!(error("host,+popcount").contains("did you mean 'popcnt'"));
        let bare = Cpuid { leaves: vec![CpuidLeaf { function: 1, ..Default::default() }] };
        let lacking = "max,+avx2".parse::<CpuModel>().unwrap().select(&bare).unwrap_err();
        assert_eq!(lacking, CpuError::Lacking("avx2".into()));
    }

    #[test]
    fn apic_ids_and_levels_follow_the_topology() {
        let topology = Topology { cpus: 8, sockets: 2, cores: 2, threads: 2 };
        assert_eq!(topology.place(7), (1, 1, 1));
        let cpuid = topology.apply(&all_ones(), 5);
        let one = cpuid.get(1, 0).unwrap();
        assert_eq!((one.ebx >> 24, one.ebx >> 16 & 0xFF, one.edx >> 28 & 1), (5, 4, 1));
        let smt = cpuid.get(0xB, 0).unwrap();
        assert_eq!((smt.eax, smt.ebx, smt.ecx, smt.edx), (1, 2, 0x100, 5));
        let core = cpuid.get(0xB, 1).unwrap();
        assert_eq!((core.eax, core.ebx, core.ecx), (2, 4, 0x201));
        assert_eq!(cpuid.get(0xB, 2).unwrap().ecx, 2);
        assert_eq!(cpuid.get(4, 0).unwrap().eax >> 14 & 0xFFF, 3, "level 7 is shared by all");
    }

    #[test]
    fn a_single_cpu_has_no_siblings() {
        let cpuid = Topology::flat(1).apply(&all_ones(), 0);
        let one = cpuid.get(1, 0).unwrap();
        assert_eq!((one.ebx >> 16, one.edx >> 28 & 1), (1, 0));
        assert_eq!(cpuid.get(0xB, 1).unwrap().eax, 0);
    }
}
