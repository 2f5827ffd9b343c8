//! Backend specifications as QEMU's users write them: `mon:stdio`, `unix:/run/vm.sock,server=on`,
//! and the keyed form of `--chardev`, `socket,id=s0,path=/run/vm.sock,server=on,wait=off`.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::ChardevError;

/// One backend, as asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BackendSpec {
    /// The name given by `id=`; the short form has none.
    pub id: Option<String>,
    /// Several frontends share the backend (`mon:`, `mux=on`).
    pub mux: bool,
    /// What is at the far end.
    pub kind: BackendKind,
}

/// What is at a backend's far end.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum BackendKind {
    /// There is to be no device at all (`--serial none`).
    None,
    /// Output is thrown away, and there is never input.
    Null,
    /// The terminal, or what stdin and stdout are.
    Stdio {
        /// Ctrl-C and its like act on the emulator; otherwise they are input.
        signal: bool,
    },
    /// A new pseudo-terminal.
    Pty,
    /// Output goes to a file; there is never input.
    File {
        /// The file, created if need be.
        path: PathBuf,
        /// Keeps what is in the file already.
        append: bool,
    },
    /// The FIFOs `PATH.in` and `PATH.out`, or else `PATH` for both directions.
    Pipe {
        /// The path without its suffix.
        path: PathBuf,
    },
    /// A stream socket.
    Socket {
        /// Where.
        address: SocketAddress,
        /// Who calls whom.
        role: SocketRole,
    },
    /// The backend that `--chardev` made under this id.
    Reference(String),
}

/// Where a socket is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum SocketAddress {
    /// A path in the file system.
    Unix(PathBuf),
    /// A host and port.
    Tcp {
        /// A name or address; empty means every interface to a server, this host to a client.
        host: String,
        /// The port; 0 lets the host choose one for a server.
        port: u16,
        /// Sends small pieces at once (TCP_NODELAY).
        nodelay: bool,
    },
}

/// Which side of a socket the backend is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SocketRole {
    /// It connects when it is opened.
    Client,
    /// It listens, and has one client at a time.
    Server {
        /// Opening waits for the first client.
        wait: bool,
    },
}

const SHORT_NAMES: [&str; 10] =
    ["stdio", "mon:stdio", "pty", "null", "none", "file:", "pipe:", "unix:", "tcp:", "chardev:"];
const KEYED_NAMES: [&str; 6] = ["stdio", "pty", "null", "file", "pipe", "socket"];
const SOCKET_KEYS: [&str; 6] = ["server", "wait", "nodelay", "path", "host", "port"];

/// What a backend has besides `id` and `mux`.
fn keys_of(backend: &str) -> &'static [&'static str] {
    match backend {
        "stdio" => &["signal"],
        "file" => &["path", "append"],
        "pipe" => &["path"],
        "socket" => &SOCKET_KEYS,
        _ => &[],
    }
}

impl BackendSpec {
    /// Reads the short form, the argument of `--serial`, `--monitor` and `--qmp`.
    ///
    /// # Errors
    /// With cause and remedy, for anything that is not understood.
    pub fn parse(text: &str) -> Result<Self, ChardevError> {
        let Some(rest) = text.strip_prefix("mon:") else {
            return Ok(Self { id: None, mux: false, kind: BackendKind::parse(text, true)? });
        };
        let kind = BackendKind::parse(rest, false)?;
        if matches!(kind, BackendKind::None | BackendKind::Reference(_)) || rest.starts_with("mon:")
        {
            return Err(ChardevError::Conflict {
                problem: format!("'mon:' does not go with '{rest}'"),
                remedy: "write mon:stdio, or set mux=on in the --chardev option",
            });
        }
        Ok(Self { id: None, mux: true, kind })
    }

    /// Reads the argument of `--gdb` and `gdbserver`: the short form, in which a socket is a server
    /// that does not wait unless it says otherwise, and Ctrl-C on stdio is input.
    ///
    /// # Errors
    /// As [`BackendSpec::parse`].
    pub fn parse_gdb(text: &str) -> Result<Self, ChardevError> {
        let mut spec = Self::parse(text)?;
        match &mut spec.kind {
            BackendKind::Stdio { signal } => *signal = false,
            BackendKind::Socket { address, role } => {
                if !text.contains(",server") && !text.contains(",noserver") {
                    *role = SocketRole::Server { wait: false };
                }
                if let SocketAddress::Tcp { nodelay, .. } = address {
                    *nodelay = true;
                }
            }
            _ => {}
        }
        Ok(spec)
    }

    /// The keyed form's backends with their options, one a line: what `--chardev help` prints.
    pub fn keyed_help() -> String {
        let line = |name: &&str| {
            let keys: Vec<_> = ["id", "mux"].iter().chain(keys_of(name)).copied().collect();
            format!("{name:<16} {}\n", keys.join(", "))
        };
        KEYED_NAMES.iter().map(line).collect()
    }

    /// Reads the keyed form, the argument of `--chardev`.
    ///
    /// # Errors
    /// As [`BackendSpec::parse`]; and when there is no id.
    pub fn parse_keyed(text: &str) -> Result<Self, ChardevError> {
        let (name, rest) = text.split_once(',').unwrap_or((text, ""));
        let name = name.strip_prefix("backend=").unwrap_or(name);
        let Some(&backend) = KEYED_NAMES.iter().find(|&&known| known == name) else {
            let hint = match name.contains(':') {
                true => "write it in the form socket,id=ID,path=PATH,server=on".to_owned(),
                false => suggest(name, &KEYED_NAMES),
            };
            return Err(ChardevError::Unknown { name: name.to_owned(), hint });
        };
        let known: Vec<&str> = ["id", "mux"].iter().chain(keys_of(backend)).copied().collect();
        let mut options = Options::parse(backend, rest, &known)?;
        let id = options.take("id").ok_or(ChardevError::Missing {
            backend,
            what: "an id",
            example: "id=NAME",
        })?;
        if !is_id(&id) {
            return Err(ChardevError::Value {
                option: "id".to_owned(),
                value: id,
                wanted: "a letter followed by letters, digits, '-', '.' or '_'",
            });
        }
        let mux = options.switch("mux")?.unwrap_or(false);
        let mut path = || {
            options.path("path").ok_or(ChardevError::Missing {
                backend,
                what: "a path",
                example: "path=PATH",
            })
        };
        let kind = match backend {
            // A terminal with a monitor on it has another way out than Ctrl-C.
            "stdio" => BackendKind::Stdio { signal: options.switch("signal")?.unwrap_or(!mux) },
            "pty" => BackendKind::Pty,
            "file" => BackendKind::File {
                path: path()?,
                append: options.switch("append")?.unwrap_or(false),
            },
            "pipe" => BackendKind::Pipe { path: path()? },
            "socket" => {
                let address = match options.path("path") {
                    Some(path) => SocketAddress::Unix(path),
                    None => tcp_address(options.take("host"), options.take("port"))?,
                };
                socket(address, &mut options)?
            }
            _ => BackendKind::Null,
        };
        Ok(Self { id: Some(id), mux, kind })
    }
}

impl BackendKind {
    fn parse(text: &str, signal: bool) -> Result<Self, ChardevError> {
        match text {
            "none" => return Ok(Self::None),
            "null" => return Ok(Self::Null),
            "pty" => return Ok(Self::Pty),
            "stdio" => return Ok(Self::Stdio { signal }),
            _ => {}
        }
        let Some((name, rest)) = text.split_once(':') else {
            let hint = match text {
                "vc" => "there is no display to show it on; use stdio or pty".to_owned(),
                _ => suggest(text, &SHORT_NAMES),
            };
            return Err(ChardevError::Unknown { name: text.to_owned(), hint });
        };
        let missing_path =
            |backend, example| Err(ChardevError::Missing { backend, what: "a path", example });
        match name {
            // As in QEMU the path of a file or pipe may contain commas.
            "file" => {
                let (path, append) = match rest.rsplit_once(",append=") {
                    Some((path, value)) => (path, switch("append", value)?),
                    None => (rest, false),
                };
                if path.is_empty() {
                    return missing_path("file", "file:PATH");
                }
                Ok(Self::File { path: path.into(), append })
            }
            "pipe" if rest.is_empty() => missing_path("pipe", "pipe:PATH"),
            "pipe" => Ok(Self::Pipe { path: rest.into() }),
            "chardev" if is_id(rest) => Ok(Self::Reference(rest.to_owned())),
            "chardev" => Err(ChardevError::Missing {
                backend: "chardev",
                what: "an id",
                example: "chardev:ID with the id of a --chardev option",
            }),
            "unix" => {
                let (path, rest) = split_first(rest);
                if path.is_empty() {
                    return missing_path("unix", "unix:PATH or unix:PATH,server=on,wait=off");
                }
                let mut options = Options::parse("unix", rest, &SOCKET_KEYS[..2])?;
                socket(SocketAddress::Unix(path.into()), &mut options)
            }
            "tcp" => {
                let (place, rest) = split_first(rest);
                let mut options = Options::parse("tcp", rest, &SOCKET_KEYS[..3])?;
                let (host, port) = match place.rsplit_once(':') {
                    Some((host, port)) => (Some(host.to_owned()), Some(port.to_owned())),
                    None => (Some(place), None),
                };
                socket(tcp_address(host, port)?, &mut options)
            }
            _ => Err(ChardevError::Unknown {
                name: text.to_owned(),
                hint: suggest(&format!("{name}:"), &SHORT_NAMES),
            }),
        }
    }
}

fn tcp_address(host: Option<String>, port: Option<String>) -> Result<SocketAddress, ChardevError> {
    let missing = |what| ChardevError::Missing {
        backend: "socket",
        what,
        example: "tcp:HOST:PORT (keyed: host=HOST,port=PORT) or a unix socket's path",
    };
    let host = host.ok_or_else(|| missing("a path or a host"))?;
    let port = port.ok_or_else(|| missing("a port"))?;
    let number = port.parse().map_err(|_| ChardevError::Value {
        option: "port".to_owned(),
        value: port,
        wanted: "a number from 0 to 65535",
    })?;
    // An IPv6 address stands in brackets, for its colons' sake.
    let bare = host.strip_prefix('[').and_then(|h| h.strip_suffix(']'));
    let host = bare.unwrap_or(&host).to_owned();
    Ok(SocketAddress::Tcp { host, port: number, nodelay: false })
}

fn socket(mut address: SocketAddress, options: &mut Options) -> Result<BackendKind, ChardevError> {
    if let Some(value) = options.switch("nodelay")? {
        let SocketAddress::Tcp { nodelay, .. } = &mut address else {
            return Err(ChardevError::Conflict {
                problem: "'nodelay' does not go with a unix socket".to_owned(),
                remedy: "leave it off",
            });
        };
        *nodelay = value;
    }
    let wait = options.switch("wait")?;
    let role = match (options.switch("server")?.unwrap_or(false), wait) {
        (true, wait) => SocketRole::Server { wait: wait.unwrap_or(true) },
        (false, None) => SocketRole::Client,
        (false, Some(_)) => {
            return Err(ChardevError::Conflict {
                problem: "'wait' does not go with a client".to_owned(),
                remedy: "add server=on, or leave it off",
            });
        }
    };
    Ok(BackendKind::Socket { address, role })
}

/// `key=value` pairs and bare switches, of which all are known to the backend.
struct Options(BTreeMap<String, String>);

impl Options {
    fn parse(backend: &'static str, text: &str, known: &[&str]) -> Result<Self, ChardevError> {
        let mut values = BTreeMap::new();
        let mut rest = text.to_owned();
        while !rest.is_empty() {
            let (item, tail) = split_first(&rest);
            let (key, value) = match item.split_once('=') {
                Some((key, value)) => (key, value),
                // The old spelling of switches: `server`, `nowait`.
                None if known.contains(&item.as_str()) => (item.as_str(), "on"),
                None => (item.strip_prefix("no").unwrap_or(&item), "off"),
            };
            if !known.contains(&key) {
                return Err(ChardevError::Option {
                    backend,
                    option: item.split('=').next().unwrap_or_default().to_owned(),
                    hint: suggest(key, known),
                });
            }
            values.insert(key.to_owned(), value.to_owned());
            rest = tail.to_owned();
        }
        Ok(Self(values))
    }

    fn take(&mut self, key: &str) -> Option<String> {
        self.0.remove(key)
    }

    fn path(&mut self, key: &str) -> Option<PathBuf> {
        self.take(key).filter(|path| !path.is_empty()).map(PathBuf::from)
    }

    fn switch(&mut self, key: &str) -> Result<Option<bool>, ChardevError> {
        self.take(key).map(|value| switch(key, &value)).transpose()
    }
}

fn switch(key: &str, value: &str) -> Result<bool, ChardevError> {
    match value {
        "on" | "yes" | "true" => Ok(true),
        "off" | "no" | "false" => Ok(false),
        _ => Err(ChardevError::Value {
            option: key.to_owned(),
            value: value.to_owned(),
            wanted: "on or off",
        }),
    }
}

/// Splits off what stands before the first comma; a doubled comma stands for one in the text.
fn split_first(text: &str) -> (String, &str) {
    let mut first = String::new();
    let mut chars = text.char_indices().peekable();
    while let Some((at, c)) = chars.next() {
        if c == ',' && chars.next_if(|&(_, next)| next == ',').is_none() {
            return (first, &text[at + 1..]);
        }
        first.push(c);
    }
    (first, "")
}

fn is_id(text: &str) -> bool {
    text.starts_with(|c: char| c.is_ascii_alphabetic())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || "-._".contains(c))
}

/// "did you mean" the nearest of `known`, or all of them when none is near.
pub(super) fn suggest(text: &str, known: &[&str]) -> String {
    let near = known
        .iter()
        .map(|&name| (strsim::damerau_levenshtein(text, name), name))
        .min()
        .filter(|&(distance, name)| distance <= 2 && distance < name.len());
    match near {
        Some((_, name)) => format!("did you mean '{name}'?"),
        None => format!("there are {}", known.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_debuggers_socket_is_a_server() {
        let server = |text| match BackendSpec::parse_gdb(text).unwrap().kind {
            BackendKind::Socket { role, .. } => role,
            other => panic!("{other:?}"),
        };
        assert_eq!(server("tcp::1234"), SocketRole::Server { wait: false });
        assert_eq!(server("unix:/x"), SocketRole::Server { wait: false });
        assert_eq!(server("unix:/x,server=on"), SocketRole::Server { wait: true });
        assert_eq!(server("tcp:h:1,server=off"), SocketRole::Client);
        let spec = BackendSpec::parse_gdb("stdio").unwrap();
        assert_eq!(spec.kind, BackendKind::Stdio { signal: false });
    }

    fn kind(text: &str) -> BackendKind {
        let spec = BackendSpec::parse(text).unwrap_or_else(|e| panic!("{text}: {e}"));
        assert!(!spec.mux && spec.id.is_none());
        spec.kind
    }

    fn unix(path: &str, role: SocketRole) -> BackendKind {
        BackendKind::Socket { address: SocketAddress::Unix(path.into()), role }
    }

    fn tcp(host: &str, port: u16, nodelay: bool, role: SocketRole) -> BackendKind {
        let address = SocketAddress::Tcp { host: host.to_owned(), port, nodelay };
        BackendKind::Socket { address, role }
    }

    #[test]
    fn the_short_form() {
        use BackendKind::{File, None, Null, Pipe, Pty, Reference, Stdio};
        const CLIENT: SocketRole = SocketRole::Client;
        const WAITS: SocketRole = SocketRole::Server { wait: true };
        const GOES_ON: SocketRole = SocketRole::Server { wait: false };
        let table = [
            ("none", None),
            ("null", Null),
            ("pty", Pty),
            ("stdio", Stdio { signal: true }),
            ("file:/tmp/a,b", File { path: "/tmp/a,b".into(), append: false }),
            ("file:log,append=on", File { path: "log".into(), append: true }),
            ("pipe:/tmp/p", Pipe { path: "/tmp/p".into() }),
            ("chardev:c-0.x_1", Reference("c-0.x_1".to_owned())),
            ("unix:/x", unix("/x", CLIENT)),
            ("unix:/x,server", unix("/x", WAITS)),
            ("unix:/x,server,nowait", unix("/x", GOES_ON)),
            ("unix:/x,server=on,wait=off", unix("/x", GOES_ON)),
            ("unix:/x,wait=on,server=on", unix("/x", WAITS)),
            ("unix:/x,server=off", unix("/x", CLIENT)),
            ("unix:a,,b=c,server", unix("a,b=c", WAITS)),
            ("tcp:localhost:4444", tcp("localhost", 4444, false, CLIENT)),
            ("tcp::4444,server,nowait", tcp("", 4444, false, GOES_ON)),
            ("tcp:[::1]:0,server,nodelay", tcp("::1", 0, true, WAITS)),
        ];
        for (text, expected) in table {
            assert_eq!(kind(text), expected, "{text}");
        }
    }

    #[test]
    fn mon_makes_a_mux_whose_signal_keys_are_input() {
        let spec = BackendSpec::parse("mon:stdio").unwrap();
        assert!(spec.mux);
        assert_eq!(spec.kind, BackendKind::Stdio { signal: false });
        let spec = BackendSpec::parse("mon:unix:/x,server,nowait").unwrap();
        assert!(spec.mux);
        assert_eq!(spec.kind, unix("/x", SocketRole::Server { wait: false }));
    }

    #[test]
    fn the_keyed_form() {
        use BackendKind::{File, Null, Pipe, Pty, Stdio};
        let table = [
            ("null,id=n", false, Null),
            ("pty,id=n", false, Pty),
            ("stdio,id=n", false, Stdio { signal: true }),
            ("stdio,id=n,mux=on", true, Stdio { signal: false }),
            ("stdio,mux=on,signal=on,id=n", true, Stdio { signal: true }),
            ("file,id=n,path=/a,,b", false, File { path: "/a,b".into(), append: false }),
            ("file,id=n,path=/a,append=on", false, File { path: "/a".into(), append: true }),
            ("pipe,id=n,path=/a", false, Pipe { path: "/a".into() }),
            (
                "socket,id=n,path=/s,server=on,wait=off",
                false,
                unix("/s", SocketRole::Server { wait: false }),
            ),
            ("socket,id=n,path=/s,mux=on", true, unix("/s", SocketRole::Client)),
            (
                "socket,id=n,host=h,port=1,server,nowait,nodelay",
                false,
                tcp("h", 1, true, SocketRole::Server { wait: false }),
            ),
        ];
        for (text, mux, expected) in table {
            let spec = BackendSpec::parse_keyed(text).unwrap_or_else(|e| panic!("{text}: {e}"));
            assert_eq!((spec.id.as_deref(), spec.mux, spec.kind), (Some("n"), mux, expected));
        }
    }

    #[test]
    fn what_is_wrong_is_said_on_one_line_with_a_remedy() {
        let short = [
            ("", "there are stdio"),
            ("stdoi", "did you mean 'stdio'?"),
            ("mon:stdoi", "did you mean 'stdio'?"),
            ("unx:/x", "did you mean 'unix:'?"),
            ("vc", "use stdio or pty"),
            ("udp::1", "did you mean 'tcp:'?"),
            ("telnet::1", "there are"),
            ("mon:none", "write mon:stdio"),
            ("mon:mon:stdio", "unknown character backend"),
            ("mon:chardev:x", "mux=on"),
            ("chardev:", "chardev:ID"),
            ("chardev:1", "chardev:ID"),
            ("file:", "file:PATH"),
            ("file:x,append=maybe", "on or off"),
            ("pipe:", "pipe:PATH"),
            ("unix:", "unix:PATH"),
            ("unix:,server", "unix:PATH"),
            ("unix:/x,serve", "did you mean 'server'?"),
            ("unix:/x,server=maybe", "on or off"),
            ("unix:/x,nowait", "server=on"),
            ("unix:/x,server,nodelay", "no option 'nodelay'"),
            ("unix:/x,server,é", "there are server, wait"),
            ("tcp:host", "tcp:HOST:PORT"),
            ("tcp:host:", "0 to 65535"),
            ("tcp:host:65536", "0 to 65535"),
            ("tcp:host:http", "0 to 65535"),
            ("tcp:h:1,nowiat", "did you mean 'wait'?"),
        ];
        let keyed = [
            ("", "there are stdio"),
            ("socket", "lacks an id"),
            ("soket,id=x", "did you mean 'socket'?"),
            ("unix:/x", "socket,id="),
            ("null,id=1", "a letter"),
            ("null,id=", "a letter"),
            ("file,id=x", "path=PATH"),
            ("file,id=x,path=", "path=PATH"),
            ("pipe,id=x", "path=PATH"),
            ("socket,id=x", "a path or a host"),
            ("socket,id=x,host=h", "a port"),
            ("socket,id=x,path=/s,nodelay=on", "leave it off"),
            ("socket,id=x,path=/s,wait=on", "server=on"),
            ("socket,id=x,pth=/s", "did you mean 'path'?"),
            ("stdio,id=x,mux=1", "on or off"),
            ("null,id=x,path=y", "there are id, mux"),
        ];
        let outcomes = short
            .map(|(text, part)| (text, part, BackendSpec::parse(text)))
            .into_iter()
            .chain(keyed.map(|(text, part)| (text, part, BackendSpec::parse_keyed(text))));
        for (text, part, outcome) in outcomes {
            let message = outcome.expect_err(text).to_string();
            assert!(message.contains(part), "{text}: {message}");
            assert!(!message.contains('\n'));
        }
    }
}
