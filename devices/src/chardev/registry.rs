//! The character devices of a machine, by name.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::backend::{Chardev, ChardevInfo, Host};
use super::pty::Pty;
use super::socket::{self, Server};
use super::source::{Fixed, Peer, Source};
use super::spec::suggest;
use super::{BackendKind, BackendSpec, ChardevError, SocketRole, path, stdio};

/// The open backends, in the order in which they were opened.
pub struct Chardevs {
    host: Host,
    open: Vec<Arc<Chardev>>,
}

impl Chardevs {
    /// No backends yet.
    pub fn new(host: Host) -> Self {
        Self { host, open: Vec::new() }
    }

    /// Opens the backend under its id, or under `label` (`serial0`) when it has none. The spec
    /// `chardev:ID` gives the backend that is open under that id. `none` is like `null`: the caller
    /// who wants no device at all asks before.
    ///
    /// # Errors
    /// With cause and remedy, when the name is taken or the host refuses.
    pub fn open(&mut self, spec: &BackendSpec, label: &str) -> Result<Arc<Chardev>, ChardevError> {
        if let BackendKind::Reference(id) = &spec.kind {
            return self.get(id).ok_or_else(|| self.no_such_id(id));
        }
        let label = spec.id.as_deref().unwrap_or(label);
        if self.get(label).is_some() {
            return Err(ChardevError::Duplicate { id: label.to_owned() });
        }
        let (source, peer) = self.open_host(&spec.kind, label)?;
        let chardev = Chardev::new(label, spec.mux, &self.host, source, peer)?;
        self.open.push(chardev.clone());
        Ok(chardev)
    }

    fn open_host(
        &self,
        kind: &BackendKind,
        label: &str,
    ) -> Result<(Box<dyn Source>, Option<Peer>), ChardevError> {
        Ok(match kind {
            BackendKind::None | BackendKind::Null | BackendKind::Reference(_) => {
                (Box::new(Fixed("null".to_owned())), None)
            }
            BackendKind::Stdio { signal } => {
                let (source, peer) = stdio::open(label, *signal)?;
                (Box::new(source), Some(peer))
            }
            BackendKind::Pty => {
                let pty = Pty::open(label)?;
                let name = pty.name();
                (self.host.report)(&format!("char device redirected to {name} (label {label})"));
                (Box::new(pty), None)
            }
            BackendKind::File { path, append } => fixed(path::open_file(path, *append)?),
            BackendKind::Pipe { path } => fixed(path::open_pipe(path)?),
            BackendKind::Socket { address, role: SocketRole::Client } => {
                let (source, peer) = socket::connect(address)?;
                (Box::new(source), Some(peer))
            }
            BackendKind::Socket { address, role: SocketRole::Server { wait } } => {
                let failed = |source| ChardevError::Host {
                    label: label.to_owned(),
                    source,
                    limit: "open files (ulimit -n)",
                };
                let mut server = Server::listen(address)?;
                let mut first = None;
                if *wait {
                    (self.host.report)(&format!(
                        "waiting for connection on: {}",
                        server.filename()
                    ));
                    first = Some(server.wait().map_err(failed)?);
                }
                server.set_nonblocking(true).map_err(failed)?;
                (Box::new(server), first)
            }
        })
    }

    fn no_such_id(&self, id: &str) -> ChardevError {
        let known: Vec<&str> = self.open.iter().map(|chardev| chardev.label()).collect();
        let hint = match known.is_empty() {
            true => "make it by --chardev BACKEND,id=ID".to_owned(),
            false => suggest(id, &known),
        };
        ChardevError::NoSuchId { id: id.to_owned(), hint }
    }

    /// The backend of that name.
    pub fn get(&self, label: &str) -> Option<Arc<Chardev>> {
        self.open.iter().find(|chardev| chardev.label() == label).cloned()
    }

    /// Closes the backend of that name, if there is one. What its frontend still holds is no longer
    /// connected to anything.
    pub fn remove(&mut self, label: &str) {
        if let Some(index) = self.open.iter().position(|chardev| chardev.label() == label) {
            self.open.remove(index).finish(Instant::now());
        }
    }

    /// The lines of `info chardev`.
    pub fn info(&self) -> Vec<ChardevInfo> {
        self.open.iter().flat_map(|chardev| chardev.info()).collect()
    }

    /// Finishes all of them, as [`Chardev::finish`]: their readers have `patience` altogether.
    pub fn finish(&self, patience: Duration) {
        let deadline = Instant::now() + patience;
        for chardev in &self.open {
            chardev.finish(deadline);
        }
    }
}

fn fixed(peer: Peer) -> (Box<dyn Source>, Option<Peer>) {
    (Box::new(Fixed(peer.filename.clone())), Some(peer))
}
