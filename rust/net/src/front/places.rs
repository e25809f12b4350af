//! The connections of a port at one time, and their calls.
//!
//! When the port is full, the connection that has been without a call for longest gives way to a new
//! one, so that connections which nobody uses keep nobody out.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tokio::sync::Notify;

/// Connections at a time, where the process may open as many files.
const CONNECTIONS_MAX: usize = 4096;
/// Files that connections leave to the rest of the node: links, sinks, its own calls.
const FILES_KEPT: usize = 512;
/// Calls of one connection that carry frames; a client needs one.
const FRAME_CALLS_MAX: usize = 16;

/// All places of a port.
pub(super) struct Places {
    max: usize,
    taken: RefCell<BTreeMap<u64, Rc<Seat>>>,
    next: Cell<u64>,
    gone: Notify,
}

struct Seat {
    calls: Cell<usize>,
    frame_calls: Cell<usize>,
    leave: Notify,
}

impl Places {
    /// As many as the process may open files for.
    pub(super) fn new() -> Rc<Self> {
        let files = files_max();
        Self::of(CONNECTIONS_MAX.min(files - FILES_KEPT.min(files / 2)))
    }

    fn of(max: usize) -> Rc<Self> {
        Rc::new(Self { max, taken: RefCell::default(), next: Cell::new(0), gone: Notify::new() })
    }

    /// A place for a new connection; `None`: the port is full of connections that are in use.
    pub(super) fn take(self: &Rc<Self>) -> Option<Place> {
        let mut taken = self.taken.borrow_mut();
        if taken.len() >= self.max {
            let idle = taken.iter().find(|(_, seat)| seat.calls.get() == 0);
            let number = *idle?.0;
            taken.remove(&number)?.leave.notify_one();
        }
        let number = self.next.replace(self.next.get() + 1);
        let seat =
            Rc::new(Seat { calls: Cell::new(0), frame_calls: Cell::new(0), leave: Notify::new() });
        taken.insert(number, seat.clone());
        Some(Place { places: self.clone(), number, seat })
    }

    /// Wait until every connection has ended.
    pub(super) async fn empty(&self) {
        while !self.taken.borrow().is_empty() {
            self.gone.notified().await;
        }
    }
}

/// A connection's place among those at a time.
pub(super) struct Place {
    places: Rc<Places>,
    number: u64,
    seat: Rc<Seat>,
}

impl Place {
    /// Ready when the connection has to give way.
    pub(super) async fn given_up(&self) {
        self.seat.leave.notified().await;
    }

    /// A call of this connection, for as long as what is returned lives.
    pub(super) fn call(&self) -> OpenCall {
        OpenCall::of(self.seat.clone(), |seat| &seat.calls)
    }

    /// One that carries frames as well; `None`: there are too many.
    pub(super) fn frame_call(&self) -> Option<OpenCall> {
        let free = self.seat.frame_calls.get() < FRAME_CALLS_MAX;
        free.then(|| OpenCall::of(self.seat.clone(), |seat| &seat.frame_calls))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.places.taken.borrow_mut().remove(&self.number);
        self.places.gone.notify_one();
    }
}

/// Counts a call until it is dropped.
pub(super) struct OpenCall {
    seat: Rc<Seat>,
    count: fn(&Seat) -> &Cell<usize>,
}

impl OpenCall {
    fn of(seat: Rc<Seat>, count: fn(&Seat) -> &Cell<usize>) -> Self {
        count(&seat).set(count(&seat).get() + 1);
        Self { seat, count }
    }

    /// Calls of its connection that are open now, this one among them.
    pub(super) fn of_connection(&self) -> usize {
        self.seat.calls.get()
    }
}

impl Drop for OpenCall {
    fn drop(&mut self) {
        let count = (self.count)(&self.seat);
        count.set(count.get() - 1);
    }
}

/// How many files the process may open, after asking for as many as it takes.
fn files_max() -> usize {
    let wanted = (CONNECTIONS_MAX + FILES_KEPT) as u64;
    let limit = getrlimit(Resource::Nofile);
    let most = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
    if limit.current.is_some_and(|current| current < most) {
        let _ = setrlimit(Resource::Nofile, Rlimit { current: Some(most), ..limit });
    }
    let current = getrlimit(Resource::Nofile).current;
    current.map_or(usize::MAX, |files| usize::try_from(files).unwrap_or(usize::MAX))
}

#[cfg(test)]
mod tests {
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn gives_way(place: &Place) -> bool {
        pin!(place.given_up()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    #[test]
    fn in_a_full_port_the_oldest_without_a_call_gives_way() {
        let places = Places::of(2);
        let used = places.take().expect("room");
        let call = used.call();
        let idle = places.take().expect("room");
        let third = places.take().expect("the idle one's place");
        assert_eq!((gives_way(&used), gives_way(&idle), gives_way(&third)), (false, true, false));
        let another = third.call();
        drop(idle);
        assert!(places.take().is_none(), "both are in use");
        drop(another);
        assert!(places.take().is_some());
        assert!(gives_way(&third));
        drop((call, used, third));
        assert!(places.taken.borrow().is_empty());
    }

    #[test]
    fn a_connection_carries_frames_in_so_many_calls_at_a_time() {
        let place = Places::of(1).take().expect("room");
        let mut calls: Vec<_> = std::iter::from_fn(|| place.frame_call()).take(100).collect();
        assert_eq!(calls.len(), FRAME_CALLS_MAX);
        calls.pop();
        assert!(place.frame_call().is_some());
    }

    #[test]
    fn files_are_asked_for() {
        let limit = getrlimit(Resource::Nofile);
        let wanted = (CONNECTIONS_MAX + FILES_KEPT) as u64;
        let most = limit.maximum.map_or(wanted, |maximum| maximum.min(wanted));
        assert!(files_max() as u64 >= most);
    }
}
