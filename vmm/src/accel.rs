//! Choosing the accelerator.

use std::sync::Arc;

use board::memory::MemoryMap;
use board::{Accel, AccelError, LoopHandle};

use crate::config::{AccelChoice, Config};
use crate::{Error, report, soft};

/// Opens the accelerator that `config` asks for.
///
/// # Errors
/// [`AccelError::Unavailable`] with the cause and the remedy.
pub fn open(
    config: &Config,
    map: &MemoryMap,
    events: &LoopHandle,
) -> Result<Arc<dyn Accel>, Error> {
    match config.accel {
        AccelChoice::Kvm => open_kvm(config, map),
        AccelChoice::Soft => open_soft(config, map, events),
        AccelChoice::Auto => match why_not_kvm() {
            None => {
                report::note("KVM executes the guest: it runs ring 0 natively here");
                open_kvm(config, map)
            }
            Some(why) => {
                report::note(&format!("the software CPU executes the guest: {why}"));
                open_soft(config, map, events)
            }
        },
    }
}

fn open_soft(
    config: &Config,
    map: &MemoryMap,
    events: &LoopHandle,
) -> Result<Arc<dyn Accel>, Error> {
    if config.kernel_irqchip {
        return Err(Error::Unsupported(
            "--machine kernel-irqchip=on is for KVM only: leave it out, or add --accel kvm".into(),
        ));
    }
    Ok(soft::open(config, map, events)?)
}

#[cfg(feature = "kvm")]
fn open_kvm(config: &Config, map: &MemoryMap) -> Result<Arc<dyn Accel>, Error> {
    use crate::kvm::{Device, KernelIrqchip, Kvm};

    let device = Device::open()?;
    let max = device.max_vcpus();
    if config.topology.cpus > max {
        return Err(Error::Unsupported(format!(
            "--smp {}: KVM has at most {max} vCPUs on this host: ask for fewer",
            config.topology.cpus
        )));
    }
    let kind = if config.kernel_irqchip { KernelIrqchip::On } else { KernelIrqchip::Split };
    Ok(Arc::new(Kvm::new(&device, map, kind)?))
}

#[cfg(not(feature = "kvm"))]
fn open_kvm(_config: &Config, _map: &MemoryMap) -> Result<Arc<dyn Accel>, Error> {
    Err(Error::Accel(AccelError::Unavailable {
        accel: "KVM",
        cause: "this vmm was built without it".into(),
        remedy: "Build it with the feature kvm, which is on by default.",
    }))
}

/// What makes the software CPU the better choice, if anything does. The probe takes about a
/// millisecond, and is made only where the loaded modules leave a doubt.
#[cfg(feature = "kvm")]
fn why_not_kvm() -> Option<String> {
    use crate::kvm::{Device, Ring0, looks_native};

    let probe = || {
        Device::open()?;
        if looks_native() { Ok(Ring0::Native) } else { Ring0::probe() }
    };
    match probe() {
        Ok(Ring0::Native) => None,
        Ok(Ring0::Emulated) => Some("this host's KVM emulates ring 0 in software".into()),
        Err(AccelError::Unavailable { cause, .. }) => Some(cause),
        Err(error) => Some(error.to_string()),
    }
}

#[cfg(not(feature = "kvm"))]
fn why_not_kvm() -> Option<String> {
    Some("this vmm was built without KVM".into())
}

/// Says so, on one line, where this host's KVM emulates ring 0. The probe runs on a thread of its
/// own, and only where the loaded modules leave a doubt.
#[cfg(feature = "kvm")]
pub fn warn_of_emulation() {
    use crate::kvm::{Ring0, looks_native};

    if looks_native() {
        return;
    }
    let _held = crate::signals::hold();
    // A host without a thread left has worse problems.
    let _ = std::thread::Builder::new().name("kvm-probe".into()).spawn(|| {
        if Ring0::of_host() == Ring0::Emulated {
            report::note(
                "this host's KVM emulates ring 0 in software, slowly; the alternative is --accel soft",
            );
        }
    });
}

/// There is no KVM in this program.
#[cfg(not(feature = "kvm"))]
pub fn warn_of_emulation() {}

#[cfg(test)]
mod tests {
    use std::ffi::OsString;

    use board::memory::PAGE_SIZE;
    use board::{Clock, EventLoop, GuestRam};

    use super::*;
    use crate::cli::Cli;

    #[test]
    fn the_software_cpu_has_no_controllers_in_a_kernel() {
        let events = EventLoop::new(Clock::stopped()).unwrap();
        let map = MemoryMap::new(&GuestRam::new(PAGE_SIZE).unwrap());
        let open = |machine: &str| {
            let args = ["vmm", "--kernel", "k", "--accel", "soft", "--machine", machine];
            let cli = Cli::read(args.map(OsString::from)).unwrap();
            super::open(&Config::new(cli).unwrap(), &map, &events.handle())
        };
        assert_eq!(open("pc").unwrap().name(), "soft");
        let error = open("pc,kernel-irqchip=on").err().unwrap().to_string();
        assert!(error.contains("leave it out"), "{error}");
    }
}
