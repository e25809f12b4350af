//! The one error type of the core.
//!
//! Every variant names the offending value and the limit it broke, so that a message can be acted
//! upon without a debugger. Bytes from outside (frames, records, keys) can only ever produce one of
//! these: no decoder panics. Callers: every module here; `rust/py` maps [`CoreError::code`] to the
//! Python exception tree.

use thiserror::Error;

/// Shorthand for results of this crate.
pub type Result<T, E = CoreError> = std::result::Result<T, E>;

/// What went wrong, with the value and the limit.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[non_exhaustive]
pub enum CoreError {
    /// Input ended before a field was complete.
    #[error("{what} is cut short: needs {needed} bytes, {have} are left")]
    Truncated {
        /// The field being read.
        what: &'static str,
        /// Bytes the field needs.
        needed: usize,
        /// Bytes that are left.
        have: usize,
    },
    /// The stored checksum is not that of the bytes.
    #[error("{what} checksum mismatch: stored {stored:#010x}, computed {computed:#010x}")]
    Checksum {
        /// The structure being read.
        what: &'static str,
        /// The checksum found.
        stored: u32,
        /// The checksum of the bytes found.
        computed: u32,
    },
    /// A size or count is past its limit.
    #[error("{what} is {size}, the limit is {limit}")]
    TooLarge {
        /// What was measured, with its unit.
        what: &'static str,
        /// Its size.
        size: u64,
        /// The largest size allowed.
        limit: u64,
    },
    /// Something that must have content has none.
    #[error("{what} is empty")]
    Empty {
        /// What is empty.
        what: &'static str,
    },
    /// A field holds a value that means nothing.
    #[error("{what} has the value {value}, which means nothing here")]
    Invalid {
        /// The field.
        what: &'static str,
        /// The value found.
        value: u64,
    },
    /// A name is not UTF-8.
    #[error("{what} is not UTF-8")]
    NotText {
        /// The field.
        what: &'static str,
    },
    /// Bytes are left over behind the last field.
    #[error("{what} has {count} bytes behind its end")]
    Trailing {
        /// The structure being read.
        what: &'static str,
        /// How many bytes are left over.
        count: usize,
    },
    /// A log record does not follow the last one.
    #[error(
        "record {sequence} (epoch {epoch}) does not follow {last_sequence} (epoch {last_epoch})"
    )]
    NotNext {
        /// Epoch of the refused record.
        epoch: u32,
        /// Sequence of the refused record.
        sequence: u64,
        /// Epoch of the last record.
        last_epoch: u32,
        /// Sequence of the last record.
        last_sequence: u64,
    },
    /// The node's memory quota leaves no room.
    #[error("memory is full: {used} bytes used, {needed} more needed, the quota is {limit}")]
    MemoryFull {
        /// Bytes in use.
        used: u64,
        /// Bytes asked for.
        needed: u64,
        /// The quota in bytes.
        limit: u64,
    },
    /// So much is open already that nothing more is taken.
    #[error("too much is open: the limit of {what} is {limit}")]
    Full {
        /// What there is too much of.
        what: &'static str,
        /// How much may be open.
        limit: u64,
    },
    /// A map is used with another schema than the one it was first used with.
    #[error("map {map:?} has schema {known:#010x}, not {given:#010x}")]
    SchemaMismatch {
        /// The map.
        map: String,
        /// The fingerprint registered by its first use.
        known: u32,
        /// The fingerprint given now.
        given: u32,
    },
    /// A ring without nodes was asked for one.
    #[error("the ring has no nodes")]
    EmptyRing,
    /// A node name the ring does not hold.
    #[error("the ring has no node {name:?}")]
    UnknownNode {
        /// The name asked for.
        name: String,
    },
    /// A node name the ring or the node list already holds.
    #[error("node {name:?} is already there")]
    DuplicateNode {
        /// The repeated name.
        name: String,
    },
    /// A weight that is not a finite number within its bounds.
    #[error("the weight of node {name:?} is {weight}, it must be within {low} to {high}")]
    BadWeight {
        /// The node.
        name: String,
        /// The weight as it was printed.
        weight: String,
        /// Smallest weight allowed.
        low: String,
        /// Largest weight allowed.
        high: String,
    },
}

impl CoreError {
    /// A stable identifier for programs; it changes never or with an ADR.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Truncated { .. } => "truncated",
            Self::Checksum { .. } => "checksum",
            Self::TooLarge { .. } => "too_large",
            Self::Empty { .. } => "empty",
            Self::Invalid { .. } => "invalid",
            Self::NotText { .. } => "not_text",
            Self::Trailing { .. } => "trailing",
            Self::NotNext { .. } => "not_next",
            Self::MemoryFull { .. } => "memory_full",
            Self::Full { .. } => "full",
            Self::SchemaMismatch { .. } => "schema_mismatch",
            Self::EmptyRing => "empty_ring",
            Self::UnknownNode { .. } => "unknown_node",
            Self::DuplicateNode { .. } => "duplicate_node",
            Self::BadWeight { .. } => "bad_weight",
        }
    }
}
