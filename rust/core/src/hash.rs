//! Murmur3 x64 128, first half: the hash that routes.
//!
//! Equal to `mmh3.hash64(data, seed, signed=False)[0]` of Python, so that a stub in any language
//! can find a key's partition; `tests/vectors/hash.txt` holds the cases both sides read. It never
//! changes: the partition of every stored key depends on it. Callers: `key` (partitions), `ring`
//! and `assign` (points), `store` (scan order).

const C1: u64 = 0x87c3_7b91_1142_53d5;
const C2: u64 = 0x4cf5_ad43_2745_937f;

/// The low 64 bits of murmur3 x64 128.
///
/// Cost: about 1 ns per 8 bytes, plus 5 ns.
#[inline]
pub fn hash64(data: &[u8], seed: u32) -> u64 {
    hash128(data, seed).0
}

/// Both halves of murmur3 x64 128.
#[inline]
pub fn hash128(data: &[u8], seed: u32) -> (u64, u64) {
    let mut h1 = u64::from(seed);
    let mut h2 = u64::from(seed);
    let mut blocks = data.chunks_exact(16);
    for block in &mut blocks {
        h1 ^= mix1(word(&block[..8]));
        h1 = h1.rotate_left(27).wrapping_add(h2).wrapping_mul(5).wrapping_add(0x52dc_e729);
        h2 ^= mix2(word(&block[8..]));
        h2 = h2.rotate_left(31).wrapping_add(h1).wrapping_mul(5).wrapping_add(0x3849_5ab5);
    }
    let tail = blocks.remainder();
    if tail.len() > 8 {
        h2 ^= mix2(word(&tail[8..]));
    }
    if !tail.is_empty() {
        h1 ^= mix1(word(&tail[..tail.len().min(8)]));
    }
    let length = data.len() as u64;
    h1 ^= length;
    h2 ^= length;
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    h1 = finish(h1);
    h2 = finish(h2);
    h1 = h1.wrapping_add(h2);
    h2 = h2.wrapping_add(h1);
    (h1, h2)
}

/// Up to eight bytes as a little-endian word; missing ones are zero.
#[inline]
fn word(bytes: &[u8]) -> u64 {
    if let Ok(whole) = bytes.try_into() {
        return u64::from_le_bytes(whole);
    }
    bytes.iter().rev().fold(0, |word, &byte| (word << 8) | u64::from(byte))
}

#[inline]
fn mix1(word: u64) -> u64 {
    word.wrapping_mul(C1).rotate_left(31).wrapping_mul(C2)
}

#[inline]
fn mix2(word: u64) -> u64 {
    word.wrapping_mul(C2).rotate_left(33).wrapping_mul(C1)
}

#[inline]
fn finish(mut word: u64) -> u64 {
    word ^= word >> 33;
    word = word.wrapping_mul(0xff51_afd7_ed55_8ccd);
    word ^= word >> 33;
    word = word.wrapping_mul(0xc4ce_b9fe_1a85_ec53);
    word ^ (word >> 33)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn unhex(text: &str) -> Vec<u8> {
        let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
        text.as_bytes().chunks(2).map(|pair| digit(pair[0]) << 4 | digit(pair[1])).collect()
    }

    #[test]
    fn hashes_equal_the_shared_vectors() {
        let vectors = include_str!("../../../tests/vectors/hash.txt");
        let mut count = 0;
        for line in vectors.lines().filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let fields: Vec<&str> = line.split(' ').collect();
            let [data, seed, hash, routing, partition] = fields[..] else {
                panic!("line {line:?}")
            };
            let data = if data == "-" { Vec::new() } else { unhex(data) };
            let seed: u32 = seed.parse().unwrap();
            assert_eq!(format!("{:016x}", hash64(&data, seed)), hash, "line {line:?}");
            let routing = if routing == "-" { Vec::new() } else { unhex(routing) };
            assert_eq!(crate::key::routing_key(&data), routing, "line {line:?}");
            let partition: u32 = partition.parse().unwrap();
            assert_eq!(crate::key::partition_of(&data, 1024), partition, "line {line:?}");
            count += 1;
        }
        assert!(count > 80, "only {count} vectors");
    }
}
