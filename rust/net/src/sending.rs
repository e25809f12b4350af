//! Messages on their way out of one call, no faster than the other side takes them.

use std::collections::VecDeque;
use std::task::{Context, Poll, ready};

use bytes::buf::Chain;
use bytes::{Buf, Bytes};
use h2::SendStream;

use crate::message::Message;

/// What HTTP/2 is given to send: a head and a body, written together.
pub type Payload = Chain<Bytes, Bytes>;

/// A payload without a head.
pub fn plain(body: Bytes) -> Payload {
    Bytes::new().chain(body)
}

/// A rest of this size goes in one piece as soon as there is any room.
const WHOLE_BYTES_MAX: usize = 64 << 10;

/// One direction of a call. What was pushed leaves in that order, and only as far as the other
/// side's window has room, so what is held here is what its owner has pushed.
#[derive(Debug)]
pub struct Sending {
    stream: SendStream<Payload>,
    queue: VecDeque<Message>,
    queued_bytes: usize,
}

/// The call was ended by the other side or by its connection.
#[derive(Debug)]
pub struct Gone;

impl Sending {
    /// Nothing queued.
    pub fn new(stream: SendStream<Payload>) -> Self {
        Self { stream, queue: VecDeque::new(), queued_bytes: 0 }
    }

    /// Queue a message.
    pub fn push(&mut self, message: Message) {
        self.queued_bytes += message.len();
        self.queue.push_back(message);
    }

    /// Bytes that wait for the other side.
    pub fn queued_bytes(&self) -> usize {
        self.queued_bytes
    }

    /// Send what there is room for; ready when nothing is left. The task is woken when there is room.
    pub fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), Gone>> {
        while let Some(message) = self.queue.front_mut() {
            let rest = message.len();
            self.stream.reserve_capacity(rest);
            while self.stream.capacity() == 0 {
                match ready!(self.stream.poll_capacity(cx)) {
                    Some(Ok(_)) => {}
                    Some(Err(_)) | None => return Poll::Ready(Err(Gone)),
                }
            }
            let room = self.stream.capacity();
            let size = if rest <= WHOLE_BYTES_MAX { rest } else { room.min(rest) };
            let head = message.head.split_to(size.min(message.head.len()));
            let body = message.body.split_to(size - head.len());
            if message.len() == 0 {
                self.queue.pop_front();
            }
            self.queued_bytes -= size;
            if self.stream.send_data(head.chain(body), false).is_err() {
                return Poll::Ready(Err(Gone));
            }
        }
        Poll::Ready(Ok(()))
    }

    /// The call itself, to end it or to hear of its end.
    pub fn stream(&mut self) -> &mut SendStream<Payload> {
        &mut self.stream
    }
}
