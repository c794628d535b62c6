"""What a creation says of its progress while the bytes come in."""

from __future__ import annotations

import random
from pathlib import Path

from ckptfs.engine import ingest
from ckptfs.source.base import SourceFile
from ckptfs.store import DraftFile, Store

BUFFER_BYTES = 4 << 20


class InMemory:
    """A ranged file."""

    def __init__(self, content: bytes) -> None:
        self.content = content
        self.size_bytes = len(content)

    def read_at(self, offset: int, buffer: memoryview) -> None:
        buffer[:] = self.content[offset : offset + len(buffer)]


def planned(
    store: Store, name: str, content: bytes, meter: ingest.Meter
) -> tuple[list[ingest.Run], DraftFile]:
    draft = store.begin(
        name=name,
        creation=f"c-{name}",
        source_key=name,
        source_type="local",
        source_uri=f"/{name}",
    )
    file = SourceFile(
        path=name.encode(), size_bytes=len(content), executable=False, pin="1", ranged=InMemory(content)
    )
    draft_file = draft.file(ingest.file_key(file), len(content))
    runs = ingest.plan(file, draft_file, BUFFER_BYTES, meter)
    meter.runs_planned(file.path, len(runs))
    return runs, draft_file


def test_a_file_is_done_with_the_last_of_its_runs_and_not_when_it_is_planned(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    try:
        meter = ingest.Meter(1 << 40)
        content = random.Random(5).randbytes(3 * BUFFER_BYTES)
        runs, draft_file = planned(store, "weights", content, meter)
        assert len(runs) == 3
        buffer = ingest.new_buffer(BUFFER_BYTES)
        done = []
        for run in reversed(runs):
            done.append(meter.files_done)
            ingest.bring_run(run, buffer, meter)
        assert [*done, meter.files_done] == [0, 0, 0, 1]
        assert len(draft_file.known) == 3
        meter.runs_planned(b"all of it was kept", 0)
        assert meter.files_done == 2
    finally:
        store.close()


def test_zeros_are_not_said_to_have_been_here_already(tmp_path: Path) -> None:
    store = Store.open(str(tmp_path / "store"))
    try:
        buffer = ingest.new_buffer(BUFFER_BYTES)
        content = random.Random(6).randbytes(BUFFER_BYTES)
        said = []
        for name in ("first", "second"):
            meter = ingest.Meter(1 << 40)
            for run in planned(store, name, bytes(BUFFER_BYTES) + content, meter)[0]:
                ingest.bring_run(run, buffer, meter)
            assert meter.bytes_done == 2 * BUFFER_BYTES
            said.append(meter.bytes_reused)
        assert said == [0, BUFFER_BYTES]
    finally:
        store.close()
