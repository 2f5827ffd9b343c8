//! `--pidfile`: the process id in a file, which is locked and there while the program is.

use std::fs::{self, File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::Error;

/// The file; dropping it removes it.
#[derive(Debug)]
pub struct Pidfile {
    path: PathBuf,
    /// Its lock tells the next one that this program still runs.
    _file: File,
}

impl Pidfile {
    /// Writes the id of this process to `path`.
    ///
    /// # Errors
    /// When the file cannot be written, or belongs to a machine that still runs.
    pub fn write(path: &Path) -> Result<Self, Error> {
        let failed = |cause| Error::Write { path: path.to_owned(), cause };
        let open = File::options().write(true).create(true).truncate(false).open(path);
        let mut file = open.map_err(failed)?;
        match file.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                let path = path.display();
                return Err(Error::Unsupported(format!(
                    "the pidfile {path} belongs to a machine that still runs: end that, or name another file"
                )));
            }
            Err(TryLockError::Error(cause)) => return Err(failed(cause)),
        }
        let write = |file: &mut File| {
            file.set_len(0)?;
            writeln!(file, "{}", std::process::id())
        };
        write(&mut file).map_err(failed)?;
        Ok(Self { path: path.to_owned(), _file: file })
    }
}

impl Drop for Pidfile {
    fn drop(&mut self) {
        // It may have been removed by whoever asked for it.
        let _ = fs::remove_file(&self.path);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_refused_while_another_machine_has_it() {
        let dir = std::env::temp_dir().join(format!("vmm-pidfile-{}", std::process::id()));
        fs::create_dir(&dir).unwrap();
        let path = dir.join("pid");
        fs::write(&path, "left behind by a crash, and longer than a number\n").unwrap();
        let first = Pidfile::write(&path).unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), format!("{}\n", std::process::id()));
        let refused = Pidfile::write(&path).unwrap_err().to_string();
        assert!(refused.contains("still runs"), "{refused}");
        drop(first);
        assert!(!path.exists());
        drop(Pidfile::write(&path).unwrap());
        fs::remove_dir(&dir).unwrap();
    }
}
