//! Interrupts by message, line and eventfd, and doorbells.
//!
//! KVM knows one table of GSI routes, which is replaced whole (4.52 KVM_SET_GSI_ROUTING). With the
//! split irqchip, GSIs 0 to 23 carry the level-triggered messages of the I/O APIC's pins: nothing
//! is ever raised through them, but KVM reports an end of interrupt only for vectors that it finds
//! there. GSIs from 24 on are irqfds.

use std::collections::BTreeMap;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::{Arc, Mutex, PoisonError};

use board::AccelError;
use board::accel::{ApicBus, Doorbell, Doorbells, Irqfds, Space};
use board::irq::{IrqSink, Msi, MsiSink};
use kvm_bindings::{
    KVM_IRQ_ROUTING_IRQCHIP, KVM_IRQ_ROUTING_MSI, KVM_IRQCHIP_IOAPIC, KVM_IRQCHIP_PIC_MASTER,
    KVM_IRQCHIP_PIC_SLAVE, KVM_MAX_IRQ_ROUTES, KvmIrqRouting, kvm_ioeventfd,
    kvm_ioeventfd_flag_nr_datamatch, kvm_ioeventfd_flag_nr_pio, kvm_irq_routing_entry, kvm_msi,
};
use kvm_ioctls::VmFd;

use super::{IOAPIC_PINS, KernelIrqchip, host, sys};

/// Everything between devices and the kernel's local APICs.
pub(super) struct Interrupts {
    vm: Arc<VmFd>,
    kind: KernelIrqchip,
    routes: Mutex<Routes>,
}

#[derive(Default)]
struct Routes {
    /// Level-triggered messages of the I/O APIC's pins; the split irqchip only.
    pins: [Option<Msi>; IOAPIC_PINS as usize],
    /// Messages of irqfds by GSI; `None` is masked.
    irqfds: BTreeMap<u32, Option<Msi>>,
}

fn msi_entry(gsi: u32, msi: Msi) -> kvm_irq_routing_entry {
    let mut entry = kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_MSI, ..Default::default() };
    entry.u.msi.address_lo = msi.address as u32;
    entry.u.msi.address_hi = (msi.address >> 32) as u32;
    entry.u.msi.data = msi.data;
    entry
}

fn chip_entry(gsi: u32, irqchip: u32, pin: u32) -> kvm_irq_routing_entry {
    let mut entry =
        kvm_irq_routing_entry { gsi, type_: KVM_IRQ_ROUTING_IRQCHIP, ..Default::default() };
    entry.u.irqchip.irqchip = irqchip;
    entry.u.irqchip.pin = pin;
    entry
}

/// ISA interrupts at both controllers, with the timer at pin 2 of the I/O APIC as the MADT says.
fn full_irqchip_entries() -> Vec<kvm_irq_routing_entry> {
    let mut entries = Vec::new();
    for gsi in 0..IOAPIC_PINS {
        match gsi {
            2 => continue,
            0..8 => entries.push(chip_entry(gsi, KVM_IRQCHIP_PIC_MASTER, gsi)),
            8..16 => entries.push(chip_entry(gsi, KVM_IRQCHIP_PIC_SLAVE, gsi - 8)),
            _ => {}
        }
        let pin = if gsi == 0 { 2 } else { gsi };
        entries.push(chip_entry(gsi, KVM_IRQCHIP_IOAPIC, pin));
    }
    entries
}

impl Interrupts {
    pub(super) fn new(vm: Arc<VmFd>, kind: KernelIrqchip) -> Self {
        Self { vm, kind, routes: Mutex::default() }
    }

    /// Gives KVM the table as it is.
    pub(super) fn install(&self) -> Result<(), AccelError> {
        self.flush(&self.routes.lock().unwrap_or_else(PoisonError::into_inner))
    }

    fn flush(&self, routes: &Routes) -> Result<(), AccelError> {
        let mut entries = match self.kind {
            KernelIrqchip::On => full_irqchip_entries(),
            KernelIrqchip::Split => {
                let pins = routes.pins.iter().enumerate();
                pins.filter_map(|(pin, msi)| Some(msi_entry(pin as u32, (*msi)?))).collect()
            }
        };
        let irqfds = routes.irqfds.iter();
        entries.extend(irqfds.filter_map(|(gsi, msi)| Some(msi_entry(*gsi, (*msi)?))));
        let table = KvmIrqRouting::from_entries(&entries).map_err(|_| {
            AccelError::Unsupported(format!(
                "{} interrupt routes are too many for KVM",
                entries.len()
            ))
        })?;
        host(self.vm.set_gsi_routing(&table), || "KVM_SET_GSI_ROUTING".into())
    }
}

impl MsiSink for Interrupts {
    fn send(&self, msi: Msi) {
        let message = kvm_msi {
            address_lo: msi.address as u32,
            address_hi: (msi.address >> 32) as u32,
            data: msi.data,
            ..Default::default()
        };
        // An error means that no local APIC took the message, which on the bus goes unnoticed too.
        let _ = self.vm.signal_msi(message);
    }
}

impl ApicBus for Interrupts {
    fn route_level(&self, pin: u32, level_msi: Option<Msi>) {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(route) = routes.pins.get_mut(pin as usize) else { return };
        if *route != level_msi {
            *route = level_msi;
            // The table is never longer than 24 pins and the irqfds that `add` has counted.
            let _ = self.flush(&routes);
        }
    }
}

impl IrqSink for Interrupts {
    fn set_irq(&self, pin: u32, level: bool) {
        // It fails only for a GSI without a route, which has no controller to tell.
        let _ = self.vm.set_irq_line(pin, level);
    }
}

impl Irqfds for Interrupts {
    fn add(&self, eventfd: BorrowedFd<'_>, msi: Msi) -> Result<u32, AccelError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let gsi = (IOAPIC_PINS..KVM_MAX_IRQ_ROUTES as u32)
            .find(|gsi| !routes.irqfds.contains_key(gsi))
            .ok_or_else(|| AccelError::Unsupported("no interrupt route is left in KVM".into()))?;
        routes.irqfds.insert(gsi, Some(msi));
        let result = self.flush(&routes).and_then(|()| {
            host(sys::irqfd(&self.vm, eventfd, gsi, true), || format!("KVM_IRQFD for GSI {gsi}"))
        });
        if result.is_err() {
            routes.irqfds.remove(&gsi);
        }
        result.map(|()| gsi)
    }

    fn set(&self, gsi: u32, msi: Option<Msi>) -> Result<(), AccelError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        routes.irqfds.insert(gsi, msi);
        self.flush(&routes)
    }

    fn remove(&self, eventfd: BorrowedFd<'_>, gsi: u32) -> Result<(), AccelError> {
        let mut routes = self.routes.lock().unwrap_or_else(PoisonError::into_inner);
        host(sys::irqfd(&self.vm, eventfd, gsi, false), || format!("KVM_IRQFD for GSI {gsi}"))?;
        routes.irqfds.remove(&gsi);
        self.flush(&routes)
    }
}

fn ioeventfd(bell: Doorbell, eventfd: BorrowedFd<'_>) -> kvm_ioeventfd {
    let mut flags = 0;
    if bell.space == Space::Pio {
        flags |= 1 << kvm_ioeventfd_flag_nr_pio;
    }
    if bell.value.is_some() {
        flags |= 1 << kvm_ioeventfd_flag_nr_datamatch;
    }
    kvm_ioeventfd {
        datamatch: bell.value.unwrap_or(0),
        addr: bell.address,
        len: bell.width.into(),
        fd: eventfd.as_raw_fd(),
        flags,
        ..Default::default()
    }
}

impl Doorbells for Interrupts {
    fn add(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        let result = sys::ioeventfd(&self.vm, ioeventfd(bell, eventfd), true);
        host(result, || format!("KVM_IOEVENTFD at {:?} {:#x}", bell.space, bell.address))
    }

    fn remove(&self, bell: Doorbell, eventfd: BorrowedFd<'_>) -> Result<(), AccelError> {
        let result = sys::ioeventfd(&self.vm, ioeventfd(bell, eventfd), false);
        host(result, || format!("KVM_IOEVENTFD at {:?} {:#x}", bell.space, bell.address))
    }
}
