"""The ways in which jobs read a checkpoint. Each is a generator that yields after every part of its work the
number of bytes that it read, so that two files can be read in turns; what it opens is closed at its end.

Whoever maps a file must touch it, so the mapped ways add all of it up, eight bytes at a time.
"""

from __future__ import annotations

import mmap
import os
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import numpy

try:
    import torch
except ImportError:  # then tensors are loaded as numpy arrays, and torch.load is left out
    torch = None  # type: ignore[assignment,unused-ignore]

Way = Callable[[Path], Iterator[int]]

REQUEST_BYTES = 1 << 20
TURN_BYTES = 16 << 20
READERS = 4

#: Offsets are the same for every file of a size.
SEED = 20_261_123


def sequential(path: Path, start: int = 0, stop: int | None = None) -> Iterator[int]:
    buffer = memoryview(bytearray(REQUEST_BYTES))
    fd = os.open(path, os.O_RDONLY)
    try:
        end = os.fstat(fd).st_size if stop is None else stop
        offset = turn = start
        while offset < end:
            offset += _read(fd, buffer[: end - offset], offset)
            if offset - turn >= TURN_BYTES:
                yield offset - turn
                turn = offset
        yield offset - turn
    finally:
        os.close(fd)


def parallel(path: Path) -> Iterator[int]:
    """Four readers at once, each with a quarter of the file."""
    size = path.stat().st_size
    edges = [size * i // READERS for i in range(READERS + 1)]
    with ThreadPoolExecutor(READERS) as pool:
        yield sum(pool.map(lambda i: sum(sequential(path, edges[i], edges[i + 1])), range(READERS)))


def at_random(path: Path, request_bytes: int, most: int) -> Iterator[int]:
    """Reads at different places, in no order."""
    request_bytes = min(request_bytes, path.stat().st_size)
    places = path.stat().st_size // request_bytes
    chosen = random.Random(SEED).sample(range(places), min(most, places))
    buffer = memoryview(bytearray(request_bytes))
    fd = os.open(path, os.O_RDONLY)
    try:
        for place in chosen:
            _read(fd, buffer, place * request_bytes)
        yield len(chosen) * request_bytes
    finally:
        os.close(fd)


def mapped(path: Path) -> Iterator[int]:
    with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapping:
        words = numpy.frombuffer(mapping, dtype=numpy.uint64, count=len(mapping) // 8)
        for first in range(0, len(words), TURN_BYTES // 8):
            part = words[first : first + TURN_BYTES // 8]
            part.sum()
            yield part.nbytes
        del part, words


def safetensors(path: Path) -> Iterator[int]:
    """All tensors through ``safe_open``."""
    from safetensors import safe_open

    with safe_open(path, framework="pt" if torch else "np") as file:
        for name in file.keys():  # noqa: SIM118 - not a dict
            yield _add_up(file.get_tensor(name))


def torch_load(path: Path) -> Iterator[int]:
    """All tensors of ``torch.load(mmap=True)``."""
    tensors = torch.load(path, mmap=True)
    while tensors:
        yield _add_up(tensors.popitem()[1])


SAFETENSORS = "model.safetensors"
TORCH = "model.pt"


def all_ways(small_reads: int, large_reads: int) -> dict[str, tuple[str, Way]]:
    """words -> (the file that it reads, the way)."""
    ways: dict[str, tuple[str, Way]] = {
        "sequential": (SAFETENSORS, sequential),
        "4 readers": (SAFETENSORS, parallel),
        "random 4 KiB": (SAFETENSORS, partial(at_random, request_bytes=4096, most=small_reads)),
        "random 1 MiB": (SAFETENSORS, partial(at_random, request_bytes=1 << 20, most=large_reads)),
        "mmap": (SAFETENSORS, mapped),
        "safetensors": (SAFETENSORS, safetensors),
    }
    if torch:
        ways["torch.load"] = (TORCH, torch_load)
    return ways


def one_pass(way: Way, path: Path) -> tuple[int, float]:
    """How many bytes it read, and in how many seconds."""
    start = time.perf_counter()
    done = sum(way(path))
    return done, time.perf_counter() - start


def in_turns(way: Way, paths: Sequence[Path], first: int) -> list[float]:
    """Bytes per second of one pass over each path, all in turns; ``first`` (of them) begins, and then every
    other time the last one does."""
    passes: list[Iterator[int]] = [way(path) for path in paths]
    seconds = [0.0] * len(paths)
    done = [0] * len(paths)
    order = list(range(len(paths)))
    order = order[first:] + order[:first]
    left = set(order)
    while left:
        for i in order:
            start = time.perf_counter()
            part = next(passes[i], None)
            seconds[i] += time.perf_counter() - start
            if part is None:
                left.discard(i)
            else:
                done[i] += part
        order.reverse()
    return [count / taken for count, taken in zip(done, seconds, strict=True)]


def _read(fd: int, buffer: memoryview, offset: int) -> int:
    done = os.preadv(fd, [buffer], offset)
    if not done:
        raise EOFError(f"nothing at {offset}")
    return done


def _add_up(tensor: Any) -> int:
    array = tensor.view(torch.int16).numpy() if torch else tensor
    words = array.view(numpy.uint64)
    words.sum()
    return int(words.nbytes)
