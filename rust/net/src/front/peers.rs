//! `Peers/Link`: another node's frames to the core. Our own go over our link to it.
//!
//! A frame is taken only from a node of this cluster that means this incarnation of us; damaged bytes
//! end the link.

use std::rc::Rc;

use bytes::Bytes;
use h2::RecvStream;
use h2::server::SendResponse;
use spacegrid_core::gate::{Caller, Role};
use spacegrid_core::limits::PEER_FRAME_BYTES_MAX;

use super::pass::Pass;
use super::{End, Requests, answer, end};
use crate::PROTOCOL_VERSION;
use crate::grid::{Grid, Joined, now_ms};
use crate::message::{ENVELOPE_BYTES_MAX, Envelope, Hello, Message};
use crate::sending::{Payload, Sending};
use crate::status::{Code, Status, response};

/// Carry another node's frames until it ends the call.
pub(super) async fn serve(
    grid: Rc<Grid>,
    body: RecvStream,
    mut respond: SendResponse<Payload>,
    pass: Pass,
) {
    let mut requests = Requests::new(body, PEER_FRAME_BYTES_MAX + ENVELOPE_BYTES_MAX);
    let hello = match let_in(&grid, &mut requests, pass.caller()).await {
        Ok(hello) => hello,
        Err(End::Status(status)) => return answer(&mut respond, &status),
        Err(End::Gone) => return,
    };
    let Ok(stream) = respond.send_response(response(), false) else { return };
    let mut sending = Sending::new(stream);
    let ended = carry(&grid, &mut requests, &mut sending, &hello).await;
    if let Err(End::Status(status)) = &ended
        && status.code != Code::Unavailable
    {
        let text =
            format!("link of {} dropped: {}", String::from_utf8_lossy(&hello.node), status.message);
        grid.shared.events.note("error", text);
    }
    let status = ended.map_or_else(|error| error, |()| End::Status(Status::OK));
    end(sending.stream(), &status);
}

async fn let_in(grid: &Grid, requests: &mut Requests, caller: &Caller) -> Result<Hello, End> {
    let Some(first) = requests.first().await? else { return Err(End::Status(Status::OK)) };
    let hello = first.hello.unwrap_or_default();
    if hello.protocol_version != PROTOCOL_VERSION {
        let why = format!(
            "peer speaks protocol version {}, this node speaks {PROTOCOL_VERSION}",
            hello.protocol_version
        );
        return Err(Status::new(Code::FailedPrecondition, why).into());
    }
    let Some(joined) = grid.serving() else {
        return Err(Status::new(Code::Unavailable, "this node is not ready yet").into());
    };
    check(joined, &hello)?;
    check_name(grid, &hello, caller)?;
    Ok(hello)
}

/// A node is who its certificate names, and no other incarnation than one of that name.
fn check_name(grid: &Grid, hello: &Hello, caller: &Caller) -> Result<(), Status> {
    if caller.role != Role::Node {
        return Ok(());
    }
    let links = grid.links.borrow();
    let known = links.get(&hello.incarnation).map(|link| link.name());
    let named = caller.name.as_bytes();
    if hello.node == named && known.is_none_or(|name| name.as_bytes() == named) {
        return Ok(());
    }
    let why = format!(
        "the certificate names {}, the hello names {} (incarnation {})",
        caller.name,
        String::from_utf8_lossy(&hello.node),
        hello.incarnation
    );
    grid.shared.events.note("warning", format!("link refused: {why}"));
    Err(Status::new(Code::PermissionDenied, why))
}

fn check(joined: &Joined, hello: &Hello) -> Result<(), Status> {
    let refuse = |why| Err(Status::new(Code::FailedPrecondition, why));
    let member = &joined.member;
    if hello.cluster_id != member.cluster_id {
        return refuse(format!(
            "peer is of cluster {:x}, this node is of {:x}",
            hello.cluster_id, member.cluster_id
        ));
    }
    if hello.receiver != member.incarnation {
        return refuse(format!(
            "peer means incarnation {}, this node is {}",
            hello.receiver, member.incarnation
        ));
    }
    Ok(())
}

async fn carry(
    grid: &Grid,
    requests: &mut Requests,
    sending: &mut Sending,
    hello: &Hello,
) -> Result<(), End> {
    let Some(joined) = grid.joined() else { return Err(End::Gone) };
    sending.push(Message::hello(&Grid::hello(joined, hello.incarnation)));
    std::future::poll_fn(|cx| sending.poll(cx)).await.map_err(|_| End::Gone)?;
    loop {
        if grid.is_closing() {
            return Err(Status::new(Code::Unavailable, "this node stops").into());
        }
        let message = tokio::select! {
            message = std::future::poll_fn(|cx| requests.poll_next(cx)) => message?,
            () = grid.closed.notified() => continue,
        };
        let Some(message) = message else { return Ok(()) };
        take(joined, hello.incarnation, message)?;
        grid.frames_came();
    }
}

fn take(joined: &Joined, sender: u64, message: Bytes) -> Result<(), Status> {
    let frame = Envelope::decode(message)?.data;
    let taken = joined.core.on_peer_frame(sender, &frame, now_ms());
    taken.map_err(|error| Status::new(Code::InvalidArgument, error.to_string()))
}
