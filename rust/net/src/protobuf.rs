//! The fields of protobuf messages, for the few that the net thread reads and writes itself.
//!
//! Every length is checked against what is there; nothing is allocated for a field.

use bytes::{Buf, BufMut, Bytes, BytesMut};

use crate::status::{Code, Status};

pub(crate) const VARINT_BYTES_MAX: usize = 10;

/// What a field holds.
pub(crate) enum Value {
    Number(u64),
    Bytes(Bytes),
    Skipped,
}

/// The next field's number and value; `None`: the message is read.
pub(crate) fn next_field(message: &mut Bytes) -> Result<Option<(u64, Value)>, Status> {
    if message.is_empty() {
        return Ok(None);
    }
    let tag = varint(message)?;
    let value = match tag & 7 {
        0 => Value::Number(varint(message)?),
        1 => skip(message, 8)?,
        2 => {
            let length = varint(message)?;
            if length > message.len() as u64 {
                return Err(malformed("a field is longer than its message"));
            }
            Value::Bytes(message.split_to(length as usize))
        }
        5 => skip(message, 4)?,
        _ => return Err(malformed("a field has no type")),
    };
    Ok(Some((tag >> 3, value)))
}

fn skip(message: &mut Bytes, bytes: usize) -> Result<Value, Status> {
    if message.len() < bytes {
        return Err(malformed("a field is longer than its message"));
    }
    message.advance(bytes);
    Ok(Value::Skipped)
}

fn varint(message: &mut Bytes) -> Result<u64, Status> {
    let mut value = 0_u64;
    for (at, byte) in message.iter().take(VARINT_BYTES_MAX).enumerate() {
        value |= u64::from(byte & 0x7f) << (7 * at);
        if byte & 0x80 == 0 {
            message.advance(at + 1);
            return Ok(value);
        }
    }
    Err(malformed("a number does not end"))
}

/// Write a field that is a number; zero is what a field is that isn't there.
pub(crate) fn put_number(out: &mut BytesMut, field: u8, value: u64) {
    if value != 0 {
        out.put_u8(field << 3);
        put_varint(out, value);
    }
}

/// Write a field that is bytes, or a message, or numbers in a row.
pub(crate) fn put_bytes(out: &mut BytesMut, field: u8, bytes: &[u8]) {
    if !bytes.is_empty() {
        out.put_u8(field << 3 | 2);
        put_varint(out, bytes.len() as u64);
        out.extend_from_slice(bytes);
    }
}

/// Write a number.
pub(crate) fn put_varint(out: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        out.put_u8(value as u8 | 0x80);
        value >>= 7;
    }
    out.put_u8(value as u8);
}

/// The refusal of bytes that are no message.
pub(crate) fn malformed(why: &str) -> Status {
    Status::new(Code::InvalidArgument, format!("no valid message: {why}"))
}
