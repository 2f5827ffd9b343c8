//! A debugger outside the guest, by way of KVM_SET_GUEST_DEBUG (KVM API, 4.87).
//!
//! KVM lends the host's debug registers: four breakpoints and watchpoints together, which the guest
//! does not see and whose place its own cannot have meanwhile. x86 has none that stop at reads only.

use board::{AccelError, DebugRequest, Exit, Trap, WatchKind, Watchpoint};
use kvm_bindings::{
    KVM_CAP_SET_GUEST_DEBUG2, KVM_GUESTDBG_BLOCKIRQ, KVM_GUESTDBG_ENABLE, KVM_GUESTDBG_SINGLESTEP,
    KVM_GUESTDBG_USE_HW_BP, kvm_guest_debug, kvm_guest_debug_arch,
};
use kvm_ioctls::VmFd;

use super::host;
use super::vcpu::KvmVcpu;

/// Debug registers of the host's.
const SLOTS: usize = 4;
/// DR6: the trap of a single step.
const BS: u64 = 1 << 14;

/// Whether KVM can hold off interrupts while it steps.
pub(super) fn blocks_interrupts(vm: &VmFd) -> bool {
    let flags = vm.check_extension_raw(KVM_CAP_SET_GUEST_DEBUG2.into());
    flags > 0 && flags as u32 & KVM_GUESTDBG_BLOCKIRQ != 0
}

/// DR0 to DR7 for what is asked, breakpoints first.
fn registers(request: &DebugRequest) -> Result<[u64; 8], String> {
    let count = request.breakpoints.len() + request.watchpoints.len();
    if count > SLOTS {
        return Err(format!(
            "KVM has {SLOTS} breakpoints and watchpoints together: remove some, or use --accel soft"
        ));
    }
    let mut dr = [0; 8];
    dr[7] = 0x400;
    let breakpoints = request.breakpoints.iter().map(|at| Ok((*at, 0)));
    let all = breakpoints.chain(request.watchpoints.iter().map(watch_bits));
    for (index, slot) in all.enumerate() {
        let (address, bits) = slot?;
        dr[index] = address;
        dr[7] |= 2 << (2 * index) | bits << (16 + 4 * index);
    }
    Ok(dr)
}

/// The address of a watchpoint, and its R/W and LEN bits (SDM vol. 3, 18.2.4).
fn watch_bits(point: &Watchpoint) -> Result<(u64, u64), String> {
    let kind = match point.kind {
        WatchKind::Write => 1,
        WatchKind::Access => 3,
        WatchKind::Read => {
            return Err("x86 cannot watch reads alone: watch accesses, or use --accel soft".into());
        }
    };
    let len = match point.len {
        1 => 0,
        2 => 1,
        4 => 3,
        8 => 2,
        _ => 4,
    };
    if len == 4 || !point.address.is_multiple_of(point.len) {
        return Err(format!(
            "KVM watches 1, 2, 4 or 8 aligned bytes, not {} at {:#x}: use --accel soft",
            point.len, point.address
        ));
    }
    Ok((point.address, kind | len << 2))
}

/// What a debug exit was about.
fn trap(request: &DebugRequest, dr6: u64) -> Trap {
    let slot = (0..SLOTS).find(|slot| dr6 & 1 << slot != 0);
    match slot.and_then(|slot| slot.checked_sub(request.breakpoints.len())) {
        Some(index) if index < request.watchpoints.len() => Trap::Watch(request.watchpoints[index]),
        _ if slot.is_none() && dr6 & BS != 0 => Trap::Step,
        _ => Trap::Breakpoint,
    }
}

impl KvmVcpu {
    pub(super) fn apply_debug(&mut self, request: &DebugRequest) -> Result<(), AccelError> {
        registers(request).map_err(AccelError::Unsupported)?;
        self.debug = request.clone();
        self.set_guest_debug()
    }

    /// Tells KVM what the debugger wants and, in the registers that it leaves, where the guest's
    /// handlers are that [`super::gaps`] watches.
    pub(super) fn set_guest_debug(&mut self) -> Result<(), AccelError> {
        let request = &self.debug;
        let mut debugreg = registers(request).map_err(AccelError::Unsupported)?;
        let used = request.breakpoints.len() + request.watchpoints.len();
        if let Some(handlers) = self.gaps.handlers
            && used + handlers.len() <= SLOTS
        {
            debugreg[SLOTS - handlers.len()..SLOTS].copy_from_slice(&handlers);
            // L2 and L3, both on execution (SDM vol. 3, 18.2.4).
            debugreg[7] |= 0x50;
        }
        let mut debug = kvm_guest_debug::default();
        if !request.is_none() || self.gaps.handlers.is_some() {
            debug.control = KVM_GUESTDBG_ENABLE | KVM_GUESTDBG_USE_HW_BP;
            debug.arch = kvm_guest_debug_arch { debugreg };
        }
        if request.step {
            debug.control |= KVM_GUESTDBG_SINGLESTEP;
            if self.shared.blocks_interrupts {
                debug.control |= KVM_GUESTDBG_BLOCKIRQ;
            }
        }
        host(self.fd.set_guest_debug(&debug), || format!("KVM_SET_GUEST_DEBUG of vCPU {}", self.id))
    }

    /// Whether a debug exit is for the debugger, not for [`super::gaps`].
    pub(super) fn is_debuggers(&self, dr6: u64) -> bool {
        let used = self.debug.breakpoints.len() + self.debug.watchpoints.len();
        self.debug.step && dr6 & BS != 0 || dr6 & ((1 << used) - 1) != 0
    }

    pub(super) fn debug_exit(&self, dr6: u64) -> Exit {
        Exit::Debug(trap(&self.debug, dr6))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn watch(address: u64, len: u64, kind: WatchKind) -> Watchpoint {
        Watchpoint { address, len, kind }
    }

    #[test]
    fn breakpoints_come_before_watchpoints() {
        let request = DebugRequest {
            step: false,
            breakpoints: vec![0xFFFF_8000_0000_1000],
            watchpoints: vec![
                watch(0x2000, 8, WatchKind::Write),
                watch(0x3004, 4, WatchKind::Access),
            ],
        };
        let dr = registers(&request).unwrap();
        assert_eq!(dr[..4], [0xFFFF_8000_0000_1000, 0x2000, 0x3004, 0]);
        assert_eq!(dr[7], 0x400 | 0x2A | 0b1001 << 20 | 0b1111 << 24);
        assert_eq!(trap(&request, 1), Trap::Breakpoint);
        assert_eq!(trap(&request, 1 << 2), Trap::Watch(request.watchpoints[1]));
        assert_eq!(trap(&request, BS), Trap::Step);
        assert_eq!(trap(&request, BS | 2), Trap::Watch(request.watchpoints[0]));
    }

    #[test]
    fn what_x86_cannot_watch_is_refused() {
        let with = |watchpoints| DebugRequest { watchpoints, ..DebugRequest::default() };
        for (request, word) in [
            (with(vec![watch(0, 1, WatchKind::Write); 5]), "4 breakpoints"),
            (with(vec![watch(0, 4, WatchKind::Read)]), "reads alone"),
            (with(vec![watch(2, 4, WatchKind::Write)]), "aligned"),
            (with(vec![watch(0, 3, WatchKind::Write)]), "1, 2, 4 or 8"),
        ] {
            let error = registers(&request).unwrap_err();
            assert!(error.contains(word) && error.contains("--accel soft"), "{error}");
        }
    }
}
