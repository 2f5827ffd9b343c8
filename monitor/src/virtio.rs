//! Virtio devices as the monitor sees them. The names of members are QMP's.

use serde::Serialize;

/// A device in the list.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct VirtioInfo {
    /// Its place among the machine's objects.
    pub path: String,
    /// `virtio-blk`.
    pub name: String,
}

/// A device's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtioStatus {
    /// Its place among the machine's objects.
    #[serde(skip)]
    pub path: String,
    /// `virtio-blk`.
    pub name: String,
    /// The device id.
    pub device_id: u16,
    /// Whether the host's kernel serves its rings.
    pub vhost_started: bool,
    /// `little`.
    pub device_endian: &'static str,
    /// What the driver has accepted.
    pub guest_features: Features,
    /// What the device offers.
    pub host_features: Features,
    /// Queues.
    pub num_vqs: usize,
    /// The bits of the status register by name.
    pub status: Statuses,
    /// Whether the driver has done what it must not, and the device waits for a reset.
    pub broken: bool,
    /// What it has done; for HMP.
    #[serde(skip)]
    pub why_broken: Option<String>,
    /// Whether the driver has started the device.
    pub started: bool,
    /// Whether the machine runs.
    pub vm_running: bool,
}

/// Feature bits by name.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Features {
    /// Those that all devices have.
    pub transports: Vec<String>,
    /// Those of the device's type.
    pub dev_features: Vec<String>,
    /// The bits of both that have no name here.
    #[serde(skip_serializing_if = "is_zero")]
    pub unknown_dev_features: u64,
}

fn is_zero(value: &u64) -> bool {
    *value == 0
}

/// Status bits by name.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Statuses {
    /// The names.
    pub statuses: Vec<String>,
}

/// A queue's state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct VirtioQueue {
    /// Its device's place among the machine's objects.
    #[serde(skip)]
    pub path: String,
    /// Its device's name.
    pub name: String,
    /// Its number.
    pub queue_index: usize,
    /// Buffers that the device has.
    pub inuse: u16,
    /// Descriptors, and the most that there can be.
    pub vring_num: u16,
    /// The most descriptors.
    pub vring_num_default: u16,
    /// Address of the descriptor table; 0 while the driver does not use the queue.
    pub vring_desc: u64,
    /// Address of the available ring.
    pub vring_avail: u64,
    /// Address of the used ring.
    pub vring_used: u64,
    /// The entry of the available ring that the device takes next.
    pub last_avail_idx: u16,
    /// The driver's index as it is in memory.
    pub shadow_avail_idx: u16,
    /// The entry of the used ring that the device fills next.
    pub used_idx: u16,
    /// The used index at the last decision whether to interrupt.
    pub signalled_used: u16,
}

/// The balloon.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Balloon {
    /// Bytes of RAM that the guest has left.
    pub actual: u64,
    /// What the guest has said of its memory: name and value.
    #[serde(skip)]
    pub stats: Vec<(&'static str, u64)>,
}
