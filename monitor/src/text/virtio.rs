//! `info virtio`, `info virtio-status`, `info virtio-queue-status`, `info balloon`.

use std::fmt::{self, Write};

use crate::virtio::{Balloon, Features, VirtioInfo, VirtioQueue, VirtioStatus};

pub(super) fn devices(out: &mut String, devices: &[VirtioInfo]) -> fmt::Result {
    if devices.is_empty() {
        return writeln!(out, "No VirtIO devices");
    }
    devices.iter().try_for_each(|device| writeln!(out, "{} [{}]", device.path, device.name))
}

pub(super) fn status(out: &mut String, status: &VirtioStatus) -> fmt::Result {
    writeln!(out, "{}:", status.path)?;
    writeln!(out, "  device_name:             {}", status.name)?;
    writeln!(out, "  device_id:               {}", status.device_id)?;
    writeln!(out, "  vhost_started:           {}", status.vhost_started)?;
    writeln!(out, "  broken:                  {}", status.broken)?;
    writeln!(out, "  started:                 {}", status.started)?;
    writeln!(out, "  vm_running:              {}", status.vm_running)?;
    writeln!(out, "  num_vqs:                 {}", status.num_vqs)?;
    writeln!(out, "  endianness:              {}", status.device_endian)?;
    if let Some(why) = &status.why_broken {
        writeln!(out, "  needs a reset because:   {why}")?;
    }
    writeln!(out, "  status:")?;
    list(out, &status.status.statuses)?;
    writeln!(out, "  Guest features:")?;
    features(out, &status.guest_features)?;
    writeln!(out, "  Host features:")?;
    features(out, &status.host_features)
}

fn list(out: &mut String, names: &[String]) -> fmt::Result {
    let last = names.len().wrapping_sub(1);
    for (index, name) in names.iter().enumerate() {
        writeln!(out, "        {name}{}", if index == last { "" } else { "," })?;
    }
    Ok(())
}

fn features(out: &mut String, features: &Features) -> fmt::Result {
    let Features { transports, dev_features, unknown_dev_features } = features;
    list(out, &[transports.as_slice(), dev_features.as_slice()].concat())?;
    match unknown_dev_features {
        0 => Ok(()),
        bits => writeln!(out, "        unknown-dev-features({bits:#018x})"),
    }
}

pub(super) fn queue(out: &mut String, queue: &VirtioQueue) -> fmt::Result {
    writeln!(out, "{}:", queue.path)?;
    writeln!(out, "  device_name:          {}", queue.name)?;
    writeln!(out, "  queue_index:          {}", queue.queue_index)?;
    writeln!(out, "  inuse:                {}", queue.inuse)?;
    writeln!(out, "  used_idx:             {}", queue.used_idx)?;
    writeln!(out, "  signalled_used:       {}", queue.signalled_used)?;
    writeln!(out, "  last_avail_idx:       {}", queue.last_avail_idx)?;
    writeln!(out, "  shadow_avail_idx:     {}", queue.shadow_avail_idx)?;
    writeln!(out, "  VRing:")?;
    writeln!(out, "    num:          {}", queue.vring_num)?;
    writeln!(out, "    num_default:  {}", queue.vring_num_default)?;
    writeln!(out, "    desc:         {:#018x}", queue.vring_desc)?;
    writeln!(out, "    avail:        {:#018x}", queue.vring_avail)?;
    writeln!(out, "    used:         {:#018x}", queue.vring_used)
}

pub(super) fn balloon(out: &mut String, balloon: &Balloon) -> fmt::Result {
    write!(out, "balloon: actual={}", balloon.actual >> 20)?;
    for (name, value) in &balloon.stats {
        write!(out, " {name}={value}")?;
    }
    writeln!(out)
}
