from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import SpecificationError
from ckptfs.model.sizes import format_bytes, format_duration, parse_bytes


@pytest.mark.parametrize(
    ("size", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (1049, "1.0 kB"),
        (1050, "1.1 kB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (16_060_522_496, "16.1 GB"),
        (500 * 10**9, "500.0 GB"),
        (10**21, "1000.0 EB"),
        (-1500, "-1.5 kB"),
    ],
)
def test_format_bytes(size: int, text: str) -> None:
    assert format_bytes(size) == text


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("0", 0),
        (4096, 4096),
        ("4096", 4096),
        ("500GB", 500 * 10**9),
        ("500 gb", 500 * 10**9),
        ("1.5GiB", 3 << 29),
        (" 2 MiB ", 2 << 20),
        ("0.1kB", 100),
        ("1k", 1000),
        ("2T", 2 * 10**12),
        ("7b", 7),
        ("9223372036854775807", 2**63 - 1),
    ],
)
def test_parse_bytes(text: str | int, size: int) -> None:
    assert parse_bytes(text) == size


@pytest.mark.parametrize(
    "text",
    [
        "",
        "GB",
        "-1",
        "-1GB",
        -1,
        "1e9",
        "1,5GB",
        "1.GB",
        "1 G B",
        "5 parsecs",
        "8EiB",
        2**63,
        True,
        None,
        "٣GB",
        "9" * 5000,
    ],
)
def test_what_is_no_size(text: object) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_bytes(text, attribute="limits.max_bytes")  # type: ignore[arg-type]
    assert caught.value.attribute == "limits.max_bytes"


@given(st.integers(0, 2**63 - 1))
def test_what_is_shown_can_be_read_and_is_off_by_less_than_the_last_digit(size: int) -> None:
    read = parse_bytes(format_bytes(size)) if size < 9 * 10**18 else size
    assert abs(read - size) <= max(size, 1) // 10


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0.0 s"),
        (0.26, "0.3 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min"),
        (185, "3 min 5 s"),
        (3599.7, "1 h"),
        (7380, "2 h 3 min"),
        (86400, "1 d"),
        (3 * 86400 + 4 * 3600 + 59, "3 d 4 h"),
        (-5, "-5.0 s"),
    ],
)
def test_format_duration(seconds: float, text: str) -> None:
    assert format_duration(seconds) == text
