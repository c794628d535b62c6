"""The real worker, with the holder's end of their link in the test's hands."""

from __future__ import annotations

import json
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
from ckptfs.store import Store
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
        self.configuration = ""  # of the worker that was ready last
        self.config = folder / "c.toml"
        self.configure()

    def configure(self, **values: object) -> None:
        """Write the file anew; ``section_key`` as keyword."""
        told = {
            "store_path": str(self.folder / "store"),
            "mount_path": str(self.folder / "mnt"),
            "control_socket": str(self.folder / "s"),
            **values,
        }
        lines = []
        for name, value in told.items():
            section, _, key = name.partition("_")
            lines.append(f"{section}.{key} = {json.dumps(value)}")
        self.config.write_text("\n".join(lines))

    @property
    def client(self) -> SyncClient:
        return SyncClient(str(self.folder / "s"))

    def start(self) -> Worker:
        worker = Worker(self.folder, self.config)
        self.workers.append(worker)
        assert worker.hear()["do"] == "hello"
        return worker

    def tell_to_serve(self, worker: Worker, verb: str = "serve") -> None:
        order: dict[str, Any] = {"do": verb, "protocol": wire.PROTOCOL, "starts": 0, "upgrades": 0}
        order["connection"] = self.connection.described()
        order["configuration"] = self.configuration
        descriptors = [self.connection.fuse_fd, self.connection.modes_fd]
        kept = [w.listener for w in self.workers if w.listener]
        if kept:
            order["listener"], fd = kept[-1]
            descriptors.append(fd)
        wire.send(worker.socket, order, descriptors)

    def ready(self, worker: Worker) -> None:
        message = worker.hear()
        assert message["do"] == "ready", message
        self.configuration = message["configuration"]

    def close(self) -> None:
        for worker in self.workers:
            worker.close()
        self.connection.unmount()
        self.connection.close()


class Worker:
    def __init__(self, folder: Path, config: Path) -> None:
        self.log = folder / f"log-{len(list(folder.glob('log-*')))}"
        self.socket, theirs = wire.pair()
        with theirs, self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*CKPTFSD, "worker", "--config", str(config)],
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
    holder.ready(worker)
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


MISTAKES: dict[str, tuple[dict[str, object], str]] = {
    "no-such-group": ({"control_admin_group": "no-such-group"}, "there is no group"),
    "socket-in-the-way": ({"control_socket": "{folder}/source/f"}, "something that is not a socket is there"),
    "another-mountpoint": ({"mount_path": "{folder}/source"}, "restart the daemon to move it"),
    "no-mount": ({"mount_enabled": False}, "restart the daemon to take the mount away"),
    "another-store": ({"store_path": "{folder}/other"}, "is not the store that"),
    "no-such-store": ({"store_path": "{folder}/nowhere"}, "is not the store that"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_what_cannot_be_served_with_is_not_in_force(holder: Holder, mistake: str) -> None:
    """A worker that follows a dead one goes on with what that had; an upgrade is refused."""
    old = serving(holder)
    Store.open(str(holder.folder / "other")).close()
    values, says = MISTAKES[mistake]
    holder.configure(
        **{k: v.format(folder=holder.folder) if isinstance(v, str) else v for k, v in values.items()}
    )
    path = holder.folder / "mnt" / "model" / "f"
    fd = os.open(path, os.O_RDONLY)
    try:
        following = holder.start()
        wire.send(following.socket, {"do": "standby", "native": 0, "spare": False})
        assert following.hear()["do"] == "prepared"
        wire.send(old.socket, {"do": "pause"})
        assert old.hear()["do"] == "paused"
        holder.tell_to_serve(following)
        message = following.hear()
        assert message["do"] == "failing"
        assert says in message["error"]
        following.process.wait(20)
        holder.tell_to_serve(old, "resume")
        holder.ready(old)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
        assert os.pread(fd, 1 << 20, 0) == CONTENT

        old.process.kill()
        for _ in range(2):
            after = holder.start()
            holder.tell_to_serve(after)
            holder.ready(after)
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
            assert os.pread(fd, 1 << 20, 0) == CONTENT
            assert says in holder.client.status().upgrade_note
            after.process.kill()
            after.process.wait()
        assert not (holder.folder / "nowhere").exists(), "no store is made in passing"
    finally:
        os.close(fd)


def test_a_store_that_was_exchanged_behind_its_path_is_not_shown(holder: Holder) -> None:
    """The kernel has handles and pages of the one before, by the same numbers."""
    old = serving(holder)
    old.process.kill()
    old.process.wait()
    (holder.folder / "store").rename(holder.folder / "moved")
    Store.open(str(holder.folder / "store")).close()
    following = holder.start()
    holder.tell_to_serve(following)
    message = following.hear()
    assert message["do"] == "failing"
    assert "is not the store that" in message["error"]
