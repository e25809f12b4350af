//! Links to the other nodes: one outgoing call to each, for what replication sends.
//!
//! A link carries frames one way only; what the other node has to say comes in over its own link to
//! us (`front::peers`). When a link is up the core is told (`peer_up`) and sends again from what that
//! copy has acknowledged; when it is down (`peer_down`) frames for the copy are dropped, so nothing
//! here needs to be kept for a retry. At most one link to an incarnation; frames leave in the order
//! in which the core made them; a queue past its bound ends the link instead of growing.

use std::cell::{Cell, RefCell};
use std::collections::{HashMap, VecDeque};
use std::io;
use std::rc::Rc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, ResponseFuture};
use h2::{Ping, PingPong, RecvStream, SendStream};
use http::{Method, Request};
use tokio::task::JoinHandle;
use tokio::time::{interval, sleep, timeout};

use crate::LINK_PATH;
use crate::front::connect;
use crate::grid::Grid;
use crate::message::{ENVELOPE_BYTES_MAX, Envelope, Message, Messages};
use crate::sending::{Payload, Sending};
use crate::status::{Status, status_of};

/// Bytes waiting for one other node; past it the link is dropped and begins again from what was
/// acknowledged.
const QUEUE_BYTES_MAX: usize = 64 << 20;
const RECONNECT: Duration = Duration::from_millis(20);
const RECONNECT_MAX: Duration = Duration::from_millis(500);
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// A process that is stopped but not dead keeps its sockets open; only a ping tells.
const PING_EVERY: Duration = Duration::from_secs(2);

/// Another node.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Peer {
    /// Its name.
    pub name: String,
    /// host:port.
    pub address: String,
    /// One boot of it.
    pub incarnation: u64,
}

/// Link to exactly these nodes; links to others are dropped.
pub(crate) fn update(grid: &Rc<Grid>, peers: Vec<Peer>) {
    let Some(joined) = grid.joined() else { return };
    let own = joined.member.incarnation;
    let wanted: HashMap<u64, Peer> = peers
        .into_iter()
        .filter(|peer| peer.incarnation != own)
        .map(|peer| (peer.incarnation, peer))
        .collect();
    let mut links = grid.links.borrow_mut();
    links.retain(|incarnation, link| {
        let stays = wanted.contains_key(incarnation);
        if !stays {
            link.stop(grid);
        }
        stays
    });
    for (incarnation, peer) in wanted {
        links.entry(incarnation).or_insert_with(|| Link::start(grid, peer));
    }
}

/// One outgoing link and what waits for it.
pub(crate) struct Link {
    peer: Peer,
    queue: RefCell<VecDeque<Bytes>>,
    queued_bytes: Cell<usize>,
    up: Cell<bool>,
    waker: RefCell<Option<Waker>>,
    task: RefCell<Option<JoinHandle<()>>>,
}

impl Link {
    fn start(grid: &Rc<Grid>, peer: Peer) -> Rc<Self> {
        let link = Rc::new(Self {
            peer,
            queue: RefCell::default(),
            queued_bytes: Cell::new(0),
            up: Cell::new(false),
            waker: RefCell::default(),
            task: RefCell::default(),
        });
        let (on_task, with) = (link.clone(), grid.clone());
        let task = grid.spawn(async move { on_task.run(&with).await });
        link.task.replace(Some(task));
        link
    }

    fn stop(&self, grid: &Grid) {
        if let Some(task) = self.task.take() {
            task.abort();
        }
        self.down(grid);
    }

    /// Name of the other node.
    pub(crate) fn name(&self) -> &str {
        &self.peer.name
    }

    /// Queue a frame; dropped when the link is not up, the core sends it again.
    pub(crate) fn push(&self, frame: Bytes) {
        if self.up.get() {
            self.queued_bytes.set(self.queued_bytes.get() + frame.len());
            self.queue.borrow_mut().push_back(frame);
            if let Some(waker) = &*self.waker.borrow() {
                waker.wake_by_ref();
            }
        }
    }

    fn raise(&self, grid: &Grid) {
        self.up.set(true);
        if let Some(joined) = grid.joined() {
            joined.core.peer_up(self.peer.incarnation);
            grid.soon();
        }
        grid.shared.events.note("debug", format!("link to {} is up", self.peer.name));
    }

    fn down(&self, grid: &Grid) {
        self.queue.borrow_mut().clear();
        self.queued_bytes.set(0);
        if self.up.replace(false) {
            if let Some(joined) = grid.joined() {
                joined.core.peer_down(self.peer.incarnation);
                grid.soon();
            }
            grid.shared.events.note("debug", format!("link to {} is down", self.peer.name));
        }
    }

    /// Connect, carry frames until it breaks, begin again.
    async fn run(&self, grid: &Rc<Grid>) {
        let mut pause = RECONNECT;
        loop {
            let ended = self.once(grid).await;
            if self.up.get() {
                pause = RECONNECT;
            }
            self.down(grid);
            if let Err(error) = ended {
                let text = format!("link to {} broke: {error}", self.peer.name);
                let full = error.kind() == io::ErrorKind::StorageFull;
                grid.shared.events.note(if full { "warning" } else { "debug" }, text);
            }
            sleep(pause).await;
            pause = (pause * 2).min(RECONNECT_MAX);
        }
    }

    async fn once(&self, grid: &Rc<Grid>) -> io::Result<()> {
        let opening = timeout(HELLO_TIMEOUT, self.open(grid)).await?;
        let Call { mut sending, mut answers, mut pings, connection: _connection } = opening?;
        self.raise(grid);
        let carrying = std::future::poll_fn(|cx| self.poll(cx, &mut sending, &mut answers));
        tokio::select! {
            ended = carrying => ended,
            ended = keep_alive(&mut pings) => ended,
        }
    }

    async fn open(&self, grid: &Rc<Grid>) -> io::Result<Call> {
        let tls = grid.shared.tls.as_ref();
        let socket = connect(tls, &self.peer.name, &self.peer.address).await?;
        let (send, mut connection) =
            Builder::new().enable_push(false).handshake(socket).await.map_err(io::Error::other)?;
        let pings = connection.ping_pong().ok_or(io::ErrorKind::Unsupported)?;
        let connection = EndWithThis(grid.spawn(async move {
            let _ = connection.await;
        }));
        let mut send = send.ready().await.map_err(io::Error::other)?;
        let request = call(&self.peer.address, LINK_PATH).map_err(io::Error::other)?;
        let (response, stream) = send.send_request(request, false).map_err(io::Error::other)?;
        let (sending, answers) = self.greet(grid, response, stream).await?;
        Ok(Call { sending, answers, pings, connection })
    }

    /// Say hello, and hear that it is the incarnation that is meant.
    async fn greet(
        &self,
        grid: &Grid,
        response: ResponseFuture,
        stream: SendStream<Payload>,
    ) -> io::Result<(Sending, RecvStream)> {
        let joined = grid.joined().ok_or(io::ErrorKind::NotConnected)?;
        let mut sending = Sending::new(stream);
        sending.push(Message::hello(&Grid::hello(joined, self.peer.incarnation)));
        let sent = std::future::poll_fn(|cx| sending.poll(cx)).await;
        sent.map_err(|_| io::ErrorKind::ConnectionReset)?;
        let response = response.await.map_err(io::Error::other)?;
        if let Some((status, why)) = status_of(response.headers()) {
            return Err(io::Error::other(format!("refused with status {status}: {why}")));
        }
        let mut answers = response.into_body();
        let mut messages = Messages::new(ENVELOPE_BYTES_MAX);
        let message = loop {
            if let Some(message) = messages.take().map_err(other)? {
                break message;
            }
            let chunk = answers.data().await.ok_or(io::ErrorKind::UnexpectedEof)?;
            messages.push(chunk.map_err(io::Error::other)?);
        };
        let hello = Envelope::decode(message).map_err(other)?.hello.unwrap_or_default();
        if hello.incarnation != self.peer.incarnation {
            return Err(io::Error::other(format!("incarnation {} answers", hello.incarnation)));
        }
        Ok((sending, answers))
    }

    /// Send what is queued; ready when the link has ended.
    fn poll(
        &self,
        cx: &mut Context<'_>,
        sending: &mut Sending,
        answers: &mut RecvStream,
    ) -> Poll<io::Result<()>> {
        self.waker.replace(Some(cx.waker().clone()));
        while let Some(frame) = self.queue.borrow_mut().pop_front() {
            self.queued_bytes.set(self.queued_bytes.get() - frame.len());
            sending.push(Message::frame(frame));
        }
        if let Poll::Ready(Err(_)) = sending.poll(cx) {
            return Poll::Ready(Err(io::ErrorKind::ConnectionReset.into()));
        }
        if sending.queued_bytes() > QUEUE_BYTES_MAX {
            let why = format!(
                "the other node does not take its frames: {} bytes wait, the limit is \
                 {QUEUE_BYTES_MAX}",
                sending.queued_bytes()
            );
            return Poll::Ready(Err(io::Error::new(io::ErrorKind::StorageFull, why)));
        }
        // The other side says nothing after its hello: whatever comes is the end.
        answers.poll_data(cx).map(|_| Err(io::ErrorKind::ConnectionReset.into()))
    }
}

struct Call {
    sending: Sending,
    answers: RecvStream,
    pings: PingPong,
    connection: EndWithThis,
}

/// Ends a task when it is dropped.
pub(crate) struct EndWithThis(pub(crate) JoinHandle<()>);

impl Drop for EndWithThis {
    fn drop(&mut self) {
        self.0.abort();
    }
}

async fn keep_alive(pings: &mut PingPong) -> io::Result<()> {
    let mut times = interval(PING_EVERY);
    loop {
        times.tick().await;
        let pong = timeout(PING_EVERY, pings.ping(Ping::opaque())).await;
        pong.map_err(|_| io::Error::from(io::ErrorKind::TimedOut))?.map_err(io::Error::other)?;
    }
}

/// The head of a call to another node.
pub(crate) fn call(address: &str, path: &str) -> http::Result<Request<()>> {
    Request::builder()
        .method(Method::POST)
        .uri(format!("http://{address}{path}"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(())
}

fn other(status: Status) -> io::Error {
    io::Error::other(status.message)
}
