//! QMP's events: what the machine did without being asked in this session.

use std::time::Duration;

use serde_json::{Value, json};

use crate::schema::{Member, types};

/// Why a machine is reset or ends; QMP's `ShutdownCause`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// An error of the host.
    HostError,
    /// `quit`.
    HostQmpQuit,
    /// `system_reset`.
    HostQmpSystemReset,
    /// SIGTERM and the like.
    HostSignal,
    /// The user interface (a window closed).
    HostUi,
    /// The guest powered off.
    GuestShutdown,
    /// The guest asked for a reset (also by a triple fault).
    GuestReset,
    /// The guest panicked.
    GuestPanic,
    /// A snapshot was loaded.
    SnapshotLoad,
}

impl Cause {
    /// QMP's name.
    pub fn name(self) -> &'static str {
        match self {
            Self::HostError => "host-error",
            Self::HostQmpQuit => "host-qmp-quit",
            Self::HostQmpSystemReset => "host-qmp-system-reset",
            Self::HostSignal => "host-signal",
            Self::HostUi => "host-ui",
            Self::GuestShutdown => "guest-shutdown",
            Self::GuestReset => "guest-reset",
            Self::GuestPanic => "guest-panic",
            Self::SnapshotLoad => "snapshot-load",
        }
    }

    /// Whether the guest did it.
    pub fn by_guest(self) -> bool {
        matches!(self, Self::GuestShutdown | Self::GuestReset | Self::GuestPanic)
    }
}

/// What is done with a guest that panicked.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum PanicAction {
    /// The machine stops.
    Pause,
    /// The machine ends.
    Poweroff,
    /// It goes on.
    Run,
}

/// An event.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// The machine stopped.
    Stop,
    /// The machine goes on.
    Resume,
    /// The machine was reset.
    Reset(Cause),
    /// The machine has powered off, or the emulator is about to end.
    Shutdown(Cause),
    /// The power button was pressed.
    Powerdown,
    /// The guest reported a panic.
    GuestPanicked(PanicAction),
    /// A device is gone, after `device_del` or by the guest's own will; its id if it had one.
    DeviceDeleted(Option<String>),
    /// A drive's request has failed.
    BlockIoError(BlockIoError),
    /// The balloon has another size: so many bytes of RAM does it leave the guest.
    BalloonChange(u64),
}

/// A request that failed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockIoError {
    /// The drive.
    pub device: String,
    /// It was no read.
    pub write: bool,
    /// What is done about it: QMP's `BlockErrorAction`.
    pub action: &'static str,
    /// The host has no room left.
    pub nospace: bool,
    /// The host's words.
    pub reason: String,
}

/// Every event's name and data, for the schema.
pub(crate) const ALL: [(&str, &[Member]); 9] = [
    ("BALLOON_CHANGE", types::BALLOON_CHANGE),
    ("BLOCK_IO_ERROR", types::BLOCK_IO_ERROR),
    ("DEVICE_DELETED", types::DEVICE_DELETED),
    ("GUEST_PANICKED", types::PANIC),
    ("POWERDOWN", &[]),
    ("RESET", types::CAUSE),
    ("RESUME", &[]),
    ("SHUTDOWN", types::CAUSE),
    ("STOP", &[]),
];

impl Event {
    /// The event as QMP sends it. `time` is since the Unix epoch.
    pub fn to_json(&self, time: Duration) -> Value {
        let cause =
            |cause: &Cause| Some(json!({ "guest": cause.by_guest(), "reason": cause.name() }));
        let (name, data) = match self {
            Self::Stop => ("STOP", None),
            Self::Resume => ("RESUME", None),
            Self::Powerdown => ("POWERDOWN", None),
            Self::Reset(why) => ("RESET", cause(why)),
            Self::Shutdown(why) => ("SHUTDOWN", cause(why)),
            Self::GuestPanicked(action) => {
                let action = match action {
                    PanicAction::Pause => "pause",
                    PanicAction::Poweroff => "poweroff",
                    PanicAction::Run => "run",
                };
                ("GUEST_PANICKED", Some(json!({ "action": action })))
            }
            Self::BlockIoError(error) => (
                "BLOCK_IO_ERROR",
                Some(json!({
                    "device": error.device,
                    "operation": if error.write { "write" } else { "read" },
                    "action": error.action,
                    "nospace": error.nospace,
                    "reason": error.reason,
                })),
            ),
            Self::BalloonChange(actual) => ("BALLOON_CHANGE", Some(json!({ "actual": actual }))),
            Self::DeviceDeleted(Some(id)) => {
                let path = format!("/machine/peripheral/{id}");
                ("DEVICE_DELETED", Some(json!({ "device": id, "path": path })))
            }
            Self::DeviceDeleted(None) => {
                ("DEVICE_DELETED", Some(json!({ "path": "/machine/peripheral-anon" })))
            }
        };
        let mut event = json!({
            "timestamp": { "seconds": time.as_secs(), "microseconds": time.subsec_micros() },
            "event": name,
        });
        if let Some(data) = data {
            event["data"] = data;
        }
        event
    }
}
