//! Tokens of clients, as they are kept: salted hashes, one line each.
//!
//! A token is `sg1.<id>.<secret>`. The file has `<id> <name> <role> <salt> <hash>` a line, salt and hash in
//! hexadecimal; empty lines and what follows a `#` are left out. The secret has 256 random bits, so one round of
//! SHA-256 is as good as many; the salt keeps equal secrets from looking equal. Hashes are compared in
//! constant time.

use std::collections::BTreeMap;
use std::sync::Arc;

use sha2::{Digest, Sha256};
use thiserror::Error;

use super::Role;

/// Longest text that is looked at as a token.
pub const TOKEN_BYTES_MAX: usize = 512;
/// Most lines of a file.
pub const TOKENS_MAX: usize = 10_000;
const PREFIX: &str = "sg1.";
const SALT_BYTES_MIN: usize = 8;

/// A line that is no token.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum TokensError {
    /// Something is wrong in a line; the line itself is not quoted, since it may hold a secret.
    #[error("line {line}: {what}")]
    Line {
        /// From 1.
        line: usize,
        /// What is wrong.
        what: &'static str,
    },
    /// More than the limit.
    #[error("more than {TOKENS_MAX} tokens")]
    TooMany,
}

#[derive(Debug, Clone)]
struct Row {
    name: Arc<str>,
    role: Role,
    salt: Vec<u8>,
    hash: [u8; 32],
}

/// All tokens of a cluster.
#[derive(Debug, Clone, Default)]
pub struct Tokens {
    rows: BTreeMap<String, Row>,
}

impl Tokens {
    /// Read a file's text.
    pub fn parse(text: &str) -> Result<Self, TokensError> {
        let mut rows = BTreeMap::new();
        for (index, line) in text.lines().enumerate() {
            let line = line.split('#').next().unwrap_or_default();
            let words: Vec<&str> = line.split_whitespace().collect();
            if words.is_empty() {
                continue;
            }
            let wrong = |what| TokensError::Line { line: index + 1, what };
            let (id, row) = row(&words).map_err(wrong)?;
            if rows.insert(id, row).is_some() {
                return Err(wrong("the id is there twice"));
            }
            if rows.len() > TOKENS_MAX {
                return Err(TokensError::TooMany);
            }
        }
        Ok(Self { rows })
    }

    /// How many there are.
    pub fn len(&self) -> usize {
        self.rows.len()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.rows.is_empty()
    }

    /// Role and name of a token that was presented.
    pub fn find(&self, token: &[u8]) -> Option<(Role, Arc<str>)> {
        let text = std::str::from_utf8(token).ok()?.trim();
        let (id, secret) = text.strip_prefix(PREFIX)?.split_once('.')?;
        let row = self.rows.get(id)?;
        same(&hash_secret(&row.salt, secret), &row.hash).then(|| (row.role, row.name.clone()))
    }
}

fn row(words: &[&str]) -> Result<(String, Row), &'static str> {
    let [id, name, role, salt, hash] = words else {
        return Err("not five words: id, name, role, salt, hash");
    };
    let role = Role::of_token(role).ok_or("the role is none of read, write, admin")?;
    let salt = unhex(salt).filter(|salt| salt.len() >= SALT_BYTES_MIN);
    let salt = salt.ok_or("the salt is not at least 8 bytes in hexadecimal")?;
    let hash = unhex(hash).and_then(|hash| hash.try_into().ok());
    let hash = hash.ok_or("the hash is not 32 bytes in hexadecimal")?;
    Ok(((*id).to_owned(), Row { name: (*name).into(), role, salt, hash }))
}

/// The hash that is kept of a secret.
pub fn hash_secret(salt: &[u8], secret: &str) -> [u8; 32] {
    Sha256::new().chain_update(salt).chain_update(secret.as_bytes()).finalize().into()
}

/// Equality that takes the same time wherever the first difference is.
fn same(left: &[u8; 32], right: &[u8; 32]) -> bool {
    let difference = left.iter().zip(right).fold(0u8, |sum, (l, r)| sum | (l ^ r));
    std::hint::black_box(difference) == 0
}

fn unhex(text: &str) -> Option<Vec<u8>> {
    if !text.len().is_multiple_of(2) || !text.is_ascii() {
        return None;
    }
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).ok()).collect()
}
