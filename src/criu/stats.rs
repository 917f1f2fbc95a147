//! `stats-dump` and `stats-restore`: numbers that podman and others print.

use super::wire;
use crate::error::{Context, Result};
use crate::request::{CheckpointReport, RestoreReport};
use prost::Message;
use std::path::Path;
use std::time::Duration;

/// What these files begin with: images of services, and of them statistics.
const MAGIC: [u32; 2] = [0x5510_5940, 0x5709_3306];

/// Writes `stats-dump` into `directory`.
pub fn write_dump(directory: &Path, report: &CheckpointReport) -> Result<()> {
    let stats = wire::Stats {
        dump: Some(dump(report)),
        restore: None,
    };
    write(&directory.join("stats-dump"), &stats)
}

/// Writes `stats-restore` into `directory`.
pub fn write_restore(directory: &Path, report: &RestoreReport) -> Result<()> {
    let stats = wire::Stats {
        dump: None,
        restore: Some(restore(report)),
    };
    write(&directory.join("stats-restore"), &stats)
}

fn dump(report: &CheckpointReport) -> wire::DumpStats {
    wire::DumpStats {
        freezing_time: microseconds(report.freezing),
        frozen_time: microseconds(report.frozen),
        memdump_time: microseconds(report.memory_dump),
        memwrite_time: microseconds(report.memory_write),
        pages_scanned: report.pages_scanned,
        pages_skipped_parent: report.pages_skipped_parent,
        pages_written: report.pages_written,
        irmap_resolve: Some(0),
        pages_lazy: 0,
        page_pipes: Some(0),
        page_pipe_bufs: Some(0),
        shpages_scanned: Some(report.shared_pages_scanned),
        shpages_skipped_parent: Some(report.shared_pages_skipped_parent),
        shpages_written: Some(report.shared_pages_written),
    }
}

fn restore(report: &RestoreReport) -> wire::RestoreStats {
    wire::RestoreStats {
        pages_compared: report.pages_compared,
        pages_skipped_cow: report.pages_skipped_cow,
        forking_time: microseconds(report.forking),
        restore_time: microseconds(report.restoring),
        pages_restored: Some(report.pages_restored),
    }
}

fn microseconds(duration: Duration) -> u32 {
    u32::try_from(duration.as_micros()).unwrap_or(u32::MAX)
}

fn write(path: &Path, stats: &wire::Stats) -> Result<()> {
    let message = stats.encode_to_vec();
    let mut bytes = Vec::with_capacity(12 + message.len());
    for word in [MAGIC[0], MAGIC[1], message.len() as u32] {
        bytes.extend(word.to_le_bytes());
    }
    bytes.extend(message);
    std::fs::write(path, bytes).doing(|| format!("writing {}", path.display()))
}

/// The lines of `--display-stats`.
pub fn display_dump(report: &CheckpointReport) -> String {
    format!(
        "Displaying dump stats:\n\
         Freezing time: {} us\n\
         Frozen time: {} us\n\
         Memory dump time: {} us\n\
         Memory write time: {} us\n\
         Memory pages scanned: {}\n\
         Memory pages skipped from parent: {}\n\
         Memory pages written: {}\n",
        report.freezing.as_micros(),
        report.frozen.as_micros(),
        report.memory_dump.as_micros(),
        report.memory_write.as_micros(),
        report.pages_scanned,
        report.pages_skipped_parent,
        report.pages_written,
    )
}

/// The lines of `--display-stats`.
pub fn display_restore(report: &RestoreReport) -> String {
    format!(
        "Displaying restore stats:\n\
         Pages compared: {}\n\
         Pages skipped COW: {}\n\
         Pages restored: {}\n\
         Restore time: {} us\n\
         Forking time: {} us\n",
        report.pages_compared,
        report.pages_skipped_cow,
        report.pages_restored,
        report.restoring.as_micros(),
        report.forking.as_micros(),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stats_file_has_its_magic_its_length_and_the_required_numbers() {
        let directory = tempfile::tempdir().unwrap();
        let report = CheckpointReport {
            frozen: Duration::from_millis(3),
            pages_written: 300,
            ..CheckpointReport::default()
        };
        write_dump(directory.path(), &report).unwrap();
        let bytes = std::fs::read(directory.path().join("stats-dump")).unwrap();
        assert_eq!(&bytes[..8], b"\x40\x59\x10\x55\x06\x33\x09\x57");
        let length = u32::from_le_bytes(bytes[8..12].try_into().unwrap()) as usize;
        assert_eq!(bytes.len(), 12 + length);
        let stats = wire::Stats::decode(&bytes[12..]).unwrap().dump.unwrap();
        assert_eq!(stats.frozen_time, 3000);
        assert_eq!(stats.pages_written, 300);
        // Required numbers are there although they are zero.
        assert!(bytes[12..].windows(2).any(|pair| pair == [0x08, 0x00]));

        let report = RestoreReport {
            restoring: Duration::from_secs(1),
            ..RestoreReport::default()
        };
        write_restore(directory.path(), &report).unwrap();
        let bytes = std::fs::read(directory.path().join("stats-restore")).unwrap();
        let stats = wire::Stats::decode(&bytes[12..]).unwrap().restore.unwrap();
        assert_eq!(stats.restore_time, 1_000_000);
    }
}
