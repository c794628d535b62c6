from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.errors import SpecificationError
from ckptfs.model.digest import digest, fingerprint, is_zero, parse_text_id, text_id, zero_digest


def test_digest_is_blake3() -> None:
    # the first vector of the BLAKE3 test vectors: no input
    assert digest(b"").hex() == "af1349b9f5f9a1a6a0404dea36dcc9499bcb25c9adc112b7cc9a93cae41f3262"


def test_fingerprint_is_xxh3_64() -> None:
    # the value that the xxHash sources give for no input and seed 0
    assert fingerprint(b"") == 0x2D06800538D394C2


def test_all_kinds_of_buffers_agree() -> None:
    data = bytes(range(256)) * 300
    for same in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:]):
        assert digest(same) == digest(data)
        assert fingerprint(same) == fingerprint(data)


def test_text_id_and_back() -> None:
    raw = digest(b"x")
    assert text_id(raw) == "b3:" + raw.hex()
    assert parse_text_id(text_id(raw)) == raw


@pytest.mark.parametrize(
    "text", ["", "b3:", "b3:12", "12" * 32, "b3:" + "zz" * 32, "b3:" + "1 " * 32, "B3:" + "12" * 32]
)
def test_what_is_no_id_is_refused(text: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        parse_text_id(text)
    assert caught.value.attribute == "id"


def test_text_id_of_half_a_digest() -> None:
    with pytest.raises(ValueError, match="32 bytes"):
        text_id(b"12")


@pytest.mark.parametrize("length", [0, 1, 65535, 65536, 65537, 1 << 20, (4 << 20) + 3])
def test_zero_digest(length: int) -> None:
    assert zero_digest(length) == digest(bytes(length))
    assert is_zero(memoryview(bytes(length)))


@given(st.integers(1, 200_000), st.data())
def test_one_byte_that_is_not_zero_is_seen_anywhere(length: int, data: st.DataObject) -> None:
    buffer = bytearray(length)
    buffer[data.draw(st.integers(0, length - 1))] = data.draw(st.integers(1, 255))
    assert not is_zero(memoryview(buffer))
