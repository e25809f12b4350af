//! Every call that is not answered here goes to the server behind, and comes back as it is.
//!
//! One connection to that server carries all of them; it is opened with the port and lives as long.
//! Heads, data, trailers and the end of either side pass through; data waits where the other side
//! does not take it.

use std::cell::Cell;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::Bytes;
use h2::client::{Builder, SendRequest};
use h2::server::SendResponse;
use h2::{Reason, RecvStream, SendStream};
use http::header::{AUTHORIZATION, CONNECTION, HOST, HeaderName};
use http::uri::{PathAndQuery, Uri};
use http::{HeaderMap, HeaderValue, Request, Version};
use spacegrid_core::gate::Caller;
use tokio::net::UnixStream;
use tokio::time::timeout;

use super::answer;
use super::places::OpenCall;
use crate::grid::Grid;
use crate::sending::{Payload, plain};
use crate::status::{Code, Status};

/// Calls on their way at one time, of all connections together.
const CALLS_MAX: usize = 1024;
/// How long the request of a call may take to come.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(30);
/// How long one side of a call may take nothing of what the other one has for it.
const TAKE_TIMEOUT: Duration = Duration::from_secs(30);
/// What one call's answer may have sent that its caller has not taken.
const CALL_WINDOW_BYTES: u32 = 256 << 10;
/// Never the bound: the calls' own windows are.
const CONNECTION_WINDOW_BYTES: u32 = 1 << 30;
/// Headers that begin like this say who calls, and are only ever set here.
const CALLER_PREFIX: &str = "spacegrid-caller-";

/// The way to the server behind.
#[derive(Clone)]
pub(crate) struct Upstream {
    send: SendRequest<Payload>,
    calls: Rc<Cell<usize>>,
}

impl Upstream {
    /// Speak HTTP/2 over a connected socket. When it ends, the node ends: nothing could be asked
    /// of it any more.
    pub(crate) async fn open(grid: &Rc<Grid>, socket: UnixStream) -> io::Result<Self> {
        let (send, connection) = Builder::new()
            .initial_window_size(CALL_WINDOW_BYTES)
            .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
            .enable_push(false)
            .handshake(socket)
            .await
            .map_err(io::Error::other)?;
        let shared = grid.clone();
        grid.spawn(async move {
            let ended = connection.await;
            if !shared.is_closing() {
                let why = format!("the server behind the port ended its connection: {ended:?}");
                shared.shared.events.fail(&why);
            }
        });
        Ok(Self { send, calls: Rc::default() })
    }

    /// Carry one call to its end.
    pub(super) fn forward(
        &self,
        request: Request<RecvStream>,
        mut respond: SendResponse<Payload>,
        caller: Caller,
        open: OpenCall,
    ) -> impl Future<Output = ()> + 'static {
        let upstream = self.clone();
        async move {
            // No more for one connection than are left for the others: however many take all they
            // can get, there is room for one more.
            let (all, own) = (upstream.calls.get(), open.of_connection());
            if own > CALLS_MAX.saturating_sub(all) {
                let why = format!(
                    "{all} calls are open on this node, {own} of them on this connection; the \
                     limit is {CALLS_MAX}, and as many as are left for one connection"
                );
                return answer(&mut respond, &Status::new(Code::ResourceExhausted, why));
            }
            let _place = Place::take(upstream.calls.clone());
            let (head, body) = request.into_parts();
            let Some(request) = head_for_upstream(&head, &caller) else {
                return answer(&mut respond, &Status::new(Code::Unimplemented, "no such call"));
            };
            let gone = upstream.exchange(request, body, &mut respond).await.is_err();
            if gone {
                respond.send_reset(Reason::CANCEL);
            }
        }
    }

    async fn exchange(
        &self,
        request: Request<()>,
        body: RecvStream,
        respond: &mut SendResponse<Payload>,
    ) -> Result<(), h2::Error> {
        let mut server = self.send.clone().ready().await?;
        let (response, request_stream) = server.send_request(request, body.is_end_stream())?;
        // Sending up goes on beside the answer, and ends with it.
        let up = timeout(REQUEST_TIMEOUT, upload(body, request_stream));
        let down = async {
            let head = tokio::select! {
                head = response => head?,
                reason = std::future::poll_fn(|cx| respond.poll_reset(cx)) => {
                    return Err(reason?.into());
                }
            };
            let (head, mut answer) = head.into_parts();
            let mut response = http::Response::new(());
            *response.status_mut() = head.status;
            *response.headers_mut() = head.headers;
            let is_whole = answer.is_end_stream();
            let mut stream = respond.send_response(response, is_whole)?;
            if is_whole { Ok(()) } else { pump(&mut answer, &mut stream).await }
        };
        tokio::pin!(up, down);
        tokio::select! {
            done = &mut down => done,
            // Where sending up fails, the server behind may have answered early and then closed its side:
            // its answer is what counts, and it says as well when there is none.
            sent = &mut up => match sent {
                Ok(_) => down.await,
                Err(_) => Err(Reason::ENHANCE_YOUR_CALM.into()),
            },
        }
    }
}

async fn upload(mut body: RecvStream, mut stream: SendStream<Payload>) -> Result<(), h2::Error> {
    if body.is_end_stream() {
        return Ok(());
    }
    pump(&mut body, &mut stream).await
}

/// Carry data and trailers one way, until their end or that of either side.
async fn pump(from: &mut RecvStream, to: &mut SendStream<Payload>) -> Result<(), h2::Error> {
    loop {
        let chunk = tokio::select! {
            chunk = from.data() => chunk,
            reason = std::future::poll_fn(|cx| to.poll_reset(cx)) => return Err(reason?.into()),
        };
        let Some(chunk) = chunk else { break };
        let chunk = chunk?;
        let size = chunk.len();
        send_all(to, chunk).await?;
        from.flow_control().release_capacity(size)?;
    }
    match from.trailers().await? {
        Some(trailers) => to.send_trailers(trailers),
        None => to.send_data(plain(Bytes::new()), true),
    }
}

async fn send_all(to: &mut SendStream<Payload>, mut data: Bytes) -> Result<(), h2::Error> {
    while !data.is_empty() {
        to.reserve_capacity(data.len());
        while to.capacity() == 0 {
            let room = timeout(TAKE_TIMEOUT, std::future::poll_fn(|cx| to.poll_capacity(cx))).await;
            room.map_err(|_| Reason::ENHANCE_YOUR_CALM)?.ok_or(Reason::CANCEL)??;
        }
        let size = to.capacity().min(data.len());
        to.send_data(plain(data.split_to(size)), false)?;
    }
    Ok(())
}

/// The caller's head as the server behind gets it; `None`: it is no call.
fn head_for_upstream(head: &http::request::Parts, caller: &Caller) -> Option<Request<()>> {
    let path = head.uri.path_and_query().cloned().unwrap_or(PathAndQuery::from_static("/"));
    let authority = head.uri.authority().map_or("localhost", |authority| authority.as_str());
    let uri = Uri::builder().scheme("http").authority(authority).path_and_query(path).build();
    let mut request = Request::new(());
    *request.method_mut() = head.method.clone();
    *request.uri_mut() = uri.ok()?;
    *request.version_mut() = Version::HTTP_2;
    *request.headers_mut() = headers_for_upstream(&head.headers, caller)?;
    Some(request)
}

fn headers_for_upstream(headers: &HeaderMap, caller: &Caller) -> Option<HeaderMap> {
    let is_passed = |name: &HeaderName| {
        // The token has done its work; nobody behind needs to see it.
        ![HOST, CONNECTION, AUTHORIZATION].contains(name)
            && !name.as_str().starts_with(CALLER_PREFIX)
    };
    let mut headers: HeaderMap = headers
        .iter()
        .filter(|(name, _)| is_passed(name))
        .map(|(name, value)| (name.clone(), value.clone()))
        .collect();
    for (what, value) in [("role", caller.role.name()), ("name", &*caller.name)] {
        let name = HeaderName::try_from(format!("{CALLER_PREFIX}{what}")).ok()?;
        headers.insert(name, HeaderValue::from_str(value).ok()?);
    }
    Some(headers)
}

/// A call's place among those at a time.
struct Place(Rc<Cell<usize>>);

impl Place {
    fn take(calls: Rc<Cell<usize>>) -> Self {
        calls.set(calls.get() + 1);
        Self(calls)
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.set(self.0.get() - 1);
    }
}

#[cfg(test)]
mod tests {
    use spacegrid_core::gate::Role;

    use super::*;

    #[test]
    fn who_calls_is_said_here_and_by_nobody_else() {
        let mut outside = HeaderMap::new();
        outside.append("spacegrid-caller-name", HeaderValue::from_static("root"));
        outside.append("spacegrid-caller-roles", HeaderValue::from_static("admin"));
        outside.append("host", HeaderValue::from_static("elsewhere"));
        outside.append("grpc-timeout", HeaderValue::from_static("5S"));
        outside.append("authorization", HeaderValue::from_static("Bearer sg1.a.secret"));
        let caller = Caller { role: Role::Read, name: "shop".into(), generation: 1 };
        let inside = headers_for_upstream(&outside, &caller).unwrap();
        assert_eq!(inside.get_all("spacegrid-caller-name").iter().count(), 1);
        assert_eq!(inside["spacegrid-caller-name"], "shop");
        assert_eq!(inside["spacegrid-caller-role"], "read");
        assert_eq!(inside["grpc-timeout"], "5S");
        assert_eq!(inside.len(), 3, "{inside:?}");
    }
}
