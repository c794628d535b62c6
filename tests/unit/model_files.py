"""Real container files for the tests of the model, and what is asked of their chunks."""

from __future__ import annotations

import io
import json
from collections.abc import Iterable, Mapping

import numpy

from ckptfs.model.boundaries import TARGET_CHUNK_BYTES
from ckptfs.model.chunking import lengths
from ckptfs.model.digest import digest


class Reader:
    """A file in memory that notes what was read of it, and allows nothing outside."""

    def __init__(self, data: bytes) -> None:
        self.data = data
        self.reads: list[tuple[int, int]] = []

    def __call__(self, offset: int, length: int) -> bytes:
        assert 0 <= offset <= offset + length <= len(self.data), (offset, length, len(self.data))
        self.reads.append((offset, length))
        return self.data[offset : offset + length]


class NoSeek(io.RawIOBase):
    """What an upload stream looks like: zipfile then writes data descriptors."""

    def __init__(self) -> None:
        self.buffer = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        self.buffer += data
        return len(data)


def cut(data: bytes) -> list[int]:
    """The chunk lengths, checked for what holds for every file."""
    result = lengths(len(data), Reader(data))
    assert sum(result) == len(data)
    assert all(0 < n <= TARGET_CHUNK_BYTES for n in result)
    return result


def starts(data: bytes) -> set[int]:
    """Where chunks start, and the end of the file."""
    borders, offset = {0}, 0
    for length in cut(data):
        offset += length
        borders.add(offset)
    return borders


def chunks(data: bytes) -> dict[bytes, int]:
    """The length of each distinct chunk by its digest."""
    result, offset = {}, 0
    for length in cut(data):
        result[digest(memoryview(data)[offset : offset + length])] = length
        offset += length
    return result


def found_bytes(before: Iterable[bytes], after: Iterable[bytes]) -> int:
    """The bytes of the files `after` that lie in chunks of the files `before`."""
    have = {key for data in before for key in chunks(data)}
    total = 0
    for data in after:
        offset = 0
        for length in cut(data):
            if digest(memoryview(data)[offset : offset + length]) in have:
                total += length
            offset += length
    return total


def random_array(seed: int, *shape: int) -> numpy.ndarray:
    """f32 of random bytes. An array with more rows begins with those of one with fewer."""
    count = int(numpy.prod(shape))
    return numpy.random.Generator(numpy.random.SFC64(seed)).random(count, dtype=numpy.float32).reshape(shape)


def model(seed: int = 0, layers: int = 6) -> dict[str, numpy.ndarray]:
    """A small transformer: an embedding, matrices over and under a chunk, norms that share chunks."""
    tensors = {"model.embed_tokens.weight": random_array(seed, 5000, 512)}
    for i in range(layers):
        prefix = f"model.layers.{i:02}"
        tensors |= {
            f"{prefix}.input_layernorm.weight": random_array(seed + 100 * i + 1, 512),
            f"{prefix}.mlp.down_proj.weight": random_array(seed + 100 * i + 2, 512, 2304),
            f"{prefix}.mlp.up_proj.weight": random_array(seed + 100 * i + 3, 2304, 512),
            f"{prefix}.self_attn.k_proj.bias": random_array(seed + 100 * i + 4, 128),
            f"{prefix}.self_attn.k_proj.weight": random_array(seed + 100 * i + 5, 128, 512),
            f"{prefix}.self_attn.q_proj.weight": random_array(seed + 100 * i + 6, 512, 512),
        }
    return tensors


def safetensors_bytes(entries: Mapping[str, object], data: bytes, *, header: bytes | None = None) -> bytes:
    """A safetensors file with any header, honest or not."""
    text = json.dumps(entries).encode() if header is None else header
    return len(text).to_bytes(8, "little") + text + data


def npz_bytes(arrays: Mapping[str, numpy.ndarray]) -> bytes:
    buffer = io.BytesIO()
    numpy.savez(buffer, **arrays)
    return buffer.getvalue()
