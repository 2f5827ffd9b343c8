//! The few KVM calls that kvm-ioctls has no wrapper for, or only one with another type of fd.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

use kvm_bindings::{
    KVMIO, kvm_interrupt, kvm_ioeventfd, kvm_ioeventfd_flag_nr_deassign, kvm_irqfd, kvm_sregs2,
};
use kvm_ioctls::{VcpuFd, VmFd};
use vmm_sys_util::ioctl::{ioctl_with_mut_ptr, ioctl_with_mut_ref, ioctl_with_ptr, ioctl_with_ref};
use vmm_sys_util::{ioctl_ior_nr, ioctl_iow_nr};

ioctl_iow_nr!(KVM_INTERRUPT, KVMIO, 0x86, kvm_interrupt);
ioctl_iow_nr!(KVM_IRQFD, KVMIO, 0x76, kvm_irqfd);
ioctl_iow_nr!(KVM_IOEVENTFD, KVMIO, 0x79, kvm_ioeventfd);
ioctl_ior_nr!(KVM_GET_SREGS2, KVMIO, 0xCC, kvm_sregs2);
ioctl_iow_nr!(KVM_SET_SREGS2, KVMIO, 0xCD, kvm_sregs2);
// The sizes in these numbers are those of `struct kvm_xsave` without its flexible tail.
ioctl_iow_nr!(KVM_SET_XSAVE, KVMIO, 0xA5, [u8; 4096]);
ioctl_ior_nr!(KVM_GET_XSAVE, KVMIO, 0xA4, [u8; 4096]);
ioctl_ior_nr!(KVM_GET_XSAVE2, KVMIO, 0xCF, [u8; 4096]);

fn check(ret: i32) -> io::Result<()> {
    if ret < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

/// Queues external interrupt `vector`.
pub(super) fn interrupt(vcpu: &VcpuFd, vector: u8) -> io::Result<()> {
    let arg = kvm_interrupt { irq: u32::from(vector) };
    // SAFETY: `vcpu` is a vCPU fd; KVM_INTERRUPT reads one `kvm_interrupt`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_INTERRUPT(), &arg) })
}

/// Connects `fd` to `gsi`, or disconnects it.
pub(super) fn irqfd(vm: &VmFd, fd: BorrowedFd<'_>, gsi: u32, assign: bool) -> io::Result<()> {
    let flags = u32::from(!assign);
    let arg = kvm_irqfd { fd: fd.as_raw_fd() as u32, gsi, flags, ..Default::default() };
    // SAFETY: `vm` is a VM fd; KVM_IRQFD reads one `kvm_irqfd`.
    check(unsafe { ioctl_with_ref(vm, KVM_IRQFD(), &arg) })
}

/// Adds the doorbell, or removes it.
pub(super) fn ioeventfd(vm: &VmFd, mut bell: kvm_ioeventfd, assign: bool) -> io::Result<()> {
    if !assign {
        bell.flags |= 1 << kvm_ioeventfd_flag_nr_deassign;
    }
    // SAFETY: `vm` is a VM fd; KVM_IOEVENTFD reads one `kvm_ioeventfd`.
    check(unsafe { ioctl_with_ref(vm, KVM_IOEVENTFD(), &bell) })
}

/// Segment, control and table registers with the PAE page-directory pointers.
pub(super) fn get_sregs2(vcpu: &VcpuFd) -> io::Result<kvm_sregs2> {
    let mut sregs = kvm_sregs2::default();
    // SAFETY: `vcpu` is a vCPU fd; KVM_GET_SREGS2 writes one `kvm_sregs2`.
    check(unsafe { ioctl_with_mut_ref(vcpu, KVM_GET_SREGS2(), &mut sregs) })?;
    Ok(sregs)
}

/// Sets what [`get_sregs2`] gets.
pub(super) fn set_sregs2(vcpu: &VcpuFd, sregs: &kvm_sregs2) -> io::Result<()> {
    // SAFETY: `vcpu` is a vCPU fd; KVM_SET_SREGS2 reads one `kvm_sregs2`.
    check(unsafe { ioctl_with_ref(vcpu, KVM_SET_SREGS2(), sregs) })
}

/// Reads the XSAVE area, in the host's layout, into `area`, which is as long as
/// KVM_CAP_XSAVE2 says, and at least 4096 bytes.
pub(super) fn get_xsave(vcpu: &VcpuFd, area: &mut [u64], xsave2: bool) -> io::Result<()> {
    assert!(area.len() * 8 >= 4096);
    let request = if xsave2 { KVM_GET_XSAVE2() } else { KVM_GET_XSAVE() };
    // SAFETY: `vcpu` is a vCPU fd. KVM_GET_XSAVE writes 4096 bytes; KVM_GET_XSAVE2 as many as
    // KVM_CAP_XSAVE2 said when `area` was allocated.
    check(unsafe { ioctl_with_mut_ptr(vcpu, request, area.as_mut_ptr()) })
}

/// Sets the XSAVE area from `area`, made as for [`get_xsave`].
pub(super) fn set_xsave(vcpu: &VcpuFd, area: &[u64]) -> io::Result<()> {
    assert!(area.len() * 8 >= 4096);
    // SAFETY: `vcpu` is a vCPU fd; KVM_SET_XSAVE reads as many bytes as KVM_CAP_XSAVE2 said when
    // `area` was allocated.
    check(unsafe { ioctl_with_ptr(vcpu, KVM_SET_XSAVE(), area.as_ptr()) })
}
