//! The gate of a node: who is calling, and whether this caller may make this call.
//!
//! One function of what a connection has proved (the node named in its certificate), what the request
//! carries (a token) and a table of all methods. What is not in the table is refused. It opens no file
//! and knows no clock: the shell hands in the tokens whenever their file has changed, and fetches what
//! is to be logged. Invariants: a caller is told that its token is wrong, never in what way; nothing that
//! is kept for the log holds a token. Callers: the front of a node's port, for every request.

mod rights;
mod tokens;

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use parking_lot::{Mutex, RwLock};

pub use self::rights::{Rights, Role};
pub use self::tokens::{TOKEN_BYTES_MAX, Tokens, TokensError, hash_secret};

/// Refusals kept for the log until the shell fetches them; past it they are counted only.
pub const AUDIT_MAX: usize = 256;

/// Who calls.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    /// What it may do.
    pub role: Role,
    /// Name of the node or of the token.
    pub name: Arc<str>,
    /// The tokens it was let in with; with others it has to prove itself again.
    pub generation: u64,
}

impl Caller {
    /// The caller of a port that needs no proof, since only this machine reaches it.
    pub fn local() -> Self {
        Self { role: Role::Local, name: "local".into(), generation: 0 }
    }
}

/// Why a request is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Refusal {
    /// Nothing that proves who calls.
    Missing,
    /// A token that is none, or is none any more.
    Unknown,
    /// A certificate of the cluster's authority that names no node of this cluster.
    NoNode,
    /// The caller is known, and its role is not enough.
    Denied,
    /// A method that is in no row of the table.
    NoSuchMethod,
}

impl Refusal {
    /// For the log.
    pub fn code(self) -> &'static str {
        match self {
            Self::Missing => "no_token",
            Self::Unknown => "bad_token",
            Self::NoNode => "bad_certificate",
            Self::Denied => "role_denied",
            Self::NoSuchMethod => "no_such_method",
        }
    }

    /// Whether who calls is known (gRPC status 7), or not (16).
    pub fn is_permission(self) -> bool {
        matches!(self, Self::Denied | Self::NoSuchMethod)
    }

    /// For the caller.
    pub fn message(self) -> &'static str {
        match self {
            Self::Missing => "this node wants a token: connect(..., token=...) or SPACEGRID_TOKEN",
            Self::Unknown => "the token is not known here",
            Self::NoNode => "the certificate names no node of this cluster",
            Self::Denied => "the role of this caller does not allow the call",
            Self::NoSuchMethod => "no such method, or nobody may call it",
        }
    }
}

/// One line of the log of refusals.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Audit {
    /// Why.
    pub refusal: Refusal,
    /// The method that was called.
    pub method: String,
    /// Name of the caller, empty when it is not known.
    pub caller: String,
    /// Where it called from.
    pub remote: String,
}

#[derive(Debug, Default)]
struct AuditLog {
    lines: VecDeque<Audit>,
    dropped: u64,
}

/// The gate. Thread-safe.
#[derive(Debug)]
pub struct Gate {
    cluster: String,
    methods: BTreeMap<String, u8>,
    tokens: RwLock<Tokens>,
    generation: AtomicU64,
    audit: Mutex<AuditLog>,
}

impl Gate {
    /// A gate that nobody with a token passes yet.
    ///
    /// `methods` is the table: the path of each method, as in `/spacegrid.v1.Data/Get`, and the bits of
    /// the roles that may call it.
    pub fn new(cluster: &str, methods: impl IntoIterator<Item = (String, u8)>) -> Self {
        Self {
            cluster: cluster.to_owned(),
            methods: methods.into_iter().collect(),
            tokens: RwLock::default(),
            generation: AtomicU64::new(1),
            audit: Mutex::default(),
        }
    }

    /// Take the tokens as they are now. A text that is wrong somewhere changes nothing.
    pub fn set_tokens(&self, text: &str) -> Result<usize, TokensError> {
        let tokens = Tokens::parse(text)?;
        let count = tokens.len();
        *self.tokens.write() = tokens;
        self.generation.fetch_add(1, Ordering::Release);
        Ok(count)
    }

    /// Changes with the tokens: who was let in under another one is asked again.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    /// Let a request pass, or say why not.
    ///
    /// `certificate` is the URI in the certificate that the connection proved, which the cluster's
    /// authority has signed; `Some("")` when it has none. `authorization` is the header of that name.
    pub fn admit(
        &self,
        method: &str,
        certificate: Option<&str>,
        authorization: Option<&[u8]>,
        remote: &str,
    ) -> Result<Caller, Refusal> {
        let caller = match self.identify(certificate, authorization) {
            Ok(caller) => caller,
            Err(refusal) => return Err(self.refused(refusal, method, "", remote)),
        };
        match self.methods.get(method) {
            Some(allowed) if allowed & caller.role.bit() != 0 => Ok(caller),
            Some(_) => Err(self.refused(Refusal::Denied, method, &caller.name, remote)),
            None => Err(self.refused(Refusal::NoSuchMethod, method, &caller.name, remote)),
        }
    }

    fn identify(
        &self,
        certificate: Option<&str>,
        authorization: Option<&[u8]>,
    ) -> Result<Caller, Refusal> {
        let generation = self.generation();
        if let Some(uri) = certificate {
            let name = node_of(uri, &self.cluster).ok_or(Refusal::NoNode)?;
            return Ok(Caller { role: Role::Node, name: name.into(), generation });
        }
        let token = authorization.and_then(bearer).ok_or(Refusal::Missing)?;
        let (role, name) = self.tokens.read().find(token).ok_or(Refusal::Unknown)?;
        Ok(Caller { role, name, generation })
    }

    fn refused(&self, refusal: Refusal, method: &str, caller: &str, remote: &str) -> Refusal {
        let mut audit = self.audit.lock();
        if audit.lines.len() < AUDIT_MAX {
            audit.lines.push_back(Audit {
                refusal,
                method: method.chars().take(128).collect(),
                caller: caller.to_owned(),
                remote: remote.to_owned(),
            });
        } else {
            audit.dropped += 1;
        }
        refusal
    }

    /// What was refused since the last call, and how many more there were that are not listed.
    pub fn take_audit(&self) -> (Vec<Audit>, u64) {
        let mut audit = self.audit.lock();
        (std::mem::take(&mut audit.lines).into(), std::mem::take(&mut audit.dropped))
    }
}

/// The token of an authorization header, if it is of that kind and of a length that can be one.
fn bearer(header: &[u8]) -> Option<&[u8]> {
    let (kind, token) = header.split_at_checked(7)?;
    (kind.eq_ignore_ascii_case(b"bearer ") && token.len() <= TOKEN_BYTES_MAX).then_some(token)
}

/// The node that a certificate's URI names, if it is one of this cluster.
pub fn node_of<'a>(uri: &'a str, cluster: &str) -> Option<&'a str> {
    let name = uri.strip_prefix("spacegrid://")?.strip_prefix(cluster)?.strip_prefix("/node/")?;
    (!cluster.is_empty() && !name.is_empty() && !name.contains('/')).then_some(name)
}

#[cfg(test)]
mod tests;
