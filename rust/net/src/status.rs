//! How a gRPC call ends.

use std::fmt::Write;

use http::{HeaderMap, HeaderValue, Response, StatusCode};

/// The gRPC status codes that this side gives.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// The call did what was asked.
    Ok = 0,
    /// The caller sent what can't be taken.
    InvalidArgument = 3,
    /// Something did not come in time.
    DeadlineExceeded = 4,
    /// The caller may not do this.
    PermissionDenied = 7,
    /// Past a limit.
    ResourceExhausted = 8,
    /// Another protocol version, cluster or incarnation.
    FailedPrecondition = 9,
    /// There is no such thing here.
    Unimplemented = 12,
    /// Not now.
    Unavailable = 14,
    /// It is not known who calls.
    Unauthenticated = 16,
}

/// A code and what it is about.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Status {
    /// What kind of end.
    pub code: Code,
    /// For people; empty when all is well.
    pub message: String,
}

impl Status {
    /// The end of a call that did what was asked.
    pub const OK: Self = Self { code: Code::Ok, message: String::new() };

    /// A status.
    pub fn new(code: Code, message: impl Into<String>) -> Self {
        Self { code, message: message.into() }
    }

    /// The status as a call's trailers.
    pub fn trailers(&self) -> HeaderMap {
        let mut trailers = HeaderMap::with_capacity(2);
        trailers.insert("grpc-status", HeaderValue::from(self.code as u16));
        if !self.message.is_empty()
            && let Ok(message) = HeaderValue::from_str(&percent_encoded(&self.message))
        {
            trailers.insert("grpc-message", message);
        }
        trailers
    }

    /// The status as the whole answer to a call.
    pub fn response(&self) -> Response<()> {
        let mut response = response();
        response.headers_mut().extend(self.trailers());
        response
    }
}

/// The head of a gRPC answer.
pub fn response() -> Response<()> {
    let mut response = Response::new(());
    *response.status_mut() = StatusCode::OK;
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// The status that headers or trailers give, and its words.
pub fn status_of(headers: &HeaderMap) -> Option<(u16, String)> {
    let status = headers.get("grpc-status")?.to_str().ok()?.parse().ok()?;
    let message = headers.get("grpc-message").map(HeaderValue::as_bytes);
    Some((status, percent_decoded(message.unwrap_or_default())))
}

fn percent_decoded(message: &[u8]) -> String {
    let digit = |at: usize| message.get(at).and_then(|&byte| char::from(byte).to_digit(16));
    let mut bytes = Vec::with_capacity(message.len());
    let mut at = 0;
    while at < message.len() {
        match (message[at], digit(at + 1), digit(at + 2)) {
            (b'%', Some(high), Some(low)) => {
                bytes.push((high << 4 | low) as u8);
                at += 3;
            }
            (byte, ..) => {
                bytes.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn percent_encoded(message: &str) -> String {
    let mut out = String::with_capacity(message.len());
    for byte in message.bytes() {
        if (b' '..=b'~').contains(&byte) && byte != b'%' {
            out.push(char::from(byte));
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_message_of_several_lines_travels_in_one_header() {
        let words = "über 100 %\nhint: wait";
        let trailers = Status::new(Code::Unavailable, words).trailers();
        assert_eq!(status_of(&trailers), Some((14, words.into())));
        assert_eq!(trailers["grpc-status"], "14");
        assert_eq!(trailers["grpc-message"], "%C3%BCber 100 %25%0Ahint: wait");
        assert_eq!(Status::OK.trailers().len(), 1);
    }
}
