//! The rows of the command table, a file a topic.

pub(crate) mod block;
pub(crate) mod device;
pub(crate) mod help;
pub(crate) mod info;
pub(crate) mod io;
pub(crate) mod log;
pub(crate) mod memory;
pub(crate) mod net;
pub(crate) mod paging;
pub(crate) mod protocol;
pub(crate) mod run;
pub(crate) mod virtio;
