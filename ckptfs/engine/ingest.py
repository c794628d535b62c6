"""How the bytes of one file come into the store: read, cut, digest, put.

Everything here blocks and runs in worker threads; :mod:`ckptfs.engine.reading` decides which thread
does what. A worker owns one buffer for its whole life, because the first touch of fresh memory costs
more than hashing it.

Three ways in, by what the source can do:

- ranged: cuts come from the container's directory, then runs of chunks are read in any order;
- streamed, directory in front (or none): cuts come from the prefix, then chunk follows chunk;
- streamed, directory behind (zip) or size unknown: the bytes land in the file's blob first and are cut
  there.
"""

from __future__ import annotations

import contextlib
import mmap
import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from blake3 import blake3

from ckptfs.errors import Interrupted, SourceChanged, SourceCorrupt, SourceTooLarge
from ckptfs.model import chunking
from ckptfs.model.digest import digest, fingerprint, is_zero, zero_digest
from ckptfs.model.names import show_path
from ckptfs.source.base import ByteStream, Ranged, SourceFile
from ckptfs.store import DraftFile

# What planning reads at once from the front of a file. The headers of real models are 20-200 kB, so
# one request nearly always finds the whole directory.
_PREFIX_BYTES = 256 << 10


class Meter:
    """Counts what a creation has found and done, and stops its threads. Called from many threads; each
    method is one short step."""

    def __init__(self, limit_bytes: int) -> None:
        self.limit_bytes = limit_bytes
        self.cancelled = False
        self._failed = False
        self._lock = threading.Lock()
        self.bytes_total = 0
        self.files_total = 0
        self.bytes_done = 0
        self.bytes_reused = 0
        self.files_done = 0
        self._runs_left: dict[bytes, int] = {}

    def found(self, size_bytes: int) -> None:
        with self._lock:
            self.files_total += 1
            self.bytes_total += size_bytes

    def file_done(self) -> None:
        with self._lock:
            self.files_done += 1

    def runs_planned(self, path: bytes, count: int) -> None:
        """A file comes in so many runs, and is done with the last of them."""
        if count == 0:
            self.file_done()
        else:
            self._runs_left[path] = count

    def run_done(self, path: bytes) -> None:
        with self._lock:
            self._runs_left[path] -= 1
            if self._runs_left[path] == 0:
                del self._runs_left[path]
                self.files_done += 1

    def moved(self, count_bytes: int, *, reused: bool) -> None:
        with self._lock:
            self.bytes_done += count_bytes
            if reused:
                self.bytes_reused += count_bytes
        if self.bytes_done > self.limit_bytes:
            raise SourceTooLarge(
                f"the source holds more than the {self.limit_bytes} bytes that one checkpoint may have "
                "(store.max_checkpoint_bytes)"
            )

    @contextlib.contextmanager
    def failing_together(self) -> Iterator[None]:
        """When the body fails, all threads stop. A cancelled task cannot interrupt its thread: without this
        a full disk would be noticed only at the end of a long stream."""
        try:
            yield
        except BaseException:
            self._failed = True
            raise

    def is_over(self) -> bool:
        return self.cancelled or self._failed

    def check(self) -> None:
        if self.is_over():
            raise Interrupted("the creation was cancelled")


def new_buffer(size_bytes: int) -> memoryview:
    """Page-aligned memory that goes back to the system when the worker ends."""
    return memoryview(mmap.mmap(-1, size_bytes))


def file_key(file: SourceFile) -> bytes:
    """What an interrupted creation finds a file's chunks by: 16 bytes of (path, size, pin)."""
    hasher = blake3()
    for part in (file.path, str(file.size_bytes).encode(), file.pin.encode()):
        hasher.update(len(part).to_bytes(8, "little") + part)
    return hasher.digest()[:16]


@dataclass(frozen=True, slots=True)
class Run:
    """Consecutive chunks of one file that fit a buffer together: one read."""

    file: SourceFile
    draft_file: DraftFile
    first_index: int
    offset: int
    lengths: list[int]
    #: Of the run that begins the file: bytes that planning has fetched already.
    prefix: bytes = b""

    @property
    def length_bytes(self) -> int:
        return sum(self.lengths)


def plan(file: SourceFile, draft_file: DraftFile, buffer_bytes: int, meter: Meter) -> list[Run]:
    """Cut a ranged file and group the chunks that are still to be brought in into runs."""
    assert file.ranged is not None and file.size_bytes is not None
    directory: _PrefixReader | None = None
    if draft_file.lengths is None:
        directory = _PrefixReader(file.ranged, file.size_bytes)
        draft_file.set_lengths(chunking.lengths(file.size_bytes, directory.read), file.size_bytes)
    assert draft_file.lengths is not None
    known = set(draft_file.known)
    runs: list[Run] = []
    offset = 0
    start = 0
    first = 0
    group: list[int] = []
    filled = 0

    def flush() -> None:
        nonlocal group, filled
        if group:
            prefix = directory.prefix if directory and start == 0 else b""
            runs.append(Run(file, draft_file, first, start, group, prefix))
        group, filled = [], 0

    for index, length in enumerate(draft_file.lengths):
        if index in known:
            flush()
            meter.moved(length, reused=True)
        else:
            if filled + length > buffer_bytes:
                flush()
            if not group:
                first, start = index, offset
            group.append(length)
            filled += length
        offset += length
    flush()
    return runs


def bring_run(run: Run, buffer: memoryview, meter: Meter) -> None:
    """Read one run and put its chunks."""
    meter.check()
    assert run.file.ranged is not None
    view = buffer[: run.length_bytes]
    here = min(len(run.prefix), len(view))
    view[:here] = run.prefix[:here]
    if here < len(view):
        run.file.ranged.read_at(run.offset + here, view[here:])
    _put_all(run.draft_file, run.first_index, run.offset, run.lengths, view, meter)
    meter.run_done(run.file.path)


def bring_small(files: Iterable[tuple[SourceFile, DraftFile]], buffer: memoryview, meter: Meter) -> None:
    """Bring in a batch of files that each fit the buffer: one read, then cut and put from memory."""
    for file, draft_file in files:
        meter.check()
        assert file.ranged is not None and file.size_bytes is not None
        size = file.size_bytes
        lengths = draft_file.lengths
        if lengths is not None and len(draft_file.known) == len(lengths):
            meter.moved(size, reused=True)
        else:
            view = buffer[:size]
            if size:
                file.ranged.read_at(0, view)
            lengths = chunking.lengths(size, lambda at, n, view=view: bytes(view[at : at + n]))  # type: ignore[misc]
            draft_file.set_lengths(lengths, size)
            _put_all(draft_file, 0, 0, lengths, view, meter)
        meter.file_done()


def bring_stream(
    file: SourceFile, draft_file: DraftFile, stream: ByteStream, buffer: memoryview, meter: Meter
) -> int:
    """Bring in a file that comes once, in order. Returns its size in bytes.

    Raises :class:`SourceCorrupt` when the stream is shorter or longer than the file was said to be.
    """
    replay = _Replay(stream)
    head = replay.peek(0, chunking.HEAD_BYTES)
    container = chunking.sniff(head, file.size_bytes if file.size_bytes is not None else len(head))
    if file.size_bytes is None or container is chunking.Container.ZIP:
        size = _land(file, draft_file, replay, buffer, meter)
    else:
        size = file.size_bytes
        if draft_file.lengths is None:
            draft_file.set_lengths(chunking.lengths(size, replay.peek), size)
        _flow(file, draft_file, replay, buffer, meter)
    meter.file_done()
    return size


def _flow(file: SourceFile, draft_file: DraftFile, replay: _Replay, buffer: memoryview, meter: Meter) -> None:
    assert draft_file.lengths is not None
    known = set(draft_file.known)
    offset = 0
    for index, length in enumerate(draft_file.lengths):
        meter.check()
        view = buffer[:length]
        got = replay.fill(view)
        if got != length:
            raise SourceCorrupt(
                f"{show_path(file.path)} ends after {offset + got} of {file.size_bytes} bytes: "
                "the source is truncated"
            )
        if index in known:
            meter.moved(length, reused=True)
        else:
            _put_all(draft_file, index, offset, [length], view, meter)
        offset += length
    if replay.fill(buffer[:1]):
        raise SourceCorrupt(f"{show_path(file.path)} is longer than the {file.size_bytes} bytes that it says")


def _land(file: SourceFile, draft_file: DraftFile, replay: _Replay, buffer: memoryview, meter: Meter) -> int:
    """Write the bytes first and cut them where they lie. What landed counts as done when it is put;
    the limit is kept meanwhile, because a bomb shows itself here."""
    landing = draft_file.landing()
    size = 0
    while True:
        meter.check()
        got = replay.fill(buffer)
        if not got:
            break
        landing.write_at(size, buffer[:got])
        size += got
        if meter.bytes_done + size > meter.limit_bytes:
            raise SourceTooLarge(
                f"{show_path(file.path)} grows past the {meter.limit_bytes} bytes that a checkpoint may have"
            )
    if file.size_bytes is not None and size != file.size_bytes:
        raise SourceCorrupt(
            f"{show_path(file.path)} has {size} bytes where the source says {file.size_bytes}"
        )

    def read(offset: int, length: int) -> bytes:
        data = bytearray(length)
        landing.read_at(offset, memoryview(data))
        return bytes(data)

    lengths = chunking.lengths(size, read)
    draft_file.set_lengths(lengths, size)
    offset = 0
    for index, length in enumerate(lengths):
        view = buffer[:length]
        landing.read_at(offset, view)
        _put_all(draft_file, index, offset, [length], view, meter, landed=True)
        offset += length
    return size


def _put_all(
    draft_file: DraftFile,
    index: int,
    offset: int,
    lengths: list[int],
    view: memoryview,
    meter: Meter,
    *,
    landed: bool = False,
) -> None:
    at = 0
    for length in lengths:
        data = view[at : at + length]
        zero = is_zero(data)
        name = zero_digest(length) if zero else digest(data)
        new = draft_file.put(index, offset + at, data, name, fingerprint(data), landed=landed)
        meter.moved(length, reused=not new and not zero)  # nobody would look for zeros in the store
        at += length
        index += 1


class _PrefixReader:
    """Serves a container's directory to the cutter, reading ahead at the front of the file."""

    def __init__(self, ranged: Ranged, size_bytes: int) -> None:
        self._ranged = ranged
        self._size_bytes = size_bytes
        self.prefix = b""

    def read(self, offset: int, length: int) -> bytes:
        end = offset + length
        if end > self._size_bytes or offset < 0:
            raise SourceChanged("a read past the end of the file was asked for")
        if offset == 0 and len(self.prefix) < end:
            self.prefix = self._fetch(0, min(self._size_bytes, max(end, _PREFIX_BYTES)))
        if end <= len(self.prefix):
            return self.prefix[offset:end]
        return self._fetch(offset, length)

    def _fetch(self, offset: int, length: int) -> bytes:
        data = bytearray(length)
        if length:
            self._ranged.read_at(offset, memoryview(data))
        return bytes(data)


class _Replay:
    """A stream whose beginning can be looked at before it is read."""

    def __init__(self, stream: ByteStream) -> None:
        self._stream = stream
        self._seen = bytearray()
        self._taken = 0

    def peek(self, offset: int, length: int) -> bytes:
        """Bytes of the prefix; shorter only at the end of the stream. Before the first :meth:`fill`."""
        missing = offset + length - len(self._seen)
        while missing > 0:
            part = bytearray(min(missing, 1 << 20))
            got = self._stream.readinto(memoryview(part))
            if not got:
                break
            self._seen += part[:got]
            missing -= got
        return bytes(self._seen[offset : offset + length])

    def fill(self, buffer: memoryview) -> int:
        """Fill the buffer; fewer bytes only at the end of the stream."""
        filled = min(len(buffer), len(self._seen) - self._taken)
        if filled:
            buffer[:filled] = self._seen[self._taken : self._taken + filled]
            self._taken += filled
            if self._taken == len(self._seen):
                self._seen = bytearray()
                self._taken = 0
        while filled < len(buffer):
            got = self._stream.readinto(buffer[filled:])
            if not got:
                break
            filled += got
        return filled
