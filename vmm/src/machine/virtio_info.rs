//! Virtio devices as the monitor's commands see them.

use devices::virtio::balloon::{Balloon, STAT_NAMES};
use devices::virtio::{Core, Status, with_core, with_device};
use monitor::CommandError;
use monitor::virtio::{self as view, Features, Statuses, VirtioInfo, VirtioQueue, VirtioStatus};

use super::{Machine, VirtioEntry};

/// Feature bits that all devices have, by name.
const TRANSPORT_FEATURES: [(u32, &str); 3] = [
    (28, "VIRTIO_RING_F_INDIRECT_DESC"),
    (29, "VIRTIO_RING_F_EVENT_IDX"),
    (32, "VIRTIO_F_VERSION_1"),
];

impl Machine {
    fn virtio_entry(&self, path: &str) -> Option<&VirtioEntry> {
        self.virtio.entries.iter().find(|entry| entry.path == path)
    }

    /// All virtio devices.
    pub(crate) fn virtio_devices(&self) -> Vec<VirtioInfo> {
        let info = |entry: &VirtioEntry| {
            let name = with_core(&entry.slot, |core, _| core.kind().name)?;
            Some(VirtioInfo { path: entry.path.clone(), name: name.to_owned() })
        };
        self.virtio.entries.iter().filter_map(info).collect()
    }

    /// The state of the device at `path`.
    pub(crate) fn virtio_status(&self, path: &str) -> Option<VirtioStatus> {
        let entry = self.virtio_entry(path)?;
        let vm_running = self.state == monitor::state::RunState::Running;
        with_core(&entry.slot, |core, _| VirtioStatus {
            path: path.to_owned(),
            name: core.kind().name.to_owned(),
            device_id: core.kind().id,
            vhost_started: false,
            device_endian: "little",
            guest_features: features(core, core.accepted()),
            host_features: features(core, core.offered()),
            num_vqs: core.queues().len(),
            status: Statuses {
                statuses: core.status().iter_names().map(|(name, _)| name.to_owned()).collect(),
            },
            broken: core.status().contains(Status::NEEDS_RESET),
            why_broken: core.broken().map(|why| why.to_string()),
            started: core.status().contains(Status::DRIVER_OK),
            vm_running,
        })
    }

    /// The state of a queue of the device at `path`.
    pub(crate) fn virtio_queue(&self, path: &str, index: usize) -> Option<VirtioQueue> {
        let entry = self.virtio_entry(path)?;
        let ram = self.map.ram();
        with_core(&entry.slot, |core, _| {
            let queue = core.queues().get(index)?;
            let layout = queue.layout();
            let (last_avail_idx, used_idx) = queue.positions();
            let there = |address| if queue.is_ready() { address } else { 0 };
            let [shadow_avail_idx, ..] = queue.in_memory(ram);
            Some(VirtioQueue {
                path: path.to_owned(),
                name: core.kind().name.to_owned(),
                queue_index: index,
                inuse: queue.in_flight(),
                vring_num: layout.size,
                vring_num_default: queue.max_size(),
                vring_desc: there(layout.descriptors),
                vring_avail: there(layout.avail),
                vring_used: there(layout.used),
                last_avail_idx,
                shadow_avail_idx: if queue.is_ready() { shadow_avail_idx } else { 0 },
                used_idx,
                signalled_used: queue.signalled(),
            })
        })
        .flatten()
    }

    /// What the first balloon, if there is one, gives `act`.
    fn with_balloon<R>(
        &self,
        mut act: impl FnMut(&mut Balloon, &mut devices::virtio::Io<'_>) -> R,
    ) -> Result<R, CommandError> {
        let mut entries = self.virtio.entries.iter();
        entries.find_map(|entry| with_device(&entry.slot, &mut act)).ok_or_else(|| {
            CommandError::Refused(
                "No balloon device has been activated: give --device virtio-balloon".into(),
            )
        })
    }

    /// The balloon's size, and what the guest last said of its memory.
    pub(crate) fn balloon(&self) -> Result<view::Balloon, CommandError> {
        let size = self.map.ram().size();
        self.with_balloon(|balloon, io| view::Balloon {
            actual: size.saturating_sub(balloon.actual()),
            stats: std::iter::zip(STAT_NAMES, balloon.stats(io))
                .filter_map(|(name, value)| Some((name, value?)))
                .collect(),
        })
    }

    /// Asks the guest to get along with `bytes` of RAM.
    pub(crate) fn set_balloon(&self, bytes: u64) -> Result<(), CommandError> {
        let inflate = self.map.ram().size().saturating_sub(bytes);
        self.with_balloon(|balloon, io| balloon.set_target(inflate, io))
    }
}

fn features(core: &Core, bits: u64) -> Features {
    let named = |names: &[(u32, &str)], prefix: &str| -> Vec<String> {
        let set = names.iter().filter(|(bit, _)| bits >> bit & 1 != 0);
        set.map(|(_, name)| format!("{prefix}{name}")).collect()
    };
    let own = core.device().feature_names();
    let known = own.iter().chain(&TRANSPORT_FEATURES).fold(0, |known, (bit, _)| known | 1 << bit);
    Features {
        transports: named(&TRANSPORT_FEATURES, ""),
        dev_features: named(own, "VIRTIO_"),
        unknown_dev_features: bits & !known,
    }
}
