//! What KVM cannot execute: the software CPU executes it, and KVM goes on.

use board::accel::Assists;
use tests::{Accel, Rig, guest, notice, on_each_accel};

/// Runs it to its end: what it said, and how often KVM was helped.
fn run(accel: Accel, name: &str, append: &str) -> (String, Option<Assists>) {
    let mut rig = rig(accel, name, append);
    rig.boot();
    rig.until("the end", |rig| rig.machine.ending().is_some());
    let assists = rig.machine.accel().assists();
    let output = rig.finish();
    assert!(output.ends_with("ok\n"), "{output}");
    (output, assists)
}

fn rig(accel: Accel, name: &str, append: &str) -> Rig {
    let kernel = guest(name);
    let kernel = kernel.to_str().expect("the path is text");
    Rig::new(60, &["--accel", accel.name(), "-m", "16M", "--kernel", kernel, "--append", append])
}

#[test]
fn instructions_that_an_emulated_ring_0_lacks() {
    on_each_accel(|accel| {
        // What CPUID does not offer is executed as well by those whose ring 0 is software.
        let words: &[&str] = if accel.lacks_instructions() { &["", "all"] } else { &[""] };
        for append in words {
            let (output, assists) = run(accel, "ring0", append);
            assert!(append.is_empty() || output.contains("checked 35 of 35\n"), "{output}");
            let Some(assists) = assists else { continue };
            if accel.lacks_instructions() {
                assert!(assists.failures >= 10, "{assists:?}");
                assert!(assists.instructions >= assists.failures, "{assists:?}");
            }
        }
    });
}

#[test]
fn calls_from_ring_3_are_counted() {
    on_each_accel(|accel| {
        match run(accel, "syscalls", "").1 {
            Some(assists) if accel.lacks_instructions() => {
                // INT n twice, SYSCALL twice, and the exceptions that end the programs.
                assert!(assists.system_calls >= 4, "{assists:?}");
            }
            Some(assists) => assert_eq!(assists.system_calls, 0, "{assists:?}"),
            None => assert_eq!(accel, Accel::Soft),
        }
    });
}

#[test]
fn an_ordinary_kvm_needs_no_help() {
    on_each_accel(|accel| {
        if accel.lacks_instructions() || accel == Accel::Soft {
            return notice("a guest that needs no help: this accelerator is no ordinary KVM");
        }
        let (_, assists) = run(accel, "counter", "rounds=1 kernel=3000 user=3000");
        assert_eq!(assists, Some(Assists::default()));
    });
}
