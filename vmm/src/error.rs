//! Why there is no machine, or no longer.

use std::io;
use std::path::PathBuf;

use board::AccelError;
use board::bus::Overlap;
use board::memory::MemoryError;
use devices::block::BlockError;
use devices::chardev::ChardevError;
use devices::chip::fw_cfg::FwCfgError;
use devices::net::NetError;

use crate::boot::BootError;
use crate::config::ConfigError;
use crate::cpuid::CpuError;

/// Any error that ends the program with status 1. Each message has the cause and the remedy.
#[derive(Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the variants are the kinds of errors that they hold")]
pub enum Error {
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Cpu(#[from] CpuError),
    #[error(transparent)]
    Accel(#[from] AccelError),
    #[error(transparent)]
    Memory(#[from] MemoryError),
    #[error(transparent)]
    Boot(#[from] BootError),
    #[error(transparent)]
    Block(#[from] BlockError),
    #[error(transparent)]
    Chardev(#[from] ChardevError),
    /// A network.
    #[error(transparent)]
    Net(#[from] NetError),
    #[error(transparent)]
    Overlap(#[from] Overlap),
    #[error(transparent)]
    FwCfg(#[from] FwCfgError),
    #[error("cannot write {path} ({cause}): check the path and its permissions", path = path.display())]
    Write { path: PathBuf, cause: io::Error },
    #[error("cannot {what} ({cause}): {remedy}")]
    Host { what: &'static str, cause: io::Error, remedy: &'static str },
    #[error(
        "--sandbox on needs {what}, which does not work here ({cause}):\n{remedy}, or leave out --sandbox"
    )]
    Sandbox { what: &'static str, cause: String, remedy: &'static str },
    #[error("{0}")]
    Unsupported(String),
}

impl Error {
    /// A host call that fails only when the host is out of something.
    pub fn host(what: &'static str) -> impl FnOnce(io::Error) -> Self {
        move |cause| Self::Host {
            what,
            cause,
            remedy: "raise the limits of open files and threads (ulimit -n, -u)",
        }
    }
}
