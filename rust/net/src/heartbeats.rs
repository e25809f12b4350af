//! Heartbeats to the other nodes, from the net thread, so that a node whose Python loops stand still
//! goes on saying that it is there; that they stand still is told by the counters in them.
//!
//! Each node gets one every `HEARTBEAT_MS`, over a connection of their own, so that no snapshot is
//! in front of them. What they say and which answers count is decided by the core's `Heart`; an
//! answer that brings a lease goes to the core at once. A node that takes connections and answers
//! nothing is connected to again: the way to it may have changed.

use std::cell::Cell;
use std::collections::HashMap;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use h2::client::{Builder, ResponseFuture, SendRequest};
use spacegrid_core::replica::{Answer, Beat};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, timeout};

use crate::HEARTBEAT_PATH;
use crate::clock::boottime_ms;
use crate::front::connect;
use crate::grid::Grid;
use crate::links::{EndWithThis, Peer, call};
use crate::message::{ENVELOPE_BYTES_MAX, Hello, Message, Messages};
use crate::net::SharedHeart;
use crate::protobuf::{Value, next_field, put_bytes, put_number, put_varint};
use crate::sending::{Payload, Sending, plain};
use crate::status::{Status, status_of};

/// Time between two heartbeats.
const HEARTBEAT: Duration = Duration::from_millis(100);
/// A heartbeat that has no answer by then is not waited for; its lease would be over.
const ANSWER: Duration = Duration::from_millis(500);
/// Heartbeats to one node that wait for an answer; a node that hangs gets no more.
const OPEN_MAX: u32 = 4;
/// A connection over which no answer has come for this long is given up.
const SILENCE: Duration = Duration::from_secs(2);
const CONNECT: Duration = Duration::from_secs(2);
const RECONNECT: Duration = Duration::from_millis(50);

/// Send heartbeats to exactly these nodes.
pub(crate) fn update(grid: &Rc<Grid>, heart: &SharedHeart, peers: Vec<Peer>) {
    let Some(joined) = grid.joined() else { return };
    let own = joined.member.incarnation;
    let wanted: HashMap<u64, Peer> = peers
        .into_iter()
        .filter(|peer| peer.incarnation != own)
        .map(|peer| (peer.incarnation, peer))
        .collect();
    let mut beating = grid.heartbeats.borrow_mut();
    beating.retain(|incarnation, _| wanted.contains_key(incarnation));
    for (incarnation, peer) in wanted {
        beating.entry(incarnation).or_insert_with(|| {
            let way = Rc::new(Way { grid: grid.clone(), heart: heart.clone(), peer });
            EndWithThis(grid.spawn(async move { way.run().await }))
        });
    }
}

/// The way to one other node.
struct Way {
    grid: Rc<Grid>,
    heart: SharedHeart,
    peer: Peer,
}

/// One connection: how many heartbeats wait for an answer on it, and when the last answer came.
struct Waiting {
    open: Cell<u32>,
    answered: Cell<Instant>,
}

impl Way {
    async fn run(self: Rc<Self>) {
        loop {
            if let Err(error) = self.once().await {
                let text = format!("heartbeats to {}: {error}", self.peer.name);
                self.grid.shared.events.note("debug", text);
            }
            sleep(RECONNECT).await;
        }
    }

    /// One connection, until it breaks or nothing comes over it.
    async fn once(self: &Rc<Self>) -> io::Result<()> {
        let tls = self.grid.shared.tls.as_ref();
        let opening = async {
            let socket = connect(tls, &self.peer.name, &self.peer.address).await?;
            let handshake = Builder::new().enable_push(false).handshake(socket).await;
            handshake.map_err(io::Error::other)
        };
        let (mut send, connection) = timeout(CONNECT, opening).await??;
        let _connection = EndWithThis(self.grid.spawn(async move {
            let _ = connection.await;
        }));
        let waiting = Rc::new(Waiting { open: Cell::new(0), answered: Cell::new(Instant::now()) });
        let mut times = interval(HEARTBEAT);
        times.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            times.tick().await;
            if waiting.answered.get().elapsed() > SILENCE {
                return Err(io::ErrorKind::TimedOut.into());
            }
            if waiting.open.get() < OPEN_MAX {
                send = send.ready().await.map_err(io::Error::other)?;
                self.send(&mut send, &waiting).await?;
            }
        }
    }

    async fn send(
        self: &Rc<Self>,
        send: &mut SendRequest<Payload>,
        waiting: &Rc<Waiting>,
    ) -> io::Result<()> {
        let Some(joined) = self.grid.joined() else { return Ok(()) };
        let head = call(&self.peer.address, HEARTBEAT_PATH).map_err(io::Error::other)?;
        let (response, stream) = send.send_request(head, false).map_err(io::Error::other)?;
        // The clock is read here, when nothing is between the heartbeat and the socket any more.
        let beat = self.heart.lock().beat(boottime_ms());
        let request = encode(&Grid::hello(joined, self.peer.incarnation), &beat);
        let mut sending = Sending::new(stream);
        sending.push(Message::whole(request));
        let written = std::future::poll_fn(|cx| sending.poll(cx)).await;
        written.map_err(|_| io::Error::from(io::ErrorKind::ConnectionReset))?;
        sending.stream().send_data(plain(Bytes::new()), true).map_err(io::Error::other)?;
        waiting.open.set(waiting.open.get() + 1);
        let (way, waiting) = (self.clone(), waiting.clone());
        self.grid.spawn(async move {
            if let Ok(Ok(answer)) = timeout(ANSWER, receive(response)).await {
                waiting.answered.set(Instant::now());
                way.take(answer);
            }
            waiting.open.set(waiting.open.get() - 1);
        });
        Ok(())
    }

    /// An answer has come: if it brings a lease, the core has it from now on.
    fn take(&self, answer: Answer) {
        let Some(joined) = self.grid.joined() else { return };
        let grant = self.heart.lock().answered(answer, boottime_ms());
        if let Some(grant) = grant {
            joined.core.grant_lease(grant.revision, grant.until_ms, boottime_ms());
        }
    }
}

async fn receive(response: ResponseFuture) -> io::Result<Answer> {
    let response = response.await.map_err(io::Error::other)?;
    if let Some((status, why)) = status_of(response.headers()) {
        return Err(io::Error::other(format!("refused with status {status}: {why}")));
    }
    let mut body = response.into_body();
    let mut messages = Messages::new(ENVELOPE_BYTES_MAX);
    loop {
        if let Some(message) = messages.take().map_err(other)? {
            return decode(message).map_err(other);
        }
        let chunk = body.data().await.ok_or(io::ErrorKind::UnexpectedEof)?;
        let chunk = chunk.map_err(io::Error::other)?;
        let _ = body.flow_control().release_capacity(chunk.len());
        messages.push(chunk);
    }
}

/// `HeartbeatRequest` (proto/spacegrid/v1/peers.proto).
fn encode(hello: &Hello, beat: &Beat) -> Bytes {
    let mut progress = BytesMut::new();
    for count in &beat.progress {
        put_varint(&mut progress, *count);
    }
    let mut out = BytesMut::new();
    put_bytes(&mut out, 1, &hello.encode());
    put_number(&mut out, 2, beat.nonce);
    put_number(&mut out, 3, beat.revision);
    put_bytes(&mut out, 4, &progress);
    put_number(&mut out, 5, beat.heard_term);
    out.freeze()
}

/// `HeartbeatReply`.
fn decode(mut message: Bytes) -> Result<Answer, Status> {
    let mut answer = Answer::default();
    while let Some((number, value)) = next_field(&mut message)? {
        if let Value::Number(value) = value {
            match number {
                1 => answer.nonce = value,
                2 => answer.lease_ms = value,
                3 => answer.revision = value,
                4 => answer.term = value,
                _ => {}
            }
        }
    }
    Ok(answer)
}

fn other(status: Status) -> io::Error {
    io::Error::other(status.message)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_heartbeat_is_what_the_proto_says() {
        let beat = Beat { nonce: 300, revision: 5, progress: vec![1, 0, 200], heard_term: 7 };
        let hello = Hello { protocol_version: 1, ..Hello::default() };
        let wire = encode(&hello, &beat);
        let expected: &[u8] =
            &[0x0a, 2, 8, 1, 0x10, 0xac, 2, 0x18, 5, 0x22, 4, 1, 0, 0xc8, 1, 0x28, 7];
        assert_eq!(wire, expected);
    }

    #[test]
    fn an_answer_is_read_and_other_bytes_are_an_error() {
        let answer =
            decode(Bytes::from_static(&[8, 0xac, 2, 0x10, 200, 3, 0x18, 5, 0x20, 7])).unwrap();
        assert_eq!(answer, Answer { nonce: 300, lease_ms: 456, revision: 5, term: 7 });
        assert_eq!(decode(Bytes::new()).unwrap(), Answer::default());
        for bytes in [&[8][..], &[0x0a, 9, 1], &[0xff; 11]] {
            assert!(decode(Bytes::from_static(bytes)).is_err(), "{bytes:?}");
        }
    }
}
