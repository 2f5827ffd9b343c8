//! The host's name server (resolv.conf(5)).

use std::net::IpAddr;
use std::time::SystemTime;

const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Knows the name server; looks again when the file has changed.
pub(super) struct Resolver {
    fixed: Option<IpAddr>,
    found: Option<IpAddr>,
    changed: Option<SystemTime>,
}

impl Resolver {
    /// `fixed` is one that the user names.
    pub(super) fn new(fixed: Option<IpAddr>) -> Self {
        let mut this = Self { fixed, found: None, changed: None };
        // A sandbox may close the file later.
        this.get();
        this
    }

    /// The name server, if there is one.
    pub(super) fn get(&mut self) -> Option<IpAddr> {
        if self.fixed.is_some() {
            return self.fixed;
        }
        let changed = std::fs::metadata(RESOLV_CONF).and_then(|meta| meta.modified()).ok();
        if changed.is_some()
            && changed != self.changed
            && let Ok(text) = std::fs::read_to_string(RESOLV_CONF)
        {
            self.changed = changed;
            self.found = parse(&text);
        }
        self.found
    }
}

/// The first name server, of IPv4 if there is one.
fn parse(text: &str) -> Option<IpAddr> {
    let servers = text.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let keyword = words.next()?;
        (keyword == "nameserver").then(|| words.next()?.parse::<IpAddr>().ok())?
    });
    let mut servers: Vec<_> = servers.collect();
    servers.sort_by_key(|server| !server.is_ipv4());
    servers.first().copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_server_counts_and_ipv4_before_ipv6() {
        assert_eq!(
            parse("search x\n# nameserver 1.1.1.1\nnameserver 9.8.7.6\nnameserver 1.2.3.4\n"),
            Some(IpAddr::from([9, 8, 7, 6]))
        );
        assert_eq!(parse("nameserver ::1\nnameserver 1.2.3.4"), Some(IpAddr::from([1, 2, 3, 4])));
        assert_eq!(parse("nameserver ::1\n"), Some("::1".parse().unwrap()));
        assert_eq!(parse("nameserver\nnameserver x\n"), None);
    }
}
