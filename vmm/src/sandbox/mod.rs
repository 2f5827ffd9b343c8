//! `--sandbox on`: what a guest that has taken over the program can still do.
//!
//! Once the machine is made, Landlock leaves the program no files but the kernel and its initrd, to
//! be read again at a reset, and seccomp leaves it no system calls but those of a running machine. A network whose connections are
//! this program's own keeps the calls that make them.
//! What is open stays open. Both hold for every thread and cannot be taken back.

mod files;
mod syscalls;

use std::sync::{Arc, Mutex, PoisonError};

use crate::Error;
use crate::machine::Machine;

/// Confines all threads of the program.
///
/// # Errors
/// When the kernel lacks either, or a thread would be left out.
pub fn enter(machine: &Machine) -> Result<(), Error> {
    let vcpus = machine.vcpus();
    // This thread is the main loop's.
    let disks = machine.disks().all();
    let workers: usize = disks.iter().map(|drive| drive.disk.threads()).sum();
    if threads() != vcpus.count() + workers + 1 {
        return Err(Error::Unsupported(
            "--sandbox on would leave out a thread: this is a bug in vmm; leave out --sandbox"
                .into(),
        ));
    }
    let sockets = machine.config().networks.need_sockets();
    let files = files::Files::readable(&machine.files(), sockets)?;
    for index in 0..vcpus.count() {
        let files = files.try_clone()?;
        vcpus.with(index, move |_| files.confine_thread())?;
    }
    for drive in disks {
        let left: Result<Vec<_>, Error> =
            (0..drive.disk.threads()).map(|_| files.try_clone()).collect();
        let (left, failed) = (Mutex::new(left?), Arc::new(Mutex::new(None)));
        let outcome = failed.clone();
        drive.disk.on_each_thread(Arc::new(move || {
            let files = left.lock().unwrap_or_else(PoisonError::into_inner).pop();
            if let Some(Err(error)) = files.map(files::Files::confine_thread) {
                *outcome.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
            }
        }));
        if let Some(error) = failed.lock().unwrap_or_else(PoisonError::into_inner).take() {
            return Err(error);
        }
    }
    files.confine_thread()?;
    syscalls::confine_process(sockets)
}

/// How many threads of the process run our code. Some kernels add workers of their own to it.
fn threads() -> usize {
    /// PF_USER_WORKER in the flags of a task (Linux, include/linux/sched.h).
    const WORKER: u64 = 0x4000;
    let is_ours = |task: std::fs::DirEntry| {
        let stat = std::fs::read_to_string(task.path().join("stat")).ok()?;
        // The name in brackets may hold spaces; the flags are the seventh field after it.
        let flags: u64 = stat.rsplit(") ").next()?.split(' ').nth(6)?.parse().ok()?;
        (flags & WORKER == 0).then_some(())
    };
    let tasks = std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten();
    tasks.filter_map(is_ours).count()
}

/// The kernel lacks what it takes.
fn lacks(what: &'static str, cause: impl ToString, remedy: &'static str) -> Error {
    Error::Sandbox { what, cause: cause.to_string(), remedy }
}

#[cfg(test)]
mod tests {
    use std::sync::mpsc;

    #[test]
    fn threads_are_counted() {
        // Other tests start and end theirs meanwhile.
        let (stop, stopped) = mpsc::channel::<()>();
        let thread = std::thread::spawn(move || stopped.recv());
        assert!(super::threads() >= 2);
        drop(stop);
        assert!(thread.join().unwrap().is_err());
    }
}
