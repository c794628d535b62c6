"""docs/format.md is true: its vectors are read from the page, and its rules are applied by other code.

The cutter below was written from the page, with zipfile and json instead of our parsers and without
their guards against hostile input. It and ours must agree on every honest file.
"""

from __future__ import annotations

import io
import json
import re
import struct
import zipfile
from itertools import pairwise
from pathlib import Path

import msgspec
from blake3 import blake3
from hypothesis import given
from hypothesis import strategies as st
from model_files import NoSeek, cut

from ckptfs.model import boundaries, manifest, prefix
from ckptfs.model.digest import text_id

PAGE = (Path(__file__).parents[2] / "docs" / "format.md").read_text()


def section(title: str) -> str:
    return re.split(r"^#+ ", PAGE.split(f"# {title}\n", 1)[1], maxsplit=1, flags=re.MULTILINE)[0]


# --- the manifest ---------------------------------------------------------------------------------

CONTENTS = {b"bin/run": b"#!/bin/sh\n", b"empty": b"", b"zeros": bytes(5_000_000)}


def recipe(content: bytes) -> tuple[list[int], bytes]:
    pieces = [content[i : i + 4_194_304] for i in range(0, len(content), 4_194_304)]
    return [len(p) for p in pieces], b"".join(blake3(p).digest() for p in pieces)


def test_the_manifest_of_the_page() -> None:
    text = section("Vector: a manifest")
    written = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{2,}$", text, re.MULTILINE)))
    entries: list[manifest.Entry] = [manifest.Directory(b"bin"), manifest.Link(b"latest", b"bin/run")]
    for path, content in CONTENTS.items():
        entries.append(manifest.File(path, path == b"bin/run", len(content), *recipe(content)))
    encoded = manifest.encode(manifest.of(entries))
    assert encoded == written
    assert f"{len(written)} bytes" in text
    assert text_id(manifest.identity(encoded)) in text
    assert manifest.decode(written).entries == sorted(entries, key=lambda entry: entry.path)


def test_a_reader_from_the_page_alone() -> None:
    """msgpack and BLAKE3 are all that it takes."""
    text = section("Vector: a manifest")
    data = bytes.fromhex("".join(re.findall(r"^[0-9a-f]{2,}$", text, re.MULTILINE)))
    assert f"b3:{blake3(data).hexdigest()}" in text
    magic, version, entries = msgspec.msgpack.decode(data)
    assert (magic, version) == ("ckptfs-manifest", 1)
    assert [(e[0], e[1]) for e in entries] == [
        ("d", b"bin"),
        ("f", b"bin/run"),
        ("f", b"empty"),
        ("l", b"latest"),
        ("f", b"zeros"),
    ]
    for _, path, executable, size, lengths, digests in (e for e in entries if e[0] == "f"):
        content = CONTENTS[path]
        assert executable is (path == b"bin/run")
        assert (size, lengths, digests) == (len(content), *recipe(content))


# --- the cuts -------------------------------------------------------------------------------------


def test_the_constants_of_the_page() -> None:
    constants = dict(re.findall(r"^\| ([A-Z]+) \| ([\d,]+)", section("Chunk boundaries"), re.MULTILINE))
    assert {name: int(value.replace(",", "")) for name, value in constants.items()} == {
        "TARGET": boundaries.TARGET_CHUNK_BYTES,
        "SMALL": boundaries.SMALL_TENSOR_BYTES,
        "TAIL": boundaries.TAIL_CHUNK_BYTES,
        "DIRECTORY": prefix.DIRECTORY_LIMIT_BYTES,
        "SEGMENTS": prefix.SEGMENTS_LIMIT,
    }


def safetensors_file(sizes: list[int], header_bytes: int) -> bytes:
    header, end = {}, 0
    for i, size in enumerate(sizes):
        header[f"t{i}"] = {"dtype": "U8", "shape": [size], "data_offsets": [end, end + size]}
        end += size
    return struct.pack("<Q", header_bytes) + json.dumps(header).encode().ljust(header_bytes) + bytes(end)


def gguf_file(offsets: dict[bytes, int], data_bytes: int) -> bytes:
    infos = b"".join(
        struct.pack("<Q", len(name)) + name + struct.pack("<IQIQ", 1, 10, 0, at)
        for name, at in offsets.items()
    )
    head = b"GGUF" + struct.pack("<IQQ", 3, len(offsets), 0) + infos
    return head + bytes(-len(head) % 32) + bytes(data_bytes)


def zip_file(members: dict[str, int]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as file:
        for name, size in members.items():
            file.writestr(name, bytes(size))
    return buffer.getvalue()


def test_the_lengths_of_the_page() -> None:
    rows = re.findall(r"^\|[^|]*\| ([\d,]+) \| ([\d ]+) \|$", section("Vectors: chunk lengths"), re.MULTILINE)
    written = [(int(size.replace(",", "")), [int(n) for n in lengths.split()]) for size, lengths in rows]
    tensors = safetensors_file([40_000, 100, 3_000, 7_000_000, 262_143, 20], 448)
    files = [
        bytes(10_000_000),
        tensors,
        tensors[:-1],
        gguf_file({b"a": 0, b"b": 50_016}, 100_000),
        zip_file({"x/0": 50_000, "x/version": 2, "x/w.npy": 20_128}),
    ]
    assert written == [(len(data), cut(data)) for data in files]


TARGET, SMALL, TAIL = 4 << 20, 16 << 10, 256 << 10


def plain(length: int) -> list[int]:
    return [min(TARGET, length - at) for at in range(0, length, TARGET)]


def by_itself(length: int) -> list[int]:
    result = []
    while length >= TARGET:
        result.append(TARGET)
        length -= TARGET
    while length >= TAIL:
        power = TAIL
        while power * 2 <= length:
            power *= 2
        result.append(power)
        length -= power
    return result + ([length] if length else [])


def chunk_lengths(cuts: set[int]) -> list[int]:
    borders = sorted(cuts)
    sizes = [b - a for a, b in pairwise(borders)]
    result = plain(sizes[0])
    gathered = 0
    for size in [*sizes[1:], None]:
        if gathered and (size is None or size >= SMALL):
            result.append(gathered)
            gathered = 0
        if size is None:
            break
        if size >= SMALL:
            result += by_itself(size)
        else:
            gathered += size
            if gathered >= SMALL:
                result.append(gathered)
                gathered = 0
    return result


def safetensors_cuts(data: bytes) -> set[int]:
    start = 8 + int.from_bytes(data[:8], "little")
    header = json.loads(data[8:start])
    ends = {start + v["data_offsets"][1] for k, v in header.items() if k != "__metadata__"}
    return {0, start, *ends}


def zip_cuts(data: bytes) -> set[int]:
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        members = sorted(file.infolist(), key=lambda info: info.header_offset)
        directory = file.start_dir
    cuts = {0, directory, len(data)}
    for info, following in zip(members, [*(m.header_offset for m in members[1:]), directory], strict=True):
        end = following - (16 if info.flag_bits & 8 else 0)
        begin = end - info.compress_size
        cuts |= {info.header_offset, begin, end}
        if (
            info.compress_type == zipfile.ZIP_STORED
            and info.filename.endswith(".npy")
            and info.compress_size > 128
        ):
            cuts.add(begin + 128)
    return cuts


sizes = st.one_of(
    st.integers(0, 100), st.integers(0, 100_000), st.sampled_from([SMALL, SMALL - 1, TAIL, 600_000])
)


@given(st.lists(sizes, max_size=12), st.integers(0, 5000))
def test_safetensors_are_cut_as_the_page_says(tensors: list[int], padding: int) -> None:
    data = safetensors_file(tensors, len(safetensors_file(tensors, 0)) - 8 - sum(tensors) + padding)
    if tensors:
        assert cut(data) == chunk_lengths(safetensors_cuts(data))


@given(
    st.lists(st.tuples(st.sampled_from(["a", "data/1", "w.npy", "ü"]), sizes), min_size=1, max_size=8),
    st.sampled_from([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]),
    st.booleans(),
    st.text("acemnot ", max_size=20),  # zipfile loses its way when a comment looks like an end record
)
def test_zip_files_are_cut_as_the_page_says(
    members: list[tuple[str, int]], method: int, streamed: bool, comment: str
) -> None:
    sink = NoSeek() if streamed else io.BytesIO()
    with zipfile.ZipFile(sink, "w", method) as file:
        for i, (name, size) in enumerate(members):
            file.writestr(f"{i}{name}", b"x" * size)
        file.comment = comment.encode()
    data = bytes(sink.buffer if isinstance(sink, NoSeek) else sink.getvalue())
    assert cut(data) == chunk_lengths(zip_cuts(data))
