//! The data structures and protocol state of spacegrid.
//!
//! Everything here is a function of (state, input): no clock, no thread, no socket, no file, no
//! randomness of its own. Time is an argument, so the same inputs give the same outputs and a whole
//! cluster can be simulated from a seed.

#![forbid(unsafe_op_in_unsafe_fn)]

pub mod assign;
mod bytes;
pub mod client;
pub mod entry;
pub mod error;
pub mod frame;
pub mod gate;
pub mod hash;
pub mod key;
pub mod limits;
pub mod log;
pub mod planted;
pub mod record;
pub mod replica;

pub mod ring;
pub mod store;
pub mod table;

pub use error::{CoreError, Result};
