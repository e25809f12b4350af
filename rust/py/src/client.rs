//! `_core.Client`: one request stream for asyncio and for threads.
//!
//! The hot path is `get` (one call, no Python object made but its number) and `on_frame_futures` (one bytes and one
//! `set_result` per reply). Python code can run whenever an object is released or called, and could call the client
//! again: so replies are first taken completely, and Python is called with the client no longer borrowed.

use pyo3::PyTraverseError;
use pyo3::exceptions::{PyKeyError, PyTypeError, PyValueError};
use pyo3::gc::PyVisit;
use pyo3::prelude::*;
use pyo3::types::{PyBool, PyBytes, PyList, PyString};
use pyo3::{IntoPyObjectExt, intern};
use spacegrid_core::client::{Client, Completion, Request};
use spacegrid_core::frame::Opcode;
use spacegrid_core::frame::reply::status;
use spacegrid_core::frame::request::{Chain, FLAG_IF_ABSENT, Token, encode_chain};
use spacegrid_core::limits::PARTITIONS_MAX;

use crate::errors::{bad_frame, refused};

/// (stream, number, path, lowest)
type TokenArgument<'a> = (u64, u64, &'a [u8], u64);

/// Who is told of a completion.
enum Waiter {
    /// The object given with one operation.
    One(Py<PyAny>),
    /// As `One`, but the shell settles it: it wants the version too.
    Entry(Py<PyAny>),
    /// One key of many that have a waiter together.
    Member { group: u32, index: u32 },
}

/// What the client knows of a map beyond core.
struct MapFace {
    name: String,
    schema: u32,
    codec: u8,
    decode: Option<Py<PyAny>>,
}

/// One reply, taken out of its frame.
struct Answer {
    status: u8,
    codec: u8,
    copies: u8,
    version: u64,
    number: u64,
    value: Option<Py<PyBytes>>,
}

/// Operations of `get_many` and its like.
struct Group {
    waiter: Py<PyAny>,
    first: u64,
    answers: Vec<Option<Answer>>,
    open: usize,
}

/// A completion whose waiter is to be told.
struct Done {
    waiter: Py<PyAny>,
    opcode: Opcode,
    flags: u8,
    map: u16,
    answer: Answer,
    group: Option<Vec<Option<Answer>>>,
    /// Whether the shell settles it, whatever it is.
    shell: bool,
}

/// What an operation was, kept for messages until the next frame.
struct About {
    number: u64,
    opcode: Opcode,
    map: u16,
    partition: u16,
}

#[pyclass(name = "Client", module = "spacegrid._core")]
pub struct PyClient {
    core: Client<Waiter>,
    maps: Vec<MapFace>,
    groups: Vec<Option<Group>>,
    free_groups: Vec<u32>,
    /// Kept between calls for its memory.
    done: Vec<Done>,
    /// What the last call has reported as failed.
    failed: Vec<About>,
}

/// The bytes of a key given as bytes or str.
#[inline]
fn key_bytes<'a>(key: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    if let Ok(text) = key.cast::<PyString>() {
        return Ok(text.to_str()?.as_bytes());
    }
    if let Ok(bytes) = key.cast::<PyBytes>() {
        return Ok(bytes.as_bytes());
    }
    Err(PyTypeError::new_err(format!("a key must be bytes or str, not {}", key.get_type())))
}

fn value_bytes<'a>(value: &'a Bound<'_, PyAny>) -> PyResult<&'a [u8]> {
    match value.cast::<PyBytes>() {
        Ok(bytes) => Ok(bytes.as_bytes()),
        Err(_) => {
            Err(PyTypeError::new_err(format!("a value must be bytes, not {}", value.get_type())))
        }
    }
}

fn checked_codec(codec: u8) -> PyResult<u8> {
    if codec > 1 {
        return Err(PyValueError::new_err(format!("a codec is 0 or 1, not {codec}")));
    }
    Ok(codec)
}

fn with_token<'a>(request: Request<'a>, token: Option<TokenArgument<'a>>) -> Request<'a> {
    match token {
        Some((stream, number, path, lowest)) => {
            request.with_token(Token { stream, number, path, lowest }, Chain::default())
        }
        None => request,
    }
}

impl PyClient {
    #[inline]
    fn queue(&mut self, request: &Request<'_>, waiter: Py<PyAny>, timeout: u64) -> PyResult<u64> {
        self.core.queue(request, Waiter::One(waiter), timeout).map_err(refused)
    }

    /// Queues all requests under one waiter, or none of them.
    fn queue_many<'a>(
        &mut self,
        requests: impl ExactSizeIterator<Item = PyResult<Request<'a>>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
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
        self.groups[group as usize] = Some(Group { waiter, first, answers, open: count });
        Ok(first)
    }

    /// Takes completions out of core; nothing of Python runs meanwhile.
    fn collect(
        &mut self,
        py: Python<'_>,
        run: impl FnOnce(&mut Client<Waiter>, &mut dyn FnMut(Completion<'_, Waiter>)) -> PyResult<()>,
    ) -> PyResult<Vec<Done>> {
        let Self { core, maps, groups, free_groups, done, failed } = self;
        failed.clear();
        let mut collected = std::mem::take(done);
        run(core, &mut |completion| {
            let answer = Answer {
                status: completion.status,
                codec: completion.codec,
                copies: completion.copies,
                version: completion.version,
                number: completion.number,
                value: value_of(py, &completion),
            };
            let Completion { opcode, flags, map, partition, .. } = completion;
            let other_codec = || {
                opcode == Opcode::Get
                    && completion.status == status::OK
                    && completion.codec != maps[usize::from(map)].codec
            };
            if completion.status > status::MISS || other_codec() {
                failed.push(About { number: answer.number, opcode, map, partition });
            }
            let shell = matches!(completion.waiter, Waiter::Entry(_));
            let (waiter, answer, group) = match completion.waiter {
                Waiter::One(waiter) | Waiter::Entry(waiter) => (waiter, answer, None),
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
                    (group.waiter, summary, Some(group.answers))
                }
            };
            collected.push(Done { waiter, opcode, flags, map, answer, group, shell });
        })?;
        Ok(collected)
    }
}

/// The reply's value as bytes: where the status promises one, and where there is something.
#[inline]
fn value_of<W>(py: Python<'_>, completion: &Completion<'_, W>) -> Option<Py<PyBytes>> {
    let promised = completion.status == status::OK
        && matches!(completion.opcode, Opcode::Get | Opcode::Invoke | Opcode::Scan);
    (promised || !completion.value.is_empty()).then(|| PyBytes::new(py, completion.value).unbind())
}

/// What a group says as a whole.
fn summary_of(group: &Group) -> Answer {
    let answers = || group.answers.iter().flatten();
    let plain = |answer: &&Answer| answer.status > status::MISS;
    Answer {
        status: answers().find(plain).map_or(status::OK, |answer| answer.status),
        codec: 0,
        copies: answers().map(|answer| answer.copies).min().unwrap_or(0),
        version: 0,
        number: group.first,
        value: None,
    }
}

/// How a decoder is found once the client is no longer borrowed.
struct Decoders<'a, 'py>(&'a Bound<'py, PyClient>);

impl<'py> Decoders<'_, 'py> {
    /// The codec of values that reach the user, and what decodes them.
    #[inline]
    fn of(&self, map: u16) -> (u8, Option<Bound<'py, PyAny>>) {
        let client = self.0.borrow();
        let face = &client.maps[usize::from(map)];
        let decode = face.decode.as_ref().map(|decode| decode.bind(self.0.py()).clone());
        (face.codec, decode)
    }
}

impl Done {
    /// What a future gets without the shell's help; `None` when the shell has to see it.
    #[inline]
    fn plain<'py>(
        &self,
        py: Python<'py>,
        decoders: &Decoders<'_, 'py>,
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
                let (codec, decode) = decoders.of(self.map);
                plain_value(py, &self.answer, codec, decode.as_ref())
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

    /// The list of a group of which every reply is OK or MISS; `None` when a value has another codec.
    fn plain_list<'py>(
        &self,
        py: Python<'py>,
        answers: &[Option<Answer>],
        decoders: &Decoders<'_, 'py>,
    ) -> Option<PyResult<Bound<'py, PyAny>>> {
        let (codec, decode) = decoders.of(self.map);
        let list = PyList::empty(py);
        for answer in answers.iter().flatten() {
            let item = match self.opcode {
                Opcode::Get if answer.status == status::OK => {
                    match plain_value(py, answer, codec, decode.as_ref())? {
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

    /// The eight bytes of an incr's or size's value as a number.
    fn number_value<'py>(&self, py: Python<'py>) -> Option<Bound<'py, PyAny>> {
        let bytes = self.answer.value.as_ref()?.as_bytes(py).try_into().ok()?;
        if self.opcode == Opcode::Incr {
            return i64::from_le_bytes(bytes).into_bound_py_any(py).ok();
        }
        u64::from_le_bytes(bytes).into_bound_py_any(py).ok()
    }

    /// The tuple that the shell gets.
    fn completion<'py>(
        self,
        py: Python<'py>,
        decoders: &Decoders<'_, 'py>,
    ) -> PyResult<Bound<'py, PyAny>> {
        let value = match &self.group {
            Some(answers) if self.answer.status == status::OK => {
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
    codec: u8,
    decode: Option<&Bound<'py, PyAny>>,
) -> Option<PyResult<Bound<'py, PyAny>>> {
    if answer.codec != codec {
        return None;
    }
    let value = answer.value.as_ref()?.bind(py);
    match decode {
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

/// Completions as the shell gets them, all or (for futures) what is not plain.
fn report<'py>(
    client: &Bound<'py, PyClient>,
    mut collected: Vec<Done>,
    futures: bool,
) -> PyResult<Bound<'py, PyList>> {
    let py = client.py();
    let decoders = Decoders(client);
    let rest = PyList::empty(py);
    for done in collected.drain(..) {
        if futures && let Some(result) = done.plain(py, &decoders) {
            settle(done.waiter.bind(py), result);
            continue;
        }
        rest.append(done.completion(py, &decoders)?)?;
    }
    client.borrow_mut().done = collected;
    Ok(rest)
}

#[pymethods]
impl PyClient {
    #[new]
    fn new(stream: u64, partition_count: u32) -> PyResult<Self> {
        Ok(Self {
            core: Client::new(stream, partition_count).map_err(refused)?,
            maps: Vec::new(),
            groups: Vec::new(),
            free_groups: Vec::new(),
            done: Vec::new(),
            failed: Vec::new(),
        })
    }

    #[getter]
    fn stream(&self) -> u64 {
        self.core.stream()
    }

    #[getter]
    fn queued(&self) -> usize {
        self.core.queued()
    }

    #[getter]
    fn in_flight(&self) -> usize {
        self.core.in_flight()
    }

    #[getter]
    fn open(&self) -> usize {
        self.core.open()
    }

    #[pyo3(signature = (name, schema=0, codec=0, decode=None))]
    fn map(
        &mut self,
        name: &str,
        schema: u32,
        codec: u8,
        decode: Option<Py<PyAny>>,
    ) -> PyResult<u16> {
        let codec = checked_codec(codec)?;
        let same = |face: &MapFace| {
            let decodes = match (&face.decode, &decode) {
                (Some(one), Some(other)) => one.is(other),
                (one, other) => one.is_none() && other.is_none(),
            };
            face.name == name && face.schema == schema && face.codec == codec && decodes
        };
        if let Some(index) = self.maps.iter().position(same) {
            return Ok(index as u16);
        }
        let index = self.core.add_map(name, schema).map_err(refused)?;
        self.maps.push(MapFace { name: name.to_owned(), schema, codec, decode });
        Ok(index)
    }

    fn set_routes(&mut self, revision: u64, slots: Vec<i32>) -> PyResult<()> {
        self.core.set_routes(revision, &slots).map_err(refused)
    }

    fn get(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Get, map, key_bytes(key)?, &[]);
        self.queue(&request, waiter, timeout_ms)
    }

    fn get_entry(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Get, map, key_bytes(key)?, &[]);
        self.core.queue(&request, Waiter::Entry(waiter), timeout_ms).map_err(refused)
    }

    #[pyo3(signature = (map, key, value, codec, waiter, timeout_ms, ttl_ms=0, if_absent=false,
                        version=None, token=None))]
    fn put(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        value: &[u8],
        codec: u8,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        ttl_ms: u64,
        if_absent: bool,
        version: Option<u64>,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        if if_absent && version.is_some() {
            return Err(PyValueError::new_err("if_absent and version exclude each other"));
        }
        let mut request = Request::new(Opcode::Put, map, key_bytes(key)?, value);
        request.codec = checked_codec(codec)?;
        request.expected = version;
        let request = with_token(request.with_ttl(ttl_ms).if_absent(if_absent), token);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, key, waiter, timeout_ms, version=None, token=None))]
    fn delete(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        version: Option<u64>,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        let mut request = Request::new(Opcode::Delete, map, key_bytes(key)?, &[]);
        request.expected = version;
        self.queue(&with_token(request, token), waiter, timeout_ms)
    }

    #[pyo3(signature = (map, key, delta, waiter, timeout_ms, token=None))]
    fn incr(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        delta: i64,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        token: Option<TokenArgument<'_>>,
    ) -> PyResult<u64> {
        let delta = delta.to_le_bytes();
        let request = Request::new(Opcode::Incr, map, key_bytes(key)?, &delta);
        self.queue(&with_token(request, token), waiter, timeout_ms)
    }

    fn contains(
        &mut self,
        map: u16,
        key: &Bound<'_, PyAny>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = Request::new(Opcode::Contains, map, key_bytes(key)?, &[]);
        self.queue(&request, waiter, timeout_ms)
    }

    #[pyo3(signature = (map, routing_key, arguments, waiter, timeout_ms, token=None, chain=None))]
    fn invoke(
        &mut self,
        map: u16,
        routing_key: &Bound<'_, PyAny>,
        arguments: &[u8],
        waiter: Py<PyAny>,
        timeout_ms: u64,
        token: Option<TokenArgument<'_>>,
        chain: Option<Vec<Vec<u8>>>,
    ) -> PyResult<u64> {
        let chain = encode_chain(&chain.unwrap_or_default()).map_err(refused)?;
        if token.is_none() && !chain.is_empty() {
            return Err(PyValueError::new_err("a chain needs a token"));
        }
        let mut request = Request::new(Opcode::Invoke, map, key_bytes(routing_key)?, arguments);
        request.codec = 1;
        if let Some((stream, number, path, lowest)) = token {
            let chain = Chain::decode(&chain).map_err(refused)?;
            request = request.with_token(Token { stream, number, path, lowest }, chain);
        }
        self.queue(&request, waiter, timeout_ms)
    }

    fn size(
        &mut self,
        map: u16,
        partition: u32,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let key = partition.to_le_bytes();
        let mut request = Request::new(Opcode::Size, map, &key, &[]);
        request.partition = Some(partition);
        self.queue(&request, waiter, timeout_ms)
    }

    fn scan(
        &mut self,
        map: u16,
        partition: u32,
        cursor: &[u8],
        limit: u32,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let key = partition.to_le_bytes();
        let value = [&limit.to_le_bytes(), cursor].concat();
        let mut request = Request::new(Opcode::Scan, map, &key, &value);
        request.partition = Some(partition);
        self.queue(&request, waiter, timeout_ms)
    }

    fn get_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = |key| Ok(Request::new(Opcode::Get, map, key_bytes(key)?, &[]));
        self.queue_many(keys.iter().map(request), waiter, timeout_ms)
    }

    #[pyo3(signature = (map, keys, values, codec, waiter, timeout_ms, ttl_ms=0))]
    fn put_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        values: Vec<Bound<'_, PyAny>>,
        codec: u8,
        waiter: Py<PyAny>,
        timeout_ms: u64,
        ttl_ms: u64,
    ) -> PyResult<u64> {
        if keys.len() != values.len() {
            let (keys, values) = (keys.len(), values.len());
            return Err(PyValueError::new_err(format!("{keys} keys, but {values} values")));
        }
        let codec = checked_codec(codec)?;
        let request = |(key, value)| {
            let (key, value) = (key_bytes(key)?, value_bytes(value)?);
            let request = Request::new(Opcode::Put, map, key, value).with_ttl(ttl_ms);
            Ok(Request { codec, ..request })
        };
        self.queue_many(keys.iter().zip(&values).map(request), waiter, timeout_ms)
    }

    fn delete_many(
        &mut self,
        map: u16,
        keys: Vec<Bound<'_, PyAny>>,
        waiter: Py<PyAny>,
        timeout_ms: u64,
    ) -> PyResult<u64> {
        let request = |key| Ok(Request::new(Opcode::Delete, map, key_bytes(key)?, &[]));
        self.queue_many(keys.iter().map(request), waiter, timeout_ms)
    }

    fn about(&self, number: u64) -> Option<(&'static str, u16, u16)> {
        let about = self.failed.iter().find(|about| about.number == number)?;
        let verb = match about.opcode {
            Opcode::Get => "get",
            Opcode::Put => "put",
            Opcode::Delete => "delete",
            Opcode::Incr => "incr",
            Opcode::Invoke => "call",
            Opcode::Size => "size",
            Opcode::Scan => "scan",
            Opcode::Contains => "contains",
        };
        Some((verb, about.map, about.partition))
    }

    fn resend(&mut self, number: u64, waiter: Py<PyAny>, timeout_ms: u64) -> PyResult<()> {
        let queued = self.core.resend(number, Waiter::One(waiter), timeout_ms);
        queued.map_err(|_| PyKeyError::new_err(format!("request {number} is not kept as unknown")))
    }

    fn release(&mut self, number: u64) -> bool {
        self.core.release(number)
    }

    /// A number of a group cancels the group.
    fn cancel(slf: &Bound<'_, Self>, number: u64) -> bool {
        let mut client = slf.borrow_mut();
        let Some(waiter) = client.core.cancel(number) else { return false };
        let mut dropped = vec![waiter];
        if let Waiter::Member { group: id, .. } = dropped[0]
            && let Some(group) = client.groups[id as usize].take()
        {
            client.free_groups.push(id);
            for number in group.first..group.first + group.answers.len() as u64 {
                dropped.extend(client.core.cancel(number));
            }
            dropped.push(Waiter::One(group.waiter));
        }
        // Releasing a waiter may run Python code: not while the client is borrowed.
        drop(client);
        drop(dropped);
        true
    }

    fn take_frames<'py>(
        slf: &Bound<'py, Self>,
        now_ms: u64,
    ) -> PyResult<Vec<(u16, Bound<'py, PyBytes>)>> {
        let py = slf.py();
        let mut frames = Vec::new();
        let mut failed = None;
        slf.borrow_mut().core.take_frames(now_ms, |frame| {
            let written = PyBytes::new_with(py, frame.length, |out| {
                frame.write(out);
                Ok(())
            });
            match written {
                Ok(bytes) => frames.push((frame.slot, bytes)),
                Err(error) => failed = Some(error),
            }
        });
        failed.map_or(Ok(frames), Err)
    }

    fn on_frame<'py>(
        slf: &Bound<'py, Self>,
        slot: u16,
        frame: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.on_frame(slot, frame, now_ms, done).map_err(bad_frame)
        })?;
        report(slf, collected, false)
    }

    fn on_frame_futures<'py>(
        slf: &Bound<'py, Self>,
        slot: u16,
        frame: &[u8],
        now_ms: u64,
    ) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.on_frame(slot, frame, now_ms, done).map_err(bad_frame)
        })?;
        report(slf, collected, true)
    }

    #[pyo3(signature = (slot, now_ms, sent=true))]
    fn on_disconnect(&mut self, slot: u16, now_ms: u64, sent: bool) {
        self.core.on_disconnect(slot, now_ms, sent);
    }

    fn expire<'py>(slf: &Bound<'py, Self>, now_ms: u64) -> PyResult<Bound<'py, PyList>> {
        let collected = slf.borrow_mut().collect(slf.py(), |core, done| {
            core.expire(now_ms, done);
            Ok(())
        })?;
        report(slf, collected, false)
    }

    fn next_event_ms(&self) -> Option<u64> {
        self.core.next_event_ms()
    }

    fn wants_routes(&self) -> bool {
        self.core.wants_routes()
    }

    fn __traverse__(&self, visit: PyVisit<'_>) -> Result<(), PyTraverseError> {
        for waiter in self.core.waiters() {
            if let Waiter::One(waiter) | Waiter::Entry(waiter) = waiter {
                visit.call(waiter)?;
            }
        }
        for group in self.groups.iter().flatten() {
            visit.call(&group.waiter)?;
        }
        for face in &self.maps {
            visit.call(&face.decode)?;
        }
        Ok(())
    }

    fn __clear__(&mut self) {
        let partition_count = self.core.partition_count().clamp(1, PARTITIONS_MAX);
        if let Ok(core) = Client::new(self.core.stream(), partition_count) {
            self.core = core;
        }
        self.groups.clear();
        self.maps.clear();
        self.done.clear();
    }
}

pub fn register(module: &Bound<'_, PyModule>) -> PyResult<()> {
    module.add_class::<PyClient>()
}
