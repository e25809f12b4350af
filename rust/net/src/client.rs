//! A client's link to one node, without the socket.
//!
//! Whoever owns the socket hands in what came from it ([`ClientLink::receive`]) and sends what is to
//! go out ([`ClientLink::output`]); nothing here waits, so an event loop and a thread can use it
//! alike. HTTP/2 itself is h2's: its connection runs over two buffers in memory, and is polled for as
//! long as it has something to do.

use std::collections::VecDeque;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll, Wake, Waker};

use bytes::{Buf, Bytes, BytesMut};
use h2::client::{Builder, Connection, ResponseFuture};
use h2::{Ping, PingPong, RecvStream};
use http::header::{AUTHORIZATION, HeaderValue};
use http::{HeaderMap, Method, Request};
use parking_lot::Mutex;
use spacegrid_core::limits::FRAME_BYTES_HARD_MAX;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

use crate::message::{ENVELOPE_BYTES_MAX, Envelope, Hello, Message, Messages};
use crate::sending::{Payload, Sending};
use crate::status::{Code, status_of};
use crate::{PROTOCOL_VERSION, STREAM_PATH};

const ENDED: &str = "the node ended the connection";
/// What a node may have sent that is not read yet; all of it is read at once.
const WINDOW_BYTES: u32 = 8 << 20;
/// Largest HTTP/2 frame: large values then come in few pieces.
const HTTP_FRAME_BYTES_MAX: u32 = 256 << 10;

/// One call of `Data/Stream`.
pub struct ClientLink {
    wire: Arc<Mutex<Wire>>,
    woken: Arc<Woken>,
    connection: Connection<Memory, Payload>,
    pings: Option<PingPong>,
    pinged: bool,
    sending: Sending,
    answer: Answer,
    messages: Messages,
    frames: VecDeque<Bytes>,
    down: Option<Down>,
}

/// Why a link has ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Down {
    /// For people.
    pub reason: String,
    /// The gRPC status that the node gave; `None` where the connection broke.
    pub status: Option<u16>,
    /// The node did not let the call in, so it has taken no frame of it.
    pub refused: bool,
}

impl From<&str> for Down {
    fn from(reason: &str) -> Self {
        reason.to_owned().into()
    }
}

impl From<String> for Down {
    fn from(reason: String) -> Self {
        Self { reason, status: None, refused: false }
    }
}

enum Answer {
    Awaited(ResponseFuture),
    Comes(RecvStream),
}

impl ClientLink {
    /// A link whose first output opens it; frames may be sent at once.
    ///
    /// # Errors
    /// The address is none, or the authorization can be no header.
    pub fn new(address: &str, cluster_id: &[u8], authorization: Option<&str>) -> io::Result<Self> {
        let mut request = Request::builder()
            .method(Method::POST)
            .uri(format!("http://{address}{STREAM_PATH}"))
            .header("content-type", "application/grpc")
            .header("te", "trailers")
            .body(())
            .map_err(io::Error::other)?;
        if let Some(authorization) = authorization {
            let mut value = HeaderValue::from_str(authorization).map_err(io::Error::other)?;
            value.set_sensitive(true);
            request.headers_mut().insert(AUTHORIZATION, value);
        }
        let wire = Arc::<Mutex<Wire>>::default();
        let woken = Arc::<Woken>::default();
        let waker = Waker::from(woken.clone());
        let handshake = Builder::new()
            .enable_push(false)
            .initial_window_size(WINDOW_BYTES)
            .initial_connection_window_size(WINDOW_BYTES)
            .max_frame_size(HTTP_FRAME_BYTES_MAX)
            .handshake(Memory(wire.clone()));
        // It only writes, and memory takes all that is written.
        let opened = std::pin::pin!(handshake).poll(&mut Context::from_waker(&waker));
        let Poll::Ready(opened) = opened else { return Err(io::ErrorKind::WouldBlock.into()) };
        let (mut send, mut connection) = opened.map_err(io::Error::other)?;
        let pings = connection.ping_pong();
        let (response, stream) = send.send_request(request, false).map_err(io::Error::other)?;
        let mut sending = Sending::new(stream);
        sending.push(Message::hello(&Hello {
            protocol_version: PROTOCOL_VERSION,
            cluster_id: Bytes::copy_from_slice(cluster_id),
            ..Hello::default()
        }));
        let mut link = Self {
            wire,
            woken,
            connection,
            pings,
            pinged: false,
            sending,
            answer: Answer::Awaited(response),
            messages: Messages::new(FRAME_BYTES_HARD_MAX + ENVELOPE_BYTES_MAX),
            frames: VecDeque::new(),
            down: None,
        };
        link.turn();
        Ok(link)
    }

    /// Queue a request frame; after the link is down it is dropped.
    pub fn send(&mut self, frame: Bytes) {
        if self.down.is_none() {
            self.sending.push(Message::frame(frame));
        }
    }

    /// Take bytes from the socket.
    pub fn receive(&mut self, bytes: &[u8]) {
        if self.down.is_none() {
            self.wire.lock().input.extend_from_slice(bytes);
            self.turn();
        }
    }

    /// The socket has ended.
    pub fn receive_end(&mut self) {
        self.fail(ENDED);
    }

    /// The next reply frame that has come.
    pub fn next_frame(&mut self) -> Option<Bytes> {
        self.frames.pop_front()
    }

    /// What is to go out to the socket now; empty: nothing.
    pub fn output(&mut self) -> Bytes {
        if self.down.is_none() {
            self.turn();
        }
        self.wire.lock().output.split().freeze()
    }

    /// Ask for a sign of life. False: the last question has found no answer.
    pub fn ping(&mut self) -> bool {
        let Some(pings) = &mut self.pings else { return true };
        if self.pinged {
            return false;
        }
        self.pinged = pings.send_ping(Ping::opaque()).is_ok();
        true
    }

    /// Why the link has ended, once it has.
    pub fn down(&self) -> Option<&Down> {
        self.down.as_ref()
    }

    fn fail(&mut self, why: impl Into<Down>) {
        self.down.get_or_insert_with(|| why.into());
    }

    /// Let HTTP/2 do all that it can do now.
    fn turn(&mut self) {
        let waker = Waker::from(self.woken.clone());
        let mut cx = Context::from_waker(&waker);
        loop {
            self.woken.0.store(false, Ordering::Relaxed);
            if matches!(self.sending.poll(&mut cx), Poll::Ready(Err(_))) {
                // Why is said by what the node answered, which may still be unread.
                self.fail_after_answer(&mut cx);
                return;
            }
            let ended = Pin::new(&mut self.connection).poll(&mut cx);
            if let Err(why) = self.poll_answer(&mut cx) {
                return self.fail(why);
            }
            if let Poll::Ready(ended) = ended {
                let why: Option<Down> = ended.err().map(|error| error.to_string().into());
                return self.fail(why.unwrap_or_else(|| ENDED.into()));
            }
            if self.pinged
                && let Some(pings) = &mut self.pings
                && pings.poll_pong(&mut cx).is_ready()
            {
                self.pinged = false;
            }
            if !self.woken.0.load(Ordering::Relaxed) {
                return;
            }
        }
    }

    fn fail_after_answer(&mut self, cx: &mut Context<'_>) {
        let _ = Pin::new(&mut self.connection).poll(cx);
        let why = self.poll_answer(cx).err();
        self.fail(why.unwrap_or_else(|| ENDED.into()));
    }

    /// Take what the node has answered; an error is the end of the stream.
    fn poll_answer(&mut self, cx: &mut Context<'_>) -> Result<(), Down> {
        loop {
            let body = match &mut self.answer {
                Answer::Comes(body) => body,
                Answer::Awaited(response) => match Pin::new(response).poll(cx) {
                    Poll::Pending => return Ok(()),
                    Poll::Ready(Err(error)) => return Err(error.to_string().into()),
                    Poll::Ready(Ok(response)) => {
                        if let Some(why) = refusal(response.headers()) {
                            return Err(Down { refused: true, ..why });
                        }
                        self.answer = Answer::Comes(response.into_body());
                        continue;
                    }
                },
            };
            match body.poll_data(cx) {
                Poll::Pending => return Ok(()),
                Poll::Ready(Some(Ok(chunk))) => {
                    let _ = body.flow_control().release_capacity(chunk.len());
                    self.messages.push(chunk);
                }
                Poll::Ready(Some(Err(error))) => return Err(error.to_string().into()),
                Poll::Ready(None) => {
                    let trailers = match body.poll_trailers(cx) {
                        Poll::Ready(Ok(trailers)) => trailers.unwrap_or_default(),
                        Poll::Ready(Err(error)) => return Err(error.to_string().into()),
                        Poll::Pending => return Ok(()),
                    };
                    let why = refusal(&trailers);
                    return Err(why.unwrap_or_else(|| ENDED.into()));
                }
            }
            while let Some(message) = self.messages.take().map_err(|status| status.message)? {
                let frame = Envelope::decode(message).map_err(|status| status.message)?.data;
                if !frame.is_empty() {
                    self.frames.push_back(frame);
                }
            }
        }
    }
}

/// What a status says, unless all is well or there is none.
fn refusal(headers: &HeaderMap) -> Option<Down> {
    let (status, message) = status_of(headers)?;
    let reason = format!("status {status}: {message}");
    (status != Code::Ok as u16).then_some(Down { reason, status: Some(status), refused: false })
}

/// Bytes from the socket and bytes for it.
#[derive(Debug, Default)]
struct Wire {
    input: BytesMut,
    output: BytesMut,
}

/// The socket, as h2 sees it.
struct Memory(Arc<Mutex<Wire>>);

impl AsyncRead for Memory {
    fn poll_read(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        into: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let input = &mut self.0.lock().input;
        if input.is_empty() {
            // Whoever hands in more polls again.
            return Poll::Pending;
        }
        let size = input.len().min(into.remaining());
        into.put_slice(&input[..size]);
        input.advance(size);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Memory {
    fn poll_write(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        self.0.lock().output.extend_from_slice(bytes);
        Poll::Ready(Ok(bytes.len()))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        _: &mut Context<'_>,
        parts: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let output = &mut self.0.lock().output;
        let before = output.len();
        for part in parts {
            output.extend_from_slice(part);
        }
        Poll::Ready(Ok(output.len() - before))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

/// Says that there is more to do.
#[derive(Default)]
struct Woken(AtomicBool);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.store(true, Ordering::Relaxed);
    }
}
