//! The KVM accelerator.
//!
//! The order of calls matters for start-up: memory slots that come after an in-kernel irqchip cost
//! milliseconds on some hosts, so [`Kvm::new`] is given the memory map and sets the slots first.
//!
//! Source: Linux, Documentation/virt/kvm/api.rst; section numbers there.

mod debug;
mod gaps;
mod irq;
mod probe;
mod state;
mod sys;
mod vcpu;
mod xsave;

use std::io;
use std::os::fd::AsRawFd;
use std::sync::{Arc, Mutex, PoisonError};

use board::accel::{Assists, ClockState, Doorbells, Irqchip, Irqfds};
use board::memory::{MemoryMap, MemorySlot};
use board::vcpu::{Cpuid, CpuidLeaf};
use board::{Accel, AccelError, Vcpu};
use kvm_bindings::{
    CpuId, KVM_CAP_EXIT_ON_EMULATION_FAILURE, KVM_CAP_SPLIT_IRQCHIP,
    KVM_CPUID_FLAG_SIGNIFCANT_INDEX, KVM_MAX_CPUID_ENTRIES, KVM_MEM_LOG_DIRTY_PAGES,
    KVM_MEM_READONLY, kvm_clock_data, kvm_cpuid_entry2, kvm_enable_cap,
    kvm_userspace_memory_region,
};
use kvm_ioctls::{Cap, VmFd};

use irq::Interrupts;
use vcpu::KvmVcpu;

pub use probe::{Ring0, looks_native};

/// I/O APIC pins, and GSIs reserved for them.
const IOAPIC_PINS: u32 = 24;

/// Leaf 1, ECX: what KVM offers without listing it (api.rst, 4.46).
const HYPERVISOR: u32 = 1 << 31;
const TSC_DEADLINE: u32 = 1 << 24;

/// Three pages and one page that KVM needs for real mode on older Intel CPUs (api.rst, 4.36 and
/// 4.41). They lie below the largest firmware image and above the local APICs.
const TSS_ADDRESS: usize = 0xFEFF_D000;
const IDENTITY_MAP_ADDRESS: u64 = 0xFEFF_C000;

/// Who has the PICs and the I/O APIC; `kernel-irqchip=` of `--machine`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum KernelIrqchip {
    /// The machine: the kernel has the local APICs only.
    #[default]
    Split,
    /// The kernel.
    On,
}

/// A failed call as an [`AccelError`].
fn host<T, E: Into<io::Error>>(
    result: Result<T, E>,
    call: impl FnOnce() -> String,
) -> Result<T, AccelError> {
    result.map_err(|e| AccelError::Host { call: call(), cause: e.into() })
}

/// `/dev/kvm`, opened and found usable.
pub struct Device(kvm_ioctls::Kvm);

impl Device {
    /// Opens `/dev/kvm`.
    ///
    /// # Errors
    /// [`AccelError::Unavailable`] with the remedy.
    pub fn open() -> Result<Self, AccelError> {
        let unavailable =
            |cause: String, remedy| AccelError::Unavailable { accel: "KVM", cause, remedy };
        let kvm = kvm_ioctls::Kvm::new().map_err(|e| {
            let error = io::Error::from(e);
            let remedy = match error.kind() {
                io::ErrorKind::NotFound => {
                    "Load the module kvm_intel or kvm_amd, or pass /dev/kvm into the container."
                }
                io::ErrorKind::PermissionDenied => {
                    "Add your user to the group that owns /dev/kvm (usermod -aG kvm USER) and log \
                     in anew."
                }
                _ => "Check that virtualization is enabled in the firmware.",
            };
            unavailable(format!("cannot open /dev/kvm: {error}"), remedy)
        })?;
        if kvm.get_api_version() != 12 {
            return Err(unavailable(
                format!("/dev/kvm has API version {}, not 12", kvm.get_api_version()),
                "Check that it is KVM's device; Linux has had version 12 since 2.6.22.",
            ));
        }
        if !kvm.check_extension(Cap::ImmediateExit) || !kvm.check_extension(Cap::SplitIrqchip) {
            return Err(unavailable(
                "it lacks immediate_exit or the split irqchip".to_owned(),
                "Use a Linux kernel from 4.13 on.",
            ));
        }
        Ok(Self(kvm))
    }

    /// How many vCPUs a machine can have.
    pub fn max_vcpus(&self) -> u32 {
        self.0.get_max_vcpus() as u32
    }

    /// What CPUID can show under this KVM.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    pub fn supported_cpuid(&self) -> Result<Cpuid, AccelError> {
        let entries = host(self.0.get_supported_cpuid(KVM_MAX_CPUID_ENTRIES), || {
            "KVM_GET_SUPPORTED_CPUID".into()
        })?;
        let mut extra = HYPERVISOR;
        if self.0.check_extension(Cap::TscDeadlineTimer) {
            extra |= TSC_DEADLINE;
        }
        let leaves = entries.as_slice().iter().map(|e| CpuidLeaf {
            function: e.function,
            index: (e.flags & KVM_CPUID_FLAG_SIGNIFCANT_INDEX != 0).then_some(e.index),
            eax: e.eax,
            ebx: e.ebx,
            ecx: if e.function == 1 { e.ecx | extra } else { e.ecx },
            edx: e.edx,
        });
        Ok(Cpuid { leaves: leaves.collect() })
    }
}

/// One machine on KVM.
pub struct Kvm {
    cpuid: Cpuid,
    vm: Arc<VmFd>,
    interrupts: Arc<Interrupts>,
    kind: KernelIrqchip,
    /// The slots as the kernel has them; the index is the slot's number.
    slots: Mutex<Vec<MemorySlot>>,
    /// The memory that the kernel maps; it must outlive the VM.
    map: Mutex<MemoryMap>,
    shared: Arc<vcpu::Shared>,
}

impl Kvm {
    /// A VM with the memory of `map` and its interrupt controllers, and no vCPU.
    ///
    /// # Errors
    /// [`AccelError::Host`].
    pub fn new(device: &Device, map: &MemoryMap, kind: KernelIrqchip) -> Result<Self, AccelError> {
        Self::with_gaps(device, map, kind, false)
    }

    /// The same; with `bare`, what KVM cannot execute stays an [`board::Exit::InternalError`].
    fn with_gaps(
        device: &Device,
        map: &MemoryMap,
        kind: KernelIrqchip,
        bare: bool,
    ) -> Result<Self, AccelError> {
        // KVM_CREATE_VM is interrupted by signals (EINTR) on some kernels.
        let vm = loop {
            match device.0.create_vm() {
                Err(e) if e.errno() == libc::EINTR => {}
                other => break Arc::new(host(other, || "KVM_CREATE_VM".into())?),
            }
        };
        // Asked once: where this is a virtual machine too, KVM takes long to answer.
        let cpuid = device.supported_cpuid()?;
        let shared =
            Arc::new(vcpu::Shared::new(&device.0, &vm, &cpuid, gaps::Machine::new(map, bare))?);
        let interrupts = Arc::new(Interrupts::new(vm.clone(), kind));
        let this = Self {
            cpuid,
            vm,
            interrupts,
            kind,
            slots: Mutex::default(),
            map: Mutex::new(map.clone()),
            shared,
        };
        // Only Intel's KVM knows these calls.
        let _ = this.vm.set_identity_map_address(IDENTITY_MAP_ADDRESS);
        let _ = this.vm.set_tss_address(TSS_ADDRESS);
        this.set_memory(map)?;
        this.create_irqchip()?;
        Ok(this)
    }

    fn create_irqchip(&self) -> Result<(), AccelError> {
        let enable = |cap: u32, arg: u64, name: &str| {
            let mut request = kvm_enable_cap { cap, ..Default::default() };
            request.args[0] = arg;
            host(self.vm.enable_cap(&request), || format!("KVM_ENABLE_CAP {name}"))
        };
        if self.vm.check_extension_raw(KVM_CAP_EXIT_ON_EMULATION_FAILURE.into()) > 0 {
            enable(KVM_CAP_EXIT_ON_EMULATION_FAILURE, 1, "EXIT_ON_EMULATION_FAILURE")?;
        }
        match self.kind {
            KernelIrqchip::Split => {
                enable(KVM_CAP_SPLIT_IRQCHIP, IOAPIC_PINS.into(), "SPLIT_IRQCHIP")?;
            }
            KernelIrqchip::On => {
                host(self.vm.create_irq_chip(), || "KVM_CREATE_IRQCHIP".into())?;
                self.interrupts.install()?;
            }
        }
        Ok(())
    }

    fn set_slot(&self, number: usize, slot: &MemorySlot, size: u64) -> Result<(), AccelError> {
        let mut flags = 0;
        if slot.readonly {
            flags |= KVM_MEM_READONLY;
        }
        if slot.log_dirty {
            flags |= KVM_MEM_LOG_DIRTY_PAGES;
        }
        let region = kvm_userspace_memory_region {
            slot: number as u32,
            flags,
            guest_phys_addr: slot.start,
            memory_size: size,
            userspace_addr: slot.host,
        };
        // SAFETY: the slot's host range is mapped as long as the `MemoryMap` in `self.map` lives,
        // which is as long as the VM.
        let result = unsafe { self.vm.set_user_memory_region(region) };
        host(result, || format!("KVM_SET_USER_MEMORY_REGION {:#x}, {:#x} bytes", slot.start, size))
    }
}

impl Accel for Kvm {
    fn name(&self) -> &'static str {
        "kvm"
    }

    fn add_vcpu(&self, id: u32, cpuid: &Cpuid) -> Result<Box<dyn Vcpu>, AccelError> {
        let fd = host(self.vm.create_vcpu(id.into()), || format!("KVM_CREATE_VCPU {id}"))?;
        let entries: Vec<_> = cpuid
            .leaves
            .iter()
            .map(|leaf| kvm_cpuid_entry2 {
                function: leaf.function,
                index: leaf.index.unwrap_or(0),
                flags: leaf.index.map_or(0, |_| KVM_CPUID_FLAG_SIGNIFCANT_INDEX),
                eax: leaf.eax,
                ebx: leaf.ebx,
                ecx: leaf.ecx,
                edx: leaf.edx,
                ..Default::default()
            })
            .collect();
        let entries = CpuId::from_entries(&entries).map_err(|_| {
            AccelError::Unsupported(format!("{} CPUID leaves are too many for KVM", entries.len()))
        })?;
        host(fd.set_cpuid2(&entries), || format!("KVM_SET_CPUID2 of vCPU {id}"))?;
        Ok(Box::new(KvmVcpu::new(id, fd, self.shared.clone(), cpuid.clone())))
    }

    fn irqchip(&self) -> Irqchip {
        match self.kind {
            KernelIrqchip::Split => Irqchip::Split(self.interrupts.clone()),
            KernelIrqchip::On => {
                Irqchip::Full { lines: self.interrupts.clone(), msi: self.interrupts.clone() }
            }
        }
    }

    fn set_memory(&self, map: &MemoryMap) -> Result<(), AccelError> {
        let mut current = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        for (number, slot) in map.slots().iter().enumerate() {
            if let Some(old) = current.get(number) {
                if old == slot {
                    continue;
                }
                // Flags may change in place; an address may not.
                if (old.start, old.size, old.host, old.readonly)
                    != (slot.start, slot.size, slot.host, slot.readonly)
                {
                    self.set_slot(number, old, 0)?;
                }
            }
            self.set_slot(number, slot, slot.size)?;
        }
        for (number, old) in current.iter().enumerate().skip(map.slots().len()) {
            self.set_slot(number, old, 0)?;
        }
        *current = map.slots().to_vec();
        self.shared.gaps.set_memory(map);
        *self.map.lock().unwrap_or_else(PoisonError::into_inner) = map.clone();
        Ok(())
    }

    fn take_dirty(&self, slot: usize) -> Result<Vec<u64>, AccelError> {
        let slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        match slots.get(slot) {
            Some(memory) if memory.log_dirty => {
                let mut log =
                    host(self.vm.get_dirty_log(slot as u32, memory.size as usize), || {
                        format!("KVM_GET_DIRTY_LOG of slot {slot}")
                    })?;
                self.shared.gaps.add_dirty(slot, &mut log);
                Ok(log)
            }
            _ => Ok(Vec::new()),
        }
    }

    fn clock(&self) -> Result<ClockState, AccelError> {
        let clock = host(self.vm.get_clock(), || "KVM_GET_CLOCK".into())?;
        Ok(ClockState { nanos: clock.clock })
    }

    fn set_clock(&self, clock: &ClockState) -> Result<(), AccelError> {
        let data = kvm_clock_data { clock: clock.nanos, ..Default::default() };
        host(self.vm.set_clock(&data), || "KVM_SET_CLOCK".into())
    }

    fn supported_cpuid(&self) -> Cpuid {
        self.cpuid.clone()
    }

    fn doorbells(&self) -> Option<&dyn Doorbells> {
        Some(&*self.interrupts)
    }

    fn irqfds(&self) -> Option<&dyn Irqfds> {
        Some(&*self.interrupts)
    }

    fn assists(&self) -> Option<Assists> {
        Some(self.shared.gaps.assists())
    }
}

impl std::fmt::Debug for Kvm {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Kvm(fd {})", self.vm.as_raw_fd())
    }
}
