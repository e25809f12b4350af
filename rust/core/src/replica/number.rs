//! Integers in msgpack, as INCR keeps them.
//!
//! Only whole 64-bit signed integers; everything else is somebody's value and no number. Callers:
//! `primary`.

use smallvec::SmallVec;

/// Encode in the shortest form, as other msgpack writers do.
pub fn encode(number: i64) -> SmallVec<[u8; 9]> {
    let mut out = SmallVec::new();
    if let Ok(small) = i8::try_from(number)
        && small >= -32
    {
        out.push(small.cast_unsigned());
    } else if number >= 0 {
        if let Ok(small) = u8::try_from(number) {
            out.extend([0xcc, small]);
        } else if let Ok(small) = u16::try_from(number) {
            out.push(0xcd);
            out.extend(small.to_be_bytes());
        } else if let Ok(small) = u32::try_from(number) {
            out.push(0xce);
            out.extend(small.to_be_bytes());
        } else {
            out.push(0xcf);
            out.extend(number.to_be_bytes());
        }
    } else if let Ok(small) = i8::try_from(number) {
        out.extend([0xd0, small.cast_unsigned()]);
    } else if let Ok(small) = i16::try_from(number) {
        out.push(0xd1);
        out.extend(small.to_be_bytes());
    } else if let Ok(small) = i32::try_from(number) {
        out.push(0xd2);
        out.extend(small.to_be_bytes());
    } else {
        out.push(0xd3);
        out.extend(number.to_be_bytes());
    }
    out
}

/// Decode any integer form that fits; `None` for anything else.
pub fn decode(bytes: &[u8]) -> Option<i64> {
    let (tag, rest) = bytes.split_first()?;
    match (tag, rest.len()) {
        (0..=0x7f, 0) => Some(i64::from(*tag)),
        (0xe0..=0xff, 0) => Some(i64::from(tag.cast_signed())),
        (0xcc, 1) => Some(i64::from(rest[0])),
        (0xcd, 2) => Some(i64::from(u16::from_be_bytes(rest.try_into().ok()?))),
        (0xce, 4) => Some(i64::from(u32::from_be_bytes(rest.try_into().ok()?))),
        (0xcf, 8) => i64::try_from(u64::from_be_bytes(rest.try_into().ok()?)).ok(),
        (0xd0, 1) => Some(i64::from(rest[0].cast_signed())),
        (0xd1, 2) => Some(i64::from(i16::from_be_bytes(rest.try_into().ok()?))),
        (0xd2, 4) => Some(i64::from(i32::from_be_bytes(rest.try_into().ok()?))),
        (0xd3, 8) => Some(i64::from_be_bytes(rest.try_into().ok()?)),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_size_comes_back() {
        for shift in 0..64 {
            for number in [1_i64 << shift, (1_i64 << shift).wrapping_sub(1), i64::MIN >> shift] {
                for number in [number, number.wrapping_neg()] {
                    assert_eq!(decode(&encode(number)), Some(number));
                }
            }
        }
        assert_eq!(encode(5).as_slice(), [5]);
        assert_eq!(encode(-1).as_slice(), [0xff]);
        assert_eq!(encode(200).as_slice(), [0xcc, 200]);
        assert_eq!(decode(&[0xcf, 0xff, 0, 0, 0, 0, 0, 0, 0]), None);
        assert_eq!(decode(b""), None);
        assert_eq!(decode(&[0xa1, b'x']), None);
    }
}
