"""The face of the rules: `sniff` and `lengths`, for files of every kind and for bytes of none."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import Reader, cut, safetensors_bytes

from ckptfs.errors import SourceChanged
from ckptfs.model.boundaries import grid
from ckptfs.model.chunking import HEAD_BYTES, TARGET_CHUNK_BYTES, Container, lengths, sniff


def test_the_target_is_four_mebibytes() -> None:
    """Another value is another format."""
    assert TARGET_CHUNK_BYTES == 4 * 1024 * 1024


@pytest.mark.parametrize(
    "size",
    [
        1,
        HEAD_BYTES - 1,
        HEAD_BYTES,
        TARGET_CHUNK_BYTES - 1,
        TARGET_CHUNK_BYTES,
        TARGET_CHUNK_BYTES + 1,
        5 << 40,
    ],
)
def test_ordinary_files_lie_on_a_grid(size: int) -> None:
    reads = []

    def read(offset: int, length: int) -> bytes:
        reads.append((offset, length))
        return bytes(length)

    assert lengths(size, read) == grid(size)
    assert reads == [(0, min(size, HEAD_BYTES))]


def test_an_empty_file_has_no_chunks_and_is_not_read() -> None:
    assert lengths(0, Reader(b"")) == []


@pytest.mark.parametrize(
    ("head", "size", "container"),
    [
        (b"", 0, Container.PLAIN),
        (b"P", 1, Container.PLAIN),
        (b"PK\x03\x04", 4, Container.ZIP),
        (b"PK\x05\x06" + bytes(12), 22, Container.ZIP),
        (b"PK\x07\x08" + bytes(12), 22, Container.PLAIN),
        (b"GGUF" + bytes(12), 16, Container.GGUF),
        (b"\x08" + bytes(7) + b"{}      ", 16, Container.SAFETENSORS),
        (b"\x09" + bytes(7) + b"{}      ", 16, Container.PLAIN),
        (b"\x02" + bytes(7) + b"[]", 10, Container.PLAIN),
        (bytes(8), 8, Container.PLAIN),
        (bytes(16), 16, Container.PLAIN),
    ],
)
def test_sniff(head: bytes, size: int, container: Container) -> None:
    assert sniff(head, size) is container


def test_where_the_directory_lies() -> None:
    assert [c for c in Container if not c.directory_in_front] == [Container.ZIP]


def test_what_read_raises_passes_through() -> None:
    data = safetensors_bytes({"a": {"data_offsets": [0, 5]}}, b"12345")
    for fatal in range(3):
        reads = 0

        def read(offset: int, length: int, fatal: int = fatal) -> bytes:
            nonlocal reads
            reads += 1
            if reads > fatal:
                raise OSError("the source died")
            return data[offset : offset + length]

        with pytest.raises(OSError, match="the source died"):
            lengths(len(data), read)


@pytest.mark.parametrize("head", [b"GGUF\x03\0\0\0", b"PK\x03\x04", b"\x40" + bytes(7) + b"{}", b"plain"])
def test_a_file_that_is_shorter_than_its_size_is_an_error_and_not_another_cut(head: bytes) -> None:
    """Else the id would depend on when the file was cut short."""
    with pytest.raises(SourceChanged):
        lengths(1000, lambda offset, length: head[offset : offset + length])


MAGIC = st.sampled_from(
    [
        b"",
        b"PK\x03\x04",
        b"PK\x05\x06",
        b"GGUF",
        b"GGUF\x03\0\0\0",
        b"GGUF\0\0\0\x02",
        b"\x20\0\0\0\0\0\0\0{",
        b"{}",
    ]
)
PARTS = st.sampled_from(
    [
        b"PK\x01\x02",
        b"PK\x05\x06",
        b"PK\x06\x06",
        b"PK\x06\x07",
        b"\0\0\0\0",
        b"\xff\xff\xff\xff",
        b"\x01\0\0\0\0\0\0\0",
        b'"a":{"data_offsets":[0,9]}',
        b"}",
        b"general.alignment",
        bytes(18),
    ]
)


@given(MAGIC, st.lists(st.one_of(PARTS, st.binary(max_size=30)), max_size=12))
def test_no_bytes_whatever_raise(magic: bytes, parts: list[bytes]) -> None:
    cut(magic + b"".join(parts))


@given(st.binary(max_size=300))
def test_cutting_is_a_function_of_the_bytes(data: bytes) -> None:
    assert cut(data) == cut(data)
