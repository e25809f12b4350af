//! Request streams: which requests of which client were carried out, and what they were answered.
//!
//! A repeat finds the answer of the first attempt here instead of running again. Results are kept
//! from the lowest number that the client still has open; a request below it is stale. Results of
//! uncommitted records are in here too (a repeat of one waits for its commit) and leave again when
//! the record is cut. A stream that was idle for long is forgotten by a log record that raises a
//! floor for the incarnation that issued it; an unknown stream at or below the floor may once have
//! been known, so it is never run. Everything here follows from the log alone, so all copies agree.
//! Callers: `primary`, `turn`, `backup`, `join`.

use std::collections::{BTreeMap, VecDeque};

use foldhash::fast::FixedState;
use hashbrown::HashMap;

use crate::error::{CoreError, Result};
use crate::limits::{PATH_BYTES_MAX, STREAM_RESULTS_MAX, VALUE_BYTES_MAX, check_size};
use crate::planted::{Bug, planted};
use crate::record::{Position, Reply, Token};

/// Above this many streams in one partition the idle ones are forgotten.
pub const STREAMS_KEPT_MAX: usize = 10_000;
/// A stream is idle when its last record is at least this many records ago.
pub const STREAM_IDLE_RECORDS: u64 = 10_000;

/// The answer to a request that was carried out.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Kept {
    /// Packed position of its record.
    pub position: u64,
    /// Hash of the arguments: the same token with others is an error.
    pub arguments_hash: u64,
    /// Version in the answer.
    pub version: u64,
    /// Status of the answer.
    pub status: u8,
    /// Flags of the answer.
    pub flags: u8,
    /// Codec of the value.
    pub codec: u8,
    /// Value of the answer.
    pub value: Box<[u8]>,
}

impl Kept {
    /// Sequence of its record.
    pub fn sequence(&self) -> u64 {
        Position::unpack(self.position).sequence
    }

    /// The result that a record carries.
    pub fn of(position: Position, arguments_hash: u64, reply: &Reply<'_>) -> Self {
        Self {
            position: position.pack(),
            arguments_hash,
            version: reply.version,
            status: reply.status,
            flags: reply.flags,
            codec: reply.codec,
            value: reply.value.into(),
        }
    }
}

/// What is known about a token.
#[derive(Debug, PartialEq, Eq)]
pub enum Verdict<'a> {
    /// Not carried out: run it.
    Fresh,
    /// Carried out: answer this.
    Known(&'a Kept),
    /// Below the lowest open number.
    Stale,
    /// Carried out with other arguments.
    Reused,
    /// Its stream may have been forgotten.
    Forgotten,
    /// The stream keeps too many results open.
    Full,
}

#[derive(Debug, Default)]
struct Stream {
    /// Sequence of its last committed record; 0: there is none.
    last: u64,
    /// Sequence of its last record, committed or not.
    held: u64,
    lowest: u64,
    direct: VecDeque<(u64, Kept)>,
    nested_lowest: u64,
    nested: BTreeMap<(u64, Box<[u8]>), Kept>,
}

impl Stream {
    fn find(&self, token: &Token<'_>) -> Option<&Kept> {
        if token.path.is_empty() {
            if self.direct.back().is_none_or(|(number, _)| *number < token.number) {
                return None;
            }
            let at = self.direct.binary_search_by_key(&token.number, |(number, _)| *number).ok()?;
            return Some(&self.direct[at].1);
        }
        if self.nested.is_empty() {
            return None;
        }
        self.nested.get(&(token.number, Box::from(token.path)))
    }

    fn insert(&mut self, number: u64, path: &[u8], kept: Kept) {
        if !path.is_empty() {
            self.nested.insert((number, path.into()), kept);
        } else if self.direct.back().is_none_or(|(last, _)| *last < number) {
            self.direct.push_back((number, kept));
        } else {
            match self.direct.binary_search_by_key(&number, |(known, _)| *known) {
                Ok(at) => self.direct[at].1 = kept,
                Err(at) => self.direct.insert(at, (number, kept)),
            }
        }
    }

    fn raise(&mut self, lowest: u64, nested: bool) {
        if nested {
            if lowest > self.nested_lowest {
                self.nested_lowest = lowest;
                if self.nested.first_key_value().is_some_and(|((number, _), _)| *number < lowest) {
                    self.nested = self.nested.split_off(&(lowest, Box::default()));
                }
            }
        } else if lowest > self.lowest {
            self.lowest = lowest;
            while self.direct.front().is_some_and(|(number, _)| *number < lowest) {
                self.direct.pop_front();
            }
        }
    }
}

/// The request streams of one partition.
#[derive(Debug, Default)]
pub struct Streams {
    streams: HashMap<u64, Stream, FixedState>,
    floors: BTreeMap<u32, u32>,
}

impl Streams {
    /// Nothing known.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of streams known.
    pub fn len(&self) -> usize {
        self.streams.len()
    }

    /// Look a token up before it is run.
    pub fn check(&self, token: &Token<'_>, arguments_hash: u64) -> Verdict<'_> {
        let Some(stream) = self.streams.get(&token.stream) else {
            let (issuer, counter) = ((token.stream >> 32) as u32, token.stream as u32);
            let forgotten = self.floors.get(&issuer).is_some_and(|floor| counter <= *floor);
            return if forgotten { Verdict::Forgotten } else { Verdict::Fresh };
        };
        if let Some(kept) = stream.find(token) {
            let same = kept.arguments_hash == arguments_hash;
            return if same { Verdict::Known(kept) } else { Verdict::Reused };
        }
        let lowest = if token.path.is_empty() { stream.lowest } else { stream.nested_lowest };
        if token.number < lowest && !planted(Bug::LowestIgnored) {
            Verdict::Stale
        } else if stream.direct.len() + stream.nested.len() >= STREAM_RESULTS_MAX
            && token.lowest <= lowest
        {
            Verdict::Full
        } else {
            Verdict::Fresh
        }
    }

    /// Keep the result of a committed record.
    pub fn keep(&mut self, token: &Token<'_>, kept: Kept) {
        let sequence = kept.sequence();
        self.hold(token, kept);
        self.settle(token, sequence);
    }

    /// A held result's record is committed: what its client has closed goes.
    ///
    /// Not before: what a record that was cut has dropped, other copies would still have.
    pub fn settle(&mut self, token: &Token<'_>, sequence: u64) {
        let stream = self.streams.entry(token.stream).or_default();
        stream.last = stream.last.max(sequence);
        stream.held = stream.held.max(sequence);
        stream.raise(token.lowest, !token.path.is_empty());
    }

    /// Keep the result of a record that may still be cut.
    pub fn hold(&mut self, token: &Token<'_>, kept: Kept) {
        let stream = self.streams.entry(token.stream).or_default();
        stream.held = stream.held.max(kept.sequence());
        let lowest = if token.path.is_empty() { stream.lowest } else { stream.nested_lowest };
        // A snapshot may have brought a higher one than the records that are applied after it know of.
        if token.number >= lowest {
            stream.insert(token.number, token.path, kept);
        }
    }

    /// Take a result back whose record was cut.
    pub fn cut(&mut self, token: &Token<'_>, position: Position) {
        let Some(stream) = self.streams.get_mut(&token.stream) else { return };
        if stream.find(token).is_none_or(|kept| kept.position != position.pack()) {
            return;
        }
        if token.path.is_empty() {
            stream.direct.retain(|(number, _)| *number != token.number);
        } else {
            stream.nested.remove(&(token.number, Box::from(token.path)));
        }
        if stream.last == 0 && stream.direct.is_empty() && stream.nested.is_empty() {
            self.streams.remove(&token.stream);
        }
    }

    /// What to forget, if there are too many streams: an issuer and its new floor.
    ///
    /// Cost: one pass over the streams, only when there are more than [`STREAMS_KEPT_MAX`].
    pub fn forgettable(&self, next_sequence: u64) -> Option<(u32, u32)> {
        if self.streams.len() <= STREAMS_KEPT_MAX {
            return None;
        }
        let mut idle: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
        for (id, stream) in &self.streams {
            if stream.held + STREAM_IDLE_RECORDS <= next_sequence {
                idle.entry((id >> 32) as u32).or_default().push(*id as u32);
            }
        }
        let (issuer, mut counters) = idle.into_iter().max_by_key(|(_, list)| list.len())?;
        counters.sort_unstable();
        Some((issuer, counters[counters.len() / 2]))
    }

    /// Forget the idle streams of an issuer up to a floor (a log record at `sequence` says so).
    pub fn forget(&mut self, issuer: u32, floor: u32, sequence: u64) {
        let known = self.floors.entry(issuer).or_default();
        *known = floor.max(*known);
        self.streams.retain(|id, stream| {
            (id >> 32) as u32 != issuer
                || *id as u32 > floor
                || stream.held + STREAM_IDLE_RECORDS > sequence
        });
    }

    /// Everything committed, in pieces of about `bytes_max`, ordered by stream.
    pub fn export(&self, commit: u64, bytes_max: usize) -> Vec<Vec<u8>> {
        let mut ids: Vec<u64> = self.streams.keys().copied().collect();
        ids.sort_unstable();
        let mut pieces = Vec::new();
        let mut out = Vec::new();
        for (issuer, floor) in &self.floors {
            out.push(0);
            out.extend_from_slice(&issuer.to_le_bytes());
            out.extend_from_slice(&floor.to_le_bytes());
        }
        for id in ids {
            let stream = &self.streams[&id];
            if stream.last == 0 {
                continue;
            }
            out.push(1);
            for field in [id, stream.last.min(commit), stream.lowest, stream.nested_lowest] {
                out.extend_from_slice(&field.to_le_bytes());
            }
            let direct = stream.direct.iter().map(|(number, kept)| (*number, &[][..], kept));
            let nested =
                stream.nested.iter().map(|((number, path), kept)| (*number, &**path, kept));
            for (number, path, kept) in direct.chain(nested) {
                if kept.sequence() > commit {
                    continue;
                }
                export_result(&mut out, id, number, path, kept);
                if out.len() >= bytes_max {
                    pieces.push(std::mem::take(&mut out));
                }
            }
            if out.len() >= bytes_max {
                pieces.push(std::mem::take(&mut out));
            }
        }
        if !out.is_empty() {
            pieces.push(out);
        }
        pieces
    }

    /// Take in a piece made by [`Self::export`]; what is here already stays.
    pub fn import(&mut self, bytes: &[u8]) -> Result<()> {
        let mut rest = bytes;
        while let Some((tag, tail)) = rest.split_first() {
            rest = tail;
            match tag {
                0 => {
                    let issuer = u32::from_le_bytes(part(&mut rest)?);
                    let floor = u32::from_le_bytes(part(&mut rest)?);
                    let known = self.floors.entry(issuer).or_default();
                    *known = floor.max(*known);
                }
                1 => {
                    let id = u64::from_le_bytes(part(&mut rest)?);
                    let last = u64::from_le_bytes(part(&mut rest)?);
                    let lowest = u64::from_le_bytes(part(&mut rest)?);
                    let nested_lowest = u64::from_le_bytes(part(&mut rest)?);
                    let stream = self.streams.entry(id).or_default();
                    stream.last = stream.last.max(last);
                    stream.raise(lowest, false);
                    stream.raise(nested_lowest, true);
                }
                2 => self.import_result(&mut rest)?,
                value => {
                    let value = u64::from(*value);
                    return Err(CoreError::Invalid { what: "the tag of a kept result", value });
                }
            }
        }
        Ok(())
    }

    /// Drop the results of records after `sequence`.
    pub fn cut_after(&mut self, sequence: u64) {
        for stream in self.streams.values_mut() {
            stream.direct.retain(|(_, kept)| kept.sequence() <= sequence);
            stream.nested.retain(|_, kept| kept.sequence() <= sequence);
            stream.last = stream.last.min(sequence);
        }
    }

    fn import_result(&mut self, rest: &mut &[u8]) -> Result<()> {
        let id = u64::from_le_bytes(part(rest)?);
        let number = u64::from_le_bytes(part(rest)?);
        let path_length = usize::from(part::<1>(rest)?[0]);
        check_size("the call path's length in bytes", path_length, PATH_BYTES_MAX)?;
        let path = slice(rest, path_length)?;
        let position = u64::from_le_bytes(part(rest)?);
        let arguments_hash = u64::from_le_bytes(part(rest)?);
        let version = u64::from_le_bytes(part(rest)?);
        let [status, flags, codec] = part(rest)?;
        let length = u32::from_le_bytes(part(rest)?) as usize;
        check_size("the kept answer's length in bytes", length, VALUE_BYTES_MAX)?;
        let value = slice(rest, length)?.into();
        let kept = Kept { position, arguments_hash, version, status, flags, codec, value };
        let stream = self.streams.entry(id).or_default();
        let lowest = if path.is_empty() { stream.lowest } else { stream.nested_lowest };
        let token = Token { stream: id, number, path, lowest };
        if number >= lowest && stream.find(&token).is_none() {
            stream.insert(number, path, kept);
        }
        Ok(())
    }
}

fn export_result(out: &mut Vec<u8>, id: u64, number: u64, path: &[u8], kept: &Kept) {
    out.push(2);
    out.extend_from_slice(&id.to_le_bytes());
    out.extend_from_slice(&number.to_le_bytes());
    out.push(path.len() as u8);
    out.extend_from_slice(path);
    out.extend_from_slice(&kept.position.to_le_bytes());
    out.extend_from_slice(&kept.arguments_hash.to_le_bytes());
    out.extend_from_slice(&kept.version.to_le_bytes());
    out.extend_from_slice(&[kept.status, kept.flags, kept.codec]);
    out.extend_from_slice(&(kept.value.len() as u32).to_le_bytes());
    out.extend_from_slice(&kept.value);
}

fn slice<'a>(rest: &mut &'a [u8], length: usize) -> Result<&'a [u8]> {
    if rest.len() < length {
        let have = rest.len();
        return Err(CoreError::Truncated { what: "the kept results", needed: length, have });
    }
    let (head, tail) = rest.split_at(length);
    *rest = tail;
    Ok(head)
}

fn part<const N: usize>(rest: &mut &[u8]) -> Result<[u8; N]> {
    let mut out = [0; N];
    out.copy_from_slice(slice(rest, N)?);
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn token(stream: u64, number: u64, path: &[u8], lowest: u64) -> Token<'_> {
        Token { stream, number, path, lowest }
    }

    fn kept(sequence: u64, hash: u64) -> Kept {
        let reply = Reply { status: 0, flags: 0, codec: 0, version: sequence, value: b"v" };
        Kept::of(Position { epoch: 1, sequence }, hash, &reply)
    }

    #[test]
    fn a_repeat_finds_its_answer_and_another_argument_is_refused() {
        let mut streams = Streams::new();
        assert_eq!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Fresh);
        streams.keep(&token(7, 1, b"", 1), kept(1, 5));
        assert_eq!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Known(&kept(1, 5)));
        assert_eq!(streams.check(&token(7, 1, b"", 1), 6), Verdict::Reused);
        assert_eq!(streams.check(&token(7, 1, b"\x01\x00", 1), 5), Verdict::Fresh);
    }

    #[test]
    fn what_is_closed_goes_when_its_record_commits_and_not_when_it_is_cut() {
        let mut streams = Streams::new();
        streams.keep(&token(7, 1, b"", 1), kept(1, 5));
        let image = streams.export(1, usize::MAX);
        for stream in [7, 8] {
            let closing = token(stream, 2, b"", 2);
            streams.hold(&closing, kept(2, 5));
            assert_eq!(streams.check(&closing, 5), Verdict::Known(&kept(2, 5)));
            streams.cut(&closing, Position { epoch: 1, sequence: 2 });
            assert_eq!(streams.check(&closing, 5), Verdict::Fresh);
        }
        assert_eq!(streams.export(1, usize::MAX), image, "as if nothing had been");
        streams.hold(&token(7, 2, b"", 2), kept(2, 5));
        streams.settle(&token(7, 2, b"", 2), 2);
        assert_eq!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Stale);
    }

    #[test]
    fn below_the_lowest_open_number_is_stale_and_windows_are_separate() {
        let mut streams = Streams::new();
        streams.keep(&token(7, 1, b"", 1), kept(1, 5));
        streams.keep(&token(7, 2, b"\x01\x00", 1), kept(2, 5));
        streams.keep(&token(7, 9, b"", 8), kept(3, 5));
        assert_eq!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Stale);
        assert_eq!(streams.check(&token(7, 2, b"\x01\x00", 1), 5), Verdict::Known(&kept(2, 5)));
        streams.keep(&token(7, 9, b"\x01\x00", 3), kept(4, 5));
        assert_eq!(streams.check(&token(7, 2, b"\x01\x00", 1), 5), Verdict::Stale);
    }

    #[test]
    fn a_record_older_than_the_snapshot_leaves_no_closed_result() {
        let mut streams = Streams::new();
        streams.keep(&token(7, 1, b"", 1), kept(1, 5));
        streams.keep(&token(7, 4, b"", 4), kept(2, 5));
        let mut joined = Streams::new();
        streams.export(2, 1000).iter().for_each(|piece| joined.import(piece).expect("own bytes"));
        joined.keep(&token(7, 1, b"", 1), kept(1, 5));
        assert_eq!(joined.export(2, 1000), streams.export(2, 1000));
    }

    #[test]
    fn a_cut_result_is_fresh_again_and_only_that_one() {
        let mut streams = Streams::new();
        streams.keep(&token(7, 1, b"", 1), kept(1, 5));
        streams.cut(&token(7, 1, b"", 1), Position { epoch: 2, sequence: 1 });
        assert_ne!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Fresh);
        streams.cut(&token(7, 1, b"", 1), Position { epoch: 1, sequence: 1 });
        assert_eq!(streams.check(&token(7, 1, b"", 1), 5), Verdict::Fresh);
    }

    #[test]
    fn a_forgotten_stream_is_never_run() {
        let mut streams = Streams::new();
        for counter in 1..=(STREAMS_KEPT_MAX as u64 + 2) {
            streams.keep(&token((3 << 32) | counter, 1, b"", 1), kept(counter, 5));
        }
        let sequence = STREAMS_KEPT_MAX as u64 * 3;
        let (issuer, floor) = streams.forgettable(sequence).expect("too many");
        streams.forget(issuer, floor, sequence);
        assert!(streams.len() <= STREAMS_KEPT_MAX);
        assert_eq!(streams.check(&token((3 << 32) | 1, 2, b"", 2), 5), Verdict::Forgotten);
        assert_eq!(streams.check(&token((4 << 32) | 1, 1, b"", 1), 5), Verdict::Fresh);
    }

    #[test]
    fn export_and_import_keep_what_is_committed() {
        let mut streams = Streams::new();
        for number in 1..100 {
            streams.keep(&token(7, number, b"", 1), kept(number, 5));
            streams.keep(&token(8, number, b"\x01\x00", 1), kept(number, 5));
        }
        let mut copy = Streams::new();
        for piece in streams.export(50, 256) {
            copy.import(&piece).expect("own bytes");
        }
        assert_eq!(copy.check(&token(7, 50, b"", 1), 5), Verdict::Known(&kept(50, 5)));
        assert_eq!(copy.check(&token(8, 50, b"\x01\x00", 1), 5), Verdict::Known(&kept(50, 5)));
        assert_eq!(copy.check(&token(7, 51, b"", 1), 5), Verdict::Fresh);
        for length in 0..60 {
            let piece = &streams.export(50, usize::MAX)[0];
            let _ = Streams::new().import(&piece[..length]);
        }
    }
}
