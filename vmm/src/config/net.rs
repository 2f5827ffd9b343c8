//! `--netdev`, `--nic` and `--net`: networks, in QEMU's spelling.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;

use devices::net::{
    Forward, GuestForward, MacAddress, NetdevKind, NetdevSpec, Protocol, StreamAddress, StreamRole,
    TapConfig, Target, UserConfig,
};
use devices::virtio::RingOptions;

use crate::suggest::nearest;

use super::ConfigError;
use super::help::rows;
use super::props::Props;
use super::virtio::{NetSpec, Transport, VirtioKind, VirtioSpec};

/// The script that sets up a tap interface where the user names none, if it is there.
const DEFAULT_SCRIPT: &str = "/etc/qemu-ifup";
/// The same to take it down.
const DEFAULT_DOWNSCRIPT: &str = "/etc/qemu-ifdown";

/// A row of the table: a kind of backend.
struct Kind {
    name: &'static str,
    help: &'static str,
    /// Properties with their values, and how they are explained.
    props: &'static [(&'static str, &'static str)],
    parse: fn(&mut Props) -> Result<NetdevKind, ConfigError>,
}

const KINDS: &[Kind] = &[
    Kind {
        name: "user",
        help: "a network behind this program's own sockets: no privilege needed",
        props: &[
            ("net=ADDR/BITS", "the network (10.0.2.0/24)"),
            ("host=ADDR", "the gateway, which leads to this host's loopback (.2)"),
            ("dns=ADDR", "the name server (.3)"),
            ("dhcpstart=ADDR", "the first address that DHCP gives out (.15)"),
            ("hostname=NAME", "the name that DHCP gives the guest"),
            ("domainname=NAME", "the domain, by DHCP"),
            ("dnssearch=DOMAIN", "where names are looked for, by DHCP; may be repeated"),
            ("restrict=on|off", "the guest reaches what is forwarded only (off)"),
            ("hostfwd=RULE", "[tcp|udp]:[HOSTADDR]:PORT-[GUESTADDR]:PORT; may be repeated"),
            ("guestfwd=RULE", "[tcp]:ADDR:PORT-tcp:HOST:PORT, -unix:PATH or -cmd:COMMAND"),
            ("ipv4=on|off", "on is all there is"),
            ("ipv6=on|off", "off is all there is"),
        ],
        parse: user,
    },
    Kind {
        name: "tap",
        help: "a network interface of the host",
        props: &[
            ("ifname=NAME", "the interface, made if it is not there (the kernel chooses)"),
            (
                "script=FILE|no",
                "sets it up, called with its name (/etc/qemu-ifup if that is there)",
            ),
            ("downscript=FILE|no", "takes it down (/etc/qemu-ifdown if that is there)"),
            ("fd=N", "an inherited fd of the interface; fds=N:N for several queues"),
            ("queues=N", "queue pairs, 1 to 256 (1)"),
            ("vnet_hdr=on|off", "large frames and unfinished checksums pass (on)"),
            ("sndbuf=SIZE", "limits what waits on its way out"),
            ("vhost=on|off", "off is all there is yet"),
            ("vhostfd=N", "an inherited fd of that; vhostfds=N:N for several queues"),
        ],
        parse: tap,
    },
    Kind {
        name: "socket",
        help: "frames on a TCP connection to another emulator",
        props: &[
            ("listen=[HOST]:PORT", "waits for the other there"),
            ("connect=HOST:PORT", "or connects"),
            ("fd=N", "or uses an inherited connection"),
        ],
        parse: socket,
    },
    Kind {
        name: "stream",
        help: "the same on any stream socket, such as passt's",
        props: &[
            ("server=on|off", "listens rather than connects (off)"),
            ("addr.type=unix|inet|fd", "the kind of address (needed)"),
            ("addr.path=PATH", "a unix socket"),
            ("addr.host=HOST", "a host, and addr.port=PORT"),
            ("addr.str=N", "an inherited connection"),
            (
                "reconnect=SECONDS",
                "connects again that long after the connection was lost (0: never)",
            ),
        ],
        parse: stream,
    },
];

fn bad(option: &str, value: &str, expected: &str) -> ConfigError {
    ConfigError::BadValue {
        option: option.to_owned(),
        value: value.to_owned(),
        expected: expected.to_owned(),
    }
}

fn take<T: FromStr>(
    props: &mut Props,
    key: &'static str,
    expected: &str,
) -> Result<Option<T>, ConfigError> {
    let Some(text) = props.take(key) else { return Ok(None) };
    text.parse().map(Some).map_err(|_| props.bad(key, &text, expected))
}

fn fds(
    props: &mut Props,
    one: &'static str,
    several: &'static str,
) -> Result<Vec<RawFd>, ConfigError> {
    let expected = "numbers of open fds with colons between them";
    let single = take(props, one, "the number of an open fd")?;
    let Some(text) = props.take(several) else { return Ok(single.into_iter().collect()) };
    let list: Result<Vec<_>, _> = text.split(':').map(str::parse).collect();
    list.map_err(|_| props.bad(several, &text, expected))
}

const ADDRESS: &str = "an IPv4 address such as 10.0.2.2";

fn user(props: &mut Props) -> Result<NetdevKind, ConfigError> {
    let mut config = UserConfig::default();
    if let Some(text) = props.take("net") {
        let (net, prefix) = parse_net(&text).ok_or_else(|| {
            props.bad("net", &text, "a network such as 10.0.2.0/24, of 8 to 29 bits")
        })?;
        config = UserConfig::on(net, prefix);
    }
    let places: [(&'static str, &mut Ipv4Addr); 3] = [
        ("host", &mut config.host),
        ("dns", &mut config.dns),
        ("dhcpstart", &mut config.dhcp_start),
    ];
    for (key, place) in places {
        if let Some(address) = take(props, key, ADDRESS)? {
            *place = address;
        }
    }
    config.hostname = props.take("hostname");
    config.domain = props.take("domainname");
    config.search = props.take_all("dnssearch");
    config.restrict = props.take_switch("restrict")?.unwrap_or(false);
    if props.take_switch("ipv4")? == Some(false) || props.take_switch("ipv6")? == Some(true) {
        return Err(ConfigError::Conflict(
            "--netdev user has IPv4 only: leave out ipv4 and ipv6, or give --netdev tap".into(),
        ));
    }
    for rule in props.take_all("hostfwd") {
        config.forwards.push(parse_forward(&rule).map_err(|why| bad_rule("hostfwd", &rule, &why))?);
    }
    for rule in props.take_all("guestfwd") {
        let forward =
            parse_guest_forward(&rule).map_err(|why| bad_rule("guestfwd", &rule, &why))?;
        config.guest_forwards.push(forward);
    }
    Ok(NetdevKind::User(config))
}

fn bad_rule(key: &str, rule: &str, why: &str) -> ConfigError {
    ConfigError::Conflict(format!("--netdev user,{key}: in '{rule}' {why}"))
}

/// `10.0.2.0/24`, `10.0.2.0/255.255.255.0`, or an address whose class says how large its network is.
fn parse_net(text: &str) -> Option<(Ipv4Addr, u8)> {
    let (net, size) = match text.split_once('/') {
        Some((net, size)) => (net, Some(size)),
        None => (text, None),
    };
    let net: Ipv4Addr = net.parse().ok()?;
    let prefix = match size {
        Some(size) => match size.parse::<u8>() {
            Ok(bits) => bits,
            Err(_) => {
                let mask = size.parse::<Ipv4Addr>().ok()?.to_bits();
                let bits = mask.leading_ones();
                (mask.count_ones() == bits).then_some(bits as u8)?
            }
        },
        None => match net.octets()[0] {
            ..=127 => 8,
            128..=191 => 16,
            _ => 24,
        },
    };
    (8..=29).contains(&prefix).then_some((net, prefix))
}

/// `[tcp|udp]:[hostaddr]:hostport-[guestaddr]:guestport`.
///
/// # Errors
/// What is wrong with it, to be put behind "in 'RULE'".
pub fn parse_forward(rule: &str) -> Result<Forward, String> {
    let (host, guest) = rule.split_once('-').ok_or("there is no '-' before the guest's port")?;
    let (protocol, host) = parse_forward_host(host)?;
    let (address, port) = guest.rsplit_once(':').ok_or("the guest's port lacks its ':'")?;
    let guest = match address {
        "" => Ipv4Addr::UNSPECIFIED,
        text => text.parse().map_err(|_| format!("'{text}' is not {ADDRESS}"))?,
    };
    let guest_port = parse_port(port)?;
    Ok(Forward { protocol, host, guest, guest_port })
}

/// `[tcp|udp]:[hostaddr]:hostport`.
///
/// # Errors
/// What is wrong with it.
pub fn parse_forward_host(text: &str) -> Result<(Protocol, SocketAddr), String> {
    let (protocol, place) =
        text.split_once(':').ok_or("a ':' is missing: it begins with tcp: or udp:")?;
    let protocol = match protocol {
        "" | "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => return Err(format!("'{other}' is neither tcp nor udp")),
    };
    let (address, port) =
        place.rsplit_once(':').ok_or("a ':' is missing before the host's port")?;
    let bare = address.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(address);
    let address = match bare {
        "" => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        text => text.parse().map_err(|_| format!("'{text}' is not an address of the host"))?,
    };
    Ok((protocol, SocketAddr::new(address, parse_port(port)?)))
}

fn parse_port(text: &str) -> Result<u16, String> {
    let port = text.parse().ok().filter(|&port| port > 0);
    port.ok_or_else(|| format!("'{text}' is not a port from 1 to 65535"))
}

/// `[tcp]:server:port-target`.
fn parse_guest_forward(rule: &str) -> Result<GuestForward, String> {
    let (place, target) = rule.split_once('-').ok_or("there is no '-' before the target")?;
    let rest = place.strip_prefix("tcp:").or_else(|| place.strip_prefix(':'));
    let rest = rest.ok_or("it does not begin with tcp:")?;
    let (server, port) = rest.split_once(':').ok_or("a ':' is missing before the port")?;
    let server = server.parse().map_err(|_| format!("'{server}' is not {ADDRESS}"))?;
    let port = parse_port(port)?;
    let target = match target.split_once(':') {
        Some(("tcp", place)) => {
            let address = place.parse();
            Target::Tcp(address.map_err(|_| format!("'{place}' is not an address and port"))?)
        }
        Some(("unix", path)) if !path.is_empty() => Target::Unix(path.into()),
        Some(("cmd", command)) if !command.is_empty() => Target::Command(command.to_owned()),
        _ => {
            return Err(format!(
                "the target '{target}' is not tcp:ADDR:PORT, unix:PATH or cmd:COMMAND"
            ));
        }
    };
    Ok(GuestForward { server, port, target })
}

fn tap(props: &mut Props) -> Result<NetdevKind, ConfigError> {
    let script = |given: Option<String>, default: &str| match given.as_deref() {
        Some("no") | Some("") => None,
        Some(path) => Some(PathBuf::from(path)),
        None => Some(PathBuf::from(default)).filter(|path| path.exists()),
    };
    let ifname = props.take("ifname");
    if let Some(name) = ifname.as_ref().filter(|name| name.is_empty() || name.len() > 15) {
        return Err(props.bad("ifname", name, "an interface's name of 1 to 15 characters"));
    }
    let scripts = (props.take("script"), props.take("downscript"));
    let fds_given = fds(props, "fd", "fds")?;
    let vhost_fds = fds(props, "vhostfd", "vhostfds")?;
    let queues = props.take_number("queues", 1..=256)?;
    if !fds_given.is_empty() {
        let others = [
            ("ifname", ifname.is_some()),
            ("script", scripts.0.is_some()),
            ("downscript", scripts.1.is_some()),
            ("queues", queues.is_some()),
        ];
        if let Some((other, _)) = others.iter().find(|(_, given)| *given) {
            return Err(ConfigError::Conflict(format!(
                "--netdev tap: {other} does not go with fd, whose interface is ready: leave it out"
            )));
        }
    }
    let sndbuf = match props.take("sndbuf") {
        None => 0,
        Some(text) => super::props::parse_size(&text, 1)
            .and_then(|size| u32::try_from(size).ok())
            .ok_or_else(|| props.bad("sndbuf", &text, "a size such as 1M"))?,
    };
    Ok(NetdevKind::Tap(TapConfig {
        ifname,
        script: script(scripts.0, DEFAULT_SCRIPT),
        downscript: script(scripts.1, DEFAULT_DOWNSCRIPT),
        fds: fds_given,
        queues: queues.unwrap_or(1) as u16,
        sndbuf,
        vnet_hdr: props.take_switch("vnet_hdr")?.unwrap_or(true),
        vhost: props.take_switch("vhost")?.unwrap_or(!vhost_fds.is_empty()),
        vhost_fds,
    }))
}

fn socket(props: &mut Props) -> Result<NetdevKind, ConfigError> {
    let inet = |props: &Props, key: &str, text: &str| {
        let place = text.rsplit_once(':');
        let place = place.and_then(|(host, port)| Some((host.to_owned(), port.parse().ok()?)));
        place
            .map(|(host, port)| StreamAddress::Inet(host, port))
            .ok_or_else(|| props.bad(key, text, "a place such as 127.0.0.1:1234"))
    };
    let (listen, connect) = (props.take("listen"), props.take("connect"));
    let fd = take(props, "fd", "the number of an open fd")?;
    let client = StreamRole::Client { reconnect: 0 };
    let (address, role) = match (listen, connect, fd) {
        (Some(text), None, None) => (inet(props, "listen", &text)?, StreamRole::Server),
        (None, Some(text), None) => (inet(props, "connect", &text)?, client),
        (None, None, Some(fd)) => (StreamAddress::Fd(fd), client),
        _ => {
            return Err(ConfigError::Conflict(
                "--netdev socket needs one of listen=[HOST]:PORT, connect=HOST:PORT and fd=N"
                    .into(),
            ));
        }
    };
    Ok(NetdevKind::Stream { name: "socket", address, role })
}

fn stream(props: &mut Props) -> Result<NetdevKind, ConfigError> {
    let kind = props.take("addr.type");
    let (path, host) = (props.take("addr.path"), props.take("addr.host"));
    let port = take(props, "addr.port", "a port from 0 to 65535")?;
    let fd = take(props, "addr.str", "the number of an open fd")?;
    let server = props.take_switch("server")?.unwrap_or(false);
    let reconnect = props.take_number("reconnect", 0..=86_400)?.unwrap_or(0) as u32;
    let lacks = |key| Err(props.missing(key));
    let address = match (kind.as_deref(), path, host, port, fd) {
        (None, ..) => return lacks("addr.type"),
        (Some("unix"), Some(path), ..) => StreamAddress::Unix(path.into()),
        (Some("unix"), ..) => return lacks("addr.path"),
        (Some("inet"), _, Some(host), Some(port), _) => StreamAddress::Inet(host, port),
        (Some("inet"), _, None, ..) => return lacks("addr.host"),
        (Some("inet"), ..) => return lacks("addr.port"),
        (Some("fd"), .., Some(fd)) => StreamAddress::Fd(fd),
        (Some("fd"), ..) => return lacks("addr.str"),
        (Some(other), ..) => return Err(props.bad("addr.type", other, "unix, inet or fd")),
    };
    if server && reconnect > 0 {
        return Err(ConfigError::Conflict(
            "--netdev stream: reconnect is for clients: leave out server or reconnect".into(),
        ));
    }
    let role = if server { StreamRole::Server } else { StreamRole::Client { reconnect } };
    Ok(NetdevKind::Stream { name: "stream", address, role })
}

fn find(option: &'static str, name: &str) -> Result<&'static Kind, ConfigError> {
    KINDS.iter().find(|kind| kind.name == name).ok_or_else(|| {
        let names = || KINDS.iter().map(|kind| kind.name);
        ConfigError::UnknownName {
            option,
            name: name.to_owned(),
            near: nearest(name, names()).map(str::to_owned),
            known: names().collect::<Vec<_>>().join(", "),
        }
    })
}

/// Reads `KIND,id=ID,...` of `--netdev` and `netdev_add`.
///
/// # Errors
/// Names the nearest known kind or property.
pub fn parse_netdev(text: &str) -> Result<NetdevSpec, ConfigError> {
    let (name, mut props) = Props::with_head("--netdev", text);
    let name = name.strip_prefix("type=").map_or(name.clone(), str::to_owned);
    let kind = find("--netdev", &name)?;
    let id = props.take("id").ok_or_else(|| props.missing("id"))?;
    let sound = id.starts_with(|c: char| c.is_ascii_alphabetic())
        && id.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c));
    if !sound {
        return Err(props.bad("id", &id, "a letter, then letters, digits, '-', '.', '_'"));
    }
    let kind = (kind.parse)(&mut props)?;
    props.finish()?;
    Ok(NetdevSpec { id, kind })
}

/// What `--netdev help` prints.
pub fn netdev_help() -> String {
    rows(KINDS.iter().map(|kind| (kind.name, kind.help)))
}

/// What `--netdev KIND,help` prints.
///
/// # Errors
/// When there is no such kind.
pub fn kind_help(name: &str) -> Result<String, ConfigError> {
    let kind = find("--netdev", name)?;
    Ok(format!("{}: {}\n{}", kind.name, kind.help, rows(kind.props.iter().copied())))
}

/// The networks of a command line.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Networks {
    /// The backends.
    pub netdevs: Vec<NetdevSpec>,
    /// The cards that `--nic` and `--net nic` stand for.
    pub cards: Vec<VirtioSpec>,
}

impl Networks {
    /// Reads all `--netdev`, `--nic` and `--net`.
    ///
    /// # Errors
    /// Names the nearest of what is not known.
    pub fn parse(
        netdevs: &[String],
        nics: &[String],
        nets: &[String],
    ) -> Result<Self, ConfigError> {
        let mut this = Self::default();
        for text in netdevs {
            this.netdevs.push(parse_netdev(text)?);
        }
        for text in nics.iter().filter(|text| *text != "none") {
            this.nic(text)?;
        }
        this.net(nets)?;
        Ok(this)
    }

    /// Whether connections are made while the machine runs.
    pub fn need_sockets(&self) -> bool {
        self.netdevs.iter().any(|netdev| match &netdev.kind {
            NetdevKind::User(_) => true,
            NetdevKind::Stream { role, .. } => {
                matches!(role, StreamRole::Client { reconnect: 1.. })
            }
            NetdevKind::Tap(_) => false,
        })
    }

    /// Whether programs are started while the machine runs or when it ends.
    pub(super) fn starts_programs(&self) -> bool {
        self.netdevs.iter().any(|netdev| match &netdev.kind {
            NetdevKind::User(config) => config
                .guest_forwards
                .iter()
                .any(|forward| !matches!(forward.target, Target::Tcp(_))),
            NetdevKind::Tap(config) => config.downscript.is_some() && config.fds.is_empty(),
            NetdevKind::Stream { address, role, .. } => {
                matches!(role, StreamRole::Client { reconnect: 1.. })
                    && matches!(address, StreamAddress::Unix(_))
            }
        })
    }

    fn free_id(&self) -> String {
        let taken = |id: &String| self.netdevs.iter().any(|netdev| netdev.id == *id);
        let mut ids = (0..).map(|number| format!("net{number}"));
        ids.find(|id| !taken(id)).unwrap_or_default()
    }

    /// A backend and a card for it.
    fn nic(&mut self, text: &str) -> Result<(), ConfigError> {
        let (name, mut props) = Props::with_head("--nic", text);
        let kind = find("--nic", &name)?;
        let id = props.take("id").unwrap_or_else(|| self.free_id());
        let card = card(&mut props, "mac", id.clone())?;
        let kind = (kind.parse)(&mut props)?;
        props.finish()?;
        self.netdevs.push(NetdevSpec { id, kind });
        self.cards.push(card);
        Ok(())
    }

    /// The old form: a card and a backend, each with an option of its own.
    fn net(&mut self, texts: &[String]) -> Result<(), ConfigError> {
        let texts: Vec<_> = texts.iter().filter(|text| *text != "none").collect();
        let is_card = |text: &str| text == "nic" || text.starts_with("nic,");
        let (cards, backends): (Vec<_>, Vec<_>) = texts.into_iter().partition(|text| is_card(text));
        let (card_text, backend) = match (&cards[..], &backends[..]) {
            ([], []) => return Ok(()),
            ([card], [backend]) => (card, backend),
            _ => {
                return Err(ConfigError::Conflict(
                    "--net connects one nic with one backend: for more give --nic KIND,... for each"
                        .into(),
                ));
            }
        };
        let (name, mut props) = Props::with_head("--net", backend);
        let kind = find("--net", &name)?;
        let id = props.take("id").unwrap_or_else(|| self.free_id());
        props.take("name");
        let kind = (kind.parse)(&mut props)?;
        props.finish()?;
        let (_, mut props) = Props::with_head("--net", card_text);
        let card = card(&mut props, "macaddr", id.clone())?;
        props.take("name");
        props.finish()?;
        self.netdevs.push(NetdevSpec { id, kind });
        self.cards.push(card);
        Ok(())
    }
}

/// The card that goes with a backend.
fn card(props: &mut Props, mac: &'static str, netdev: String) -> Result<VirtioSpec, ConfigError> {
    const MODELS: [(&str, (&str, Transport)); 5] = [
        ("virtio", ("virtio-net", Transport::Machine)),
        ("virtio-net", ("virtio-net", Transport::Machine)),
        ("virtio-net-pci", ("virtio-net-pci", Transport::Pci)),
        ("virtio-net-device", ("virtio-net-device", Transport::Mmio)),
        ("virtio-net-pci-non-transitional", ("virtio-net-pci", Transport::Pci)),
    ];
    let mac = take_mac(props, mac)?;
    let model = props.take_choice("model", &MODELS)?;
    let (name, transport) = model.unwrap_or(("virtio-net", Transport::Machine));
    let kind = VirtioKind::Net(NetSpec { netdev: Some(netdev), mac, ..NetSpec::default() });
    let (id, addr, vectors, options) = (None, None, None, RingOptions::default());
    Ok(VirtioSpec { name, id, addr, vectors, transport, options, kind })
}

/// Takes an Ethernet address out.
pub(super) fn take_mac(
    props: &mut Props,
    key: &'static str,
) -> Result<Option<MacAddress>, ConfigError> {
    let expected = "an Ethernet address of one card, such as 52:54:00:12:34:56";
    let Some(text) = props.take(key) else { return Ok(None) };
    let mac = text.parse().ok().filter(|mac: &MacAddress| !mac.is_multicast());
    mac.map(Some).ok_or_else(|| bad(key, &text, expected))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> NetdevKind {
        parse_netdev(text).unwrap_or_else(|e| panic!("{text}: {e}")).kind
    }

    fn user_of(text: &str) -> UserConfig {
        match parse(text) {
            NetdevKind::User(config) => config,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_user_network_has_qemus_addresses() {
        let config =
            user_of("user,id=n,hostfwd=tcp:127.0.0.1:2222-:22,hostfwd=udp::53-10.0.2.16:5353");
        assert_eq!(config.host, Ipv4Addr::new(10, 0, 2, 2));
        assert_eq!(config.dns, Ipv4Addr::new(10, 0, 2, 3));
        assert_eq!(config.dhcp_start, Ipv4Addr::new(10, 0, 2, 15));
        let [one, two] = &config.forwards[..] else { panic!("{config:?}") };
        assert_eq!((one.protocol, one.host), (Protocol::Tcp, ([127, 0, 0, 1], 2222).into()));
        assert_eq!((one.guest, one.guest_port), (Ipv4Addr::UNSPECIFIED, 22));
        assert_eq!((two.protocol, two.host), (Protocol::Udp, ([0, 0, 0, 0], 53).into()));
        let config =
            user_of("user,id=n,net=192.168.7.0/255.255.255.0,host=192.168.7.1,restrict=on");
        assert_eq!((config.host, config.prefix), (Ipv4Addr::new(192, 168, 7, 1), 24));
        assert!(config.restrict && config.contains(Ipv4Addr::new(192, 168, 7, 15)));
        let config =
            user_of("user,id=n,guestfwd=tcp:10.0.2.100:80-cmd:cat,dnssearch=a,dnssearch=b");
        assert_eq!(config.guest_forwards[0].target, Target::Command("cat".into()));
        assert_eq!(config.search, ["a", "b"]);
    }

    #[test]
    fn tap_socket_and_stream() {
        let NetdevKind::Tap(config) =
            parse("tap,id=t,ifname=tap7,script=no,downscript=no,queues=2")
        else {
            panic!()
        };
        assert_eq!((config.ifname.as_deref(), config.queues), (Some("tap7"), 2));
        assert!(config.script.is_none() && config.vnet_hdr && !config.vhost);
        let NetdevKind::Tap(config) = parse("tap,id=t,fds=3:4,vhostfds=5:6") else { panic!() };
        assert_eq!((config.fds, config.vhost_fds, config.vhost), (vec![3, 4], vec![5, 6], true));
        let inet = |port| StreamAddress::Inet(String::new(), port);
        assert_eq!(
            parse("socket,id=s,listen=:1234"),
            NetdevKind::Stream { name: "socket", address: inet(1234), role: StreamRole::Server }
        );
        assert_eq!(
            parse(
                "stream,id=s,server=off,addr.type=unix,addr.path=/tmp/passt_1.socket,reconnect=5"
            ),
            NetdevKind::Stream {
                name: "stream",
                address: StreamAddress::Unix("/tmp/passt_1.socket".into()),
                role: StreamRole::Client { reconnect: 5 }
            }
        );
    }

    #[test]
    fn nic_and_net_make_a_card_too() {
        let text = |list: &[&str]| list.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
        let nics =
            text(&["user,mac=52:54:00:00:00:09,hostfwd=tcp::1-:2", "none", "tap,id=t,script=no"]);
        let networks = Networks::parse(&text(&["user,id=net0"]), &nics, &[]).unwrap();
        let ids: Vec<_> = networks.netdevs.iter().map(|netdev| &netdev.id[..]).collect();
        assert_eq!(ids, ["net0", "net1", "t"]);
        let VirtioKind::Net(card) = &networks.cards[0].kind else { panic!() };
        assert_eq!(card.netdev.as_deref(), Some("net1"));
        assert_eq!(card.mac, Some(MacAddress([0x52, 0x54, 0, 0, 0, 9])));
        let old = Networks::parse(&[], &[], &text(&["nic,model=virtio", "user"])).unwrap();
        assert_eq!((old.netdevs.len(), old.cards.len()), (1, 1));
        assert_eq!(Networks::parse(&[], &[], &text(&["none"])).unwrap(), Networks::default());
        assert!(Networks::parse(&[], &[], &text(&["nic"])).is_err());
    }

    #[test]
    fn every_property_that_help_names_is_known() {
        for kind in KINDS {
            let text = "x,listen=:1,addr.type=unix,addr.path=x";
            let mut props = Props::with_head("--netdev", text).1;
            (kind.parse)(&mut props).unwrap();
            for (prop, _) in kind.props {
                let key = prop.split('=').next().unwrap();
                assert!(props.knows(key), "{} {key}", kind.name);
            }
        }
    }

    #[test]
    fn what_is_wrong_is_said_with_the_nearest() {
        for (text, part) in [
            ("usr,id=n", "did you mean 'user'?"),
            ("", "there is no ''"),
            ("user", "lacks id"),
            ("user,id=1", "a letter"),
            ("user,id=n,hostfw=x", "did you mean 'hostfwd'?"),
            ("user,id=n,net=10.0.2.0/33", "8 to 29 bits"),
            ("user,id=n,host=x", "an IPv4 address"),
            ("user,id=n,ipv6=on", "IPv4 only"),
            ("user,id=n,hostfwd=tcp:5558", "no '-'"),
            ("user,id=n,hostfwd=tcp::x-:22", "'x' is not a port"),
            ("user,id=n,hostfwd=sctp::1-:22", "neither tcp nor udp"),
            ("user,id=n,hostfwd=tcp::1-22", "lacks its ':'"),
            ("user,id=n,guestfwd=tcp:10.0.2.9:1-foo:x", "not tcp:ADDR:PORT"),
            ("tap,id=n,ifname=a-name-that-is-too-long", "1 to 15 characters"),
            ("tap,id=n,fd=3,ifname=x", "does not go with fd"),
            ("tap,id=n,fd=x", "an open fd"),
            ("tap,id=n,scrip=no", "did you mean 'script'?"),
            ("socket,id=n", "needs one of"),
            ("socket,id=n,connect=x", "127.0.0.1:1234"),
            ("stream,id=n", "lacks addr.type"),
            ("stream,id=n,addr.type=unix", "lacks addr.path"),
            ("stream,id=n,addr.type=tcp", "unix, inet or fd"),
        ] {
            let error = parse_netdev(text).unwrap_err().to_string();
            assert!(error.contains(part) && !error.contains('\n'), "{text}: {error}");
        }
        let error = Networks::parse(&[], &["usr".to_owned()], &[]).unwrap_err().to_string();
        assert!(error.contains("--nic") && error.contains("'user'"), "{error}");
        let error = Networks::parse(&[], &["user,mac=1".to_owned()], &[]).unwrap_err().to_string();
        assert!(error.contains("an Ethernet address"), "{error}");
    }
}
