"""A store in a process of its own, driven over a pipe: so that it can be killed, really."""

from __future__ import annotations

import multiprocessing
import os
import signal
import traceback
from multiprocessing.connection import Connection
from typing import Any

from ckptfs.store import Store, rebuild
from ckptfs.testing.audit import audit
from ckptfs.testing.writing import Writing, read_back

CHUNK_BYTES = 20_000


class _Worker:
    """Runs in the child; each method is one command."""

    def __init__(self, path: str) -> None:
        self.path = path
        self.store = Store.open(path)
        self.writings: dict[str, Writing] = {}

    def begin(self, key: str, name: str, contents: dict[bytes, bytes]) -> int:
        writing = Writing(self.store, name, contents, chunk_bytes=CHUNK_BYTES, source_key=key)
        self.writings[key] = writing
        return writing.draft.bytes_known

    def put_some(self, key: str, limit: int) -> None:
        self.writings[key].put_some(limit)

    def commit(self, key: str) -> None:
        self.writings[key].draft.commit()

    def publish(self, key: str) -> None:
        self.writings.pop(key).finish()

    def fail(self, key: str, keep: bool) -> None:
        self.writings.pop(key).draft.fail("as the test wants", "interrupted", keep)

    def drop(self, key: str) -> None:
        (draft,) = [draft for draft in self.store.drafts() if draft.source_key == key]
        self.store.drop_draft(draft.ordinal)

    def remove(self, name: str) -> int:
        return self.store.remove(self._ordinal(name)).bytes_freed

    def rename(self, old: str, new: str) -> None:
        self.store.rename(self._ordinal(old), new)

    def _ordinal(self, name: str) -> int:
        checkpoint = self.store.by_name(name)
        assert checkpoint is not None
        return checkpoint.ordinal

    def close(self) -> None:
        self.store.close()

    def state(self) -> dict[str, Any]:
        found = self.store.checkpoints()
        usages = {c.name: self.store.usage(c.ordinal) for c in found}
        return {
            "checkpoints": {c.name: read_back(self.store, c) for c in found},
            "usage": {name: (usage.stored_bytes, usage.unique_bytes) for name, usage in usages.items()},
            "drafts": {d.source_key: (d.status, d.bytes_kept) for d in self.store.drafts()},
            "chunks": self.store.chunk_count(),
            "stored": self.store.stored_bytes(),
            "audit": [] if self.writings else audit(self.store),
        }


def _serve(path: str, pipe: Connection) -> None:
    worker: _Worker | None = None
    while True:
        command, arguments = pipe.recv()
        try:
            if command == "open":
                worker = _Worker(path)
                answer: Any = None
            elif command == "rebuild":
                report = rebuild(path)
                answer = ([c.name for c in report.restored], report.damaged)
            else:
                answer = getattr(worker, command)(*arguments)
        except Exception:
            pipe.send((False, traceback.format_exc()))
        else:
            pipe.send((True, answer))


class StoreProcess:
    """``call(command, *arguments)`` is made in the child; :meth:`kill` is SIGKILL."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._start()

    def _start(self) -> None:
        # fork: an interpreter that starts anew takes longer than all the rest of a step
        context = multiprocessing.get_context("fork")
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(self.path, theirs), daemon=True)
        self._process.start()
        theirs.close()

    def call(self, command: str, *arguments: Any) -> Any:
        self._pipe.send((command, arguments))
        fine, answer = self._pipe.recv()
        assert fine, answer
        return answer

    def kill(self) -> None:
        assert self._process.pid is not None
        os.kill(self._process.pid, signal.SIGKILL)
        self._process.join()
        assert self._process.exitcode == -signal.SIGKILL
        self._pipe.close()

    def restart(self) -> None:
        self._start()
