//! What the tasks of the net thread share, and the one place that takes the core's effects.
//!
//! Everything here belongs to one thread. Tasks that have given the core something to do ask for
//! [`Grid::soon`]; the effects task then runs after those that are ready, so what many frames bring
//! about leaves in few. Reply frames go to the outputs of their connections, peer frames to the
//! queues of their links, the rest to [`Events`].

use std::cell::{Cell, OnceCell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use spacegrid_core::gate::Gate;
use spacegrid_core::replica::Node;
use tokio::sync::Notify;
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use crate::busy_poll::BusyPoll;
use crate::clock::boottime_ms;
use crate::events::Events;
use crate::links::{EndWithThis, Link};
use crate::message::Hello;
use crate::net::Member;
use crate::tls::SharedTls;

/// Time between two ticks of the core: commit positions, expiry, snapshot chunks.
const TICK: Duration = Duration::from_millis(10);
/// Connections whose number has this bit are inside this process.
pub(crate) const LOCAL_CONNECTION: u64 = 1 << 63;

/// Wall-clock time in milliseconds since 1970, for expiry only.
pub(crate) fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_millis() as u64)
}

/// What both sides of the thread see.
#[derive(Debug)]
pub(crate) struct Shared {
    /// What waits for Python.
    pub(crate) events: Events,
    /// There may be effects to take.
    pub(crate) wake: Notify,
    /// Whether clients and other nodes are let in.
    pub(crate) serving: AtomicBool,
    /// Who is let in; `None`: everyone who reaches the port.
    pub(crate) gate: Option<Arc<Gate>>,
    /// `None`: plain sockets.
    pub(crate) tls: Option<Arc<SharedTls>>,
}

/// A node that has joined its cluster.
pub(crate) struct Joined {
    pub(crate) core: Arc<Node>,
    pub(crate) member: Member,
}

/// The net thread's own state.
pub(crate) struct Grid {
    pub(crate) shared: Arc<Shared>,
    joined: OnceCell<Joined>,
    outputs: RefCell<HashMap<u64, Rc<Output>>>,
    pub(crate) links: RefCell<HashMap<u64, Rc<Link>>>,
    pub(crate) heartbeats: RefCell<HashMap<u64, EndWithThis>>,
    connections: Cell<u64>,
    /// Bytes of replies that wait for clients to take them.
    pub(crate) replies_bytes: Cell<usize>,
    waiting_for_room: RefCell<Vec<Waker>>,
    busy_poll: RefCell<BusyPoll>,
    /// More frames may come at once.
    frames_come: Notify,
    closing: Cell<bool>,
    /// Told when `closing` becomes true.
    pub(crate) closed: Notify,
}

impl Grid {
    pub(crate) fn new(shared: Arc<Shared>, busy_poll: Duration) -> Rc<Self> {
        Rc::new(Self {
            shared,
            joined: OnceCell::new(),
            outputs: RefCell::default(),
            links: RefCell::default(),
            heartbeats: RefCell::default(),
            connections: Cell::new(0),
            replies_bytes: Cell::new(0),
            waiting_for_room: RefCell::default(),
            busy_poll: RefCell::new(BusyPoll::new(busy_poll)),
            frames_come: Notify::new(),
            closing: Cell::new(false),
            closed: Notify::new(),
        })
    }

    /// Run a task; a panic in it ends the process.
    pub(crate) fn spawn(&self, task: impl Future<Output = ()> + 'static) -> JoinHandle<()> {
        let shared = self.shared.clone();
        let mut task = Box::pin(task);
        let guarded = std::future::poll_fn(move |cx| {
            let poll = catch_unwind(AssertUnwindSafe(|| task.as_mut().poll(cx)));
            poll.unwrap_or_else(|panic| {
                shared.events.fail(&*panic);
                Poll::Pending
            })
        });
        tokio::task::spawn_local(guarded)
    }

    // ---- the node

    /// The node has joined: serve it, and let it tick.
    pub(crate) fn join(self: &Rc<Self>, joined: Joined) {
        if self.joined.set(joined).is_ok() {
            let grid = self.clone();
            self.spawn(async move { grid.run_effects().await });
            let grid = self.clone();
            self.spawn(async move { grid.tick().await });
            let grid = self.clone();
            self.spawn(async move { grid.poll_busily().await });
        }
    }

    /// The node, once it has joined and serves.
    pub(crate) fn serving(&self) -> Option<&Joined> {
        let serving = self.shared.serving.load(Ordering::Acquire) && !self.closing.get();
        self.joined.get().filter(|_| serving)
    }

    /// The node, once it has joined.
    pub(crate) fn joined(&self) -> Option<&Joined> {
        self.joined.get()
    }

    /// What this node says to another one.
    pub(crate) fn hello(joined: &Joined, receiver: u64) -> Hello {
        Hello {
            protocol_version: crate::PROTOCOL_VERSION,
            cluster_id: joined.member.cluster_id.clone(),
            node: joined.member.name.clone(),
            incarnation: joined.member.incarnation,
            receiver,
        }
    }

    // ---- connections

    /// A new connection of a client.
    pub(crate) fn open_connection(&self) -> (u64, Rc<Output>) {
        let number = self.connections.get() + 1;
        self.connections.set(number);
        let output = Rc::<Output>::default();
        self.outputs.borrow_mut().insert(number, output.clone());
        (number, output)
    }

    /// Forget a connection; what it asked for is still carried out.
    pub(crate) fn close_connection(&self, number: u64) {
        self.outputs.borrow_mut().remove(&number);
        if let Some(joined) = self.joined.get() {
            joined.core.close_connection(number);
        }
    }

    /// Whether the task has to wait, since too many turns wait for Python; it is woken then.
    pub(crate) fn is_crowded(&self, cx: &Context<'_>) -> bool {
        let crowded = self.shared.events.crowded();
        if crowded {
            self.waiting_for_room.borrow_mut().push(cx.waker().clone());
        }
        crowded
    }

    // ---- effects

    /// The core has got frames: take its effects soon, and look whether more frames follow.
    pub(crate) fn frames_came(&self) {
        self.soon();
        if self.busy_poll.borrow_mut().frames(Instant::now()) {
            self.frames_come.notify_one();
        }
    }

    /// Take effects after the tasks that are ready now.
    pub(crate) fn soon(&self) {
        self.shared.wake.notify_one();
    }

    async fn run_effects(&self) {
        loop {
            self.shared.wake.notified().await;
            self.take_effects();
            if !self.shared.events.crowded() {
                self.waiting_for_room.borrow_mut().drain(..).for_each(Waker::wake);
            }
        }
    }

    /// Take what the core wants done and hand it on, until there is nothing left.
    fn take_effects(&self) {
        let Some(Joined { core, .. }) = self.joined.get() else { return };
        while let Some(effects) = core.take_effects(true, boottime_ms) {
            let links = self.links.borrow();
            for (copy, frame) in effects.peer_frames {
                if let Some(link) = links.get(&copy) {
                    link.push(frame.into());
                }
            }
            let mut local = Vec::new();
            let outputs = self.outputs.borrow();
            for (connection, frame) in effects.client_frames {
                if connection & LOCAL_CONNECTION != 0 {
                    local.push((connection, frame));
                } else if let Some(output) = outputs.get(&connection) {
                    output.push(frame.into());
                }
            }
            let for_python = [
                local.is_empty(),
                effects.turns.is_empty(),
                effects.settled.is_empty(),
                effects.changes.is_empty(),
            ];
            if for_python.contains(&false) {
                self.shared.events.put(|batch| {
                    batch.client_frames.extend(local);
                    batch.turns.extend(effects.turns);
                    batch.settled.extend(effects.settled);
                    batch.changes.extend(effects.changes);
                });
            }
        }
    }

    /// Keep the thread awake while more frames are likely to come: a task that is ready again at
    /// once lets the runtime look at the sockets without waiting.
    async fn poll_busily(&self) {
        loop {
            self.frames_come.notified().await;
            loop {
                let before = Instant::now();
                std::thread::yield_now();
                let now = Instant::now();
                if !self.busy_poll.borrow_mut().goes_on(now, now - before) {
                    break;
                }
                tokio::task::yield_now().await;
            }
        }
    }

    async fn tick(&self) {
        let mut ticks = tokio::time::interval(TICK);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            if let Some(Joined { core, .. }) = self.joined.get() {
                core.tick(now_ms());
                self.soon();
            }
        }
    }

    // ---- the end

    /// Whether the node closes its port.
    pub(crate) fn is_closing(&self) -> bool {
        self.closing.get()
    }

    /// Let nobody in any more, and let every stream end once its replies have left.
    pub(crate) fn close(&self) {
        self.closing.set(true);
        self.closed.notify_waiters();
        for output in self.outputs.borrow().values() {
            output.wake();
        }
    }
}

/// Reply frames that wait for one connection's task.
#[derive(Debug, Default)]
pub(crate) struct Output {
    queue: RefCell<VecDeque<Bytes>>,
    waker: RefCell<Option<Waker>>,
}

impl Output {
    fn push(&self, frame: Bytes) {
        self.queue.borrow_mut().push_back(frame);
        self.wake();
    }

    fn wake(&self) {
        if let Some(waker) = &*self.waker.borrow() {
            waker.wake_by_ref();
        }
    }

    /// Be woken when there is a frame.
    pub(crate) fn register(&self, cx: &Context<'_>) {
        let mut waker = self.waker.borrow_mut();
        match &mut *waker {
            Some(waker) => waker.clone_from(cx.waker()),
            None => *waker = Some(cx.waker().clone()),
        }
    }

    pub(crate) fn pop(&self) -> Option<Bytes> {
        self.queue.borrow_mut().pop_front()
    }
}
