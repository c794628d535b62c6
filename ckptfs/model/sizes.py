"""Bytes and durations as people write and read them. Sizes shown are decimal: 1 kB is 1000 bytes."""

from __future__ import annotations

import re
from fractions import Fraction

from ckptfs.errors import SpecificationError

_DECIMAL = ("B", "kB", "MB", "GB", "TB", "PB", "EB")
_BINARY = ("KiB", "MiB", "GiB", "TiB", "PiB", "EiB")

_FACTORS = {"": 1} | {unit.lower(): 1000**power for power, unit in enumerate(_DECIMAL)}
_FACTORS |= {unit.lower(): 1024**power for power, unit in enumerate(_BINARY, 1)}
# a bare letter is what a shell user types: K M G T P E, decimal as everything here
_FACTORS |= {unit[0].lower(): 1000**power for power, unit in enumerate(_DECIMAL) if power}

_SIZE = re.compile(r"\s*(\d{1,20}(?:\.\d{1,20})?)\s*([A-Za-z]*)\s*", re.ASCII)

#: What a file offset can hold.
_LARGEST = 2**63 - 1


def format_bytes(size_bytes: int) -> str:
    """``999 B``, ``1.0 kB``, ``16.1 GB``: one decimal, rounded, in decimal units."""
    if size_bytes < 0:
        return "-" + format_bytes(-size_bytes)
    if size_bytes < 1000:
        return f"{size_bytes} B"
    # 999,950 is 1.0 MB, not 1000.0 kB: integers, so that no rounding happens twice
    for power, unit in enumerate(_DECIMAL[1:], 1):
        tenths = (size_bytes * 10 + 1000**power // 2) // 1000**power
        if tenths < 10_000 or unit == _DECIMAL[-1]:
            return f"{tenths // 10}.{tenths % 10} {unit}"
    raise AssertionError("the last unit takes everything")


def parse_bytes(text: str | int, *, attribute: str = "size") -> int:
    """``500GB``, ``1.5GiB``, ``4096``: a number of bytes; SpecificationError when it is none.

    Fractions of a byte are cut off. ``attribute`` names the setting in the error.
    """
    size = -1
    if isinstance(text, int) and not isinstance(text, bool):
        size = text
    elif isinstance(text, str):
        found = _SIZE.fullmatch(text)
        if found and found[2].lower() in _FACTORS:
            size = int(Fraction(found[1]) * _FACTORS[found[2].lower()])
    if not 0 <= size <= _LARGEST:
        raise SpecificationError(attribute, f"{text!r} is not a size: write a number and a unit, as in 500GB")
    return size


def format_duration(seconds: float) -> str:
    """``0.3 s``, ``42 s``, ``3 min 5 s``, ``2 h 3 min``, ``3 d 4 h``: two units at most."""
    if seconds < 0:
        return "-" + format_duration(-seconds)
    if seconds < 9.95:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for above, name, below, short in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= above:
            major, rest = divmod(whole, above)
            minor = rest // below
            return f"{major} {name} {minor} {short}" if minor else f"{major} {name}"
    return f"{whole} s"
