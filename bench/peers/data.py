"""The same keys and values for every contender, in the same shuffled order."""

import random

KEY_BYTES = 16
VALUE_BYTES = 100


def keys(count: int, seed: int = 11) -> list[bytes]:
    """Return `count` keys of 16 bytes in a shuffled order that depends on the seed only."""
    made = [b"key-%012d" % number for number in range(count)]
    random.Random(seed).shuffle(made)
    return made


def value(key: bytes) -> bytes:
    """Return the value of a key: 100 bytes that name it."""
    return (key * 7)[:VALUE_BYTES]
