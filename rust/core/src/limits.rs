//! Every limit of the core in one table, each a named constant, and the checks that turn one into a
//! clear error.
//!
//! A length read from bytes is compared with its limit here before anything is allocated for it.
//! Callers: all decoders, the client and the replica on admission; the Python face re-exports the
//! constants.

use crate::error::{CoreError, Result};

/// Longest key in bytes, after encoding.
pub const KEY_BYTES_MAX: usize = 4096;
/// Largest value in bytes.
pub const VALUE_BYTES_MAX: usize = 1 << 20;
/// Target size of a frame in bytes; the sender splits at it.
pub const FRAME_BYTES_MAX: usize = 256 * 1024;
/// Most operations in one frame.
pub const FRAME_OPERATIONS_MAX: usize = 1000;
/// Largest frame at all: one value of the largest size, travelling alone.
pub const FRAME_BYTES_HARD_MAX: usize = 1_114_112;
/// Largest log record in bytes.
pub const RECORD_BYTES_MAX: usize = 4 << 20;
/// Most changes in one log record.
pub const RECORD_OPERATIONS_MAX: usize = 10_000;
/// Longest name (map, unit, handler) in UTF-8 bytes.
pub const NAME_BYTES_MAX: usize = 255;
/// Deepest nesting: parts of a tuple key, calls within calls.
pub const NESTING_MAX: usize = 32;
/// Largest frame between nodes in bytes: one record of the largest size and its envelope.
pub const PEER_FRAME_BYTES_MAX: usize = 5 << 20;
/// Answers that a node holds until they are taken, in bytes; past it reads are put off.
pub const ANSWERS_BYTES_MAX: usize = 16 << 20;
/// Most partitions of a space.
pub const PARTITIONS_MAX: u32 = 65_535;
/// Target size of one snapshot chunk in bytes.
pub const SNAPSHOT_CHUNK_BYTES: usize = 256 * 1024;
/// Memory of all logs of a node together in bytes, unless configured.
pub const LOG_BYTES_DEFAULT: usize = 64 << 20;
/// Longest call path of a token in bytes: two per nested call.
pub const PATH_BYTES_MAX: usize = 2 * NESTING_MAX;
/// Most kept results of one request stream in one partition.
pub const STREAM_RESULTS_MAX: usize = 100_000;
/// Largest epoch: it takes the upper 24 bits of a version.
pub const EPOCH_MAX: u32 = (1 << 24) - 1;
/// Largest sequence: it takes the lower 40 bits of a version.
pub const SEQUENCE_MAX: u64 = (1 << 40) - 1;
/// Virtual nodes of one ring node of weight 1.
pub const VIRTUAL_NODES_DEFAULT: u32 = 150;
/// Most virtual nodes of one ring node of weight 1.
pub const VIRTUAL_NODES_MAX: u32 = 10_000;
/// Most nodes of a ring or an assignment.
pub const NODES_MAX: usize = 65_535;

/// Refuses `size` above `limit`, naming `what` (with its unit).
pub fn check_size(what: &'static str, size: usize, limit: usize) -> Result<()> {
    if size > limit {
        return Err(CoreError::TooLarge { what, size: size as u64, limit: limit as u64 });
    }
    Ok(())
}

/// Refuses an empty key and one above [`KEY_BYTES_MAX`].
pub fn check_key(key: &[u8]) -> Result<()> {
    if key.is_empty() {
        return Err(CoreError::Empty { what: "the key" });
    }
    check_size("the key's length in bytes", key.len(), KEY_BYTES_MAX)
}

/// Refuses a value above [`VALUE_BYTES_MAX`].
pub fn check_value(value: &[u8]) -> Result<()> {
    check_size("the value's length in bytes", value.len(), VALUE_BYTES_MAX)
}

/// Refuses an empty name and one above [`NAME_BYTES_MAX`].
pub fn check_name(name: &str) -> Result<()> {
    if name.is_empty() {
        return Err(CoreError::Empty { what: "the name" });
    }
    check_size("the name's length in bytes", name.len(), NAME_BYTES_MAX)
}
