//! The log that `-d` asks for, on stderr or where `-D` says.

use std::fs::File;
use std::io::Write;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use board::bus::Unclaimed;

use crate::config::LogItems;
use crate::{Error, report};

/// Where the log goes.
pub struct Log {
    /// `-D` or `logfile`; stderr without them.
    file: Mutex<Option<File>>,
    /// [`LogItems::unimp`] and [`LogItems::cpu_reset`].
    unimp: AtomicBool,
    cpu_reset: AtomicBool,
    rate: Mutex<Rate>,
}

impl Log {
    /// A log of `items` in the file `path`, which is made anew, or on stderr.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn open(path: Option<&Path>, items: LogItems) -> Result<Arc<Self>, Error> {
        let create = |path: &Path| {
            File::create(path).map_err(|cause| Error::Write { path: path.to_owned(), cause })
        };
        let file = Mutex::new(path.map(create).transpose()?);
        let (unimp, cpu_reset) = (items.unimp.into(), items.cpu_reset.into());
        Ok(Arc::new(Self { file, unimp, cpu_reset, rate: Mutex::default() }))
    }

    /// What is logged.
    pub fn items(&self) -> LogItems {
        LogItems {
            unimp: self.unimp.load(Ordering::Relaxed),
            cpu_reset: self.cpu_reset.load(Ordering::Relaxed),
        }
    }

    /// What is logged from now on.
    pub fn set_items(&self, items: LogItems) {
        self.unimp.store(items.unimp, Ordering::Relaxed);
        self.cpu_reset.store(items.cpu_reset, Ordering::Relaxed);
    }

    /// Goes on in the file `path`, which is made anew.
    ///
    /// # Errors
    /// The host's; then it goes on where it was.
    pub fn set_file(&self, path: &Path) -> std::io::Result<()> {
        let file = File::create(path)?;
        *self.file.lock().unwrap_or_else(PoisonError::into_inner) = Some(file);
        Ok(())
    }

    /// Adds one line or more.
    pub fn write(&self, text: &str) {
        let file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(mut file) = file.as_ref() else {
            drop(file);
            return report::log(text);
        };
        // In one piece, so that threads do not mix their lines. A full disk is no reason to stop
        // the guest.
        let _ = file.write_all(format!("{}\n", text.trim_end()).as_bytes());
    }

    /// Adds an access to `address` of the space that is called `space` ("port", "address"), where
    /// no device is. Of a flood of them some are only counted.
    pub fn unclaimed(&self, space: &str, address: u64, access: Unclaimed) {
        if !self.unimp.load(Ordering::Relaxed) {
            return;
        }
        let admission =
            self.rate.lock().unwrap_or_else(PoisonError::into_inner).admit(Instant::now());
        let Some(left_out) = admission else { return };
        self.report_left_out(left_out);
        let what = match access {
            Unclaimed::Read(size) => format!("read of {}", bytes(size)),
            Unclaimed::Write(data) => {
                let value = data.iter().rev().fold(0_u64, |n, byte| n << 8 | u64::from(*byte));
                format!("write of {value:#x} ({})", bytes(data.len()))
            }
        };
        self.write(&format!("unimp: {what} at {space} {address:#x}, where no device is"));
    }

    fn report_left_out(&self, count: u64) {
        if count > 0 {
            self.write(&format!("unimp: {count} accesses left out: {MOST} a second are shown"));
        }
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let rate = self.rate.get_mut().unwrap_or_else(PoisonError::into_inner);
        let left_out = std::mem::take(&mut rate.left_out);
        self.report_left_out(left_out);
    }
}

fn bytes(count: usize) -> String {
    format!("{count} byte{}", if count == 1 { "" } else { "s" })
}

/// Accesses that are shown in a second. A guest in a loop makes a hundred thousand.
const MOST: u32 = 1000;

/// How many accesses were shown lately.
#[derive(Default)]
struct Rate {
    second: Option<Instant>,
    shown: u32,
    left_out: u64,
}

impl Rate {
    /// Whether an access is shown, and then how many before it were not.
    fn admit(&mut self, now: Instant) -> Option<u64> {
        if self.second.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            (self.second, self.shown) = (Some(now), 0);
        }
        if self.shown == MOST {
            self.left_out += 1;
            return None;
        }
        self.shown += 1;
        Some(std::mem::take(&mut self.left_out))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_told_in_words() {
        let path = std::env::temp_dir().join(format!("vmm-log-{}", std::process::id()));
        let log = Log::open(Some(&path), LogItems::default()).unwrap();
        log.unclaimed("port", 0x81, Unclaimed::Read(1));
        log.set_items(LogItems { unimp: true, cpu_reset: false });
        assert!(log.items().unimp);
        log.unclaimed("port", 0x80, Unclaimed::Read(1));
        log.unclaimed("address", 0xFEDC_0000, Unclaimed::Write(&[0x34, 0x12]));
        log.write("two\nlines\n");
        let text = std::fs::read_to_string(&path).unwrap();
        std::fs::remove_file(&path).unwrap();
        assert_eq!(
            text,
            "unimp: read of 1 byte at port 0x80, where no device is\n\
             unimp: write of 0x1234 (2 bytes) at address 0xfedc0000, where no device is\n\
             two\nlines\n"
        );
    }

    #[test]
    fn a_flood_is_counted() {
        let mut rate = Rate::default();
        let start = Instant::now();
        let shown = (0..5000).filter(|_| rate.admit(start).is_some()).count();
        assert_eq!(shown, MOST as usize);
        let later = start + Duration::from_secs(1);
        assert_eq!(rate.admit(later), Some(4000));
        assert_eq!(rate.admit(later), Some(0));
    }

    #[test]
    fn a_file_that_cannot_be_made_is_an_error() {
        let error = Log::open(Some(Path::new("/nonexistent/log")), LogItems::default())
            .err()
            .unwrap()
            .to_string();
        assert!(error.contains("/nonexistent/log") && error.contains("check"), "{error}");
    }
}
