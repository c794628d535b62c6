"""Real safetensors files are cut at their tensors; what lies is an ordinary file."""

from __future__ import annotations

import json
import random
import tracemalloc

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import Reader, cut, model, random_array, safetensors_bytes, starts
from safetensors.numpy import save

from ckptfs.model.boundaries import SMALL_TENSOR_BYTES, grid
from ckptfs.model.chunking import HEAD_BYTES, Container, lengths, sniff
from ckptfs.model.prefix import DIRECTORY_LIMIT_BYTES, SEGMENTS_LIMIT

BODY = random.Random(1).randbytes(100_000)


def offsets(data: bytes) -> dict[str, tuple[int, int]]:
    """Where the tensors lie, read by other means than ours."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    return {
        k: (8 + length + v["data_offsets"][0], 8 + length + v["data_offsets"][1]) for k, v in header.items()
    }


def test_a_real_file_is_cut_at_every_large_tensor() -> None:
    data = save(model(), metadata={"format": "pt"})
    borders = starts(data)
    large = [(a, b) for a, b in offsets(data).values() if b - a >= SMALL_TENSOR_BYTES]
    assert len(large) > 20
    for begin, end in large:
        assert {begin, end} <= borders
    assert 8 + int.from_bytes(data[:8], "little") in borders


def test_only_the_header_is_read() -> None:
    data = save(model())
    reader = Reader(data)
    lengths(len(data), reader)
    header_end = 8 + int.from_bytes(data[:8], "little")
    assert max(offset + length for offset, length in reader.reads) <= max(header_end, HEAD_BYTES)


def test_tensors_of_no_bytes_and_scalars() -> None:
    tensors = {
        "none": numpy.zeros((0, 5), numpy.float32),
        "one": numpy.array(3, numpy.float32),
        "x": random_array(1, 9000),
    }
    data = save(tensors)
    assert set(offsets(data)["x"]) <= starts(data)


def test_a_file_without_tensors() -> None:
    data = save({}, metadata={"a": "b"})
    assert cut(data) == [len(data)]


def test_metadata_may_hold_anything_that_looks_like_a_tensor() -> None:
    plain = {"x": {"dtype": "U8", "shape": [100_000], "data_offsets": [0, 100_000]}}
    for metadata in (
        {"data_offsets": "no"},
        {"a": '{"data_offsets": [1, 2], "b": "[[[[[[[[[[[[[[[["}'},
        {"é": "ü\\"},
    ):
        data = safetensors_bytes(plain | {"__metadata__": metadata}, BODY)
        assert len(data) - 100_000 in starts(data)


def entry(begin: object, end: object) -> dict[str, object]:
    return {"dtype": "U8", "shape": [1], "data_offsets": [begin, end]}


HONEST = {"a": entry(0, 40_000), "b": entry(40_000, 100_000)}

LIES: dict[str, dict[str, object]] = {
    "past the end": {"a": entry(0, 100_001)},
    "short of the end": {"a": entry(0, 99_999)},
    "no tensors at all": {},
    "a hole": {"a": entry(0, 40_000), "b": entry(40_001, 100_000)},
    "an overlap": {"a": entry(0, 40_001), "b": entry(40_000, 100_000)},
    "twice the same": {"a": entry(0, 100_000), "b": entry(0, 100_000)},
    "backwards": {"a": entry(100_000, 0)},
    "negative": {"a": entry(-5, 100_000)},
    "huge": {"a": entry(0, 10**30)},
    "a fraction": {"a": entry(0, 100_000.0)},
    "text": {"a": entry("0", 100_000)},
    "null": {"a": {"data_offsets": None}},
    "one offset": {"a": {"data_offsets": [100_000]}},
    "three offsets": {"a": {"data_offsets": [0, 1, 100_000]}},
    "text for offsets": {"a": {"data_offsets": "0,1"}},
    "no offsets": HONEST | {"c": {"dtype": "U8"}},
    "a number for a tensor": HONEST | {"c": 5},
    "a list for a tensor": HONEST | {"c": [1]},
    "deep": HONEST | {"__metadata__": json.loads("[" * 60 + "]" * 60)},
    "metadata that are no object": HONEST | {"__metadata__": "x"},
}


def test_the_honest_header_of_these_tests_is_cut() -> None:
    data = safetensors_bytes(HONEST, BODY)
    start = len(data) - 100_000
    assert cut(data) == [start, 40_000, 60_000]


@pytest.mark.parametrize("entries", LIES.values(), ids=LIES)
def test_a_header_that_lies_makes_an_ordinary_file(entries: dict[str, object]) -> None:
    data = safetensors_bytes(entries, BODY)
    assert sniff(data[:HEAD_BYTES], len(data)) is Container.SAFETENSORS
    assert cut(data) == grid(len(data))


TEXTS = {
    "not JSON": b'{"a": }',
    "cut short": b'{"a": {"data_offsets": [0, 10',
    "not UTF-8": b'{"a": {"dtype": "\xff", "data_offsets": [0, 100000]}}',
    "a second value": b'{"a": {"data_offsets": [0, 100000]}} {}',
    "a lone surrogate": b'{"\\ud800": {"data_offsets": [0, 100000]}}',
    "deeper than any parser goes": b'{"a": {"x": '
    + b"[" * 500_000
    + b"]" * 500_000
    + b', "data_offsets": [0, 100000]}}',
    "an endless number": b'{"a": {"data_offsets": [0, ' + b"1" * 10_000 + b"]}}",
    "nothing but an opening": b"{",
    "an open string": b'{"' + b"[" * 1000,
}


@pytest.mark.parametrize("header", TEXTS.values(), ids=TEXTS)
def test_a_header_that_is_no_text_makes_an_ordinary_file(header: bytes) -> None:
    data = safetensors_bytes({}, BODY, header=header)
    assert cut(data) == grid(len(data))


def test_padding_behind_the_header_is_allowed() -> None:
    data = safetensors_bytes({}, BODY, header=json.dumps(HONEST).encode() + b"     ")
    assert cut(data)[1:] == [40_000, 60_000]


def test_eight_levels_are_allowed_and_nine_are_not() -> None:
    for extra, same in ((6, True), (7, False)):
        nested = '{"x": %s, "data_offsets": [0, 100000]}' % ("[" * extra + "]" * extra)
        data = safetensors_bytes({}, BODY, header=f'{{"a": {nested}}}'.encode())
        assert (cut(data) != grid(len(data))) is same


@pytest.mark.parametrize("length", [0, 1, 99, DIRECTORY_LIMIT_BYTES + 1, 2**63, 2**64 - 1])
def test_a_length_that_lies(length: int) -> None:
    data = length.to_bytes(8, "little") + b"{" + BODY
    assert cut(data) == grid(len(data))


def test_a_truncated_download_is_an_ordinary_file() -> None:
    data = safetensors_bytes(HONEST, BODY)
    for size in (8, 9, 100, len(data) - 1):
        assert cut(data[:size]) == grid(size)


HOSTILE = {
    "braces": b'{"a":{}' + b',"b":{}' * 4_000_000 + b"}",
    "brackets": b"{" + b"[" * (DIRECTORY_LIMIT_BYTES - 1),
    "pairs": b"{" + b"[]" * (DIRECTORY_LIMIT_BYTES // 2 - 1),
    "quotes": b"{" + b'"' * (DIRECTORY_LIMIT_BYTES - 1),
    "backslashes": b'{"' + b"\\" * (DIRECTORY_LIMIT_BYTES - 2),
    "tensors": b"{" + b",".join(b'"%d":{"data_offsets":[0,0]}' % i for i in range(SEGMENTS_LIMIT - 1)) + b"}",
}


@pytest.mark.parametrize("header", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_header_takes_bounded_memory(header: bytes) -> None:
    data = safetensors_bytes({}, b"", header=header)
    view = memoryview(data)
    tracemalloc.start()
    try:
        result = lengths(len(data), lambda offset, length: bytes(view[offset : offset + length]))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert sum(result) == len(data)
    assert peak < 5 * DIRECTORY_LIMIT_BYTES


@given(
    st.dictionaries(
        st.text(max_size=3), st.tuples(st.integers(-2, 60_000), st.integers(-2, 60_000)), max_size=4
    ),
    st.integers(0, 60_000),
)
def test_any_offsets_give_chunks_that_add_up(spans: dict[str, tuple[int, int]], size: int) -> None:
    cut(safetensors_bytes({k: {"data_offsets": list(v)} for k, v in spans.items()}, bytes(size)))
