//! Key bytes, tuple keys, and the part of a key that routes.
//!
//! A tuple key is `0xC1`, then per part its length (LEB128, shortest form) and its bytes. `0xC1`
//! never begins UTF-8 text, so text keys and tuple keys cannot collide. A tuple routes by its first
//! part; a part in braces routes inside that, as in Redis (`order:{customer-42}:1`), so what
//! belongs together can be kept together from any client. Callers: the client and the node for
//! routing, units for `WrongRoutingKey`.

use crate::error::{CoreError, Result};
use crate::hash::hash64;
use crate::limits::{KEY_BYTES_MAX, NESTING_MAX, check_size};

/// First byte of every tuple key.
pub const TUPLE_MARK: u8 = 0xC1;

/// The bytes of `key` that decide its partition.
#[inline]
pub fn routing_key(key: &[u8]) -> &[u8] {
    braced(first_part(key).unwrap_or(key))
}

/// The partition of `key` among `count`.
///
/// # Panics
/// When `count` is 0.
#[inline]
pub fn partition_of(key: &[u8], count: u32) -> u32 {
    partition_of_routing_key(routing_key(key), count)
}

/// The partition of an already extracted routing key.
///
/// # Panics
/// When `count` is 0.
#[inline]
pub fn partition_of_routing_key(routing_key: &[u8], count: u32) -> u32 {
    (hash64(routing_key, 0) % u64::from(count)) as u32
}

/// Encodes parts as one tuple key.
///
/// Refuses no parts, more than [`NESTING_MAX`], and more than [`KEY_BYTES_MAX`] bytes in all.
pub fn encode_tuple<P: AsRef<[u8]>>(parts: &[P]) -> Result<Vec<u8>> {
    if parts.is_empty() {
        return Err(CoreError::Empty { what: "the tuple key" });
    }
    check_size("the tuple key's number of parts", parts.len(), NESTING_MAX)?;
    let size: usize = parts.iter().map(|part| part.as_ref().len()).sum();
    check_size("the key's length in bytes", size + parts.len() + 1, KEY_BYTES_MAX)?;
    let mut key = Vec::with_capacity(size + 2 * parts.len() + 1);
    key.push(TUPLE_MARK);
    for part in parts {
        let part = part.as_ref();
        let mut length = part.len();
        while length >= 0x80 {
            key.push(length as u8 | 0x80);
            length >>= 7;
        }
        key.push(length as u8);
        key.extend_from_slice(part);
    }
    check_size("the key's length in bytes", key.len(), KEY_BYTES_MAX)?;
    Ok(key)
}

/// The parts of a tuple key, or `None` when `key` is not one from end to end.
pub fn split_tuple(key: &[u8]) -> Option<Vec<&[u8]>> {
    let mut rest = key.strip_prefix(&[TUPLE_MARK])?;
    let mut parts = Vec::new();
    while !rest.is_empty() {
        if parts.len() == NESTING_MAX {
            return None;
        }
        let (part, after) = take_part(rest)?;
        parts.push(part);
        rest = after;
    }
    (!parts.is_empty()).then_some(parts)
}

/// The first part of a whole tuple key, without collecting the others.
fn first_part(key: &[u8]) -> Option<&[u8]> {
    let (first, mut rest) = take_part(key.strip_prefix(&[TUPLE_MARK])?)?;
    let mut count = 1;
    while !rest.is_empty() {
        rest = take_part(rest)?.1;
        count += 1;
    }
    (count <= NESTING_MAX).then_some(first)
}

/// Splits the next part off; `None` when it is cut short or its length is not in shortest form.
fn take_part(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let mut length = 0usize;
    for (index, &byte) in bytes.iter().enumerate().take(2) {
        length |= usize::from(byte & 0x7f) << (7 * index);
        if byte & 0x80 == 0 {
            let shortest = index == 0 || byte != 0;
            return if shortest { bytes[index + 1..].split_at_checked(length) } else { None };
        }
    }
    None
}

/// What is inside the first `{` and the next `}`, when there is something.
#[inline]
fn braced(key: &[u8]) -> &[u8] {
    let Some(open) = key.iter().position(|&byte| byte == b'{') else { return key };
    let inside = &key[open + 1..];
    match inside.iter().position(|&byte| byte == b'}') {
        Some(length) if length > 0 => &inside[..length],
        _ => key,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn braces_route_as_in_redis() {
        assert_eq!(routing_key(b"order:{customer-42}:1"), b"customer-42");
        assert_eq!(
            routing_key(b"a{}b{c}"),
            b"a{}b{c}",
            "empty first braces route by the whole key"
        );
        assert_eq!(routing_key(b"a{{b}}c"), b"{b");
        assert_eq!(routing_key(b"a}b{c"), b"a}b{c");
        assert_eq!(routing_key(b"{a}{b}"), b"a");
        assert_eq!(routing_key(b"plain"), b"plain");
    }

    #[test]
    fn a_tuple_routes_by_its_first_part() {
        let key = encode_tuple(&["tea", "customer-1"]).unwrap();
        assert_eq!(routing_key(&key), b"tea");
        let key = encode_tuple(&["x{tea}", "customer-1"]).unwrap();
        assert_eq!(routing_key(&key), b"tea");
        assert_eq!(partition_of(&key, 1024), partition_of(b"tea", 1024));
    }

    #[test]
    fn bytes_that_only_look_like_a_tuple_route_whole() {
        for key in
            [&[0xC1][..], &[0xC1, 5, b'a'], &[0xC1, 0x80, 0], &[0xC1, 1, b'a', 9], &[0xC1, 0xff]]
        {
            assert_eq!(routing_key(key), key);
            assert_eq!(split_tuple(key), None);
        }
        let many = [&[0xC1][..], &[1, b'a'].repeat(NESTING_MAX + 1)].concat();
        assert_eq!(routing_key(&many), many);
        assert_eq!(split_tuple(&many), None);
    }

    #[test]
    fn limits_are_named() {
        let none: [&[u8]; 0] = [];
        assert_eq!(encode_tuple(&none), Err(CoreError::Empty { what: "the tuple key" }));
        assert_eq!(encode_tuple(&vec!["a"; 33]).unwrap_err().code(), "too_large");
        assert_eq!(encode_tuple(&["a".repeat(4094)]).unwrap_err().code(), "too_large");
        assert_eq!(encode_tuple(&["a".repeat(4093)]).unwrap().len(), 4096);
    }

    proptest! {
        #[test]
        fn tuples_round_trip(
            parts in prop::collection::vec(prop::collection::vec(any::<u8>(), 0..200), 1..20),
        ) {
            let key = encode_tuple(&parts).unwrap();
            let split = split_tuple(&key).unwrap();
            prop_assert_eq!(split, parts.iter().map(Vec::as_slice).collect::<Vec<_>>());
            prop_assert_eq!(first_part(&key), Some(parts[0].as_slice()));
        }

        #[test]
        fn any_bytes_route_without_a_panic(key in prop::collection::vec(any::<u8>(), 0..300)) {
            prop_assert!(routing_key(&key).len() <= key.len());
            prop_assert_eq!(first_part(&key).is_some(), split_tuple(&key).is_some());
        }

        #[test]
        fn a_whole_tuple_has_one_encoding(mut key in prop::collection::vec(any::<u8>(), 1..40)) {
            key[0] = TUPLE_MARK;
            if let Some(parts) = split_tuple(&key) {
                prop_assert_eq!(encode_tuple(&parts).unwrap(), key);
            }
        }
    }
}
