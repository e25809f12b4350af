//! The sockets of spacegrid: a node's port, the links between nodes, and a client's link.
//!
//! A node has one [`Net`]: a thread of its own with one small runtime. It answers the two hot calls
//! of the proto (`Data/Stream`, `Peers/Link`) from `spacegrid-core` itself, keeps the links to other
//! nodes, sends this node's heartbeats, and carries out what the core wants done; every other call goes on, unchanged, to the
//! server behind it. What needs Python (turns, tickets, changes of the table) is left in [`Events`]
//! for whoever reads them: nothing here waits for another thread.
//!
//! A client has one [`ClientLink`] per node: the same protocol without a socket, so that whoever owns
//! the socket (an event loop, a thread) also owns the waiting.

#![forbid(unsafe_code)]

mod busy_poll;
mod client;
mod clock;
mod events;
mod front;
mod grid;
mod heartbeats;
mod links;
mod message;
mod net;
mod protobuf;
mod sending;
mod status;
mod tls;

pub use client::{ClientLink, Down};
pub use clock::boottime_ms;
pub use events::{Batch, Events, Note};
pub use links::Peer;
pub use message::{Envelope, Hello, Messages};
pub use net::{Member, Net, Security, SharedHeart};
pub use status::{Code, Status};
pub use tls::Tls;

/// Version of the frame layout and of the services; a hello with another one is refused.
pub const PROTOCOL_VERSION: u64 = 1;
/// Path of the call that carries a client's frames.
pub const STREAM_PATH: &str = "/spacegrid.v1.Data/Stream";
/// Path of the call that carries another node's frames.
pub const LINK_PATH: &str = "/spacegrid.v1.Peers/Link";
/// Path of the call that says that a node is there.
pub const HEARTBEAT_PATH: &str = "/spacegrid.v1.Peers/Heartbeat";
