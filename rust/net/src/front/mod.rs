//! A node's port: accepts connections, speaks HTTP/2, and sends each call where it belongs.
//!
//! The two calls that carry frames are answered here; every other one goes to the server behind.
//! Nothing that a caller sends may do more than end its own call or connection: sizes are bounded
//! before anything is allocated, and calls, connections and what waits for a slow reader have limits.

mod acceptor;
mod frames;
mod pass;
mod peers;
mod places;
mod proxy;

use std::io;
use std::pin::Pin;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::server::{Builder, SendResponse};
use h2::{Reason, RecvStream};
use http::{Method, Request};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::{Sleep, sleep, timeout};

pub(crate) use self::acceptor::connect;
use self::acceptor::{Proof, accept};
use self::pass::Pass;
use self::places::{Place, Places};
pub(crate) use self::proxy::Upstream;
use crate::grid::Grid;
use crate::message::{Envelope, Messages};
use crate::sending::Payload;
use crate::status::{Code, Status};
use crate::{LINK_PATH, STREAM_PATH};

/// Calls of one connection at a time.
const CALLS_MAX: u32 = 1024;
/// What one call may have sent that is not read yet.
const CALL_WINDOW_BYTES: u32 = 1 << 20;
/// What one connection may have sent that is not read yet.
const CONNECTION_WINDOW_BYTES: u32 = 4 << 20;
/// Largest HTTP/2 frame: large values then come in few pieces.
const HTTP_FRAME_BYTES_MAX: u32 = 256 << 10;
/// Memory that small HTTP/2 frames may cost beyond their data before the connection is ended.
const HTTP_FRAME_COST_BYTES_MAX: usize = 16 << 20;
const HEADER_BYTES_MAX: u32 = 32 << 10;
/// What a call of a caller that is not known yet may have sent: it is not read, only dropped.
const STRANGER_WINDOW_BYTES: u32 = 4 << 10;
/// Pause between two attempts to let a caller that is known now send more at a time.
const GROW_AGAIN: Duration = Duration::from_millis(5);
const STRANGER_HEADER_BYTES_MAX: u32 = 8 << 10;
/// Calls of such a caller that are refused one by one; then the connection ends.
const REFUSALS_MAX: u32 = 8;
/// How long a new connection, or a new call that carries frames, may take to say who it is.
const HELLO_TIMEOUT: Duration = Duration::from_secs(5);
/// Pause when no connection can be accepted, as with too many open files.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// A node's port.
pub(crate) struct Front {
    grid: Rc<Grid>,
    upstream: Upstream,
    places: Rc<Places>,
}

impl Front {
    pub(crate) fn new(grid: Rc<Grid>, upstream: Upstream) -> Rc<Self> {
        Rc::new(Self { grid, upstream, places: Places::new() })
    }

    /// Accept connections until the task is ended.
    pub(crate) async fn accept(self: Rc<Self>, listener: TcpListener) {
        loop {
            match listener.accept().await {
                Ok((socket, _)) => {
                    // Without a place the socket is closed at once.
                    let Some(place) = self.places.take() else { continue };
                    let front = self.clone();
                    self.grid.spawn(async move { front.serve(socket, place).await });
                }
                Err(_) => sleep(ACCEPT_PAUSE).await,
            }
        }
    }

    /// Wait until every connection has ended.
    pub(crate) async fn empty(&self) {
        self.places.empty().await;
    }

    /// One connection. Why it ended is nobody's concern but its own side's.
    async fn serve(&self, socket: TcpStream, place: Place) {
        tokio::select! {
            _ = self.try_serve(socket, &place) => {}
            () = place.given_up() => {}
        }
    }

    async fn try_serve(&self, socket: TcpStream, place: &Place) -> io::Result<()> {
        socket.set_nodelay(true)?;
        let shared = &self.grid.shared;
        // A caller is a stranger until one call of it was let in; without a gate nobody is.
        let mut stranger = shared.gate.is_some().then(|| Box::pin(sleep(HELLO_TIMEOUT)));
        let opening = async {
            let (stream, proof) = accept(shared.tls.as_ref(), socket).await?;
            let handshake = settings(stranger.is_some()).handshake::<_, Payload>(stream).await;
            Ok::<_, io::Error>((handshake.map_err(io::Error::other)?, Rc::new(proof)))
        };
        let (mut connection, proof) = timeout(HELLO_TIMEOUT, opening).await??;
        let (mut leaving, mut refused, mut growing) = (false, 0, None);
        loop {
            if self.grid.is_closing() && !leaving {
                leaving = true;
                connection.graceful_shutdown();
            }
            let call = tokio::select! {
                call = connection.accept() => call,
                () = self.grid.closed.notified(), if !leaving => continue,
                () = expiry(&mut stranger) => return Err(io::ErrorKind::TimedOut.into()),
                () = expiry(&mut growing) => {
                    // Not before the caller has acknowledged what it was told at the beginning.
                    let grown = connection.set_initial_window_size(CALL_WINDOW_BYTES).is_ok();
                    growing = (!grown).then(|| Box::pin(sleep(GROW_AGAIN)));
                    continue;
                }
            };
            match call {
                Some(Ok((request, respond))) => {
                    if self.dispatch(request, respond, &proof, place) {
                        if stranger.take().is_some() {
                            connection.set_target_window_size(CONNECTION_WINDOW_BYTES);
                            growing = Some(Box::pin(sleep(Duration::ZERO)));
                        }
                    } else if stranger.is_some() {
                        refused += 1;
                        if refused == REFUSALS_MAX {
                            connection.graceful_shutdown();
                        }
                    }
                }
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(()),
            }
        }
    }

    /// Send a call where it belongs; whether it was let in.
    fn dispatch(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Payload>,
        proof: &Rc<Proof>,
        place: &Place,
    ) -> bool {
        let grid = self.grid.clone();
        let gate = grid.shared.gate.as_ref();
        let pass = match Pass::ask(gate, proof, request.uri().path(), request.headers()) {
            Ok(pass) => pass,
            Err(status) => {
                answer(&mut respond, &status);
                return false;
            }
        };
        let open = place.call();
        let path = request.uri().path();
        let (is_stream, is_link) = (path == STREAM_PATH, path == LINK_PATH);
        if request.method() != Method::POST || !(is_stream || is_link) {
            let caller = pass.caller().clone();
            self.grid.spawn(self.upstream.forward(request, respond, caller, open));
            return true;
        }
        let Some(frames) = place.frame_call() else {
            let why = "this connection carries frames in too many calls";
            answer(&mut respond, &Status::new(Code::ResourceExhausted, why));
            return true;
        };
        let body = request.into_body();
        self.grid.spawn(async move {
            let _counted = (open, frames);
            if is_stream {
                frames::serve(grid, body, respond, pass).await;
            } else {
                peers::serve(grid, body, respond, pass).await;
            }
        });
        true
    }
}

/// HTTP/2 as it is spoken with a caller that is known, or with one that is not yet.
fn settings(stranger: bool) -> Builder {
    let mut builder = Builder::new();
    builder
        .max_concurrent_streams(CALLS_MAX)
        .max_frame_size(HTTP_FRAME_BYTES_MAX)
        .data_frame_budget(HTTP_FRAME_COST_BYTES_MAX);
    if stranger {
        builder
            .initial_window_size(STRANGER_WINDOW_BYTES)
            .max_header_list_size(STRANGER_HEADER_BYTES_MAX);
    } else {
        builder
            .initial_window_size(CALL_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .max_header_list_size(HEADER_BYTES_MAX);
    }
    builder
}

async fn expiry(timer: &mut Option<Pin<Box<Sleep>>>) {
    match timer {
        Some(sleep) => sleep.as_mut().await,
        None => std::future::pending().await,
    }
}

/// Answer a call with nothing but its end. A caller that is gone hears nothing.
fn answer(respond: &mut SendResponse<Payload>, status: &Status) {
    let _ = respond.send_response(status.response(), true);
}

/// The requests of one call.
struct Requests {
    body: RecvStream,
    messages: Messages,
}

/// Why a call ends before its time.
#[derive(Debug)]
enum End {
    /// With this status.
    Status(Status),
    /// The caller is gone.
    Gone,
}

impl From<Status> for End {
    fn from(status: Status) -> Self {
        Self::Status(status)
    }
}

impl Requests {
    fn new(body: RecvStream, limit: usize) -> Self {
        Self { body, messages: Messages::new(limit) }
    }

    /// The next message; `None`: there are no more.
    fn poll_next(
        &mut self,
        cx: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Result<Option<Bytes>, End>> {
        use std::task::{Poll, ready};
        loop {
            if let Some(message) = self.messages.take()? {
                return Poll::Ready(Ok(Some(message)));
            }
            match ready!(self.body.poll_data(cx)) {
                Some(Ok(chunk)) => {
                    // What is read is never more than one message, so room is given back at once.
                    let _ = self.body.flow_control().release_capacity(chunk.len());
                    self.messages.push(chunk);
                }
                Some(Err(_)) => return Poll::Ready(Err(End::Gone)),
                None if self.messages.is_whole() => return Poll::Ready(Ok(None)),
                None => {
                    let status = Status::new(Code::InvalidArgument, "the last message is cut");
                    return Poll::Ready(Err(status.into()));
                }
            }
        }
    }

    /// The first message, which has to come soon.
    async fn first(&mut self) -> Result<Option<Envelope>, End> {
        let next = std::future::poll_fn(|cx| self.poll_next(cx));
        let Ok(message) = timeout(HELLO_TIMEOUT, next).await else {
            return Err(Status::new(Code::DeadlineExceeded, "no hello came in time").into());
        };
        Ok(message?.map(Envelope::decode).transpose()?)
    }
}

/// End a call whose head was sent.
fn end(stream: &mut h2::SendStream<Payload>, end: &End) {
    match end {
        End::Status(status) => {
            let _ = stream.send_trailers(status.trailers());
        }
        End::Gone => stream.send_reset(Reason::CANCEL),
    }
}
