//! Landlock: no file but a few.
//!
//! Source: Linux, Documentation/userspace-api/landlock.rst.

use std::path::PathBuf;

use landlock::{
    ABI, Access, AccessFs, AccessNet, CompatLevel, Compatible, Ruleset, RulesetAttr,
    RulesetCreated, RulesetCreatedAttr, RulesetError, path_beneath_rules,
};

use crate::Error;

/// Files that a confined thread can open.
pub(super) struct Files(RulesetCreated);

fn lacks(cause: impl ToString) -> Error {
    super::lacks("Landlock", cause, "use a Linux from 5.13 on that has landlock in its lsm= list")
}

impl Files {
    /// These, for reading; there may be some among them that do not exist. With `sockets`, the
    /// program may connect and listen.
    ///
    /// # Errors
    /// When the kernel has no Landlock.
    pub(super) fn readable(paths: &[PathBuf], sockets: bool) -> Result<Self, Error> {
        let ruleset = || -> Result<RulesetCreated, RulesetError> {
            // What later kernels can forbid besides is forbidden where it can be. Signals are not,
            // since a vCPU thread is kicked by one.
            let ruleset = Ruleset::default()
                .set_compatibility(CompatLevel::HardRequirement)
                .handle_access(AccessFs::from_all(ABI::V1))?
                .set_compatibility(CompatLevel::BestEffort)
                .handle_access(AccessFs::from_all(ABI::V5))?;
            let ruleset = match sockets {
                true => ruleset,
                false => ruleset.handle_access(AccessNet::from_all(ABI::V4))?,
            };
            ruleset.create()?.add_rules(path_beneath_rules(paths, AccessFs::ReadFile))
        };
        ruleset().map(Self).map_err(|error| match error {
            // It knows none of the access rights.
            RulesetError::HandleAccesses(_) => lacks("the kernel has it not or not switched on"),
            other => lacks(other),
        })
    }

    /// The same, for another thread.
    ///
    /// # Errors
    /// When no fd is left.
    pub(super) fn try_clone(&self) -> Result<Self, Error> {
        self.0.try_clone().map(Self).map_err(Error::host("confine a thread"))
    }

    /// Leaves the thread that calls this nothing but these files.
    ///
    /// # Errors
    /// When the kernel refuses.
    pub(super) fn confine_thread(self) -> Result<(), Error> {
        self.0.restrict_self().map(drop).map_err(lacks)
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::ErrorKind;

    use super::*;

    #[test]
    fn a_confined_thread_reads_what_it_may_and_nothing_else() {
        let directory = std::env::temp_dir().join(format!("vmm-sandbox-{}", std::process::id()));
        fs::create_dir_all(&directory).unwrap();
        let path = |name| directory.join(name);
        fs::write(path("kernel"), "k").unwrap();
        fs::write(path("secret"), "s").unwrap();
        let files = Files::readable(&[path("kernel"), path("nothing")], false).unwrap();
        let confined = || {
            files.confine_thread().unwrap();
            assert_eq!(fs::read_to_string(path("kernel")).unwrap(), "k");
            let refused = [
                fs::read(path("secret")).map(drop),
                fs::write(path("kernel"), "x"),
                File::create(path("new")).map(drop),
                fs::remove_file(path("secret")),
                fs::read_dir(&directory).map(drop),
            ];
            for result in refused {
                assert_eq!(result.unwrap_err().kind(), ErrorKind::PermissionDenied);
            }
        };
        std::thread::scope(|scope| scope.spawn(confined).join().unwrap());
        assert_eq!(fs::read_to_string(directory.join("secret")).unwrap(), "s", "this one is free");
        fs::remove_dir_all(directory).unwrap();
    }
}
