//! One partition's entry of the ownership table, and what it makes of a copy.
//!
//! The controller alone writes entries; a copy only reads them. Callers: everything in `replica`.

use crate::record::Position;

/// What a node is to a partition.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// Holds nothing of it.
    #[default]
    None = 0,
    /// Decides and answers.
    Primary = 1,
    /// Complete copy that may be promoted.
    Backup = 2,
    /// Receives and counts for new records, while the snapshot of the old ones follows.
    Tail = 3,
    /// Receives records, counts for nothing yet.
    Joining = 4,
    /// Holds data that the table has not (or no longer) given a part.
    Dormant = 5,
}

/// Whether a partition can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum State {
    /// It has a primary.
    #[default]
    Ok = 1,
    /// A primary is being made ready; with a target, from the log of the first tail.
    Recovering = 2,
    /// No complete copy is reachable; one may return.
    Unavailable = 3,
    /// Every complete copy is gone.
    Lost = 4,
}

impl State {
    /// The state with this number.
    pub fn from_number(number: u8) -> Option<Self> {
        match number {
            1 => Some(Self::Ok),
            2 => Some(Self::Recovering),
            3 => Some(Self::Unavailable),
            4 => Some(Self::Lost),
            _ => None,
        }
    }
}

/// A copy that counts for new records only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TailCopy {
    /// The copy.
    pub copy: u64,
    /// Join session.
    pub session: u64,
    /// Position before the first record that it has.
    pub from: Position,
}

/// One partition's entry of the ownership table.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Ownership {
    /// Grows by one with each change of primary.
    pub epoch: u32,
    /// Grows with any change.
    pub version: u64,
    /// Whether it can be used.
    pub state: State,
    /// Copy that decides; 0 is none.
    pub primary: u64,
    /// Complete copies, the primary included.
    pub in_sync: Vec<u64>,
    /// Complete copies that were removed and are remembered.
    pub former: Vec<u64>,
    /// Copies on their way in, with their sessions.
    pub joining: Vec<(u64, u64)>,
    /// Copies that count for new records only.
    pub tails: Vec<TailCopy>,
    /// Copy that a healthy primary is to hand over to; 0 is none. While recovering: the former copy
    /// that is completed from the first tail.
    pub target: u64,
}

impl Ownership {
    /// What this entry makes of `copy`.
    pub fn role_of(&self, copy: u64) -> Role {
        if self.primary == copy && self.state == State::Ok {
            Role::Primary
        } else if self.in_sync.contains(&copy) && self.primary != copy {
            Role::Backup
        } else if self.tails.iter().any(|tail| tail.copy == copy) {
            Role::Tail
        } else if self.joining.iter().any(|(joining, _)| *joining == copy) {
            Role::Joining
        } else if self.former.contains(&copy) || self.in_sync.contains(&copy) {
            Role::Dormant
        } else {
            Role::None
        }
    }

    /// Copy that the others take records from: the primary, or the tail that completes a former copy.
    pub fn source(&self) -> u64 {
        match (self.state, self.tails.first()) {
            (State::Recovering, Some(tail)) if self.target != 0 => tail.copy,
            _ => self.primary,
        }
    }

    /// Whether `copy` is a former one that is being completed.
    pub fn completes(&self, copy: u64) -> bool {
        self.state == State::Recovering && self.target == copy && self.former.contains(&copy)
    }

    /// Session under which `copy` joins or is a tail; 0 when it is neither.
    pub fn session_of(&self, copy: u64) -> u64 {
        let tail = self.tails.iter().find(|tail| tail.copy == copy).map(|tail| tail.session);
        let joining = || self.joining.iter().find(|(joining, _)| *joining == copy);
        tail.or_else(|| joining().map(|(_, session)| *session)).unwrap_or(0)
    }

    /// Copies that a new record will be held by: complete ones and tails.
    pub fn counted(&self) -> usize {
        self.in_sync.len() + self.tails.len()
    }
}
