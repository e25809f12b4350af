//! What the methods of `Client` share: arguments, queueing under one or many waiters, taking
//! completions out of core.

use pyo3::exceptions::{PyTypeError, PyValueError};
use pyo3::prelude::*;
use pyo3::types::{PyBytes, PyString};
use spacegrid_core::client::{Client, Completion, Request};
use spacegrid_core::frame::request::{Chain, Token};

use super::replies::{Answer, Done, Group, Waiter, summary_of, value_of};
use super::{PyClient, TokenArgument};
use crate::errors::refused;

/// The bytes of a key given as bytes or str.
#[inline]
pub(super) fn key_bytes<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    Err(PyTypeError::new_err(format!("a key must be bytes or str, not {}", key.get_type())))
}

pub(super) fn value_bytes<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    match value.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes()),
        Err(_) => {
            Err(PyTypeError::new_err(format!("a value must be bytes, not {}", value.get_type())))
        }
    }
}

pub(super) fn checked_codec(codec: u8) -> PyResult<u8> {
    if codec > 1 {
        return Err(PyValueError::new_err(format!("a codec is 0 or 1, not {codec}")));
    }
    Ok(codec)
}

pub(super) fn with_token<'a>(
    request: Request<'a>,
    token: Option<TokenArgument<'a>>,
) -> Request<'a> {
    match token {
        Some((stream, number, path, lowest)) => {
            request.with_token(Token { stream, number, path, lowest }, Chain::default())
        }
        None => request,
    }
}

/// Where core's completions go.
type Tell<'a> = &'a mut dyn FnMut(Completion<'_, Waiter>);

impl PyClient {
    #[inline]
    pub(super) fn queue(
        &mut self,
        request: &Request<'_>,
        waiter: Py<PyAny>,
        timeout: u64,
    ) -> PyResult<u64> {
        self.core.queue(request, Waiter::One(waiter), timeout).map_err(refused)
    }

    /// Queues all requests under one waiter, or none of them. `shell`: it gets the bare replies.
    pub(super) fn queue_many<'a>(
        &mut self,
        requests: impl ExactSizeIterator<Item = PyResult<Request<'a>>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        shell: bool,
    ) -> PyResult<u64> {
        let count = requests.len();
        if count == 0 {
            return Err(PyValueError::new_err("no keys are given"));
        }
        let mut checked = Vec::with_capacity(count);
        for request in requests {
            let request = request?;
            self.core.check(&request, count).map_err(refused)?;
            checked.push(request);
        }
        let group = self.free_groups.pop().unwrap_or_else(|| {
            self.groups.push(None);
            (self.groups.len() - 1) as u32
        });
        let mut first = 0;
        for (index, request) in checked.iter().enumerate() {
            let member = Waiter::Member { group, index: index as u32 };
            let number = self.core.queue_checked(request, member, timeout_ms);
            if index == 0 {
                first = number;
            }
        }
        let answers = std::iter::repeat_with(|| None).take(count).collect();
        self.groups[group as usize] = Some(Group { waiter, first, answers, open: count, shell });
        Ok(first)
    }

    /// Takes completions out of core; nothing of Python runs meanwhile.
    pub(super) fn collect(
        &mut self,
        py: Python<'_>,
        run: impl FnOnce(&mut Client<Waiter>, Tell<'_>) -> PyResult<()>,
    ) -> PyResult<Vec<Done>> {
        let Self { core, groups, free_groups, done, .. } = self;
        let mut collected = std::mem::take(done);
        run(core, &mut |completion| {
            let answer = Answer {
                status: completion.status,
                codec: completion.codec,
                copies: completion.copies,
                version: completion.version,
                number: completion.number,
                partition: completion.partition,
                value: value_of(py, &completion),
            };
            let mut shell = false;
            let (waiter, answer, group) = match completion.waiter {
                Waiter::One(waiter) => (waiter, answer, None),
                Waiter::Shell(waiter) => {
                    shell = true;
                    (waiter, answer, None)
                }
                Waiter::Member { group: id, index } => {
                    let Some(group) = &mut groups[id as usize] else { return };
                    group.answers[index as usize] = Some(answer);
                    group.open -= 1;
                    if group.open > 0 {
                        return;
                    }
                    let Some(group) = groups[id as usize].take() else { return };
                    free_groups.push(id);
                    let summary = summary_of(&group);
                    shell = group.shell;
                    (group.waiter, summary, Some(group.answers))
                }
            };
            let Completion { opcode, flags, map, .. } = completion;
            collected.push(Done { waiter, opcode, flags, map, shell, answer, group });
        })?;
        Ok(collected)
    }
}
