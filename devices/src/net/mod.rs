//! Networks: the frames between a network card and the host.
//!
//! A [`NetdevSpec`] says what was asked for, [`Netdevs`] opens it, and a card holds the [`NetPort`]
//! of the [`Netdev`] that comes of it. Frames travel with what a virtio-net header says of them
//! (Virtio 1.2, 5.1.6): who still has to fill in a checksum or to cut a large one into segments.
//!
//! Nothing here blocks, and nothing keeps more than a few frames: a card asks for frames when it
//! has room, and a backend that has no room says so.

mod backend;
mod error;
mod frame;
mod registry;
mod spec;
mod stream;
mod tap;
#[cfg(any(test, feature = "fuzz"))]
pub(crate) mod testing;
pub mod user;

pub use backend::{NetPort, Netdev, Sent, Sink};
pub use error::NetError;
pub use frame::{Gather, MAX_FRAME, MacAddress, NetHeader, Offloads};
pub use registry::Netdevs;
pub use spec::{
    Forward, GuestForward, NetdevKind, NetdevSpec, Protocol, StreamAddress, StreamRole, TapConfig,
    Target, UserConfig,
};
