//! One entry of a map: header, key and value in a single allocation behind an 8-byte pointer.
//!
//! The only module of the project with `unsafe`. A table of thin pointers costs 9 bytes a slot
//! where one of `(Box<[u8]>, Vec<u8>, u64, ...)` would cost 50, and an entry is found with two
//! cache misses (slot, entry).
//!
//! ```text
//! header 16: version u64 | value length u32 | key length u16 | flags u8 | codec u8
//! [expires at ms u64, only with FLAG_EXPIRES] | key | value
//! ```
//!
//! Invariant: the pointer is to a live allocation of exactly `layout(header)`, whose header, expiry
//! (when flagged), key and value bytes are all written. It is made in `Entry::new`, kept by
//! `overwrite` and the setters (which never change what the layout is computed from, except
//! `overwrite`, to an equal total), and ended in `Drop`. Callers: `table`.

use std::alloc::{Layout, alloc, dealloc, handle_alloc_error};
use std::ptr::NonNull;

use crate::limits::{KEY_BYTES_MAX, VALUE_BYTES_MAX};

const FLAG_EXPIRES: u8 = 1;
const FLAG_TOMBSTONE: u8 = 2;
const HEADER_BYTES: usize = size_of::<Header>();
const EXPIRY_BYTES: usize = 8;

#[repr(C)]
#[derive(Clone, Copy)]
struct Header {
    version: u64,
    value_len: u32,
    key_len: u16,
    flags: u8,
    codec: u8,
}

/// What an entry is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Content<'a> {
    /// The value; empty for a tombstone.
    pub value: &'a [u8],
    /// Codec tag of the value.
    pub codec: u8,
    /// Packed position of the record that wrote it.
    pub version: u64,
    /// Wall-clock milliseconds; 0 is never.
    pub expires_at_ms: u64,
    /// Deleted, and remembered only while a join runs.
    pub tombstone: bool,
}

/// An owned entry, one pointer wide.
pub struct Entry(NonNull<Header>);

// SAFETY: an Entry owns its allocation alone, like a Box<[u8]>; it holds no reference to anything
// else and has no interior mutability, so moving it to another thread moves all there is.
unsafe impl Send for Entry {}
// SAFETY: every method with &self only reads; every write needs &mut self. Sharing it is sharing
// bytes.
unsafe impl Sync for Entry {}

impl Entry {
    /// Makes an entry.
    ///
    /// # Panics
    /// When key or value is over its limit; callers have checked (a record's decoder does).
    pub fn new(key: &[u8], content: &Content<'_>) -> Self {
        assert!(
            key.len() <= KEY_BYTES_MAX && content.value.len() <= VALUE_BYTES_MAX,
            "entry over its limits"
        );
        let header = header_of(key.len(), content);
        let layout = layout(&header);
        // SAFETY: the layout is at least HEADER_BYTES long, so not zero-sized.
        let memory = unsafe { alloc(layout) };
        #[expect(clippy::cast_ptr_alignment, reason = "the layout's alignment is that of Header")]
        let Some(pointer) = NonNull::new(memory.cast::<Header>()) else {
            handle_alloc_error(layout)
        };
        let mut entry = Self(pointer);
        // SAFETY: `pointer` is to a fresh allocation of `layout(&header)` bytes aligned for Header.
        unsafe { pointer.write(header) };
        entry.write_expiry(content.expires_at_ms);
        // SAFETY: offset of the key plus key_len is within the layout by its definition; the source
        // is another allocation, borrowed for the call.
        unsafe {
            let start = entry.0.as_ptr().cast::<u8>().add(key_offset(header.flags));
            start.copy_from_nonoverlapping(key.as_ptr(), key.len());
        }
        entry.write_value(content.value);
        entry
    }

    /// Gives the entry other content in place, when that takes exactly as many bytes; says whether
    /// it did.
    pub fn overwrite(&mut self, content: &Content<'_>) -> bool {
        let old = self.header();
        let new = header_of(usize::from(old.key_len), content);
        let same_place =
            (old.flags ^ new.flags) & FLAG_EXPIRES == 0 && old.value_len == new.value_len;
        if !same_place {
            return false;
        }
        // SAFETY: the pointer is live (invariant), &mut self excludes every reader, and `new` has
        // the same lengths and the same expiry flag, so the layout computed from it is that of the
        // allocation.
        unsafe { self.0.write(new) };
        self.write_expiry(content.expires_at_ms);
        self.write_value(content.value);
        true
    }

    /// The key.
    #[inline]
    pub fn key(&self) -> &[u8] {
        let header = self.header();
        self.bytes(key_offset(header.flags), usize::from(header.key_len))
    }

    /// The value; empty for a tombstone.
    #[inline]
    pub fn value(&self) -> &[u8] {
        let header = self.header();
        let offset = key_offset(header.flags) + usize::from(header.key_len);
        self.bytes(offset, header.value_len as usize)
    }

    /// Everything but the key.
    #[inline]
    pub fn content(&self) -> Content<'_> {
        Content {
            value: self.value(),
            codec: self.header().codec,
            version: self.version(),
            expires_at_ms: self.expires_at_ms(),
            tombstone: self.is_tombstone(),
        }
    }

    /// Packed position of the record that wrote it.
    #[inline]
    pub fn version(&self) -> u64 {
        self.header().version
    }

    /// Is it deleted, and remembered only while a join runs?
    #[inline]
    pub fn is_tombstone(&self) -> bool {
        self.header().flags & FLAG_TOMBSTONE != 0
    }

    /// Wall-clock milliseconds; 0 is never.
    #[inline]
    pub fn expires_at_ms(&self) -> u64 {
        if self.header().flags & FLAG_EXPIRES == 0 {
            return 0;
        }
        let mut bytes = [0; EXPIRY_BYTES];
        bytes.copy_from_slice(self.bytes(HEADER_BYTES, EXPIRY_BYTES));
        u64::from_ne_bytes(bytes)
    }

    /// Bytes of memory it takes, as the allocator rounds them.
    pub fn allocated_bytes(&self) -> usize {
        allocation_bytes(layout(&self.header()).size())
    }

    #[inline]
    fn header(&self) -> Header {
        // SAFETY: the pointer is to a live, aligned and written Header (invariant); Header is Copy.
        unsafe { self.0.read() }
    }

    #[inline]
    fn bytes(&self, offset: usize, length: usize) -> &[u8] {
        // SAFETY: callers pass ranges of the layout that `new` has written (expiry, key or value);
        // they stay live and unwritten for as long as &self is borrowed.
        unsafe { std::slice::from_raw_parts(self.0.as_ptr().cast::<u8>().add(offset), length) }
    }

    fn write_expiry(&mut self, expires_at_ms: u64) {
        if self.header().flags & FLAG_EXPIRES != 0 {
            let bytes = expires_at_ms.to_ne_bytes();
            // SAFETY: with the flag set the layout has these 8 bytes behind the header; &mut self
            // is exclusive.
            unsafe {
                let start = self.0.as_ptr().cast::<u8>().add(HEADER_BYTES);
                start.copy_from_nonoverlapping(bytes.as_ptr(), EXPIRY_BYTES);
            }
        }
    }

    fn write_value(&mut self, value: &[u8]) {
        let header = self.header();
        assert_eq!(header.value_len as usize, value.len());
        let offset = key_offset(header.flags) + usize::from(header.key_len);
        // SAFETY: the value's range is the last of the layout and as long as `value` (asserted);
        // &mut self is exclusive, and `value` is borrowed from elsewhere, since a borrow of this
        // entry would exclude &mut self.
        unsafe {
            let start = self.0.as_ptr().cast::<u8>().add(offset);
            start.copy_from_nonoverlapping(value.as_ptr(), value.len());
        }
    }
}

impl Drop for Entry {
    fn drop(&mut self) {
        let layout = layout(&self.header());
        // SAFETY: allocated in `new` with this very layout (invariant), and nobody uses it after
        // drop.
        unsafe { dealloc(self.0.as_ptr().cast::<u8>(), layout) };
    }
}

/// Bytes of memory an entry of these sizes takes, as the allocator rounds them.
pub fn entry_bytes(key_len: usize, value_len: usize, expires: bool) -> usize {
    let expiry = if expires { EXPIRY_BYTES } else { 0 };
    allocation_bytes(HEADER_BYTES + expiry + key_len + value_len)
}

/// What the C allocator takes for a request: 8 bytes in front, multiples of 16, at least 32.
pub const fn allocation_bytes(size: usize) -> usize {
    let rounded = (size + 8 + 15) & !15;
    if rounded < 32 { 32 } else { rounded }
}

fn header_of(key_len: usize, content: &Content<'_>) -> Header {
    let mut flags = 0;
    if content.expires_at_ms != 0 {
        flags |= FLAG_EXPIRES;
    }
    if content.tombstone {
        flags |= FLAG_TOMBSTONE;
    }
    Header {
        version: content.version,
        value_len: content.value.len() as u32,
        key_len: key_len as u16,
        flags,
        codec: content.codec,
    }
}

#[inline]
const fn key_offset(flags: u8) -> usize {
    if flags & FLAG_EXPIRES == 0 { HEADER_BYTES } else { HEADER_BYTES + EXPIRY_BYTES }
}

fn layout(header: &Header) -> Layout {
    let size = key_offset(header.flags) + usize::from(header.key_len) + header.value_len as usize;
    // Key and value are below 2 MiB together, so this cannot overflow; the size is never 0.
    Layout::from_size_align(size, align_of::<Header>()).expect("an entry's layout is small")
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn content(value: &[u8], expires_at_ms: u64) -> Content<'_> {
        Content { value, codec: 1, version: 7, expires_at_ms, tombstone: false }
    }

    #[test]
    fn an_entry_is_one_pointer_and_its_option_too() {
        assert_eq!(size_of::<Entry>(), 8);
        assert_eq!(size_of::<Option<Entry>>(), 8);
        assert_eq!(HEADER_BYTES, 16);
    }

    #[test]
    fn empty_values_and_largest_sizes_hold() {
        let entry = Entry::new(b"k", &content(b"", 0));
        assert_eq!((entry.key(), entry.value(), entry.expires_at_ms()), (&b"k"[..], &b""[..], 0));
        let (key, value) = (vec![1; KEY_BYTES_MAX], vec![2; VALUE_BYTES_MAX]);
        let entry = Entry::new(&key, &content(&value, u64::MAX));
        assert_eq!(
            (entry.key(), entry.value(), entry.expires_at_ms()),
            (&key[..], &value[..], u64::MAX)
        );
    }

    #[test]
    #[should_panic(expected = "entry over its limits")]
    fn a_key_over_its_limit_is_refused_before_it_is_copied() {
        drop(Entry::new(&vec![1; KEY_BYTES_MAX + 1], &content(b"", 0)));
    }

    #[test]
    fn overwriting_needs_the_same_size() {
        let mut entry = Entry::new(b"key", &content(b"four", 5));
        assert!(!entry.overwrite(&content(b"five5", 5)));
        assert!(!entry.overwrite(&content(b"nine", 0)), "losing the expiry moves the key");
        assert_eq!(entry.content(), content(b"four", 5), "refused, unchanged");
        assert!(entry.overwrite(&Content { version: 8, ..content(b"nine", 6) }));
        assert_eq!(
            (entry.key(), entry.content()),
            (&b"key"[..], Content { version: 8, ..content(b"nine", 6) })
        );
    }

    #[test]
    fn entries_cross_threads() {
        fn crosses<T: Send + Sync>(_: &T) {}
        crosses(&Entry::new(b"k", &content(b"v", 0)));
    }

    proptest! {
        #[test]
        fn content_round_trips(
            key in prop::collection::vec(any::<u8>(), 0..100),
            value in prop::collection::vec(any::<u8>(), 0..300),
            other in prop::collection::vec(any::<u8>(), 0..300),
            version: u64, codec: u8, tombstone: bool,
            expires_at_ms in prop_oneof![Just(0), any::<u64>()],
        ) {
            let first = Content { value: &value, codec, version, expires_at_ms, tombstone };
            let mut entry = Entry::new(&key, &first);
            prop_assert_eq!((entry.key(), entry.content()), (&key[..], first));
            let bytes = entry_bytes(key.len(), value.len(), expires_at_ms != 0);
            prop_assert_eq!(entry.allocated_bytes(), bytes);
            let second = Content { value: &other, codec: !codec, ..first };
            let taken = entry.overwrite(&second);
            prop_assert_eq!(taken, other.len() == value.len());
            let now = if taken { second } else { first };
            prop_assert_eq!((entry.key(), entry.content()), (&key[..], now));
        }
    }
}
