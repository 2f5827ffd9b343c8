//! `info block`, `info blockstats`.

use std::fmt::{self, Write};

use crate::block::{BlockInfo, BlockInserted, BlockStatsReply, IoLimits};

pub(super) fn info(out: &mut String, drives: &[BlockInfo]) -> fmt::Result {
    for (index, drive) in drives.iter().enumerate() {
        if index > 0 {
            writeln!(out)?;
        }
        one(out, drive)?;
    }
    Ok(())
}

fn one(out: &mut String, drive: &BlockInfo) -> fmt::Result {
    let node = drive.inserted.as_ref().map(|inserted| inserted.node_name.as_str());
    match (drive.device.as_str(), node) {
        ("", node) => write!(out, "{}", node.unwrap_or_default())?,
        (device, None) => write!(out, "{device}")?,
        (device, Some(node)) => write!(out, "{device} ({node})")?,
    }
    match &drive.inserted {
        Some(inserted) => {
            let readonly = if inserted.ro { ", read-only" } else { "" };
            writeln!(out, ": {} ({}{readonly})", inserted.file, inserted.drv)?;
        }
        None => writeln!(out, ": [not inserted]")?,
    }
    if let Some(qdev) = &drive.qdev {
        writeln!(out, "    Attached to:      {qdev}")?;
    }
    drive.inserted.as_ref().map_or(Ok(()), |inserted| image(out, inserted))
}

fn image(out: &mut String, image: &BlockInserted) -> fmt::Result {
    let mode = if image.cache.writeback { "writeback" } else { "writethrough" };
    let direct = if image.cache.direct { ", direct" } else { "" };
    let no_flush = if image.cache.no_flush { ", ignore flushes" } else { "" };
    writeln!(out, "    Cache mode:       {mode}{direct}{no_flush}")?;
    if let Some(backing) = &image.backing_file {
        let depth = image.backing_file_depth;
        writeln!(out, "    Backing file:     {backing} (chain depth: {depth})")?;
    }
    if image.detect_zeroes != "off" {
        writeln!(out, "    Detect zeroes:    {}", image.detect_zeroes)?;
    }
    let IoLimits { bps, bps_rd, bps_wr, iops, iops_rd, iops_wr } = image.limits;
    if image.limits != IoLimits::default() {
        writeln!(
            out,
            "    I/O throttling:   bps={bps} bps_rd={bps_rd} bps_wr={bps_wr} iops={iops} iops_rd={iops_rd} iops_wr={iops_wr}"
        )?;
    }
    Ok(())
}

pub(super) fn stats(out: &mut String, all: &[BlockStatsReply]) -> fmt::Result {
    all.iter().try_for_each(|BlockStatsReply { device, stats, .. }| {
        writeln!(
            out,
            "{device}: rd_bytes={} wr_bytes={} rd_operations={} wr_operations={} flush_operations={} \
             wr_total_time_ns={} rd_total_time_ns={} flush_total_time_ns={} rd_merged={} wr_merged={} \
             idle_time_ns={}",
            stats.rd_bytes,
            stats.wr_bytes,
            stats.rd_operations,
            stats.wr_operations,
            stats.flush_operations,
            stats.wr_total_time_ns,
            stats.rd_total_time_ns,
            stats.flush_total_time_ns,
            stats.rd_merged,
            stats.wr_merged,
            stats.idle_time_ns.unwrap_or(0),
        )
    })
}
