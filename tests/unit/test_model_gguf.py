"""Files that the real gguf package writes are cut at their tensors; what lies is an ordinary file."""

from __future__ import annotations

import random
import struct
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from model_files import Reader, cut, found_bytes, random_array, starts

from ckptfs.model.boundaries import SMALL_TENSOR_BYTES, grid
from ckptfs.model.chunking import HEAD_BYTES, Container, lengths, sniff
from ckptfs.model.prefix import DIRECTORY_LIMIT_BYTES

BODY = random.Random(1).randbytes(100_000)


def string(text: bytes, order: str = "<") -> bytes:
    return struct.pack(order + "Q", len(text)) + text


def tensor(name: bytes, offset: int, *, dimensions: tuple[int, ...] = (10,), order: str = "<") -> bytes:
    shape = struct.pack(f"{order}I{len(dimensions)}Q", len(dimensions), *dimensions)
    return string(name, order) + shape + struct.pack(order + "IQ", 0, offset)


def pair(key: bytes, kind: int, value: bytes, order: str = "<") -> bytes:
    return string(key, order) + struct.pack(order + "I", kind) + value


def gguf_bytes(
    tensors: list[bytes],
    pairs: list[bytes],
    *,
    version: int = 3,
    alignment: int = 32,
    order: str = "<",
    counts: tuple[int, int] | None = None,
) -> bytes:
    numbers = counts or (len(tensors), len(pairs))
    head = b"GGUF" + struct.pack(order + "IQQ", version, *numbers) + b"".join(pairs + tensors)
    return head + bytes(-len(head) % alignment) + BODY


def real_file(path: str, *, extra_key: bool = False) -> tuple[bytes, dict[str, tuple[int, int]]]:
    """A model as llama.cpp's converter writes it, and where its tensors lie by the gguf package's reader."""
    gguf = pytest.importorskip("gguf", reason="the gguf package makes the files of these tests")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_block_count(4)
    writer.add_string("general.description", "longer " * 500 if extra_key else "short")
    writer.add_array("some.floats", [0.5, 1.5, 2.5])
    writer.add_token_list([f"token {i}" for i in range(20_000)])
    writer.add_token_scores([float(i) for i in range(20_000)])
    writer.add_bool("some.flag", True)
    writer.add_tensor("token_embd.weight", random_array(1, 3000, 512))
    for i in range(4):
        writer.add_tensor(f"blk.{i}.attn_norm.weight", random_array(10 * i + 2, 515))
        writer.add_tensor(f"blk.{i}.ffn_up.weight", random_array(10 * i + 3, 777, 512))
        writer.add_tensor(f"blk.{i}.odd", random_array(10 * i + 4, 777, 13))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    with open(path, "rb") as file:
        data = file.read()
    reader = gguf.GGUFReader(path)
    return data, {t.name: (int(t.data_offset), int(t.data_offset) + int(t.n_bytes)) for t in reader.tensors}


def test_a_real_file_is_cut_at_every_large_tensor(tmp_path: object) -> None:
    data, places = real_file(f"{tmp_path}/m.gguf")
    assert sniff(data[:HEAD_BYTES], len(data)) is Container.GGUF
    borders = starts(data)
    assert min(begin for begin, _ in places.values()) in borders  # the end of the header
    large = {name: place for name, place in places.items() if place[1] - place[0] >= SMALL_TENSOR_BYTES}
    assert len(large) == 9
    for begin, end in large.values():
        assert begin in borders
        assert end + -end % 32 in borders


def test_a_longer_header_costs_nothing_but_itself(tmp_path: object) -> None:
    before, places = real_file(f"{tmp_path}/a.gguf")
    after, _ = real_file(f"{tmp_path}/b.gguf", extra_key=True)
    equal = sum(end - begin for begin, end in places.values())
    assert len(after) > len(before)
    assert found_bytes([before], [after]) >= 0.98 * equal


def test_only_a_prefix_is_read_in_ascending_order(tmp_path: object) -> None:
    data, places = real_file(f"{tmp_path}/m.gguf")
    reader = Reader(data)
    lengths(len(data), reader)
    header_end = min(begin for begin, _ in places.values())
    ends = [offset + length for offset, length in reader.reads]
    assert ends == sorted(ends)
    assert ends[-1] < header_end + (1 << 20) + 1


def test_all_types_of_values_are_stepped_over() -> None:
    scalars = {0: 1, 1: 1, 2: 2, 3: 2, 4: 4, 5: 4, 6: 4, 7: 1, 10: 8, 11: 8, 12: 8}
    pairs = [pair(b"k%d" % kind, kind, bytes(width)) for kind, width in scalars.items()]
    pairs += [
        pair(b"a%d" % kind, 9, struct.pack("<IQ", kind, 7) + bytes(7 * width))
        for kind, width in scalars.items()
    ]
    pairs.append(pair(b"text", 8, string(b"value")))
    pairs.append(pair(b"texts", 9, struct.pack("<IQ", 8, 2) + string(b"a") + string(b"bc")))
    data = gguf_bytes([tensor(b"a", 0), tensor(b"b", 32_000)], pairs)
    assert cut(data) == [len(data) - 100_000, 32_000, 68_000]


@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize("version", [2, 3])
def test_both_versions_and_byte_orders(order: str, version: int) -> None:
    tensors = [tensor(b"a", 0, order=order), tensor(b"b", 32_000, order=order)]
    pairs = [pair(b"general.alignment", 4, struct.pack(order + "I", 64), order)]
    data = gguf_bytes(tensors, pairs, version=version, order=order, alignment=64)
    assert cut(data) == [len(data) - 100_000, 32_000, 68_000]


def test_tensors_in_any_order_and_without_bytes() -> None:
    data = gguf_bytes([tensor(b"b", 32_000), tensor(b"none", 32_000), tensor(b"a", 0)], [])
    assert cut(data) == [len(data) - 100_000, 32_000, 68_000]


def test_no_tensors() -> None:
    data = gguf_bytes([], [pair(b"k", 4, bytes(4))])
    assert cut(data) == [len(data) - 100_000, 100_000]


HONEST = [tensor(b"a", 0), tensor(b"b", 32_000)]

LIES: dict[str, Callable[[], bytes]] = {
    "an offset past the end": lambda: gguf_bytes([tensor(b"a", 100_032)], []),
    "an enormous offset": lambda: gguf_bytes([tensor(b"a", 2**64 - 32)], []),
    "an offset out of line": lambda: gguf_bytes([tensor(b"a", 31)], []),
    "more tensors than there are": lambda: gguf_bytes(HONEST, [], counts=(2**63, 0)),
    "more pairs than there are": lambda: gguf_bytes(HONEST, [], counts=(2, 2**63)),
    "version 1": lambda: gguf_bytes(HONEST, [], version=1),
    "version 4": lambda: gguf_bytes(HONEST, [], version=4),
    "an alignment of 0": lambda: gguf_bytes(HONEST, [pair(b"general.alignment", 4, bytes(4))]),
    "an alignment of 33": lambda: gguf_bytes(HONEST, [pair(b"general.alignment", 4, b"\x21\0\0\0")]),
    "an enormous alignment": lambda: gguf_bytes(HONEST, [pair(b"general.alignment", 4, b"\0\0\0\x40")]),
    "an alignment that is a text": lambda: gguf_bytes(HONEST, [pair(b"general.alignment", 8, string(b"32"))]),
    "an unknown type": lambda: gguf_bytes(HONEST, [pair(b"k", 13, bytes(8))]),
    "an array of arrays": lambda: gguf_bytes(HONEST, [pair(b"k", 9, struct.pack("<IQ", 9, 0))]),
    "a long array": lambda: gguf_bytes(HONEST, [pair(b"k", 9, struct.pack("<IQ", 4, 2**62))]),
    "a long array of texts": lambda: gguf_bytes(HONEST, [pair(b"k", 9, struct.pack("<IQ", 8, 2**62))]),
    "a long text": lambda: gguf_bytes(HONEST, [pair(b"k", 8, struct.pack("<Q", 2**64 - 1))]),
    "nine dimensions": lambda: gguf_bytes([tensor(b"a", 0, dimensions=(1,) * 9)], []),
    "cut short in the header": lambda: gguf_bytes(HONEST, [])[:60],
    "nothing but the magic": lambda: b"GGUF",
}


@pytest.mark.parametrize("make", LIES.values(), ids=LIES)
def test_a_header_that_lies_makes_an_ordinary_file(make: Callable[[], bytes]) -> None:
    data = make()
    assert cut(data) == grid(len(data))


def test_a_header_without_end_is_not_read_without_end() -> None:
    """Empty texts as far as one may read: the walk stops at the limit."""
    size = 2 * DIRECTORY_LIMIT_BYTES
    head = b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + string(b"k") + struct.pack("<IIQ", 9, 8, 2**40)
    read_bytes = 0

    def read(offset: int, length: int) -> bytes:
        nonlocal read_bytes
        assert offset + length <= size
        read_bytes = max(read_bytes, offset + length)
        return (head + bytes(length))[offset : offset + length] if offset < len(head) else bytes(length)

    assert lengths(size, read) == grid(size)
    assert read_bytes <= DIRECTORY_LIMIT_BYTES


@given(st.data())
def test_any_damage_to_a_header_gives_chunks_that_add_up(choice: st.DataObject) -> None:
    pairs = [
        pair(b"general.alignment", 4, b"\x40\0\0\0"),
        pair(b"t", 9, struct.pack("<IQ", 8, 1) + string(b"ab")),
    ]
    data = bytearray(gguf_bytes(HONEST, pairs, alignment=64))
    for _ in range(choice.draw(st.integers(1, 6))):
        data[choice.draw(st.integers(4, len(data) - 100_000))] = choice.draw(st.integers(0, 255))
    cut(bytes(data[: choice.draw(st.integers(0, len(data)))] if choice.draw(st.booleans()) else data))
