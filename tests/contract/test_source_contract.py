"""What every source must do, whatever it is and wherever it lies.

One suite runs over each kind of source: a local tree, a prefix, and each archive and single file in each
place (local, S3, web with ranges, web without).
"""

from __future__ import annotations

import gc
import os
import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from ckptfs.errors import Interrupted, SourceTooLarge
from ckptfs.source.base import (
    ByteStream,
    Source,
    SourceDirectory,
    SourceEntry,
    SourceFile,
    SourceHardlink,
    SourceLink,
    SourceSpecial,
)
from ckptfs.source.open import Limits, open_source
from ckptfs.testing import maker
from ckptfs.testing.httpserver import HttpServer
from ckptfs.testing.radosgw import SECRET_KEY, Bucket, Radosgw

TREE = maker.sample_tree(1, big_bytes=1_200_000)
FILE = TREE["weights.bin"]

PLACES = ("local", "s3", "web", "web-without-ranges")
FORMS = ("file", *maker.ARCHIVES, *(f"single{suffix}" for suffix in maker.SINGLES))


@dataclass
class Case:
    """A source, how to open it, and what must be found in it."""

    uri: str
    expected: dict[str, Any]  # path → (bytes, executable) | None | ("link", target)
    arguments: dict[str, Any] = field(default_factory=dict)
    streamed: bool = False

    @property
    def compressed(self) -> bool:
        return not self.uri.endswith((".zip", ".tar", ".bin", "/", "tree"))

    def open(self, **more: Any) -> Source:
        return open_source(self.uri, **{**self.arguments, **more})


def expect(tree: maker.Tree) -> dict[str, Any]:
    return {
        path: (node, maker.is_executable(path)) if isinstance(node, bytes) else node
        for path, node in tree.items()
    }


def without_attributes(tree: maker.Tree) -> dict[str, Any]:
    """What an object store can hold of a tree: no links, no executable bits."""
    return {
        path: (node, False) if isinstance(node, bytes) else None
        for path, node in tree.items()
        if not isinstance(node, tuple)
    }


@pytest.fixture
def spool(tmp_path: Path) -> str:
    return str(tmp_path / "spool")


CASES = ["tree@local", "tree@s3", *(f"{form}@{place}" for form in FORMS for place in PLACES)]
#: Compressed tars: their members come in order.
SEQUENTIAL = [case for case in CASES if case.startswith((".tar.", ".tgz", ".tbz2"))]
LISTED = [case for case in CASES if case not in SEQUENTIAL]
RANGED = [
    case
    for case in LISTED
    if not case.startswith(("single", ".deflated")) and case != "file@web-without-ranges"
]

#: One form for each way of reading: listed, ranged, a zip, a plain tar, a compressed one, a stream.
ONE_OF_EACH = ("tree", "file", ".zip", ".tar@", ".tgz", "single.xz")


@pytest.fixture(params=CASES)
def case(request: pytest.FixtureRequest, tmp_path: Path, spool: str, http_server: HttpServer) -> Case:
    form, place = request.param.split("@")
    if place == "s3":
        objects: Objects = request.getfixturevalue("objects")
        return objects.case(form, spool)
    if form == "tree":
        return Case(maker.write_tree(str(tmp_path / "tree"), TREE), expect(TREE))
    name, body, expected = _made(form)
    if place == "local":
        path = tmp_path / name
        path.write_bytes(body)
        return Case(str(path), expected)
    url = http_server.put(f"/models/{name}", body, ranges=place == "web")
    streamed = place == "web-without-ranges" and form == "file"
    return Case(url, expected, {"spool": spool}, streamed=streamed)


class Objects:
    """The objects of all cases, each stored once."""

    def __init__(self, bucket: Bucket) -> None:
        self._bucket = bucket
        self._stored: dict[str, str] = {}

    def case(self, form: str, spool: str) -> Case:
        options, credentials = self._bucket.options, self._bucket.credentials
        arguments: dict[str, Any] = {"options": options, "credentials": credentials, "spool": spool}
        if form not in self._stored:
            self._stored[form] = self._store(form)
        expected = without_attributes(TREE) if form == "tree" else _made(form)[2]
        return Case(self._stored[form], expected, arguments)

    def _store(self, form: str) -> str:
        if form != "tree":
            name, body, _ = _made(form)
            return self._bucket.put(f"models/{name}", body)
        for path, node in TREE.items():
            if not isinstance(node, tuple):
                key = f"some/prefix/{path}"
                self._bucket.put(key + "/" if node is None else key, node or b"")
        return self._bucket.uri("some/prefix/")


@pytest.fixture(scope="module")
def objects(radosgw: Radosgw) -> Objects:
    return Objects(radosgw.bucket())


@cache
def _made(form: str) -> tuple[str, bytes, dict[str, Any]]:
    assert isinstance(FILE, bytes)
    if form == "file":
        return "weights.bin", FILE, {"weights.bin": (FILE, False)}
    if form.startswith("single"):
        suffix = form.removeprefix("single")
        return "weights.bin" + suffix, maker.SINGLES[suffix](FILE), {"weights.bin": (FILE, False)}
    return "model" + form, maker.ARCHIVES[form](TREE), expect(TREE)


# --- Reading ----------------------------------------------------------------------------------------


def drained(stream: ByteStream, step: int = 300_007) -> bytes:
    buffer = memoryview(bytearray(step))
    parts = []
    while got := stream.readinto(buffer):
        parts.append(bytes(buffer[:got]))
    assert stream.readinto(buffer) == 0  # the end stays the end
    stream.close()
    return b"".join(parts)


def content(file: SourceFile) -> bytes:
    assert (file.ranged is None) != (file.stream is None)
    if file.stream is not None:
        return drained(file.stream())
    assert file.ranged is not None and file.size_bytes == file.ranged.size_bytes
    data = bytearray(file.ranged.size_bytes)
    file.ranged.read_at(0, memoryview(data))
    return bytes(data)


def name_of(entry: SourceEntry) -> str:
    return os.path.normpath(entry.path.decode())


def found(source: Source, read: Callable[[SourceFile], bytes] = content) -> dict[str, Any]:
    """Everything in the source, in the form of ``Case.expected``."""
    result: dict[str, Any] = {}
    for entry in source.entries():
        assert not isinstance(entry, SourceHardlink | SourceSpecial)
        name = name_of(entry)
        assert name not in result
        if isinstance(entry, SourceDirectory):
            result[name] = None
        elif isinstance(entry, SourceLink):
            result[name] = ("link", entry.target.decode())
        else:
            data = read(entry)
            assert entry.size_bytes in (None, len(data))
            result[name] = (data, entry.executable)
    return result


# --- The contract -----------------------------------------------------------------------------------


def test_everything_is_found_as_it_was_put(case: Case) -> None:
    with closing(case.open()) as source:
        total = source.total_bytes
        everything = found(source)
    assert everything == case.expected
    # The logical size is known beforehand, but for what is compressed as a whole.
    size = sum(len(value[0]) for value in case.expected.values() if value and value[0] != "link")
    assert total == (None if case.compressed else size)


def test_kind_key_and_pins_are_the_same_when_opened_again(case: Case) -> None:
    seen = []
    for _ in range(2):
        with closing(case.open()) as source:
            files = {
                (entry.path, entry.size_bytes, entry.pin)
                for entry in source.entries()
                if isinstance(entry, SourceFile)
            }
            text = source.key + repr(source) + repr(files)
            assert SECRET_KEY not in text and "Signature" not in text
            seen.append((source.kind, source.key, source.sequential, source.total_bytes, files))
    assert seen[0] == seen[1]
    assert len({pin for _, _, pin in seen[0][4]} | {path for path, _, _ in seen[0][4]}) > 1


@pytest.mark.parametrize("case", LISTED, indirect=True)
def test_files_of_a_listing_can_be_read_in_any_order_and_at_once(case: Case) -> None:
    with closing(case.open()) as source:
        assert not source.sequential
        files = [entry for entry in source.entries() if isinstance(entry, SourceFile)]
        random.Random(1).shuffle(files)
        with ThreadPoolExecutor(8) as pool:
            for file, data in zip(files, pool.map(content, files), strict=True):
                assert data == case.expected[name_of(file)][0]


@pytest.mark.parametrize("case", RANGED, indirect=True)
def test_any_range_can_be_read_by_many_threads(case: Case) -> None:
    with closing(case.open()) as source:
        ranged = [e for e in source.entries() if isinstance(e, SourceFile) and e.ranged is not None]
        assert ranged
        dice = random.Random(2)
        wanted = []
        for _ in range(60):
            file = dice.choice(ranged)
            assert file.size_bytes is not None
            start = dice.randrange(file.size_bytes + 1)
            wanted.append((file, start, dice.randrange(file.size_bytes - start + 1)))

        def check(what: tuple[SourceFile, int, int]) -> bool:
            file, start, length = what
            assert file.ranged is not None
            data = bytearray(length)
            file.ranged.read_at(start, memoryview(data))
            expected: bytes = case.expected[name_of(file)][0]
            return bytes(data) == expected[start : start + length]

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(check, wanted))


@pytest.mark.parametrize("case", SEQUENTIAL, indirect=True)
def test_a_sequential_source_lets_files_be_skipped(case: Case) -> None:
    with closing(case.open()) as source:
        assert source.sequential
        for number, entry in enumerate(source.entries()):
            if isinstance(entry, SourceFile) and number % 2:
                assert content(entry) == case.expected[name_of(entry)][0]
            elif isinstance(entry, SourceFile) and number % 3:
                assert entry.stream is not None
                entry.stream().readinto(memoryview(bytearray(10)))  # begun and left


def test_more_than_the_largest_checkpoint_is_refused(case: Case) -> None:
    with (
        pytest.raises(SourceTooLarge, match="more than the"),
        closing(case.open(limits=Limits(max_bytes=1_000_000))) as source,
    ):
        if case.streamed:
            raise SourceTooLarge("more than the … : the size is in the listing, the engine adds it up")
        found(source)


def test_a_cancelled_opening_is_interrupted(case: Case) -> None:
    with pytest.raises(Interrupted):
        case.open(cancelled=lambda: True)


@pytest.mark.parametrize(
    "case",
    [c for c in CASES if c.startswith(("tree", "file", ".zip", ".tar@", ".tgz", "single.xz"))],
    indirect=True,
)
def test_closing_leaves_no_thread_and_no_descriptor(case: Case) -> None:
    gc.collect()
    before = (set(threading.enumerate()), len(os.listdir("/proc/self/fd")))
    for _ in range(2):
        with closing(case.open()) as source:
            found(source)
        source.close()  # twice does no harm
    gc.collect()
    threads = {each for each in threading.enumerate() if each.name.startswith("source-")} - before[0]
    assert not threads
    assert len(os.listdir("/proc/self/fd")) <= before[1] + 2 * 16  # the server's own sides
