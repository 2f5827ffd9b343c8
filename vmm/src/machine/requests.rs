//! What comes up while the machine runs and only the main loop can see to.

use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use board::device::Notifier;
use board::{SystemControl, SystemRequest};
use devices::block::ErrorReport;
use monitor::Event;

use crate::vcpu::{Holder, VcpuEvent};

/// Something for the main loop.
#[derive(Debug)]
pub enum Request {
    /// The guest asks for something, by way of a chip. The vCPUs are held.
    System(SystemRequest),
    /// A vCPU cannot go on. The vCPUs are held.
    Vcpu(u32, VcpuEvent),
    /// A drive's request has failed. The vCPUs are held.
    Disk(ErrorReport),
    /// QMP's clients are to hear of this.
    News(Event),
    /// The user pressed the key that ends the program.
    Quit,
}

/// Where requests wait for the main loop.
#[derive(Default)]
pub struct Requests {
    queue: Mutex<Vec<Request>>,
    holder: OnceLock<Holder>,
    notifier: OnceLock<Notifier>,
}

impl Requests {
    /// No requests.
    pub fn new() -> Arc<Self> {
        Arc::default()
    }

    /// Names the vCPUs to be held.
    pub fn set_holder(&self, holder: Holder) {
        // It is called once, while the machine is made.
        let _ = self.holder.set(holder);
    }

    /// Names who sees to the requests.
    pub fn set_notifier(&self, notifier: Notifier) {
        let _ = self.notifier.set(notifier);
    }

    /// Adds a request.
    pub fn push(&self, request: Request) {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner).push(request);
        if let Some(notifier) = self.notifier.get() {
            notifier.notify();
        }
    }

    /// A drive's request has failed.
    pub fn disk_error(&self, report: ErrorReport) {
        if let Some(holder) = self.holder.get() {
            holder.hold();
        }
        self.push(Request::Disk(report));
    }

    /// Drops the requests that `which` names.
    pub fn forget(&self, which: impl Fn(&Request) -> bool) {
        let mut queue = self.queue.lock().unwrap_or_else(PoisonError::into_inner);
        queue.retain(|request| !which(request));
    }

    /// Takes all requests.
    pub fn take(&self) -> Vec<Request> {
        std::mem::take(&mut *self.queue.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl SystemControl for Requests {
    fn request(&self, request: SystemRequest) {
        if let Some(holder) = self.holder.get() {
            holder.hold();
        }
        self.push(Request::System(request));
    }
}
