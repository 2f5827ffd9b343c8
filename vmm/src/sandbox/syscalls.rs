//! seccomp: no system call that a running machine has no use for.
//!
//! One that is not in the table is not executed; the program says which it was and ends.
//!
//! Source: Linux, Documentation/userspace-api/seccomp_filter.rst.

use std::collections::BTreeMap;

use devices::chardev::terminal;
use seccompiler::{
    BpfProgram, Error as FilterError, SeccompAction, SeccompCmpArgLen, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch, apply_filter_all_threads,
};

use crate::Error;

/// What needs no look at its arguments.
#[rustfmt::skip]
const ALLOWED: &[i64] = &[
    // What is open: consoles, event fds, timers. A new file is Landlock's to refuse.
    libc::SYS_read, libc::SYS_write, libc::SYS_readv, libc::SYS_writev,
    libc::SYS_pread64, libc::SYS_pwrite64, libc::SYS_preadv, libc::SYS_pwritev,
    libc::SYS_preadv2, libc::SYS_fallocate, libc::SYS_io_uring_enter,
    libc::SYS_lseek, libc::SYS_close, libc::SYS_dup2, libc::SYS_dup3, libc::SYS_fcntl,
    libc::SYS_ftruncate, libc::SYS_fsync, libc::SYS_fdatasync, libc::SYS_openat, libc::SYS_fstat,
    libc::SYS_newfstatat, libc::SYS_statx, libc::SYS_unlink, libc::SYS_unlinkat,
    // Sockets that listen or are connected.
    libc::SYS_accept4, libc::SYS_sendto, libc::SYS_recvfrom, libc::SYS_sendmsg, libc::SYS_recvmsg,
    libc::SYS_getsockname, libc::SYS_getpeername, libc::SYS_getsockopt, libc::SYS_setsockopt,
    libc::SYS_shutdown,
    // The main loop.
    libc::SYS_epoll_wait, libc::SYS_epoll_pwait, libc::SYS_epoll_pwait2, libc::SYS_epoll_ctl,
    libc::SYS_poll, libc::SYS_ppoll, libc::SYS_timerfd_settime, libc::SYS_timerfd_gettime,
    libc::SYS_clock_gettime, libc::SYS_clock_getres, libc::SYS_gettimeofday, libc::SYS_time,
    libc::SYS_nanosleep, libc::SYS_clock_nanosleep,
    // Threads that are there, and their memory.
    libc::SYS_futex, libc::SYS_sched_yield, libc::SYS_sched_getaffinity, libc::SYS_getpid,
    libc::SYS_gettid, libc::SYS_getpgrp, libc::SYS_getpgid, libc::SYS_set_robust_list,
    libc::SYS_rseq, libc::SYS_exit, libc::SYS_exit_group, libc::SYS_munmap, libc::SYS_mremap,
    libc::SYS_madvise, libc::SYS_brk, libc::SYS_getrandom, libc::SYS_restart_syscall,
    libc::SYS_rt_sigaction, libc::SYS_rt_sigprocmask, libc::SYS_rt_sigreturn, libc::SYS_sigaltstack,
];

/// What a network of the host's user needs besides, for the guest's connections.
const SOCKETS: &[i64] = &[libc::SYS_connect, libc::SYS_bind, libc::SYS_listen];

/// The terminal's modes and size, and a socket's not waiting; but for putting input into a
/// terminal (TIOCSTI), which would reach the shell.
const IOCTLS: &[u64] = &[
    libc::TCGETS,
    libc::TCSETS,
    libc::TCSETSW,
    libc::TCSETSF,
    libc::TCGETS2,
    libc::TCSETS2,
    libc::TCSETSW2,
    libc::TCSETSF2,
    libc::TIOCGWINSZ,
    libc::TIOCGPGRP,
    libc::FIONBIO,
    // TUNSETOFFLOAD of linux/if_tun.h: what the guest's driver takes of a tap interface.
    0x4004_54D0,
];

/// The second byte of each of KVM's requests.
const KVM: u64 = 0xAE00;

/// glibc names its memory by it.
const PR_SET_VMA: u64 = 0x5356_4D41;

/// A rule about the low 32 bits of one argument.
fn argument(index: u8, op: SeccompCmpOp, value: u64) -> Result<SeccompRule, FilterError> {
    let condition = SeccompCondition::new(index, SeccompCmpArgLen::Dword, op, value)?;
    Ok(SeccompRule::new(vec![condition])?)
}

fn program(sockets: bool) -> Result<BpfProgram, FilterError> {
    let mut rules: BTreeMap<i64, Vec<SeccompRule>> =
        ALLOWED.iter().map(|call| (*call, Vec::new())).collect();
    if sockets {
        rules.extend(SOCKETS.iter().map(|call| (*call, Vec::new())));
        let family = |family: i32| argument(0, SeccompCmpOp::Eq, family as u64);
        rules.insert(libc::SYS_socket, vec![family(libc::AF_INET)?, family(libc::AF_INET6)?]);
    }
    let mut ioctls = vec![argument(1, SeccompCmpOp::MaskedEq(0xFF00), KVM)?];
    for request in IOCTLS {
        ioctls.push(argument(1, SeccompCmpOp::Eq, *request)?);
    }
    rules.insert(libc::SYS_ioctl, ioctls);
    // Memory, but none to execute.
    let no_code = || argument(2, SeccompCmpOp::MaskedEq(libc::PROT_EXEC as u64), 0);
    rules.insert(libc::SYS_mmap, vec![no_code()?]);
    rules.insert(libc::SYS_mprotect, vec![no_code()?]);
    // Signals to this process alone.
    let pid = u64::from(std::process::id());
    rules.insert(libc::SYS_tgkill, vec![argument(0, SeccompCmpOp::Eq, pid)?]);
    rules.insert(libc::SYS_prctl, vec![argument(0, SeccompCmpOp::Eq, PR_SET_VMA)?]);
    let filter =
        SeccompFilter::new(rules, SeccompAction::Trap, SeccompAction::Allow, TargetArch::x86_64)?;
    Ok(filter.try_into()?)
}

/// Leaves all threads of the process nothing but these system calls; with `sockets`, those that make
/// connections of IP too.
///
/// # Errors
/// When the kernel has no seccomp filters.
pub(super) fn confine_process(sockets: bool) -> Result<(), Error> {
    // SAFETY: a zeroed sigaction is a valid one.
    let mut action: libc::sigaction = unsafe { std::mem::zeroed() };
    action.sa_sigaction = on_forbidden as *const () as usize;
    action.sa_flags = libc::SA_SIGINFO | libc::SA_NODEFER;
    // SAFETY: `on_forbidden` has the signature that SA_SIGINFO asks for and calls only what is
    // async-signal-safe.
    unsafe { libc::sigaction(libc::SIGSYS, &action, std::ptr::null_mut()) };
    let apply = || apply_filter_all_threads(&program(sockets)?);
    apply().map_err(|cause| {
        super::lacks("seccomp", cause, "use a Linux that is built with SECCOMP_FILTER")
    })
}

/// A system call was not executed: says which, and ends the program.
extern "C" fn on_forbidden(_: i32, info: *mut libc::siginfo_t, _: *mut libc::c_void) {
    terminal::restore_now();
    // SAFETY: the kernel hands a valid siginfo to an SA_SIGINFO handler; for SIGSYS the number of
    // the system call follows its address, 24 bytes from the start (sigaction(2), si_syscall).
    let mut number = unsafe { info.cast::<u8>().add(24).cast::<u32>().read() };
    let mut digits = [0; 10];
    let mut first = digits.len();
    loop {
        first -= 1;
        digits[first] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            break;
        }
    }
    let text: [&[u8]; 3] = [
        b"vmm: --sandbox on stopped system call ",
        &digits[first..],
        b": the guest has broken out, or this is a bug in vmm\n",
    ];
    for part in text {
        // SAFETY: write is async-signal-safe, and the buffer is as long as it says.
        unsafe { libc::write(libc::STDERR_FILENO, part.as_ptr().cast(), part.len()) };
    }
    // SAFETY: both are async-signal-safe; the signal is not blocked here, and ends the process.
    unsafe {
        libc::signal(libc::SIGSYS, libc::SIG_DFL);
        libc::raise(libc::SIGSYS);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt;
    use std::process::{Command, Output};

    use super::*;

    /// What the test below runs in a process of its own.
    #[test]
    #[ignore = "the other test runs it"]
    fn child() {
        let Ok(what) = std::env::var("SANDBOX_TEST") else { return };
        let socket = || std::net::TcpListener::bind("127.0.0.1:0").map(drop);
        let (go, gone) = std::sync::mpsc::channel::<()>();
        let forbidden: Box<dyn FnOnce() + Send> = match what.as_str() {
            "nothing" => Box::new(|| ()),
            "socket" => Box::new(move || drop(socket())),
            // SAFETY: the path is a C string, and a null list of arguments is allowed.
            "exec" => Box::new(|| unsafe {
                libc::execv(c"/bin/true".as_ptr(), std::ptr::null());
            }),
            // SAFETY: mapping fresh memory touches no other.
            "code" => Box::new(|| unsafe {
                let (prot, flags) = (libc::PROT_EXEC, libc::MAP_PRIVATE | libc::MAP_ANONYMOUS);
                libc::mmap(std::ptr::null_mut(), 4096, prot, flags, -1, 0);
            }),
            // SAFETY: signal 0 is none.
            "kill" => Box::new(|| unsafe {
                libc::syscall(libc::SYS_tgkill, 1, 1, 0);
            }),
            // SAFETY: the ioctl reads one byte, which is there.
            "sti" => Box::new(|| unsafe {
                libc::ioctl(0, libc::TIOCSTI, b"x".as_ptr());
            }),
            other => panic!("{other}"),
        };
        // A thread that was there before is confined too.
        let thread = std::thread::spawn(move || {
            let _ = gone.recv();
            forbidden();
        });
        confine_process(false).unwrap();
        let memory = vec![1_u8; 1 << 24];
        assert_eq!(std::fs::read("/nonexistent").unwrap_err().raw_os_error(), Some(libc::ENOENT));
        assert_eq!(memory[12345], 1);
        drop(go);
        thread.join().unwrap();
        // The test harness would go on with calls of its own.
        std::process::exit(7);
    }

    fn run(what: &str) -> Output {
        Command::new(std::env::current_exe().unwrap())
            .args(["--ignored", "--exact", "--nocapture", "sandbox::syscalls::tests::child"])
            .env("SANDBOX_TEST", what)
            .output()
            .unwrap()
    }

    #[test]
    fn a_forbidden_call_ends_the_process_with_a_word() {
        let output = run("nothing");
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(7), "{stderr}");
        for (what, call) in [
            ("socket", libc::SYS_socket),
            ("exec", libc::SYS_execve),
            ("code", libc::SYS_mmap),
            ("kill", libc::SYS_tgkill),
            ("sti", libc::SYS_ioctl),
        ] {
            let output = run(what);
            let stderr = String::from_utf8_lossy(&output.stderr);
            assert_eq!(output.status.signal(), Some(libc::SIGSYS), "{what}: {stderr}");
            let expected = format!("--sandbox on stopped system call {call}");
            assert!(stderr.contains(&expected), "{what}: {stderr}");
        }
    }
}
