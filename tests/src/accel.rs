//! The accelerators that work on this host.

use std::fs::File;
use std::process::{Command, Stdio};
use std::sync::OnceLock;

use vmm::kvm::{Ring0, looks_native};

use crate::files::{guest, notice, program};

/// An accelerator of the program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Accel {
    /// `/dev/kvm`.
    Kvm,
    /// The software CPU.
    Soft,
}

impl Accel {
    const ALL: [Self; 2] = [Self::Kvm, Self::Soft];

    /// Its name in `--accel`.
    pub fn name(self) -> &'static str {
        match self {
            Self::Kvm => "kvm",
            Self::Soft => "soft",
        }
    }

    /// Whether guests cannot use what a KVM that emulates ring 0 lacks.
    pub fn lacks_instructions(self) -> bool {
        self == Self::Kvm && emulates_ring0()
    }

    /// Why it does not work here, if it does not.
    fn missing(self) -> Option<String> {
        match self {
            Self::Kvm => {
                let open = File::options().read(true).write(true).open("/dev/kvm");
                open.err().map(|e| format!("cannot open /dev/kvm: {e}"))
            }
            Self::Soft => {
                let mut command = Command::new(program());
                command.args(["--accel", "soft", "--serial", "null", "--monitor", "none"]);
                command.arg("--kernel").arg(guest("null")).stdin(Stdio::null());
                let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
                let said = String::from_utf8_lossy(&output.stderr).into_owned();
                let first = said.lines().next().unwrap_or_default().trim_end().to_owned();
                if output.status.code() == Some(1) && first.contains("is not available") {
                    return Some(first);
                }
                assert!(output.status.success(), "{command:?}: {}: {said}", output.status);
                None
            }
        }
    }
}

/// Why an accelerator does not work here, for those that do not.
pub fn reasons() -> Vec<(Accel, String)> {
    Accel::ALL.into_iter().filter_map(|accel| Some((accel, accel.missing()?))).collect()
}

/// Whether this host's KVM emulates ring 0, and lacks instructions there.
pub fn emulates_ring0() -> bool {
    static EMULATES: OnceLock<bool> = OnceLock::new();
    *EMULATES.get_or_init(|| {
        !looks_native() && Ring0::probe().is_ok_and(|ring0| ring0 == Ring0::Emulated)
    })
}

/// Runs `test` on each accelerator that works here, and says which do not.
pub fn on_each_accel(test: impl Fn(Accel)) {
    let missing = reasons();
    for accel in Accel::ALL {
        match missing.iter().find(|(it, _)| *it == accel) {
            Some((_, why)) => notice(&format!("on accelerator {}: {why}", accel.name())),
            None => test(accel),
        }
    }
}

/// Runs `test` if KVM works here, and says so if it does not.
pub fn with_kvm(test: impl FnOnce()) {
    match Accel::Kvm.missing() {
        Some(why) => notice(&format!("what needs KVM: {why}")),
        None => test(),
    }
}
