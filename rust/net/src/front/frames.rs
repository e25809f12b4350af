//! `Data/Stream`: a client's request frames to the core, its reply frames back.
//!
//! A client that does not take its replies is not read any more until it does: what waits for it is
//! at most [`OUTPUT_BYTES_MAX`], or what is left of [`REPLIES_BYTES_MAX`], and the replies of the frames
//! that were read before. Replies leave in
//! the order in which the core made them.

use std::pin::Pin;
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use spacegrid_core::limits::FRAME_BYTES_HARD_MAX;
use spacegrid_core::replica::Node;
use tokio::time::{Sleep, sleep};

use super::pass::Pass;
use super::{End, Requests, answer, end};
use crate::PROTOCOL_VERSION;
use crate::grid::{Grid, Joined, Output, now_ms};
use crate::message::{ENVELOPE_BYTES_MAX, Envelope, Hello, Message};
use crate::sending::{Payload, Sending};
use crate::status::{Code, Status, response};

/// Replies waiting for one connection; past it no more requests are read from it.
const OUTPUT_BYTES_MAX: usize = 4 << 20;
/// Replies waiting for all connections. However many take nothing of theirs, one more gets its share.
const REPLIES_BYTES_MAX: usize = 256 << 20;
/// How long replies may still come after a client has said that it has no more requests.
const END_TIMEOUT: Duration = Duration::from_secs(10);
/// Frames taken before the replies get their turn.
const FRAMES_AT_ONCE: usize = 16;
const COUNT_OFFSET: usize = 8;

/// Carry one client's frames until it ends the call.
pub(super) async fn serve(
    grid: Rc<Grid>,
    body: RecvStream,
    mut respond: SendResponse<Payload>,
    pass: Pass,
) {
    let mut requests = Requests::new(body, FRAME_BYTES_HARD_MAX + ENVELOPE_BYTES_MAX);
    let core = match let_in(&grid, &mut requests).await {
        Ok(core) => core,
        Err(End::Status(status)) => return answer(&mut respond, &status),
        Err(End::Gone) => return,
    };
    // Headers at once: the client knows that it was let in before it has sent a request.
    let Ok(stream) = respond.send_response(response(), false) else { return };
    let (number, output) = grid.open_connection();
    let sending = Sending::new(stream);
    let mut stream = FrameStream {
        grid,
        core,
        number,
        output,
        requests,
        sending,
        pass,
        open: 0,
        counted_bytes: 0,
        ending: None,
    };
    let ended = std::future::poll_fn(|cx| stream.poll(cx)).await;
    stream.count_replies(0);
    stream.grid.close_connection(number);
    let status = ended.map_or_else(|error| error, |()| End::Status(Status::OK));
    end(stream.sending.stream(), &status);
}

async fn let_in(grid: &Grid, requests: &mut Requests) -> Result<Arc<Node>, End> {
    let Some(first) = requests.first().await? else { return Err(End::Status(Status::OK)) };
    let Some(joined) = grid.serving() else {
        return Err(Status::new(Code::Unavailable, "this node is not ready").into());
    };
    check(joined, &first.hello.unwrap_or_default())?;
    Ok(joined.core.clone())
}

fn check(joined: &Joined, hello: &Hello) -> Result<(), Status> {
    let refuse = |why| Err(Status::new(Code::FailedPrecondition, why));
    if hello.protocol_version != PROTOCOL_VERSION {
        return refuse(format!(
            "client speaks protocol version {}, this node speaks {PROTOCOL_VERSION}",
            hello.protocol_version
        ));
    }
    let life = &joined.member.cluster_id;
    if !hello.cluster_id.is_empty() && hello.cluster_id != life {
        return refuse(format!("client expects cluster {:x}, this is {life:x}", hello.cluster_id));
    }
    Ok(())
}

struct FrameStream {
    grid: Rc<Grid>,
    core: Arc<Node>,
    number: u64,
    output: Rc<Output>,
    requests: Requests,
    sending: Sending,
    pass: Pass,
    /// Operations without an answer.
    open: i64,
    /// Bytes of replies that wait here, as last told to the others.
    counted_bytes: usize,
    /// Set once the client has no more requests: until when their replies may come.
    ending: Option<Pin<Box<Sleep>>>,
}

impl FrameStream {
    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), End>> {
        self.output.register(cx);
        let sent = self.send(cx)?;
        self.read(cx)?;
        if let Some(ending) = &mut self.ending {
            if self.open <= 0 && sent {
                return Poll::Ready(Ok(()));
            }
            if ending.as_mut().poll(cx).is_ready() {
                let why = "requests were still open at the end of the stream";
                return Poll::Ready(Err(Status::new(Code::DeadlineExceeded, why).into()));
            }
        }
        if self.grid.is_closing() && sent {
            let status = Status::new(Code::Unavailable, "this node stops");
            return Poll::Ready(Err(status.into()));
        }
        if self.sending.stream().poll_reset(cx).is_ready() {
            return Poll::Ready(Err(End::Gone));
        }
        Poll::Pending
    }

    /// Send replies; whether none is left.
    fn send(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        let sent = self.send_queued(cx);
        self.count_replies(self.sending.queued_bytes());
        sent
    }

    /// Tell how many bytes of replies wait here now.
    fn count_replies(&mut self, now: usize) {
        let before = std::mem::replace(&mut self.counted_bytes, now);
        self.grid.replies_bytes.set(self.grid.replies_bytes.get() - before + now);
    }

    /// Whether more may be asked for: no more waits here than is left for the others.
    fn has_room(&self) -> bool {
        let left = REPLIES_BYTES_MAX.saturating_sub(self.grid.replies_bytes.get());
        self.counted_bytes <= OUTPUT_BYTES_MAX.min(left)
    }

    fn send_queued(&mut self, cx: &mut Context<'_>) -> Result<bool, End> {
        while let Some(frame) = self.output.pop() {
            self.open -= i64::from(reply_count(&frame));
            self.sending.push(Message::frame(frame));
        }
        match self.sending.poll(cx) {
            Poll::Ready(Ok(())) => Ok(true),
            Poll::Ready(Err(_)) => Err(End::Gone),
            Poll::Pending => Ok(false),
        }
    }

    /// Take requests, as long as their replies have room.
    fn read(&mut self, cx: &mut Context<'_>) -> Result<(), End> {
        let mut taken = 0;
        while self.ending.is_none()
            && self.has_room()
            && !self.grid.is_closing()
            && !self.grid.is_crowded(cx)
        {
            if taken == FRAMES_AT_ONCE {
                cx.waker().wake_by_ref();
                break;
            }
            match self.requests.poll_next(cx) {
                Poll::Ready(Ok(Some(message))) => self.take(message)?,
                Poll::Ready(Ok(None)) => self.ending = Some(Box::pin(sleep(END_TIMEOUT))),
                Poll::Ready(Err(end)) => return Err(end),
                Poll::Pending => break,
            }
            taken += 1;
        }
        if taken > 0 {
            self.grid.frames_came();
        }
        Ok(())
    }

    fn take(&mut self, message: Bytes) -> Result<(), Status> {
        let frame = Envelope::decode(message)?.data;
        let rights = self.pass.rights()?;
        let taken = self.core.on_client_frame_as(self.number, rights, &frame, now_ms());
        match taken {
            Ok(count) => self.open += i64::try_from(count).unwrap_or(i64::MAX),
            Err(error) => return Err(Status::new(Code::InvalidArgument, error.to_string())),
        }
        Ok(())
    }
}

/// Replies in a reply frame, from its envelope (proto/FRAME.md).
fn reply_count(frame: &[u8]) -> u32 {
    let bytes = frame.get(COUNT_OFFSET..COUNT_OFFSET + 4).and_then(|bytes| bytes.try_into().ok());
    bytes.map_or(0, u32::from_le_bytes)
}
