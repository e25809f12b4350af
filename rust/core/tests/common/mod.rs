//! What a client of the replica tests sends.

use spacegrid_core::frame::request::Chain;
use spacegrid_core::frame::{Opcode, Operation, RequestBuilder, Token};

/// The client's stream.
pub const STREAM: u64 = (1 << 32) | 7;

/// An operation on the map "stock", every earlier one of its stream still open.
pub fn operation<'a>(opcode: Opcode, number: u64, key: &'a [u8], value: &'a [u8]) -> Operation<'a> {
    Operation {
        opcode,
        flags: 0,
        map: "stock",
        schema: 0,
        number,
        token: Token { stream: STREAM, number, path: b"", lowest: 1 },
        key,
        codec: 0,
        value,
        ttl_ms: 0,
        expected: 0,
        chain: Chain::default(),
    }
}

/// The frame of one operation.
pub fn frame_of(operation: &Operation<'_>) -> Vec<u8> {
    let mut builder = RequestBuilder::new(STREAM);
    assert_eq!(builder.push(operation).expect("a valid operation"), None);
    builder.finish().expect("an operation")
}
