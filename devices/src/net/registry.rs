//! The network backends of a machine, by name.

use std::sync::{Arc, Weak};

use board::event::{EventTarget, LoopHandle};

use super::backend::{Backend, Netdev};
use super::stream::Stream;
use super::tap::Tap;
use super::user::UserNet;
use super::{NetError, NetPort, NetdevKind, NetdevSpec};

/// The open backends, in the order in which they were opened.
pub struct Netdevs {
    events: LoopHandle,
    open: Vec<Arc<Netdev>>,
}

impl Netdevs {
    /// No backends yet; their fds will be on `events`.
    pub fn new(events: &LoopHandle) -> Self {
        Self { events: events.clone(), open: Vec::new() }
    }

    /// Opens a backend.
    ///
    /// # Errors
    /// When the name is taken or the host refuses.
    pub fn add(&mut self, spec: &NetdevSpec) -> Result<Arc<Netdev>, NetError> {
        if self.get(&spec.id).is_some() {
            return Err(NetError::Duplicate { id: spec.id.clone() });
        }
        let mut error = None;
        let netdev = Arc::new_cyclic(|target: &Weak<Netdev>| {
            let target: Weak<dyn EventTarget> = target.clone();
            let backend = open(spec, &self.events, target).unwrap_or_else(|e| {
                error = Some(e);
                Box::new(Stream::closed())
            });
            Netdev::new(&spec.id, backend)
        });
        if let Some(error) = error {
            return Err(error);
        }
        self.open.push(netdev.clone());
        Ok(netdev)
    }

    /// Closes a backend. A card that has it has a cable that leads nowhere from now on, once it lets
    /// go of it.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn remove(&mut self, id: &str) -> Result<Arc<Netdev>, NetError> {
        let index = self.open.iter().position(|netdev| netdev.id() == id);
        index.map(|index| self.open.remove(index)).ok_or_else(|| self.missing(id))
    }

    /// The backend of that name.
    pub fn get(&self, id: &str) -> Option<Arc<Netdev>> {
        self.open.iter().find(|netdev| netdev.id() == id).cloned()
    }

    /// The card's end of the backend of that name.
    ///
    /// # Errors
    /// When there is none of that name, or a card has it.
    pub fn port(&self, id: &str) -> Result<NetPort, NetError> {
        self.get(id).ok_or_else(|| self.missing(id))?.attach()
    }

    /// The error for a name that there is not.
    pub fn missing(&self, id: &str) -> NetError {
        let known: Vec<&str> = self.open.iter().map(|netdev| netdev.id()).collect();
        let near = known
            .iter()
            .map(|&name| (strsim::damerau_levenshtein(id, name), name))
            .min()
            .filter(|&(distance, name)| distance <= 2 && distance < name.len());
        let hint = match near {
            Some((_, name)) => format!("did you mean '{name}'?"),
            None if known.is_empty() => format!("make it by --netdev KIND,id={id}"),
            None => format!("there are {}", known.join(", ")),
        };
        NetError::NoSuchId { id: id.to_owned(), hint }
    }

    /// All of them, in the order in which they were opened.
    pub fn all(&self) -> &[Arc<Netdev>] {
        &self.open
    }
}

fn open(
    spec: &NetdevSpec,
    events: &LoopHandle,
    target: Weak<dyn EventTarget>,
) -> Result<Box<dyn Backend>, NetError> {
    Ok(match &spec.kind {
        NetdevKind::User(config) => Box::new(UserNet::open(&spec.id, config, events, target)?),
        NetdevKind::Tap(config) => Box::new(Tap::open(&spec.id, config, events, target)?),
        NetdevKind::Stream { name, address, role } => {
            Box::new(Stream::open(&spec.id, name, address, *role, events, target)?)
        }
    })
}
