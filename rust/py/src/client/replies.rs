//! Replies on their way to Python: taken out of core first, told afterwards.

use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyList};
use pyo3::{IntoPyObjectExt, intern};
use spacegrid_core::client::Completion;
use spacegrid_core::frame::Opcode;
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::request::FLAG_IF_ABSENT;
use spacegrid_core::replica::number;

use super::PyClient;

/// Who is told of a completion.
pub(super) enum Waiter {
    /// The object given with one operation.
    One(Py<PyAny>),
    /// As `One`, of an operation whose reply the shell always has to see.
    Shell(Py<PyAny>),
    /// One key of many that have a waiter together.
    Member { group: u32, index: u32 },
}

/// What the client knows of a map beyond core.
pub(super) struct MapFace {
    pub(super) name: String,
    pub(super) schema: u32,
    pub(super) codec: u8,
    pub(super) decode: Option<Py<PyAny>>,
    pub(super) persisted: bool,
}

/// One reply, taken out of its frame.
pub(super) struct Answer {
    pub(super) status: u8,
    pub(super) codec: u8,
    pub(super) copies: u8,
    pub(super) version: u64,
    pub(super) number: u64,
    pub(super) partition: u16,
    pub(super) value: Option<Py<PyBytes>>,
}

/// Operations of `get_many` and its like.
pub(super) struct Group {
    pub(super) waiter: Py<PyAny>,
    pub(super) first: u64,
    pub(super) answers: Vec<Option<Answer>>,
    pub(super) open: usize,
    /// The shell gets the replies as they are.
    pub(super) shell: bool,
}

/// A completion whose waiter is to be told.
pub(super) struct Done {
    pub(super) waiter: Py<PyAny>,
    pub(super) opcode: Opcode,
    pub(super) flags: u8,
    pub(super) map: u16,
    pub(super) shell: bool,
    pub(super) answer: Answer,
    pub(super) group: Option<Vec<Option<Answer>>>,
}

/// The reply's value as bytes: where the status promises one, and where there is something.
#[inline]
pub(super) fn value_of<W>(py: Python<'_>, completion: &Completion<'_, W>) -> Option<Py<PyBytes>> {
    let promised = completion.status == status::OK
        && matches!(completion.opcode, Opcode::Get | Opcode::Invoke | Opcode::Scan);
    (promised || !completion.value.is_empty()).then(|| PyBytes::new(py, completion.value).unbind())
}

/// What a group says as a whole.
pub(super) fn summary_of(group: &Group) -> Answer {
    let answers = || group.answers.iter().flatten();
    let plain = |answer: &&Answer| answer.status > status::MISS;
    Answer {
        status: answers().find(plain).map_or(status::OK, |answer| answer.status),
        codec: 0,
        copies: answers().map(|answer| answer.copies).min().unwrap_or(0),
        version: 0,
        number: group.first,
        partition: 0,
        value: None,
    }
}

/// How a map's decoder is found once the client is no longer borrowed.
struct Decoders<'a, 'py> {
    client: &'a Bound<'py, PyClient>,
    /// The last one: most replies of a frame are of one map.
    last: Option<(u16, Decoder<'py>)>,
}

/// The codec of values that reach the user as they are, and what decodes them.
struct Decoder<'py> {
    codec: u8,
    decode: Option<Bound<'py, PyAny>>,
}

impl<'py> Decoders<'_, 'py> {
    #[inline]
    fn of(&mut self, map: u16) -> &Decoder<'py> {
        if self.last.as_ref().is_some_and(|(last, _)| *last != map) {
            self.last = None;
        }
        let (_, decoder) = self.last.get_or_insert_with(|| {
            let client = self.client.borrow();
            let face = &client.maps[usize::from(map)];
            let decode = face.decode.as_ref().map(|decode| decode.bind(self.client.py()).clone());
            (map, Decoder { codec: face.codec, decode })
        });
        decoder
    }
}

impl Done {
    /// What a future gets without the shell's help; `None` when the shell has to see it.
    #[inline]
    fn plain<'py>(
        &self,
        py: Python<'py>,
        decoders: &mut Decoders<'_, 'py>,
    ) -> Option<PyResult<Bound<'py, PyAny>>> {
        if self.shell {
            return None;
        }
        if let Some(answers) = &self.group {
            let plain = self.answer.status == status::OK;
            return if plain { self.plain_list(py, answers, decoders) } else { None };
        }
        match (self.answer.status, self.opcode) {
            (status::OK, Opcode::Get | Opcode::Invoke) => {
                plain_value(py, &self.answer, decoders.of(self.map))
            }
            (status::OK, Opcode::Put) if self.flags & FLAG_IF_ABSENT == 0 => {
                Some(self.answer.version.into_bound_py_any(py))
            }
            (status::OK, Opcode::Put | Opcode::Delete | Opcode::Contains) => {
                Some(Ok(PyBool::new(py, true).to_owned().into_any()))
            }
            (status::OK, Opcode::Incr | Opcode::Size) => self.number_value(py).map(Ok),
            (status::MISS, Opcode::Get) => Some(Ok(py.None().into_bound(py))),
            (status::MISS, Opcode::Delete | Opcode::Contains) => {
                Some(Ok(PyBool::new(py, false).to_owned().into_any()))
            }
            (status::CONFLICT, Opcode::Put) if self.flags & FLAG_IF_ABSENT != 0 => {
                Some(Ok(PyBool::new(py, false).to_owned().into_any()))
            }
            _ => None,
        }
    }

    /// The list of a group of which every reply is OK or MISS; `None` when a value has another
    /// codec.
    fn plain_list<'py>(
        &self,
        py: Python<'py>,
        answers: &[Option<Answer>],
        decoders: &mut Decoders<'_, 'py>,
    ) -> Option<PyResult<Bound<'py, PyAny>>> {
        let decoder = decoders.of(self.map);
        let list = PyList::empty(py);
        for answer in answers.iter().flatten() {
            let item = match self.opcode {
                Opcode::Get if answer.status == status::OK => {
                    match plain_value(py, answer, decoder)? {
                        Ok(value) => value,
                        Err(error) => return Some(Err(error)),
                    }
                }
                Opcode::Get => py.None().into_bound(py),
                Opcode::Put => match answer.version.into_bound_py_any(py) {
                    Ok(version) => version,
                    Err(error) => return Some(Err(error)),
                },
                _ => PyBool::new(py, answer.status == status::OK).to_owned().into_any(),
            };
            if let Err(error) = list.append(item) {
                return Some(Err(error));
            }
        }
        Some(Ok(list.into_any()))
    }

    /// The number in an incr's (msgpack) or a size's (u64) value.
    fn number_value<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let bytes = self.answer.value.as_ref()?.as_bytes(py);
        if self.opcode == Opcode::Incr {
            return number::decode(bytes)?.into_bound_py_any(py).ok();
        }
        u64::from_le_bytes(bytes.try_into().ok()?).into_bound_py_any(py).ok()
    }

    /// The tuple that the shell gets.
    fn completion<'py>(
        self,
        py: Python<'py>,
        decoders: &mut Decoders<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let value = match &self.group {
            Some(answers) if self.answer.status == status::OK && !self.shell => {
                match self.plain_list(py, answers, decoders) {
                    Some(list) => list?,
                    None => many_replies(py, answers)?,
                }
            }
            Some(answers) => many_replies(py, answers)?,
            None if self.answer.status == status::OK
                && matches!(self.opcode, Opcode::Incr | Opcode::Size) =>
            {
                self.number_value(py).unwrap_or_else(|| py.None().into_bound(py))
            }
            None => self.answer.value.as_ref().into_bound_py_any(py)?,
        };
        let answer = &self.answer;
        let Answer { status, version, codec, copies, number, .. } = *answer;
        (self.waiter, status, value, version, codec, copies, number).into_bound_py_any(py)
    }
}

/// A value for a future; `None` when its codec is not the map's.
#[inline]
fn plain_value<'py>(
    py: Python<'py>,
    answer: &Answer,
    decoder: &Decoder<'py>,
) -> Option<PyResult<Bound<'py, PyAny>>> {
    if answer.codec != decoder.codec {
        return None;
    }
    let value = answer.value.as_ref()?.bind(py);
    match &decoder.decode {
        Some(decode) => Some(decode.call1((value,))),
        None => Some(Ok(value.clone().into_any())),
    }
}

/// `list[ManyReply]`
fn many_replies<'py>(py: Python<'py>, answers: &[Option<Answer>]) -> PyResult<Bound<'py, PyAny>> {
    let list = PyList::empty(py);
    for answer in answers.iter().flatten() {
        let Answer { status, version, codec, number, .. } = *answer;
        let value = answer.value.as_ref().map(|value| value.bind(py));
        list.append((status, value, version, codec, number))?;
    }
    Ok(list.into_any())
}

/// Tells `future`; one that is done (cancelled) is left alone.
fn settle(future: &Bound<'_, PyAny>, result: PyResult<Bound<'_, PyAny>>) {
    let py = future.py();
    let told = match result {
        Ok(value) => future.call_method1(intern!(py, "set_result"), (value,)),
        Err(error) => future.call_method1(intern!(py, "set_exception"), (error,)),
    };
    if let Err(error) = told {
        let is_done = future.call_method0(intern!(py, "done")).and_then(|done| done.is_truthy());
        if !is_done.unwrap_or(false) {
            error.write_unraisable(py, Some(future));
        }
    }
}

/// What an operation was, for messages.
#[derive(Clone, Copy)]
pub(super) struct About {
    opcode: Opcode,
    map: u16,
    partition: u16,
}

impl About {
    /// (verb, map index, partition)
    pub(super) fn tuple(self) -> (&'static str, u16, u16) {
        let verb = match self.opcode {
            Opcode::Get => "get",
            Opcode::Put => "put",
            Opcode::Delete => "delete",
            Opcode::Incr => "incr",
            Opcode::Invoke => "call",
            Opcode::Size => "size",
            Opcode::Scan => "scan",
            Opcode::Contains => "contains",
        };
        (verb, self.map, self.partition)
    }
}

/// Completions as the shell gets them: all, or (for futures) what is not plain.
pub(super) fn report<'py>(
    client: &Bound<'py, PyClient>,
    mut collected: Vec<Done>,
    futures: bool,
) -> PyResult<Bound<'py, PyList>> {
    let py = client.py();
    let mut decoders = Decoders { client, last: None };
    let mut told = std::mem::take(&mut client.borrow_mut().told);
    told.clear();
    let rest = PyList::empty(py);
    for done in collected.drain(..) {
        if futures && let Some(result) = done.plain(py, &mut decoders) {
            settle(done.waiter.bind(py), result);
            continue;
        }
        let Done { opcode, map, .. } = done;
        let about = |answer: &Answer| About { opcode, map, partition: answer.partition };
        match &done.group {
            Some(answers) => {
                let failed = answers.iter().flatten().filter(|one| one.status > status::MISS);
                told.extend(failed.map(|answer| (answer.number, about(answer))));
            }
            None => told.push((done.answer.number, about(&done.answer))),
        }
        rest.append(done.completion(py, &mut decoders)?)?;
    }
    told.sort_unstable_by_key(|(number, _)| *number);
    let mut client = client.borrow_mut();
    client.done = collected;
    client.told = told;
    Ok(rest)
}
