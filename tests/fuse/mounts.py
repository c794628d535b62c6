"""Real mounts, each in a process of its own."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ckptfs.store import Checkpoint, Store
from ckptfs.testing.checkpoints import Files, make_checkpoint

_PROGRAM = str(Path(__file__).with_name("mount_process.py"))
_STOP_SECONDS = 20


class Mount:
    """A mount in another process, and the checkpoints in its store."""

    def __init__(self, process: subprocess.Popen[bytes], root: str, notes: str, log: Path) -> None:
        self.process = process
        self.root = root
        self.notes = notes
        self.log = log
        self.checkpoints: dict[str, Checkpoint] = {}

    def path(self, *parts: str) -> str:
        return os.path.join(self.root, *parts)

    def do(self, what: str, **arguments: Any) -> dict[str, Any]:
        assert self.process.stdin
        assert self.process.stdout
        self.process.stdin.write(json.dumps({"do": what, **arguments}).encode() + b"\n")
        self.process.stdin.flush()
        answer: dict[str, Any] = json.loads(self.process.stdout.readline())
        return answer

    def attach(self, *names: str) -> None:
        self.do("attach", names=names)

    def counter(self, name: str) -> int:
        return int(self.do("counters")[name])

    def reads(self) -> int:
        """Reads that were answered so far, in whatever way."""
        found = self.do("counters")
        return sum(int(found[way]) for way in ("reads_spliced", "reads_inline", "reads_in_thread"))

    def read_bytes(self) -> int:
        found = self.do("counters")
        return int(found["read_bytes"]) + int(found["spliced_bytes"])

    def stop(self) -> int:
        assert self.process.stdin
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        return self.process.wait(_STOP_SECONDS)

    def said(self) -> str:
        return self.log.read_text(errors="replace")


class MountRefused(Exception):
    pass


def start_mount(
    folder: Path, checkpoints: dict[str, Files], options: dict[str, Any], *, run_as: int | None = None
) -> Mount:
    """Make a store with these checkpoints and mount it, everything attached unless options say else."""
    if "mountpoint" not in options:
        (folder / "mount").mkdir(exist_ok=True)
    root = Path(options.pop("mountpoint", folder / "mount"))
    made = {}
    with contextlib.closing(Store.open(str(folder / "store"))) as store:
        for name, files in checkpoints.items():
            made[name] = make_checkpoint(store, name, files)
    options.setdefault("attach", list(checkpoints))
    log = folder / "log"
    if run_as is not None:
        options["run_as"] = run_as
        hand_over(folder, run_as)
    with log.open("wb") as sink:
        process = subprocess.Popen(
            [sys.executable, _PROGRAM, str(folder / "store"), str(root), json.dumps(options)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=sink,
        )
    assert process.stdout
    line = process.stdout.readline()
    answer = json.loads(line) if line else {"error": log.read_text()}
    if "ready" not in answer:
        process.wait(_STOP_SECONDS)
        close_pipes(process)
        raise MountRefused(answer["error"])
    mount = Mount(process, answer["ready"], answer["notes"], log)
    mount.checkpoints = made
    return mount


def hand_over(folder: Path, user: int) -> None:
    for path in [folder, *folder.rglob("*")]:
        os.chown(path, user, user, follow_symlinks=False)


def close_pipes(process: subprocess.Popen[bytes]) -> None:
    for pipe in (process.stdin, process.stdout):
        if pipe:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def clean_up(mount: Mount) -> None:
    """Nothing stays mounted or running, whatever the test did; a fault that it did not expect fails it."""
    try:
        mount.stop()
    except subprocess.TimeoutExpired:
        mount.process.kill()
        mount.process.wait()
        raise
    finally:
        close_pipes(mount.process)
        while str(mount.root) in Path("/proc/self/mounts").read_text():
            subprocess.run(["umount", "-l", mount.root], check=True)


Starter = Callable[..., Mount]
