//! The replica protocol: what a node does as primary, backup, tail and joining copy of its partitions.
//!
//! Everything is a function of state and input: requests, peer frames, table entries and ticks go in
//! with the time as an argument, effects come out. The rules are those of the project's protocol page;
//! each file says at its top which of them it keeps. [`Node`] is the way in.

mod backup;
mod check;
mod commit;
mod confirm;
mod cursor;
mod effects;
mod follower;
mod heart;
mod join;
mod lease;
mod load;
mod memory;
mod node;
pub mod number;
mod overlay;
mod ownership;
mod partition;
mod persist;
mod primary;
mod recovery;
mod request;
mod stale;
mod streams;
mod throttle;
mod turn;
mod upkeep;

pub use cursor::{Batch, LOCAL, SHARED, SnapshotEntry};
pub use effects::{ChangeKind, ChangeWanted};
pub use heart::{Answer, Beat, Grant, Heart};
pub use join::Progress;
pub use lease::{ENDLESS_MS, HELD_MS};
pub use node::{Config, Effects, Node, RoleRow, Status};
pub use ownership::{Ownership, Role, State, TailCopy};
pub use partition::{Partition, Settings};
pub use persist::{Doorbell, Ring};
pub use turn::{Buffer, Ending, Seen, TurnStart};
