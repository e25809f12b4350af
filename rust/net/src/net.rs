//! The net thread of a node: started with its port, told what to do from other threads.

use std::io;
use std::net::TcpListener as StdListener;
use std::os::unix::net::UnixStream as StdUnixStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use bytes::Bytes;
use parking_lot::Mutex;
use spacegrid_core::gate::Gate;
use spacegrid_core::replica::{Heart, Node};
use tokio::net::{TcpListener, UnixStream};
use tokio::sync::Notify;
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::task::LocalSet;

use crate::events::{Batch, Events};
use crate::front::{Front, Upstream};
use crate::grid::{Grid, Joined, LOCAL_CONNECTION, Shared};
use crate::heartbeats;
use crate::links::{self, Peer};
use crate::tls::{SharedTls, Tls};

/// How long replies may still leave when the port is closed.
const CLOSE_WAIT: Duration = Duration::from_millis(500);

/// Who a node is in its cluster.
#[derive(Debug, Clone)]
pub struct Member {
    /// 16 bytes.
    pub cluster_id: Bytes,
    /// Node name.
    pub name: Bytes,
    /// One boot of the node.
    pub incarnation: u64,
}

/// What a node lets others in with.
#[derive(Debug)]
pub struct Security {
    /// Decides about each call.
    pub gate: Arc<Gate>,
    /// What the port and the links show.
    pub tls: Tls,
}

/// A node's heartbeats, as several threads know them.
pub type SharedHeart = Arc<Mutex<Heart>>;

enum Command {
    Join(Joined),
    Link(Vec<Peer>),
    Beat(SharedHeart, Vec<Peer>),
    Close,
}

/// A node's port and its links. Every method may be called from any thread.
#[derive(Debug)]
pub struct Net {
    shared: Arc<Shared>,
    commands: UnboundedSender<Command>,
    thread: Mutex<Option<JoinHandle<()>>>,
    locals: AtomicU64,
    port: u16,
}

impl Net {
    /// Bind `listen` (host:port) and serve it; calls that are not frames go on to the server that
    /// listens on the unix socket `upstream`.
    ///
    /// # Errors
    /// The address can't be bound, or nobody listens on the socket.
    ///
    /// Without `security` sockets are plain, and everyone who reaches the port is let in.
    /// `busy_poll`: how long the thread looks for more frames before it sleeps; zero: not at all.
    pub fn start(
        listen: &str,
        upstream: &Path,
        security: Option<Security>,
        busy_poll: Duration,
    ) -> io::Result<Self> {
        let listener = StdListener::bind(listen)?;
        listener.set_nonblocking(true)?;
        let port = listener.local_addr()?.port();
        let upstream = StdUnixStream::connect(upstream)?;
        upstream.set_nonblocking(true)?;
        let shared = Arc::new(Shared {
            events: Events::new()?,
            wake: Notify::new(),
            serving: AtomicBool::new(false),
            gate: security.as_ref().map(|security| security.gate.clone()),
            tls: security.map(|security| Arc::new(SharedTls::new(security.tls))),
        });
        let (commands, receiver) = unbounded_channel();
        let runtime =
            tokio::runtime::Builder::new_current_thread().enable_io().enable_time().build()?;
        let on_thread = shared.clone();
        let thread = std::thread::Builder::new().name("spacegrid-net".into()).spawn(move || {
            let main = run(on_thread.clone(), listener, upstream, receiver, busy_poll);
            let ended = catch_unwind(AssertUnwindSafe(|| LocalSet::new().block_on(&runtime, main)));
            match ended {
                Ok(Ok(())) => {}
                Ok(Err(error)) => on_thread.events.fail(&error.to_string()),
                Err(panic) => on_thread.events.fail(&*panic),
            }
        })?;
        let thread = Mutex::new(Some(thread));
        Ok(Self { shared, commands, thread, locals: AtomicU64::new(LOCAL_CONNECTION), port })
    }

    /// The port that is bound.
    pub fn port(&self) -> u16 {
        self.port
    }

    /// The node has joined its cluster: run its core from now on.
    pub fn join(&self, core: Arc<Node>, member: Member) {
        self.tell(Command::Join(Joined { core, member }));
    }

    /// Show other certificates from now on; nothing where sockets are plain.
    pub fn set_tls(&self, tls: Tls) {
        if let Some(shared) = &self.shared.tls {
            shared.set(tls);
        }
    }

    /// Let clients and other nodes in, or no longer.
    pub fn set_serving(&self, serving: bool) {
        self.shared.serving.store(serving, Ordering::Release);
    }

    /// Link to exactly these nodes.
    pub fn link(&self, peers: Vec<Peer>) {
        self.tell(Command::Link(peers));
    }

    /// Send heartbeats to exactly these nodes; answers give the core its lease.
    pub fn beat(&self, heart: SharedHeart, peers: Vec<Peer>) {
        self.tell(Command::Beat(heart, peers));
    }

    /// There may be effects to take: somebody has called the core.
    pub fn wake(&self) {
        self.shared.wake.notify_one();
    }

    /// A connection inside this process; its replies come with [`Net::take`].
    pub fn open_local(&self) -> u64 {
        self.locals.fetch_add(1, Ordering::Relaxed) + 1
    }

    /// File descriptor that is readable when there is something to take.
    pub fn fd(&self) -> i32 {
        self.shared.events.fd()
    }

    /// Take everything that is there for Python.
    pub fn take(&self) -> Batch {
        let crowded = self.shared.events.crowded();
        let batch = self.shared.events.take();
        if crowded {
            self.wake();
        }
        batch
    }

    /// Close the port and the links, and end the thread; replies that are there still leave.
    pub fn close(&self) {
        self.tell(Command::Close);
        if let Some(thread) = self.thread.lock().take() {
            // A panic of the thread was told through the events.
            let _ = thread.join();
        }
    }

    fn tell(&self, command: Command) {
        // After the end there is nobody to tell and nothing to be done.
        let _ = self.commands.send(command);
    }
}

impl Drop for Net {
    fn drop(&mut self) {
        self.close();
    }
}

async fn run(
    shared: Arc<Shared>,
    listener: StdListener,
    upstream: StdUnixStream,
    mut commands: UnboundedReceiver<Command>,
    busy_poll: Duration,
) -> io::Result<()> {
    let grid = Grid::new(shared, busy_poll);
    let upstream = Upstream::open(&grid, UnixStream::from_std(upstream)?).await?;
    let front = Front::new(grid.clone(), upstream);
    let listener = TcpListener::from_std(listener)?;
    let accepting = {
        let front = front.clone();
        grid.spawn(async move { front.accept(listener).await })
    };
    loop {
        match commands.recv().await {
            Some(Command::Join(joined)) => grid.join(joined),
            Some(Command::Link(peers)) => links::update(&grid, peers),
            Some(Command::Beat(heart, peers)) => heartbeats::update(&grid, &heart, peers),
            Some(Command::Close) | None => break,
        }
    }
    accepting.abort();
    links::update(&grid, Vec::new());
    grid.heartbeats.borrow_mut().clear();
    grid.close();
    let _ = tokio::time::timeout(CLOSE_WAIT, front.empty()).await;
    Ok(())
}
