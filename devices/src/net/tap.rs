//! A network interface of the host's kernel (Linux, Documentation/networking/tuntap.rst), with
//! virtio-net headers where the card has use for them.

use std::ffi::c_int;
use std::fs::OpenOptions;
use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Weak;

use board::device::Tag;
use board::event::{EventTarget, LoopHandle, Readiness, Watch};
use board::time::VmTime;

use super::backend::{Backend, Sent, Sink};
use super::frame::{Gather, MAX_FRAME, NetHeader, Offloads, Pieces};
use super::{NetError, TapConfig};

const TUN: &str = "/dev/net/tun";

/// Requests and flags of `linux/if_tun.h`.
const TUNSETIFF: libc::Ioctl = 0x4004_54CA;
const TUNSETOFFLOAD: libc::Ioctl = 0x4004_54D0;
const TUNGETIFF: libc::Ioctl = 0x8004_54D2;
const TUNSETSNDBUF: libc::Ioctl = 0x4004_54D4;
const TUNSETVNETHDRSZ: libc::Ioctl = 0x4004_54D8;
const IFF_TAP: u16 = 0x0002;
const IFF_MULTI_QUEUE: u16 = 0x0100;
const IFF_NO_PI: u16 = 0x1000;
const IFF_VNET_HDR: u16 = 0x4000;
const TUN_F_CSUM: c_int = 1;
const TUN_F_TSO4: c_int = 2;
const TUN_F_TSO6: c_int = 4;
const TUN_F_TSO_ECN: c_int = 8;

/// `struct ifreq` of `linux/if.h`, as far as these requests use it.
#[repr(C)]
struct IfReq {
    name: [u8; libc::IFNAMSIZ],
    flags: u16,
    _rest: [u8; 22],
}

impl IfReq {
    fn new(name: &str, flags: u16) -> Self {
        let mut this = Self { name: [0; libc::IFNAMSIZ], flags, _rest: [0; 22] };
        let len = name.len().min(libc::IFNAMSIZ - 1);
        this.name[..len].copy_from_slice(&name.as_bytes()[..len]);
        this
    }

    fn name(&self) -> String {
        let end = self.name.iter().position(|&c| c == 0).unwrap_or(self.name.len());
        String::from_utf8_lossy(&self.name[..end]).into_owned()
    }
}

struct TapQueue {
    /// It goes before the fd.
    watch: Watch,
    fd: OwnedFd,
    /// The fd may have frames.
    readable: bool,
    /// A frame was not sent; the card waits for room.
    blocked: bool,
    buffer: Vec<u8>,
    /// Bytes of a frame in `buffer` that the card had no room for.
    held: Option<usize>,
}

impl TapQueue {
    fn update_interest(&self) {
        let mut interest = Readiness::empty();
        interest.set(Readiness::READ, !self.readable);
        interest.set(Readiness::WRITE, self.blocked);
        self.watch.set_interest(interest);
    }
}

/// An open interface.
pub(super) struct Tap {
    description: String,
    ifname: String,
    queues: Vec<TapQueue>,
    vnet_hdr: bool,
    downscript: Option<PathBuf>,
    pieces: Pieces,
}

fn ioctl<T>(fd: &OwnedFd, request: libc::Ioctl, argument: *mut T) -> io::Result<()> {
    // SAFETY: the callers pass what the request reads and writes: an IfReq, which is as large as
    // the kernel's, or an int, or a number in place of the pointer.
    match unsafe { libc::ioctl(fd.as_raw_fd(), request, argument) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

/// The fd `raw` that this program was started with.
pub(super) fn inherit(id: &str, raw: RawFd) -> Result<OwnedFd, NetError> {
    let failed = |cause| NetError::Host {
        id: id.to_owned(),
        what: format!("use fd {raw}"),
        cause,
        remedy: "name an fd that the program which starts vmm leaves open".to_owned(),
    };
    if raw < 3 {
        return Err(failed(io::Error::from_raw_os_error(libc::EBADF)));
    }
    // SAFETY: the number is only used for this call, which says whether it is an open fd.
    let fd = unsafe { libc::fcntl(raw, libc::F_DUPFD_CLOEXEC, 3) };
    if fd == -1 {
        return Err(failed(io::Error::last_os_error()));
    }
    // SAFETY: fcntl has just made this fd, and nobody else knows of it.
    let fd = unsafe { OwnedFd::from_raw_fd(fd) };
    rustix::io::ioctl_fionbio(&fd, true).map_err(|e| failed(e.into()))?;
    Ok(fd)
}

/// A piece of our own memory.
pub(super) fn piece(bytes: &[u8]) -> libc::iovec {
    libc::iovec { iov_base: bytes.as_ptr().cast_mut().cast(), iov_len: bytes.len() }
}

impl Tap {
    /// Opens the interface, or makes it, and runs its script.
    pub(super) fn open(
        id: &str,
        config: &TapConfig,
        events: &LoopHandle,
        target: Weak<dyn EventTarget>,
    ) -> Result<Self, NetError> {
        let failed = |what: &str, remedy: &str| {
            let (id, what, remedy) = (id.to_owned(), what.to_owned(), remedy.to_owned());
            move |cause| NetError::Host { id, what, cause, remedy }
        };
        let (mut fds, mut ifname) = (Vec::new(), config.ifname.clone().unwrap_or_default());
        let mut vnet_hdr = config.vnet_hdr;
        for &raw in &config.fds {
            let fd = inherit(id, raw)?;
            let mut request = IfReq::new("", 0);
            ioctl(&fd, TUNGETIFF, &mut request).map_err(failed(
                &format!("use fd {raw} as a tap interface"),
                "name an fd of /dev/net/tun that TUNSETIFF was called for",
            ))?;
            ifname = request.name();
            vnet_hdr = request.flags & IFF_VNET_HDR != 0;
            fds.push(fd);
        }
        let queues = config.queues.max(1);
        let made = fds.is_empty();
        if made {
            let pattern = match ifname.is_empty() {
                true => "tap%d".to_owned(),
                false => ifname.clone(),
            };
            ifname = pattern;
            for _ in 0..queues {
                fds.push(make_queue(id, &mut ifname, queues > 1, vnet_hdr)?);
            }
        }
        for fd in &fds {
            let mut sndbuf = match config.sndbuf {
                0 => c_int::MAX,
                bytes => c_int::try_from(bytes).unwrap_or(c_int::MAX),
            };
            // An old kernel without it has the same limit all the time.
            let _ = ioctl(fd, TUNSETSNDBUF, &mut sndbuf);
            if vnet_hdr {
                let mut size = NetHeader::SIZE as c_int;
                ioctl(fd, TUNSETVNETHDRSZ, &mut size)
                    .map_err(failed("set the size of virtio-net headers", "give vnet_hdr=off"))?;
            }
        }
        if config.vhost {
            // Where the host has none, that is what is said.
            drop(open_vhost(id, config, fds.len())?);
            return Err(NetError::Conflict {
                id: id.to_owned(),
                problem: "vhost=on is not there yet: vmm serves the rings itself".to_owned(),
                remedy: "give vhost=off".to_owned(),
            });
        }
        if made && let Some(script) = &config.script {
            run_script(id, script, &ifname)?;
        }
        let describe_script = |script: &Option<PathBuf>| {
            script.as_ref().map_or("no".to_owned(), |path| path.display().to_string())
        };
        let description = match made {
            true => format!(
                "type=tap,ifname={ifname},script={},downscript={}",
                describe_script(&config.script),
                describe_script(&config.downscript)
            ),
            false => format!("type=tap,fd={}", config.fds[0]),
        };
        let queues = (0..)
            .zip(fds)
            .map(|(index, fd)| {
                let watch =
                    events.watch(fd.as_raw_fd(), Readiness::READ, target.clone(), Tag(index))?;
                let (buffer, held) = (Vec::new(), None);
                Ok(TapQueue { watch, fd, readable: false, blocked: false, buffer, held })
            })
            .collect::<io::Result<Vec<_>>>()
            .map_err(failed("watch the interface", "raise the limit of open files (ulimit -n)"))?;
        let mut this = Self {
            description,
            ifname,
            queues,
            vnet_hdr,
            downscript: config.downscript.clone().filter(|_| made),
            pieces: Pieces::default(),
        };
        this.set_offloads(Offloads::empty());
        Ok(this)
    }
}

fn make_queue(
    id: &str,
    ifname: &mut String,
    several: bool,
    vnet_hdr: bool,
) -> Result<OwnedFd, NetError> {
    let host = |what: String, cause: io::Error, remedy: String| NetError::Host {
        id: id.to_owned(),
        what,
        cause,
        remedy,
    };
    let fd: OwnedFd = OpenOptions::new()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(TUN)
        .map_err(|cause| {
            let remedy = match cause.raw_os_error() {
                Some(libc::ENOENT) => "load the kernel's module tun (modprobe tun)",
                Some(libc::EACCES | libc::EPERM) => {
                    "get permission for it, or give --netdev user, which needs none"
                }
                _ => "give --netdev user, which needs no interface",
            };
            host(format!("open {TUN}"), cause, remedy.to_owned())
        })?
        .into();
    let mut flags = IFF_TAP | IFF_NO_PI;
    if vnet_hdr {
        flags |= IFF_VNET_HDR;
    }
    if several {
        flags |= IFF_MULTI_QUEUE;
    }
    let mut request = IfReq::new(ifname, flags);
    ioctl(&fd, TUNSETIFF, &mut request).map_err(|cause| {
        let remedy = match cause.raw_os_error() {
            Some(libc::EPERM) => {
                let several = if several { " multi_queue vnet_hdr" } else { "" };
                let name = if ifname.contains('%') { "tap0" } else { ifname.as_str() };
                format!(
                    "as root, make one for this user by: ip tuntap add {name} mode tap{several} user $USER"
                )
            }
            Some(libc::EBUSY) => "another program has it: give another ifname".to_owned(),
            Some(libc::EINVAL) => {
                "it may exist as another kind of interface, or with another number of queues: give another ifname or queues"
                    .to_owned()
            }
            _ => "give another ifname".to_owned(),
        };
        host(format!("make or open the tap interface '{ifname}'"), cause, remedy)
    })?;
    *ifname = request.name();
    Ok(fd)
}

fn open_vhost(id: &str, config: &TapConfig, queues: usize) -> Result<Vec<OwnedFd>, NetError> {
    const VHOST: &str = "/dev/vhost-net";
    if !config.vhost_fds.is_empty() {
        if config.vhost_fds.len() != queues {
            return Err(NetError::Conflict {
                id: id.to_owned(),
                problem: format!("{} vhostfds for {queues} queues", config.vhost_fds.len()),
                remedy: "give one for each queue".to_owned(),
            });
        }
        return config.vhost_fds.iter().map(|&raw| inherit(id, raw)).collect();
    }
    let open = |_| {
        let file = OpenOptions::new().read(true).write(true).open(VHOST);
        file.map(OwnedFd::from).map_err(|cause| NetError::Host {
            id: id.to_owned(),
            what: format!("open {VHOST} for vhost=on"),
            remedy: match cause.raw_os_error() {
                Some(libc::ENOENT | libc::ENODEV | libc::ENXIO) => {
                    "load the kernel's module vhost_net (modprobe vhost_net), or give vhost=off"
                }
                _ => "get permission for it, or give vhost=off",
            }
            .to_owned(),
            cause,
        })
    };
    (0..queues).map(open).collect()
}

fn run_script(id: &str, script: &Path, ifname: &str) -> Result<(), NetError> {
    let status = Command::new(script).arg(ifname).status().map_err(|cause| NetError::Host {
        id: id.to_owned(),
        what: format!("run {}", script.display()),
        cause,
        remedy: "name an executable script, or give script=no".to_owned(),
    })?;
    if status.success() {
        return Ok(());
    }
    Err(NetError::Script {
        id: id.to_owned(),
        script: script.display().to_string(),
        status: status.to_string(),
    })
}

impl Backend for Tap {
    fn describe(&self) -> String {
        self.description.clone()
    }

    fn capabilities(&self) -> Offloads {
        if self.vnet_hdr { Offloads::all() } else { Offloads::empty() }
    }

    fn set_offloads(&mut self, offloads: Offloads) {
        if !self.vnet_hdr {
            return;
        }
        let mut flags = 0;
        // The kernel refuses the others without CSUM.
        if offloads.contains(Offloads::CSUM) {
            flags = TUN_F_CSUM;
            let bits = [
                (Offloads::TSO4, TUN_F_TSO4),
                (Offloads::TSO6, TUN_F_TSO6),
                (Offloads::ECN, TUN_F_TSO_ECN),
            ];
            for (offload, flag) in bits {
                if offloads.contains(offload) {
                    flags |= flag;
                }
            }
        }
        if let Some(queue) = self.queues.first() {
            // It is the interface's, not the queue's. ECN alone is no set that the kernel knows;
            // what it refuses stays off, which is always right.
            let _ = ioctl(&queue.fd, TUNSETOFFLOAD, flags as usize as *mut c_int);
        }
    }

    fn queues(&self) -> usize {
        self.queues.len()
    }

    fn send(&mut self, queue: usize, header: &NetHeader, frame: Gather<'_>) -> Sent {
        let Some(queue) = self.queues.get_mut(queue) else { return Sent::Done };
        let header = header.to_bytes();
        self.pieces.0.clear();
        if self.vnet_hdr {
            self.pieces.0.push(piece(&header));
        }
        frame.cut(0, MAX_FRAME, &mut self.pieces.0);
        let count = self.pieces.0.len().min(libc::UIO_MAXIOV as usize) as c_int;
        // SAFETY: the pieces are our header, which lives until the end of this function, and parts
        // of a Gather, which are readable memory.
        let written = unsafe { libc::writev(queue.fd.as_raw_fd(), self.pieces.0.as_ptr(), count) };
        if written == -1 && io::Error::last_os_error().kind() == io::ErrorKind::WouldBlock {
            queue.watch.drained(Readiness::WRITE);
            queue.blocked = true;
            queue.update_interest();
            return Sent::Busy;
        }
        // What the kernel does not take otherwise (an interface that is down, a frame that is
        // malformed) is lost, as on a wire.
        Sent::Done
    }

    fn receive(&mut self, queue: usize, sink: &mut Sink<'_>) -> bool {
        let header_size = if self.vnet_hdr { NetHeader::SIZE } else { 0 };
        let Some(queue) = self.queues.get_mut(queue) else { return false };
        queue.buffer.resize(NetHeader::SIZE + MAX_FRAME, 0);
        loop {
            let len = match queue.held.take() {
                Some(len) => len,
                None => match rustix::io::read(&queue.fd, &mut queue.buffer[..]) {
                    Ok(len) => len,
                    Err(rustix::io::Errno::INTR) => continue,
                    Err(_) => {
                        queue.watch.drained(Readiness::READ);
                        queue.readable = false;
                        queue.update_interest();
                        return false;
                    }
                },
            };
            let Some((header, frame)) = queue.buffer[..len].split_at_checked(header_size) else {
                continue;
            };
            let header =
                header.try_into().map_or_else(|_| NetHeader::default(), NetHeader::from_bytes);
            if !sink(&header, &[IoSlice::new(frame)]) {
                queue.held = Some(len);
                return true;
            }
        }
    }

    fn has_frames(&self) -> bool {
        self.queues.iter().any(|queue| queue.readable)
    }

    fn event(&mut self, tag: Tag, _now: VmTime) -> bool {
        let Some(queue) = self.queues.get_mut(tag.0 as usize) else { return false };
        let ready = queue.watch.readiness();
        queue.readable |= ready.contains(Readiness::READ);
        let room = queue.blocked && ready.contains(Readiness::WRITE);
        queue.blocked &= !room;
        queue.update_interest();
        room
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        if let Some(script) = &self.downscript {
            // There is nobody left to tell.
            let _ = Command::new(script).arg(&self.ifname).status();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    use std::net::{Ipv4Addr, UdpSocket};

    use crate::net::NetdevKind;
    use crate::net::testing::{Guest, MAC};

    /// Calls `test` in a network namespace of its own; says why, where that cannot be.
    fn in_namespace(test: impl FnOnce() + Send + 'static) {
        let thread = std::thread::spawn(|| {
            // SAFETY: it concerns this thread alone.
            let done = unsafe { libc::unshare(libc::CLONE_NEWNET) } == 0;
            if !done || !Path::new(TUN).exists() || Command::new("ip").output().is_err() {
                return eprintln!("NOT RUN: a tap interface needs root, {TUN} and the program ip");
            }
            test();
        });
        thread.join().unwrap();
    }

    fn script(name: &str, text: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt;
        let path = std::env::temp_dir().join(format!("vmm-{name}-{}", std::process::id()));
        std::fs::write(&path, format!("#!/bin/sh -e\n{text}\n")).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    /// A UDP datagram from 10.9.0.2 to 10.9.0.1, whose checksum is partial.
    fn datagram(to: &[u8], port: u16, payload: &[u8]) -> (NetHeader, Vec<u8>) {
        let mut frame = to.to_vec();
        frame.extend(MAC);
        frame.extend([8, 0, 0x45, 0]);
        frame.extend((28 + payload.len() as u16).to_be_bytes());
        frame.extend([0, 0, 0, 0, 64, 17, 0, 0, 10, 9, 0, 2, 10, 9, 0, 1]);
        let sum: u32 =
            frame[14..34].chunks(2).map(|w| u32::from(w[0]) << 8 | u32::from(w[1])).sum();
        let sum = !((sum & 0xFFFF) + (sum >> 16)) as u16;
        frame[24..26].copy_from_slice(&sum.to_be_bytes());
        frame.extend(5000_u16.to_be_bytes());
        frame.extend(port.to_be_bytes());
        let len = 8 + payload.len() as u16;
        frame.extend(len.to_be_bytes());
        // The pseudo header's sum: addresses, protocol, length.
        let sum = 2 * 0x0A09 + 2 + 1 + 17 + len;
        frame.extend(sum.to_be_bytes());
        frame.extend(payload);
        let header = NetHeader {
            flags: NetHeader::NEEDS_CSUM,
            csum_start: 34,
            csum_offset: 6,
            ..NetHeader::default()
        };
        (header, frame)
    }

    #[test]
    fn frames_reach_the_hosts_kernel_and_come_back() {
        in_namespace(|| {
            let log = std::env::temp_dir().join(format!("vmm-down-log-{}", std::process::id()));
            let up = "ip addr add 10.9.0.1/24 dev $1; ip link set $1 up";
            let config = TapConfig {
                ifname: Some("vmmtest0".into()),
                script: Some(script("up", up)),
                downscript: Some(script("down", &format!("echo $1 > {}", log.display()))),
                vnet_hdr: true,
                ..TapConfig::default()
            };
            let (up, down) = (config.script.clone(), config.downscript.clone());
            let mut guest = Guest::new(NetdevKind::Tap(config), Offloads::all());
            assert!(guest.netdev.describe().starts_with("type=tap,ifname=vmmtest0,script="));
            // Whose Ethernet address is 10.9.0.1? The kernel asks likewise when it answers.
            let mut arp = vec![0xFF; 6];
            arp.extend(MAC);
            arp.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
            arp.extend(MAC);
            arp.extend([10, 9, 0, 2, 0, 0, 0, 0, 0, 0, 10, 9, 0, 1]);
            guest.send(&arp);
            let host = guest
                .until(|(_, f)| (f[12..14] == [8, 6] && f[21] == 2).then(|| f[6..12].to_vec()));
            let socket = UdpSocket::bind((Ipv4Addr::new(10, 9, 0, 1), 0)).unwrap();
            let (header, frame) =
                datagram(&host, socket.local_addr().unwrap().port(), b"to the kernel");
            guest.send_with(header, &frame);
            let mut bytes = [0; 100];
            let (len, from) = socket.recv_from(&mut bytes).unwrap();
            assert_eq!(&bytes[..len], b"to the kernel");
            socket.send_to(b"to the guest", from).unwrap();
            let (header, frame) =
                guest.until(|(h, f)| (f[12..14] == [8, 0] && f[23] == 17).then(|| (*h, f.clone())));
            assert_eq!(&frame[42..], b"to the guest");
            assert_eq!(header.flags & NetHeader::NEEDS_CSUM, NetHeader::NEEDS_CSUM);
            // Without offloads the checksum is whole.
            guest.port.set_offloads(Offloads::empty());
            socket.send_to(b"again", from).unwrap();
            let header = guest.until(|(h, f)| f.ends_with(b"again").then_some(*h));
            assert_eq!(header.flags & NetHeader::NEEDS_CSUM, 0);
            drop(guest);
            assert_eq!(std::fs::read_to_string(&log).unwrap(), "vmmtest0\n");
            for path in [Some(log), up, down].into_iter().flatten() {
                std::fs::remove_file(path).unwrap();
            }
        });
    }

    #[test]
    fn several_queues_are_one_interface() {
        in_namespace(|| {
            let config = TapConfig { queues: 4, vnet_hdr: true, ..TapConfig::default() };
            let guest = Guest::new(NetdevKind::Tap(config), Offloads::all());
            assert_eq!(guest.port.queues(), 4);
            assert!(guest.netdev.describe().starts_with("type=tap,ifname=tap"));
        });
    }

    #[test]
    fn what_the_host_refuses_is_said_with_the_remedy() {
        in_namespace(|| {
            let events = board::EventLoop::new(board::Clock::running()).unwrap();
            let mut netdevs = crate::net::Netdevs::new(&events.handle());
            let mut error = |config| {
                let kind = NetdevKind::Tap(config);
                let spec = crate::net::NetdevSpec { id: "t".into(), kind };
                netdevs.add(&spec).err().unwrap().to_string()
            };
            let script = Some(PathBuf::from("/nonexistent/script"));
            let text = error(TapConfig { script, ..TapConfig::default() });
            assert!(text.contains("cannot run /nonexistent/script") && text.contains("script=no"));
            let text = error(TapConfig { fds: vec![999], ..TapConfig::default() });
            assert!(text.contains("cannot use fd 999"), "{text}");
            let text = error(TapConfig { vhost: true, ..TapConfig::default() });
            assert!(text.contains("give vhost=off"), "{text}");
            let text = error(TapConfig { ifname: Some("lo".into()), ..TapConfig::default() });
            assert!(text.contains("'lo'") && text.contains("another ifname"), "{text}");
        });
    }

    #[test]
    fn the_request_is_as_large_as_the_kernels() {
        assert_eq!(size_of::<IfReq>(), size_of::<libc::ifreq>());
        assert_eq!(IfReq::new("a-name-that-is-too-long", 0).name(), "a-name-that-is-");
    }
}
