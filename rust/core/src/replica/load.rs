//! Copies that come from outside of the protocol: from this node's own disk, or out of a shared sink.
//!
//! Such a copy is dormant, and counts for nothing, until the table names it in a new epoch; see
//! [`Partition::apply_entry`]. Callers: `node`.

use super::ownership::{Role, State};
use super::partition::Partition;
use crate::error::{CoreError, Result};
use crate::frame::peer::ChunkEntry;
use crate::record::Position;

impl Partition {
    /// Take in entries of a copy from disk; it is dormant until the table names it.
    pub fn load<'a>(
        &mut self,
        position: Position,
        entries: impl Iterator<Item = ChunkEntry<'a>>,
        streams: &[u8],
    ) -> Result<()> {
        if self.entry.is_some() || !matches!(self.role, Role::None | Role::Dormant) {
            return Err(CoreError::Invalid {
                what: "loading a partition that is in use",
                value: u64::from(self.index),
            });
        }
        if self.role == Role::None {
            self.wipe(position);
            self.role = Role::Dormant;
            self.from_disk = true;
        }
        for entry in entries {
            if let Some(value) = entry.value {
                let ChunkEntry { map, schema, key, codec, version, expires_at_ms, .. } = entry;
                self.store.put(map, schema, key, value, codec, version, expires_at_ms);
            }
        }
        self.streams.import(streams)?;
        // They were read after the position was: what is behind it never happened here.
        self.streams.cut_after(position.sequence);
        Ok(())
    }

    /// Take in what a sink has of a partition that nobody serves; it is dormant until the table names it.
    ///
    /// A copy that the table knows or that came from this node's disk is not replaced.
    pub fn reload<'a>(
        &mut self,
        position: Position,
        entries: impl Iterator<Item = ChunkEntry<'a>>,
    ) -> Result<()> {
        let unserved = self.entry.as_ref().is_some_and(|entry| entry.state != State::Ok);
        if !unserved || !(self.role == Role::None || self.reloaded) {
            return Err(CoreError::Invalid {
                what: "reloading a partition that is served or has a copy here",
                value: u64::from(self.index),
            });
        }
        self.wipe(position);
        self.role = Role::Dormant;
        (self.from_disk, self.reloaded) = (true, true);
        for entry in entries {
            let Some(value) = entry.value else { continue };
            let (map, key, version) = (entry.map, entry.key, entry.version);
            self.store.put(map, entry.schema, key, value, entry.codec, version, 0);
        }
        Ok(())
    }

    /// Forget what was reloaded, or came from disk while others serve it, unless the table has taken it on.
    pub fn unload(&mut self) {
        let served = self.entry.as_ref().is_some_and(|entry| entry.state == State::Ok);
        if self.reloaded || (self.from_disk && served) {
            self.wipe(Position::ZERO);
            self.role = Role::None;
            (self.from_disk, self.reloaded) = (false, false);
        }
    }
}
