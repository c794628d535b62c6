"""The real worker, with the holder's end of their link in the test's hands."""

from __future__ import annotations

import os
import select
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from daemon_process import CKPTFSD, until

from ckptfs.client.sync import SyncClient
from ckptfs.fuse.connection import Connection, connect
from ckptfs.testing.checkpoints import noise
from ckptfsd.holder import wire

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")

CONTENT = noise(1, 300_000)


class Holder:
    """What the holder does for one worker, step by step."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.connection: Connection = connect(str(folder / "mnt"))
        self.workers: list[Worker] = []

    @property
    def client(self) -> SyncClient:
        return SyncClient(str(self.folder / "s"))

    def start(self) -> Worker:
        worker = Worker(self.folder, str(self.folder / "mnt"))
        self.workers.append(worker)
        assert worker.hear()["do"] == "hello"
        return worker

    def tell_to_serve(self, worker: Worker) -> None:
        order = {"do": "serve", "protocol": wire.PROTOCOL, "starts": 0, "upgrades": 0}
        order["connection"] = self.connection.described()
        descriptors = [self.connection.fuse_fd, self.connection.modes_fd]
        kept = [w.listener for w in self.workers if w.listener]
        if kept:
            order["listener"], fd = kept[-1]
            descriptors.append(fd)
        wire.send(worker.socket, order, descriptors)

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.connection.unmount()
        self.connection.close()


class Worker:
    def __init__(self, folder: Path, mount: str) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        self.socket, theirs = wire.pair()
        arguments = ["--store", str(folder / "store"), "--mount", mount, "--socket", str(folder / "s")]
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*CKPTFSD, "worker", *arguments],
                env={**os.environ, wire.ENVIRONMENT: str(theirs.fileno())},
                pass_fds=[theirs.fileno()],
                stderr=log,
            )

        self.listener: tuple[dict[str, Any], int] | None = None

    def hear(self) -> dict[str, Any]:
        """The next message that is no heartbeat; files are registered for nobody."""
        while True:
            assert select.select([self.socket], [], [], 20)[0], self.log.read_text()
            received = wire.receive(self.socket)
            assert received is not None, self.log.read_text()
            message, descriptors = received
            if message["do"] == "listener":
                self.listener = ({k: message[k] for k in ("path", "inode")}, descriptors.pop())
            wire.close_all(descriptors)
            if message["do"] == "open":
                wire.send(self.socket, {"do": "opened", "id": message["id"], "error": 1})
            elif message["do"] not in ("alive", "keep", "close", "listener"):
                return message

    def hang_up(self) -> None:
        """As the holder's death does."""
        self.socket.close()
        if self.listener:
            os.close(self.listener[1])
            self.listener = None

    def close(self) -> None:
        self.hang_up()
        self.process.kill()
        self.process.wait()


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Holder]:
    (tmp_path / "mnt").mkdir()
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "f").write_bytes(CONTENT)
    made = Holder(tmp_path)
    try:
        yield made
    finally:
        made.close()


def serving(holder: Holder) -> Worker:
    """A worker that serves a checkpoint."""
    worker = holder.start()
    holder.tell_to_serve(worker)
    assert worker.hear()["do"] == "ready"
    made = holder.client.checkpoints.create("model", source_uri=str(holder.folder / "source"))
    made.wait_for("ready")
    holder.client.jobs.attach("model", job="j")
    return worker


@pytest.mark.parametrize("told", [False, True], ids=["before it told the next", "after that"])
def test_a_holder_that_dies_between_pause_and_serve_takes_nobody_along(holder: Holder, told: bool) -> None:
    """One of the two workers goes on, and which one is decided by who has the store."""
    old = serving(holder)
    new = holder.start()
    wire.send(new.socket, {"do": "standby", "native": 0, "spare": False})
    assert new.hear()["do"] == "prepared"
    wire.send(old.socket, {"do": "pause"})
    assert old.hear()["do"] == "paused"
    if told:
        holder.tell_to_serve(new)
    for worker in (old, new):
        worker.hang_up()
    until(lambda: old.process.poll() is not None or new.process.poll() is not None, "one ends")
    path = holder.folder / "mnt" / "model" / "f"
    until(lambda: holder.client.status().mounted, "the other one serves")
    assert path.read_bytes() == CONTENT
    alive = [worker for worker in (old, new) if worker.process.poll() is None]
    assert len(alive) == 1
    if not told:
        assert alive == [old]
        assert "the holder died in an upgrade: going on" in old.log.read_text()
    assert holder.client.status().worker_pid == alive[0].process.pid
