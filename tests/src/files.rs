//! Where the program, the guests and the Linux images are, and temporary directories.
//!
//! | Environment | |
//! |---|---|
//! | `VMM` | the program to test, instead of the one built from this workspace |
//! | `VMM_IMAGES` | where the Linux images are, instead of `target/images` |
//! | `VMM_REQUIRE_IMAGES`, `CI` | a missing image is a failure instead of a notice |
//! | `VMM_SOAK` | repeated proofs run with their full counts |

use std::env;
use std::fs::{self, File};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::process::{self, Command};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU32, Ordering};

/// The repository's root.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().expect("the crate lies in the repository")
}

/// Says on one line, whatever the test runner does with output, that something did not run.
pub fn notice(line: &str) {
    // The macros' output is kept back for tests that pass; this is not.
    let _ = writeln!(std::io::stderr(), "NOT RUN: {line}");
}

/// The full count of a repeated proof with `VMM_SOAK=1`, else the sample.
pub fn soak(sample: u64, full: u64) -> u64 {
    if env::var_os("VMM_SOAK").is_some_and(|value| value != "0") { full } else { sample }
}

/// The directory of the profile that this test was built with: `target/debug`.
fn profile_dir() -> PathBuf {
    let exe = env::current_exe().expect("a process knows its program");
    let dir = exe.ancestors().find(|dir| !dir.ends_with("deps") && *dir != exe);
    dir.expect("a test lies in a target directory").to_owned()
}

/// The same for all processes of one run of the tests: nextest says it, cargo is the parent.
fn run_id() -> String {
    env::var("NEXTEST_RUN_ID")
        .unwrap_or_else(|_| format!("{} of {}", std::os::unix::process::parent_id(), boot_id()))
}

fn boot_id() -> String {
    fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default()
}

/// Runs `build` once in a run of the tests, whichever process comes first; the others wait.
fn once_a_run(what: &str, build: impl FnOnce()) {
    let path = profile_dir().join(format!(".{what}.built"));
    let mut stamp = File::options()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    stamp.lock().expect("a lock on a file of our own");
    let mut built_by = String::new();
    stamp.read_to_string(&mut built_by).expect("the stamp is text");
    if built_by == run_id() {
        return;
    }
    build();
    stamp.set_len(0).expect("the stamp is ours");
    stamp.rewind().expect("the stamp is a file");
    stamp.write_all(run_id().as_bytes()).expect("there is room for a line");
}

fn succeed(command: &mut Command) {
    let output = command.output().unwrap_or_else(|e| panic!("{command:?}: {e}"));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{text}", output.status);
}

/// The program, brought up to date first.
///
/// It belongs to another package, so cargo does not build it for these tests. All packages are
/// selected, as they are when the tests are built, so that features are the same and nothing is
/// compiled twice.
pub fn program() -> &'static Path {
    static PATH: OnceLock<PathBuf> = OnceLock::new();
    PATH.get_or_init(|| {
        if let Some(path) = env::var_os("VMM") {
            return path.into();
        }
        let dir = profile_dir();
        once_a_run("vmm", || {
            let profile = match dir.file_name().and_then(|name| name.to_str()) {
                Some("debug") | None => "dev",
                Some(name) => name,
            };
            let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
            let mut build = Command::new(cargo);
            build.args(["build", "--workspace", "--bin", "vmm", "--profile", profile]);
            build.arg("--target-dir").arg(dir.parent().expect("a profile has a target directory"));
            succeed(build.current_dir(repository()));
        });
        dir.join("vmm")
    })
}

/// A bare-metal guest, brought up to date first.
pub fn guest(name: &str) -> PathBuf {
    static DIR: OnceLock<PathBuf> = OnceLock::new();
    let dir = DIR.get_or_init(|| {
        let guests = repository().join("images/guests");
        once_a_run("guests", || succeed(&mut Command::new(guests.join("build.sh"))));
        guests.join("target/guests")
    });
    let path = dir.join(name);
    assert!(path.exists(), "images/guests/build.sh makes no {}", path.display());
    path
}

/// One of the images that `make linux` makes. Without it the test ends, with a notice.
pub fn image(name: &str) -> Option<PathBuf> {
    let dir =
        env::var_os("VMM_IMAGES").map_or_else(|| repository().join("target/images"), PathBuf::from);
    let path = dir.join(name);
    if path.exists() {
        return Some(path);
    }
    let why = format!("there is no {}: make linux makes it", path.display());
    let required = ["CI", "VMM_REQUIRE_IMAGES"].iter().any(|name| env::var_os(name).is_some());
    assert!(!required, "{why}");
    notice(&why);
    None
}

/// A directory of its own for a test, removed with all that is in it.
#[derive(Debug)]
pub struct TempDir(PathBuf);

impl TempDir {
    /// A new, empty directory with a short path, as sockets want it.
    #[expect(clippy::new_without_default, reason = "it makes a directory")]
    pub fn new() -> Self {
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = env::temp_dir().join(format!("vmm-test-{}-{number}", process::id()));
        fs::create_dir(&path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
        Self(path)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// The path of something in it.
    pub fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// The names of what is in it, sorted.
    pub fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(&self.0).expect("the directory is there");
        let name = |entry: std::io::Result<fs::DirEntry>| {
            entry.expect("it can be read").file_name().to_string_lossy().into_owned()
        };
        let mut names: Vec<_> = entries.map(name).collect();
        names.sort();
        names
    }
}

impl Drop for TempDir {
    fn drop(&mut self) {
        // What is left in /tmp hurts nobody.
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Makes a file in `dir` and gives its path.
pub fn file_of(dir: &TempDir, name: &str, contents: &[u8]) -> PathBuf {
    let path = dir.join(name);
    fs::write(&path, contents).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    path
}
