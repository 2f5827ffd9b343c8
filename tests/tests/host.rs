//! What this host lacks for the other tests.

use tests::{image, notice, reasons};

/// Says what the other tests could not run on here; each of them says so itself, too, but a test
/// runner may keep that back.
#[test]
fn what_does_not_run_here() {
    for (accel, why) in reasons() {
        notice(&format!("anything on accelerator {}: {why}", accel.name()));
    }
    for name in ["vmlinux", "initramfs.cpio", "bzImage"] {
        // It says what is missing.
        let _ = image(name);
    }
}
