//! What came out of a pipe or terminal, while a test looks on.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Instant;

#[derive(Default)]
struct State {
    bytes: Vec<u8>,
    /// How far [`Transcript::wait_for`] has come.
    seen: usize,
    closed: bool,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
}

/// All that has been read from somewhere so far. A thread reads on.
#[derive(Clone)]
pub struct Transcript(Arc<Shared>);

impl Transcript {
    /// Reads all that comes from `source`, on a thread.
    pub fn of(mut source: impl Read + Send + 'static) -> Self {
        let shared = Arc::new(Shared::default());
        let transcript = Self(shared.clone());
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = match source.read(&mut buffer) {
                    Err(e) if e.kind() == ErrorKind::Interrupted => continue,
                    // A terminal that nobody else holds open says EIO.
                    Err(_) => 0,
                    Ok(count) => count,
                };
                let mut state = shared.state.lock().unwrap_or_else(PoisonError::into_inner);
                state.bytes.extend_from_slice(&buffer[..count]);
                state.closed = count == 0;
                shared.changed.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        transcript
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for `text` to come after what was waited for before, and gives what came up to it.
    ///
    /// # Panics
    /// With all that came, if it does not come by `deadline`, or cannot any more.
    pub fn wait_for(&self, text: &str, deadline: Instant) -> String {
        self.find(text, deadline).unwrap_or_else(|why| panic!("{why}"))
    }

    /// The same; what went wrong is an error, with all that came.
    pub(crate) fn find(&self, text: &str, deadline: Instant) -> Result<String, String> {
        let mut state = self.state();
        loop {
            let new = &state.bytes[state.seen..];
            if let Some(at) = position(new, text.as_bytes()) {
                let end = at + text.len();
                let up_to = String::from_utf8_lossy(&new[..end]).into_owned();
                state.seen += end;
                return Ok(up_to);
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if state.closed || left.is_zero() {
                let why = if state.closed { "the end came" } else { "time is up" };
                let all = String::from_utf8_lossy(&state.bytes);
                return Err(format!("{why} before {text:?}; this is what came:\n{all}"));
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Waits for the end. Whether it came by `deadline`.
    pub fn wait_for_end(&self, deadline: Instant) -> bool {
        let mut state = self.state();
        while !state.closed {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            let waited = self.0.changed.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        true
    }

    /// All that has come.
    pub fn bytes(&self) -> Vec<u8> {
        self.state().bytes.clone()
    }

    /// All that has come, as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.bytes()).into_owned()
    }
}

fn position(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|window| window == needle)
}
