"""Key bytes and routing: the shared vectors, mmh3, and the limits."""

from pathlib import Path

import mmh3
import pytest
from spacegrid import _core

VECTORS = Path(__file__).parents[1] / "vectors" / "hash.txt"


def vectors() -> list[tuple[bytes, int, int, bytes, int]]:
    lines = [line.split() for line in VECTORS.read_text().splitlines() if line[:1] not in ("", "#")]
    return [
        (
            bytes.fromhex(data.strip("-")),
            int(seed),
            int(hashed, 16),
            bytes.fromhex(routing.strip("-")),
            int(partition),
        )
        for data, seed, hashed, routing, partition in lines
    ]


def test_core_and_mmh3_equal_the_shared_vectors() -> None:
    cases = vectors()
    assert {len(data) for data, *_ in cases} >= set(range(65))
    for data, seed, hashed, routing, partition in cases:
        assert _core.hash64(data, seed) == hashed
        assert mmh3.hash64(data, seed, signed=False)[0] == hashed
        assert _core.routing_key(data) == routing
        assert _core.partition_of(data, 1024) == partition
        assert mmh3.hash64(routing, 0, signed=False)[0] % 1024 == partition


@pytest.mark.parametrize(
    ("key", "encoded"),
    [
        ("tea", b"tea"),
        ("käse", "käse".encode()),
        (b"\x00\xff", b"\x00\xff"),
        (42, b"42"),
        (-7, b"-7"),
        (2**100, b"1267650600228229401496703205376"),
        (("tea", "c1"), b"\xc1\x03tea\x02c1"),
        (("536365", 17, b"\x00"), b"\xc1\x06536365\x0217\x01\x00"),
        (("a" * 200,), b"\xc1\xc8\x01" + b"a" * 200),
        (("",), b"\xc1\x00"),
    ],
)
def test_keys_encode_as_documented(
    key: str | bytes | int | tuple[str | bytes | int, ...], encoded: bytes
) -> None:
    assert _core.encode_key(key) == encoded


def test_tuple_keys_split_again() -> None:
    assert _core.split_key(_core.encode_key(("tea", 17, b"x"))) == [b"tea", b"17", b"x"]
    assert _core.split_key(b"tea") is None
    assert _core.split_key(b"\xc1\x09a") is None


def test_a_key_that_routes_whole_is_not_copied() -> None:
    key = b"plain-key"
    assert _core.routing_key(key) is key


@pytest.mark.parametrize(
    ("key", "error", "message"),
    [
        ("", ValueError, "the key is empty"),
        (b"", ValueError, "the key is empty"),
        ((), ValueError, "the tuple key is empty"),
        ("k" * 4097, ValueError, "the key's length in bytes is 4097, the limit is 4096"),
        (("k" * 4094,), ValueError, "the limit is 4096"),
        (("k",) * 33, ValueError, "number of parts is 33, the limit is 32"),
        (1.5, TypeError, "not float"),
        (True, TypeError, "not bool"),
        (None, TypeError, "not NoneType"),
        ((("a",),), TypeError, "not tuple"),
        ("\ud800", UnicodeEncodeError, "surrogates"),
    ],
)
def test_refused_keys_name_what_is_wrong(key: object, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        _core.encode_key(key)  # type: ignore[arg-type]


@pytest.mark.parametrize("count", [0, 65_536])
def test_partition_counts_have_bounds(count: int) -> None:
    with pytest.raises(ValueError, match=f"partition_count is {count}, it must be within 1 to"):
        _core.partition_of(b"key", count)
