//! The machine's networks, as the monitor sees and changes them.

use std::fmt::Write;

use devices::net::NetError;
use devices::net::user::Line;
use devices::virtio::net::Net;
use devices::virtio::with_device;
use monitor::CommandError;

use crate::Error;
use crate::config::net::{parse_forward, parse_forward_host, parse_netdev};

use super::Machine;

/// A network card of the machine.
struct Card {
    /// `id=`, or the model and a number.
    name: String,
    /// Its line in `info network`.
    line: String,
    /// Its backend.
    netdev: Option<String>,
    /// Its place among the machine's virtio devices.
    entry: usize,
}

impl Machine {
    fn cards(&self) -> Vec<Card> {
        let mut cards: Vec<Card> = Vec::new();
        for (index, entry) in self.virtio.entries.iter().enumerate() {
            let found = with_device(&entry.slot, |net: &mut Net, _| {
                (net.mac(), net.port().netdev().map(|netdev| netdev.id().to_owned()))
            });
            let Some((mac, netdev)) = found else { continue };
            let model = &entry.model;
            let same = cards.iter().filter(|card| card.name.starts_with(&format!("{model}.")));
            let name = entry.id.clone().unwrap_or_else(|| format!("{model}.{}", same.count()));
            let line = format!("{name}: index=0,type=nic,model={model},macaddr={mac}");
            cards.push(Card { name, line, netdev, entry: index });
        }
        cards
    }

    /// What `info network` shows.
    pub fn network_text(&self) -> String {
        let mut text = String::new();
        let cards = self.cards();
        // Writing to a String does not fail.
        for card in &cards {
            let _ = writeln!(text, "{}", card.line);
            if let Some(netdev) = card.netdev.as_ref().and_then(|id| self.netdevs.get(id)) {
                let _ = writeln!(text, " \\ {}: index=0,{}", netdev.id(), netdev.describe());
            }
        }
        for netdev in self.netdevs.all() {
            if !cards.iter().any(|card| card.netdev.as_deref() == Some(netdev.id())) {
                let _ = writeln!(text, "{}: index=0,{}", netdev.id(), netdev.describe());
            }
        }
        text
    }

    /// What `info usernet` shows.
    pub fn usernet_text(&self) -> String {
        let mut text = String::new();
        for netdev in self.netdevs.all() {
            let Some(lines) = netdev.with_user(|user| user.info()) else { continue };
            let _ = writeln!(text, "Hub -1 ({}):", netdev.id());
            text.push_str(
                "  Protocol[State]    FD  Source Address  Port   Dest. Address  Port RecvQ SendQ\n",
            );
            lines.iter().for_each(|line| write_line(&mut text, line));
        }
        text
    }

    /// Plugs in or pulls the cable of a card or of a backend.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn set_link(&mut self, name: &str, up: bool) -> Result<(), CommandError> {
        if let Some(netdev) = self.netdevs.get(name) {
            netdev.set_link(up);
            return Ok(());
        }
        let card = self.cards().into_iter().find(|card| card.name == name);
        let card = card.ok_or_else(|| CommandError::DeviceNotFound(name.to_owned()))?;
        let slot = self.virtio.entries[card.entry].slot.clone();
        with_device(&slot, |net: &mut Net, io| net.set_link(up, io));
        Ok(())
    }

    /// Opens a network backend, as `--netdev` does.
    ///
    /// # Errors
    /// With the cause and the remedy.
    pub fn netdev_add(&mut self, text: &str) -> Result<(), Error> {
        self.netdevs.add(&parse_netdev(text)?)?;
        Ok(())
    }

    /// Closes a network backend; the card that has it loses its link.
    ///
    /// # Errors
    /// When there is none of that name.
    pub fn netdev_del(&mut self, id: &str) -> Result<(), CommandError> {
        let card = self.cards().into_iter().find(|card| card.netdev.as_deref() == Some(id));
        self.netdevs.remove(id).map_err(|_| CommandError::DeviceNotFound(id.to_owned()))?;
        if let Some(card) = card {
            let slot = self.virtio.entries[card.entry].slot.clone();
            with_device(&slot, |net: &mut Net, io| net.unplug(io));
        }
        Ok(())
    }

    /// Leads a port of the host to the guest; `id` names the network, else it is the first.
    ///
    /// # Errors
    /// When the rule is not understood, or the port cannot be had.
    pub fn hostfwd_add(&mut self, id: Option<&str>, rule: &str) -> Result<(), Error> {
        let forward = parse_forward(rule).map_err(|why| {
            NetError::Forward(format!("Invalid host forwarding rule '{rule}' ({why})"))
        })?;
        self.with_user(id, |user| user.add_forward(forward))??;
        Ok(())
    }

    /// Ends such a forward; the text says whether there was one.
    ///
    /// # Errors
    /// When the rule is not understood, or there is no such network.
    pub fn hostfwd_remove(&mut self, id: Option<&str>, rule: &str) -> Result<String, Error> {
        let (protocol, host) = parse_forward_host(rule).map_err(|why| {
            NetError::Forward(format!("Invalid host forwarding rule '{rule}' ({why})"))
        })?;
        let removed = self.with_user(id, |user| user.remove_forward(protocol, host))?;
        let outcome = if removed { "removed" } else { "not found" };
        Ok(format!("host forwarding rule for {rule} {outcome}\n"))
    }

    fn with_user<R>(
        &self,
        id: Option<&str>,
        act: impl FnOnce(&mut devices::net::user::UserNet) -> R,
    ) -> Result<R, Error> {
        let missing = |text: &str| Error::from(NetError::Forward(text.to_owned()));
        let netdev = match id {
            Some(id) => self.netdevs.get(id).ok_or_else(|| self.netdevs.missing(id))?,
            None => {
                let mut all = self.netdevs.all().iter();
                let user = all.find(|netdev| netdev.with_user(|_| ()).is_some());
                user.cloned().ok_or_else(|| {
                    missing("user mode network stack not in use: add one by netdev_add user,id=ID")
                })?
            }
        };
        let other = || missing(&format!("netdev '{}' is no user network", netdev.id()));
        netdev.with_user(act).ok_or_else(other)
    }
}

fn write_line(text: &mut String, line: &Line) {
    let state = format!("  {}[{}]", line.protocol, line.state);
    let from = line.from.map_or("*".to_owned(), |from| from.to_string());
    let _ = match line.protocol {
        "ICMP" => writeln!(
            text,
            "{state:<19} {:3} {from:>15}  -    {:>15}  -    {:5} {:5}",
            line.fd,
            line.to.to_string(),
            line.receive,
            line.send
        ),
        _ => writeln!(
            text,
            "{state:<19} {:3} {from:>15} {:5} {:>15} {:5} {:5} {:5}",
            line.fd,
            line.from_port,
            line.to.to_string(),
            line.to_port,
            line.receive,
            line.send
        ),
    };
}
