//! [`Control`]: all that a command may ask of the machine.
//!
//! `vmm` implements it; the tests of this crate use a fake. The methods that take a vCPU index
//! park that vCPU for as long as they need its state. All of them answer at once: the monitor runs
//! on the main loop.

use std::io::{self, Write};

use crate::block::{BlockAction, BlockInfo, BlockStatsReply};
use crate::error::CommandError;
use crate::state::{
    Chardev, Cpu, Dump, HostMemory, Icount, IoApic, IrqStats, Kvm, LocalApic, LogItem, MemoryTree,
    PciBus, Pic, Registers, Rom, RunState, Translation, Version,
};
use crate::virtio::{Balloon, VirtioInfo, VirtioQueue, VirtioStatus};

/// The machine as the monitor sees it.
pub trait Control {
    /// This program's version.
    fn version(&self) -> Version;
    /// `--name`, if one was given.
    fn name(&self) -> Option<String>;
    /// `--uuid`; all zeros if none was given.
    fn uuid(&self) -> [u8; 16];
    /// Whether KVM runs the vCPUs, and whether it could.
    fn kvm(&self) -> Kvm;
    /// The instructions executed and the VM clock; `None` where the accelerator does not count.
    fn icount(&mut self) -> Option<Icount>;
    /// The character devices, in the order in which they were made.
    fn chardevs(&self) -> Vec<Chardev>;

    /// The state that the machine is in.
    fn status(&self) -> RunState;
    /// Parks all vCPUs. A machine that does not run keeps its state.
    fn stop(&mut self) -> Result<(), CommandError>;
    /// Lets the vCPUs run. The caller has made sure that the state allows it.
    fn cont(&mut self) -> Result<(), CommandError>;
    /// Resets the machine as its reset button does.
    fn system_reset(&mut self) -> Result<(), CommandError>;
    /// Presses the (ACPI) power button.
    fn system_powerdown(&mut self) -> Result<(), CommandError>;
    /// Ends the emulator once the answer to this command is written.
    fn quit(&mut self);
    /// Sends an NMI to every vCPU, by way of the local APIC's LINT1 where there is one.
    fn inject_nmi(&mut self) -> Result<(), CommandError>;

    /// The vCPUs by index; the element's place is its index.
    fn cpus(&mut self) -> Vec<Cpu>;
    /// The architectural state of vCPU `cpu`.
    ///
    /// # Errors
    /// [`CommandError::Refused`] where the accelerator cannot tell.
    fn registers(&mut self, cpu: usize) -> Result<Registers, CommandError>;
    /// The local APIC of vCPU `cpu`; `None` where it has none.
    fn local_apic(&mut self, cpu: usize) -> Option<LocalApic>;

    /// Fills `data` from virtual address `addr` on, through the page tables of vCPU `cpu`.
    ///
    /// # Errors
    /// [`CommandError::Unmapped`] where any of these bytes has no mapping, no memory, or lies beyond
    /// the last address; what `data` holds then is unspecified.
    fn read_virtual(&mut self, cpu: usize, addr: u64, data: &mut [u8]) -> Result<(), CommandError>;
    /// Fills `data` from guest-physical address `addr` on, RAM and ROM.
    ///
    /// # Errors
    /// [`CommandError::Unmapped`] as [`read_virtual`](Self::read_virtual).
    fn read_physical(&mut self, addr: u64, data: &mut [u8]) -> Result<(), CommandError>;
    /// Reads `size` (1, 2 or 4) bytes at I/O port `port`, as an `in` would: all ones where there is
    /// no device.
    fn port_read(&mut self, port: u16, size: u8) -> u32;
    /// Writes the low `size` (1, 2 or 4) bytes of `value` to I/O port `port`, as an `out` would.
    fn port_write(&mut self, port: u16, size: u8, value: u32);

    /// The guest-physical address behind virtual address `addr` of vCPU `cpu`; `None`: not mapped.
    ///
    /// # Errors
    /// [`CommandError::Refused`] where the accelerator cannot tell.
    fn translate(&mut self, cpu: usize, addr: u64) -> Result<Option<u64>, CommandError>;
    /// Calls `visit` with each mapped page of vCPU `cpu` by ascending address, until it says false
    /// or the page tables have cost too much. Whether all have been visited.
    ///
    /// # Errors
    /// [`CommandError::Refused`] where the accelerator cannot tell.
    fn walk_pages(
        &mut self,
        cpu: usize,
        visit: &mut dyn FnMut(Translation) -> bool,
    ) -> Result<bool, CommandError>;
    /// Where the host has guest-physical address `addr`.
    fn host_memory(&mut self, addr: u64) -> HostMemory;
    /// The host-physical address behind address `addr` of this process.
    fn host_physical(&mut self, addr: u64) -> io::Result<u64>;
    /// What can be logged, and what is.
    fn log_items(&self) -> Vec<LogItem>;
    /// Logs these items from now on, and no others. The caller has made sure that there are such.
    fn set_log_items(&mut self, names: &[&str]);
    /// The log goes into the file `path` of the host from now on.
    ///
    /// # Errors
    /// The host's; then it goes on where it was.
    fn set_log_file(&mut self, path: &str) -> io::Result<()>;
    /// The ROMs.
    fn roms(&mut self) -> Vec<Rom>;
    /// Writes memory and registers as an ELF core. The guest stands still meanwhile.
    ///
    /// # Errors
    /// [`CommandError::File`]; [`CommandError::Refused`] where there is no memory to write.
    fn dump_memory(&mut self, dump: &Dump) -> Result<(), CommandError>;
    /// What has become of the last dump ("none", "completed", "failed"), and its bytes.
    fn last_dump(&mut self) -> (&'static str, u64);

    /// The address spaces with their regions.
    fn memory_tree(&mut self) -> MemoryTree;
    /// How often each interrupt controller saw each of its lines raised.
    fn irq_stats(&mut self) -> Vec<IrqStats>;
    /// The 8259A pair, master first; empty on a machine without.
    fn pics(&mut self) -> Vec<Pic>;
    /// The I/O APICs; empty on a machine without.
    fn io_apics(&mut self) -> Vec<IoApic>;

    /// The drives.
    fn block_devices(&mut self) -> Vec<BlockInfo>;
    /// What the drives have done.
    fn block_stats(&mut self) -> Vec<BlockStatsReply>;
    /// Changes a drive.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with the cause and the next step.
    fn block_action(&mut self, action: BlockAction) -> Result<(), CommandError>;

    /// The network cards and backends, a line each, as QEMU shows them.
    fn network(&mut self) -> String;
    /// The connections and forwards of the user networks, likewise.
    fn usernet(&mut self) -> String;
    /// Plugs in or pulls the cable of the card or backend `name`.
    ///
    /// # Errors
    /// [`CommandError::DeviceNotFound`].
    fn set_link(&mut self, name: &str, up: bool) -> Result<(), CommandError>;
    /// Opens the network backend that `text` describes, as `--netdev` does.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with the cause; nothing has changed then.
    fn netdev_add(&mut self, text: &str) -> Result<(), CommandError>;
    /// Closes a network backend.
    ///
    /// # Errors
    /// [`CommandError::DeviceNotFound`].
    fn netdev_del(&mut self, id: &str) -> Result<(), CommandError>;
    /// Leads a port of the host to the guest of the user network `netdev`, else of the first.
    ///
    /// # Errors
    /// [`CommandError::Remark`] with the cause.
    fn hostfwd_add(&mut self, netdev: Option<&str>, rule: &str) -> Result<(), CommandError>;
    /// Ends such a forward, and says so.
    ///
    /// # Errors
    /// [`CommandError::Remark`] with the cause.
    fn hostfwd_remove(&mut self, netdev: Option<&str>, rule: &str) -> Result<String, CommandError>;

    /// The virtio devices.
    fn virtio_devices(&mut self) -> Vec<VirtioInfo>;
    /// The virtio device at `path`, if there is one.
    fn virtio_status(&mut self, path: &str) -> Option<VirtioStatus>;
    /// Queue `index` of the virtio device at `path`, if there is one.
    fn virtio_queue(&mut self, path: &str, index: usize) -> Option<VirtioQueue>;
    /// The memory balloon.
    ///
    /// # Errors
    /// [`CommandError::Refused`] on a machine without.
    fn balloon(&mut self) -> Result<Balloon, CommandError>;
    /// Asks the guest to get along with `bytes` of RAM.
    ///
    /// # Errors
    /// As [`balloon`](Self::balloon).
    fn set_balloon(&mut self, bytes: u64) -> Result<(), CommandError>;
    /// Lets gdb attach by backend `device` ("tcp::1234"), in place of the one before; "none": by none
    /// any more.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with the cause.
    fn gdbserver(&mut self, device: &str) -> Result<(), CommandError>;

    /// The PCI buses with their functions; empty on a machine without.
    fn pci(&mut self) -> Vec<PciBus>;
    /// Plugs in the device that `text` describes, as `--device` does.
    ///
    /// # Errors
    /// [`CommandError::Refused`] with the cause; nothing has changed then.
    fn device_add(&mut self, text: &str) -> Result<(), CommandError>;
    /// Asks the guest to give up the device `id`; the event DEVICE_DELETED follows once it has.
    ///
    /// # Errors
    /// [`CommandError::DeviceNotFound`], or [`CommandError::Refused`] when it is asked already.
    fn device_del(&mut self, id: &str) -> Result<(), CommandError>;

    /// Makes (or empties) a file of the host.
    fn create_file(&mut self, path: &str) -> io::Result<Box<dyn Write>>;
    /// The names in directory `path` of the host ("" is the current one), those of directories with
    /// a `/` at the end; empty where it cannot be read. For completion.
    fn list_dir(&self, path: &str) -> Vec<String>;
}
