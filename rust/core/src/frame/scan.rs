//! The value of a scan's reply: a page of entries and where to go on.

use super::Reader;
use super::request::{CODEC_MSGPACK, CURSOR_BYTES_MAX};
use super::require;
use crate::error::{CoreError, Result};
use crate::limits::{FRAME_BYTES_MAX, KEY_BYTES_MAX, VALUE_BYTES_MAX, check_size};

/// Bytes of an entry before its key.
const ENTRY_BYTES: usize = 16;
/// A page is closed once it has this many bytes, so that it still travels in an ordinary frame.
pub const PAGE_BYTES_MAX: usize = FRAME_BYTES_MAX - 2 * CURSOR_BYTES_MAX;

/// One entry of a page.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PageEntry<'a> {
    /// The key.
    pub key: &'a [u8],
    /// The value.
    pub value: &'a [u8],
    /// How the value is encoded.
    pub codec: u8,
    /// The entry's version.
    pub version: u64,
}

/// Collects a page.
#[derive(Debug)]
pub struct PageBuilder {
    bytes: Vec<u8>,
    count: u32,
}

impl Default for PageBuilder {
    fn default() -> Self {
        Self { bytes: vec![0; 4], count: 0 }
    }
}

impl PageBuilder {
    /// An empty page.
    pub fn new() -> Self {
        Self::default()
    }

    /// Appends an entry. False, and not appended, when the page is full; the first entry always
    /// fits.
    pub fn push(&mut self, entry: &PageEntry<'_>) -> bool {
        let grown = ENTRY_BYTES + entry.key.len() + entry.value.len();
        if self.count > 0 && self.bytes.len() + grown > PAGE_BYTES_MAX {
            return false;
        }
        self.bytes.extend_from_slice(&(entry.key.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(&[entry.codec, 0]);
        self.bytes.extend_from_slice(&(entry.value.len() as u32).to_le_bytes());
        self.bytes.extend_from_slice(&entry.version.to_le_bytes());
        self.bytes.extend_from_slice(entry.key);
        self.bytes.extend_from_slice(entry.value);
        self.count += 1;
        true
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The page's bytes. `next` is the cursor to go on from, empty when this was the last page.
    ///
    /// # Panics
    /// When the cursor is longer than [`CURSOR_BYTES_MAX`].
    pub fn finish(mut self, next: &[u8]) -> Vec<u8> {
        assert!(next.len() <= CURSOR_BYTES_MAX, "a cursor is a hash and a key");
        self.bytes[..4].copy_from_slice(&self.count.to_le_bytes());
        self.bytes.extend_from_slice(&(next.len() as u16).to_le_bytes());
        self.bytes.extend_from_slice(next);
        self.bytes
    }
}

/// A page, checked from end to end.
#[derive(Debug, Clone, Copy)]
pub struct Page<'a> {
    entries: &'a [u8],
    count: u32,
    /// Where to go on; empty when this was the last page.
    pub next: &'a [u8],
}

impl<'a> Page<'a> {
    /// Checks the whole of a scan reply's value. Allocates nothing.
    pub fn decode(bytes: &'a [u8]) -> Result<Self> {
        let mut reader = Reader::new(bytes);
        let count = reader.u32("the page's count")?;
        let entries = reader;
        for _ in 0..count {
            read_entry(&mut reader)?;
        }
        let used = entries.remaining() - reader.remaining();
        let length = usize::from(reader.u16("the cursor's length")?);
        check_size("the cursor's length in bytes", length, CURSOR_BYTES_MAX)?;
        let next = reader.take("the cursor", length)?;
        reader.end("the page")?;
        let mut entries = entries;
        Ok(Self { entries: entries.take("the page", used)?, count, next })
    }

    /// How many entries it holds.
    pub fn len(&self) -> usize {
        self.count as usize
    }

    /// Whether it holds none.
    pub fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The entries.
    pub fn entries(&self) -> impl Iterator<Item = PageEntry<'a>> + use<'a> {
        let mut reader = Reader::new(self.entries);
        // Read to its end when it was decoded; the same bytes read the same again.
        (0..self.count).map_while(move |_| read_entry(&mut reader).ok())
    }
}

fn read_entry<'a>(reader: &mut Reader<'a>) -> Result<PageEntry<'a>> {
    let key_length = usize::from(reader.u16("a key's length")?);
    let codec = reader.u8("a codec")?;
    require(codec <= CODEC_MSGPACK, "a codec", u64::from(codec))?;
    let reserved = reader.u8("an entry's reserved byte")?;
    require(reserved == 0, "an entry's reserved byte", u64::from(reserved))?;
    let value_length = reader.u32("a value's length")? as usize;
    let version = reader.u64("a version")?;
    if key_length == 0 {
        return Err(CoreError::Empty { what: "the key" });
    }
    check_size("the key's length in bytes", key_length, KEY_BYTES_MAX)?;
    check_size("the value's length in bytes", value_length, VALUE_BYTES_MAX)?;
    let key = reader.take("a key", key_length)?;
    let value = reader.take("a value", value_length)?;
    Ok(PageEntry { key, value, codec, version })
}
