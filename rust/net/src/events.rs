//! What the net thread leaves for Python, and the one byte that says so.
//!
//! The net thread never waits for the interpreter: it puts what needs Python here and makes a file
//! descriptor readable, once until somebody has taken everything. Callers: `grid` puts, `rust/py`
//! takes.

use std::io::{Read, Write};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use spacegrid_core::replica::{ChangeWanted, TurnStart};

/// Turns that may wait for Python before clients' frames are no longer read.
pub const TURNS_WAITING_MAX: usize = 50_000;
/// Lines of the log that may wait; more are dropped.
const NOTES_MAX: usize = 1000;
/// How long Python has to end the process after a panic here.
const FATAL_WAIT: Duration = Duration::from_secs(2);

/// A line for the log.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Note {
    /// debug, warning or error.
    pub level: &'static str,
    /// What happened.
    pub text: String,
}

/// Everything since the last time, in order.
#[derive(Debug, Default)]
pub struct Batch {
    /// Turns to run at once.
    pub turns: Vec<TurnStart>,
    /// Tickets: positive committed, negative cut.
    pub settled: Vec<i64>,
    /// Changes of the ownership table to ask for.
    pub changes: Vec<ChangeWanted>,
    /// (connection, reply frame) of connections inside this process.
    pub client_frames: Vec<(u64, Vec<u8>)>,
    /// Lines for the log.
    pub notes: Vec<Note>,
    /// A bug ended the net thread.
    pub fatal: Option<String>,
}

#[derive(Debug, Default)]
struct Pending {
    batch: Batch,
    signalled: bool,
}

/// The hand-over.
#[derive(Debug)]
pub struct Events {
    pending: Mutex<Pending>,
    turns_waiting: AtomicUsize,
    writer: UnixStream,
    reader: UnixStream,
}

impl Events {
    /// Nothing yet.
    pub fn new() -> std::io::Result<Self> {
        let (writer, reader) = UnixStream::pair()?;
        writer.set_nonblocking(true)?;
        reader.set_nonblocking(true)?;
        let turns_waiting = AtomicUsize::new(0);
        Ok(Self { pending: Mutex::default(), turns_waiting, writer, reader })
    }

    /// Readable when there is something to take.
    pub fn fd(&self) -> RawFd {
        self.reader.as_raw_fd()
    }

    /// Add to the batch and signal it.
    pub fn put(&self, add: impl FnOnce(&mut Batch)) {
        let mut pending = self.pending.lock();
        add(&mut pending.batch);
        self.turns_waiting.store(pending.batch.turns.len(), Ordering::Relaxed);
        if !std::mem::replace(&mut pending.signalled, true) {
            drop(pending);
            // One byte at most is ever unread, so there is room for it.
            let _ = (&self.writer).write(&[1]);
        }
    }

    /// Take everything.
    pub fn take(&self) -> Batch {
        let mut bytes = [0; 8];
        while matches!((&self.reader).read(&mut bytes), Ok(count) if count > 0) {}
        let mut pending = self.pending.lock();
        pending.signalled = false;
        self.turns_waiting.store(0, Ordering::Relaxed);
        std::mem::take(&mut pending.batch)
    }

    /// Whether so many turns wait for Python that no more requests are to be read.
    pub fn crowded(&self) -> bool {
        self.turns_waiting.load(Ordering::Relaxed) > TURNS_WAITING_MAX
    }

    /// Leave a line for the log.
    pub fn note(&self, level: &'static str, text: String) {
        self.put(|batch| {
            if batch.notes.len() < NOTES_MAX {
                batch.notes.push(Note { level, text });
            }
        });
    }

    /// A panic: Python ends the process, and if it does not get to it, this does.
    pub fn fail(&self, panic: &(dyn std::any::Any + Send)) {
        let text = panic
            .downcast_ref::<&str>()
            .map(ToString::to_string)
            .or_else(|| panic.downcast_ref::<String>().cloned())
            .unwrap_or_else(|| "a panic without words".into());
        self.put(|batch| batch.fatal = Some(text));
        std::thread::spawn(|| {
            std::thread::sleep(FATAL_WAIT);
            std::process::abort();
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn many_events_are_one_byte_and_one_batch() {
        let events = Events::new().unwrap();
        for ticket in 1..=3 {
            events.put(|batch| batch.settled.push(ticket));
        }
        let mut bytes = [0; 8];
        assert_eq!((&events.reader).read(&mut bytes).unwrap(), 1);
        assert_eq!(events.take().settled, [1, 2, 3]);
        assert!((&events.reader).read(&mut bytes).is_err(), "nothing is readable");
        events.put(|batch| batch.settled.push(4));
        assert_eq!((&events.reader).read(&mut bytes).unwrap(), 1);
    }
}
