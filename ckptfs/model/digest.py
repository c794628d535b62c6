"""Identity and fingerprint of bytes.

A digest (BLAKE3-256, 32 raw bytes) is the identity of a chunk and of a manifest. A fingerprint (xxh3,
64 bits) finds rot at memory speed and is never an identity: inputs that collide can be made at will.
"""

from __future__ import annotations

from functools import lru_cache

from blake3 import blake3
from xxhash import xxh3_64_intdigest

from ckptfs.errors import SpecificationError

DIGEST_BYTES = 32

#: The text form says which digest it is, so that another one may come some day.
TEXT_PREFIX = "b3:"

Bytes = bytes | bytearray | memoryview

# `bytearray == buffer`, in this order, is one memcmp; a memoryview on the left compares element by
# element and took 28 times as long. 64 KiB stays in the second-level cache.
_ZEROS = bytearray(64 * 1024)


def digest(data: Bytes) -> bytes:
    """The 32-byte BLAKE3-256 of the data. Large inputs release the GIL."""
    return blake3(data).digest()


def fingerprint(data: Bytes) -> int:
    """The xxh3_64 of the data, an unsigned 64-bit number."""
    return xxh3_64_intdigest(data)


def text_id(digest: bytes) -> str:
    """A digest as people and JSON see it: ``b3:`` and 64 hexadecimal digits."""
    if len(digest) != DIGEST_BYTES:
        raise ValueError(f"a digest has {DIGEST_BYTES} bytes, this has {len(digest)}")
    return TEXT_PREFIX + digest.hex()


def parse_text_id(text: str) -> bytes:
    """The digest that a full text id stands for; SpecificationError when it is none."""
    digits = text.removeprefix(TEXT_PREFIX)
    try:
        value = bytes.fromhex(digits)
    except ValueError:
        value = b""
    # fromhex skips blanks, so the count of digits is checked too
    if not text.startswith(TEXT_PREFIX) or len(digits) != 2 * DIGEST_BYTES or len(value) != DIGEST_BYTES:
        raise SpecificationError(
            "id", f"{text!r} is not an id: it must be {TEXT_PREFIX} and {2 * DIGEST_BYTES} hexadecimal digits"
        )
    return value


@lru_cache(maxsize=1024)
def zero_digest(length_bytes: int) -> bytes:
    """The digest of so many zero bytes."""
    hasher = blake3()
    view = memoryview(_ZEROS)
    for start in range(0, length_bytes, len(view)):
        hasher.update(view[: length_bytes - start])
    return hasher.digest()


def is_zero(data: Bytes) -> bool:
    """Whether all bytes are zero (an empty buffer is). Costs nothing when the first byte is not."""
    if len(data) == 0:
        return True
    view = memoryview(data)
    # Most chunks that are not zero show it in a few places at once.
    if view[0] or view[-1] or view[len(view) // 2]:
        return False
    step = len(_ZEROS)
    whole = len(view) - len(view) % step
    for start in range(0, whole, step):
        if not (_ZEROS == view[start : start + step]):  # noqa: SIM201, SIM300
            return False
    return whole == len(view) or bytearray(len(view) - whole) == view[whole:]
