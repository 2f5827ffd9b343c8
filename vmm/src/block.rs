//! The drives as the monitor's commands see and change them.

use devices::block::{Counts, Disks, DriveView, Format, ImageOptions, Limits, Rate, chain_files};
use monitor::CommandError;
use monitor::block::{
    BlockAction, BlockCache, BlockCounters, BlockImage, BlockInfo, BlockInserted, BlockStatsReply,
    IoLimits,
};

use crate::config::{DriveSpec, Interface};

/// The number in the names of nodes that the user has not named, from which QEMU's count too.
const FIRST_NODE: usize = 100;

pub(crate) fn devices(disks: &Disks) -> Vec<BlockInfo> {
    disks.all().iter().enumerate().map(|(index, drive)| info(index, drive)).collect()
}

fn info(index: usize, drive: &DriveView) -> BlockInfo {
    let DriveView { disk, options } = drive;
    let inserted = options.image.as_ref().zip(disk.image_info()).map(|(spec, image)| {
        let files = chain_files(spec);
        // A throwaway overlay is one more image on top.
        let depth = (files.len().saturating_sub(1) + usize::from(spec.snapshot)) as u64;
        let file = match spec.null {
            Some(_) => "null-co://".to_owned(),
            None => spec.file.display().to_string(),
        };
        let backing = match spec.snapshot {
            true => Some(file.clone()),
            false => files.get(1).map(|file| file.display().to_string()),
        };
        let limits = disk.limits();
        BlockInserted {
            file: file.clone(),
            node_name: match options.node {
                true => options.id.clone(),
                false => format!("#block{}", FIRST_NODE + index),
            },
            ro: disk.properties().readonly,
            drv: image.format,
            backing_file: backing,
            backing_file_depth: depth,
            encrypted: false,
            detect_zeroes: if options.detect_zeroes { "on" } else { "off" },
            limits: IoLimits {
                bps: limits.bps.average,
                bps_rd: limits.bps_rd.average,
                bps_wr: limits.bps_wr.average,
                iops: limits.iops.average,
                iops_rd: limits.iops_rd.average,
                iops_wr: limits.iops_wr.average,
            },
            image: BlockImage {
                filename: file,
                format: image.format,
                virtual_size: image.virtual_size,
                actual_size: image.actual_size,
                cluster_size: image.cluster_size,
                backing_filename: image.backing_file,
            },
            cache: BlockCache {
                writeback: !spec.cache.write_through,
                direct: spec.cache.direct,
                no_flush: spec.cache.no_flush,
            },
            write_threshold: 0,
        }
    });
    BlockInfo {
        device: if options.node { String::new() } else { options.id.clone() },
        qdev: disk.owner(),
        kind: "unknown",
        removable: false,
        locked: false,
        inserted,
    }
}

pub(crate) fn stats(disks: &Disks) -> Vec<BlockStatsReply> {
    let reply = |DriveView { disk, options }: DriveView| {
        let stats = disk.stats();
        let [read, write, flush, unmap]: [Counts; 4] =
            [stats.read, stats.write, stats.flush, stats.unmap];
        BlockStatsReply {
            device: options.id,
            qdev: disk.owner(),
            stats: BlockCounters {
                rd_bytes: read.bytes,
                wr_bytes: write.bytes,
                unmap_bytes: unmap.bytes,
                rd_operations: read.requests,
                wr_operations: write.requests,
                flush_operations: flush.requests,
                unmap_operations: unmap.requests,
                rd_total_time_ns: read.nanos,
                wr_total_time_ns: write.nanos,
                flush_total_time_ns: flush.nanos,
                unmap_total_time_ns: unmap.nanos,
                rd_merged: 0,
                wr_merged: 0,
                failed_rd_operations: read.failed,
                failed_wr_operations: write.failed,
                failed_flush_operations: flush.failed,
                failed_unmap_operations: unmap.failed,
                invalid_rd_operations: read.invalid,
                invalid_wr_operations: write.invalid,
                invalid_flush_operations: flush.invalid,
                invalid_unmap_operations: unmap.invalid,
                idle_time_ns: stats.idle.map(|idle| idle.as_nanos() as u64),
            },
        }
    };
    disks.all().into_iter().map(reply).collect()
}

pub(crate) fn act(disks: &Disks, action: BlockAction) -> Result<(), CommandError> {
    let refused = |error: &dyn std::fmt::Display| CommandError::Refused(error.to_string());
    match action {
        BlockAction::Resize { device, size } => {
            disks.find(&device).and_then(|disk| disk.resize(size))
        }
        BlockAction::Throttle { device, limits } => {
            let rate = |average| Rate { average, burst: 0 };
            let limits = Limits {
                bps: rate(limits.bps),
                bps_rd: rate(limits.bps_rd),
                bps_wr: rate(limits.bps_wr),
                iops: rate(limits.iops),
                iops_rd: rate(limits.iops_rd),
                iops_wr: rate(limits.iops_wr),
                iops_size: 0,
            };
            disks.find(&device).and_then(|disk| disk.set_limits(limits))
        }
        BlockAction::Add(text) => {
            let count = disks.all().len();
            let spec = DriveSpec::parse(&text, |_| count).map_err(|error| refused(&error))?;
            if spec.interface == Interface::Virtio {
                return Err(CommandError::Refused(
                    "a drive for a running machine needs if=none and a device: device_add virtio-blk-pci,drive=ID"
                        .to_owned(),
                ));
            }
            disks.add(spec.options).map(drop)
        }
        BlockAction::Delete(name) => disks.remove(&name),
        BlockAction::Eject(name) => disks.change(&name, None),
        BlockAction::Change { device, file, format, readonly } => {
            let old = disks.all().into_iter().find(|drive| drive.options.id == device);
            let old = old.and_then(|drive| drive.options.image);
            let format = match format.as_deref() {
                None => None,
                Some("raw") => Some(Format::Raw),
                Some("qcow2") => Some(Format::Qcow2),
                Some(other) => {
                    return Err(CommandError::Refused(format!(
                        "there is no format '{other}': known are raw, qcow2"
                    )));
                }
            };
            let base = old.unwrap_or_else(|| ImageOptions::new(""));
            let readonly = readonly.unwrap_or(base.readonly);
            let image =
                ImageOptions { file: file.into(), format, readonly, null: None, ..base };
            disks.change(&device, Some(image))
        }
        BlockAction::Commit(name) if name == "all" => {
            let based = |drive: &DriveView| {
                let image = drive.options.image.as_ref();
                image.is_some_and(|spec| spec.snapshot || chain_files(spec).len() > 1)
            };
            let all: Vec<_> = disks.all().into_iter().filter(based).collect();
            all.iter().try_for_each(|drive| disks.commit(&drive.options.id))
        }
        BlockAction::Commit(name) => disks.commit(&name),
    }
    .map_err(|error| refused(&error))
}
