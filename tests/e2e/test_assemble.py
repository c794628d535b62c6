"""Real daemons and mounts: files that share chunks become native, with shared blocks and without."""

from __future__ import annotations

import mmap
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
from daemon_process import CKPTFS, Daemon, running, until, write_tree

from ckptfs.testing.disks import SHARING, MakeDisk
from ckptfs.testing.maker import model, safetensors, tensor

MB = 1_000_000

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="loop file systems and passthrough need root")

WEIGHTS = model(1, layers=4, width=1024, vocabulary=4000)
CHANGED = {name: tensor(f"tuned {name}", *WEIGHTS[name].shape) for name in list(WEIGHTS)[2:4]}
BASE = {"model.safetensors": safetensors(WEIGHTS), "config.json": b"{}"}
TUNED = {"model.safetensors": safetensors(WEIGHTS | CHANGED), "config.json": b'{"tuned": true}'}

Start = Callable[..., Daemon]


@pytest.fixture
def start(disk: MakeDisk, tmp_path: Path) -> Iterator[Start]:
    """A daemon whose store lies on a disk of a kind, with ``base`` and ``tuned`` in it."""
    with ExitStack() as stack:
        for name, tree in (("base", BASE), ("tuned", TUNED)):
            write_tree(tmp_path / name, tree)

        def run(kind: str, *settings: str) -> Daemon:
            store = disk(400 * MB, kind)
            config = tmp_path / "ckptfsd.toml"
            config.write_text("\n".join(["[store]", f'path = "{store}"', *settings]))
            daemon = stack.enter_context(running(options=["--config", str(config), "--store", store]))
            for name in ("base", "tuned"):
                daemon.run("create", name, str(tmp_path / name))
                until(lambda: not busy(daemon), "the background has looked")
            daemon.run("attach", "tuned", "--job", "j")
            return daemon

        yield run


def busy(daemon: Daemon) -> bool:
    """Whether a checkpoint has yet to be looked at: then not all of its whole files are counted."""
    status = daemon.client.status()
    return status.store.native_files < 1 + status.store.derived_files


def native_opens(daemon: Daemon) -> int:
    return daemon.client.status().counters["native_opens"]


def reads(daemon: Daemon) -> int:
    counters = daemon.client.status().counters
    return counters["reads_inline"] + counters["reads_in_thread"]


def read_both_ways(path: Path) -> bytes:
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        content = bytes(mapped)
        assert file.read() == content
    return content


def free_bytes(path: str) -> int:
    os.sync()
    status = os.statvfs(path)
    return status.f_bfree * status.f_frsize


@pytest.mark.parametrize("kind", SHARING)
def test_with_shared_blocks_a_fine_tune_is_native_by_itself(start: Start, kind: str) -> None:
    daemon = start(kind)
    until(lambda: daemon.json("show", "tuned")["native_files"] == 1, "the fine-tune is native")
    shown = daemon.json("show", "tuned")
    assert (shown["whole_files"], shown["derived_files"], shown["served_files"]) == (0, 1, {"small": 1})
    assert shown["derived_bytes"] < len(TUNED["model.safetensors"]) / 256
    path = daemon.mount / "tuned" / "model.safetensors"
    assert read_both_ways(path) == TUNED["model.safetensors"]
    assert native_opens(daemon) == 1
    assert reads(daemon) == 0, "no read came to the daemon"
    # What the file system says of both: the new tensors, and little else.
    store = daemon.client.status().store
    with_copy = free_bytes(store.path)
    assert daemon.json("assemble", "tuned", "--drop")["dropped"] == 1
    assert free_bytes(store.path) - with_copy < shown["derived_bytes"] + MB


def test_no_open_joins_one_that_reads_a_damaged_copy(start: Start, tmp_path: Path) -> None:
    """All handles of a file have one backing file; the copy that it was has gone with the damage."""
    daemon = start("xfs")
    daemon.expected_errors = ["damage found", "damage was found in model.safetensors"]
    until(lambda: daemon.json("show", "tuned")["native_files"] == 1, "the fine-tune is native")
    path = daemon.mount / "tuned" / "model.safetensors"
    content = TUNED["model.safetensors"]
    with path.open("rb") as opened:
        assert native_opens(daemon) == 1
        for blob in Path(daemon.client.status().store.path, "blobs").rglob("*"):
            if blob.is_file() and blob.stat().st_size == len(BASE["model.safetensors"]):
                with blob.open("r+b") as file:
                    file.seek(20 * MB)
                    file.write(b"rot")
        assert len(daemon.json("verify", "base", code=7)["damaged"]) == 1
        daemon.run("create", "again", str(tmp_path / "base"))
        until(lambda: daemon.json("show", "tuned")["native_files"] == 1, "the copy is there anew")
        with pytest.raises(OSError, match="Input/output error"):
            path.open("rb")
        daemon.run("daemon", "reload")
        assert opened.read() == content, "its blocks were never damaged, as it happens"
    until(lambda: daemon.client.status().counters["files_open_native"] == 0, "the handle is closed")
    assert read_both_ways(path) == content


@contextmanager
def slow_writes(pid: int) -> Iterator[None]:
    """Each pwrite of a process takes a tenth of a second (strace)."""
    inject = ["-e", "trace=pwrite64", "-e", "inject=pwrite64:delay_enter=100000", "-o", os.devnull]
    tracer = subprocess.Popen(["strace", "-f", "-p", str(pid), *inject], stderr=subprocess.PIPE, text=True)
    try:
        assert tracer.stderr
        assert "attached" in tracer.stderr.readline()
        yield
    finally:
        tracer.kill()
        tracer.communicate()


@pytest.mark.skipif(shutil.which("strace") is None, reason="strace is not here")
def test_an_upgrade_does_not_wait_for_copies_in_the_making(disk: MakeDisk, tmp_path: Path) -> None:
    """The next worker waits ten seconds at most until the store is let go of."""
    one, two = os.urandom(4 << 20), os.urandom(4 << 20)
    write_tree(tmp_path / "base", {"f": one + two})
    write_tree(tmp_path / "turned", {"f": (two + one) * 50})  # few chunks, and long to copy
    store = disk(700 * MB, "ext4")
    with running(options=["--store", store]) as daemon:
        for name in ("base", "turned"):
            daemon.run("create", name, str(tmp_path / name))
            (tmp_path / name / "f").unlink()
        before = daemon.json("status")["worker_pid"]
        derived = Path(store, "derived")
        with slow_writes(before):
            asked = subprocess.Popen(
                [*CKPTFS, "assemble", "turned"],
                env=daemon.environment(),
                stdout=subprocess.DEVNULL,
                stderr=subprocess.PIPE,
            )
            try:
                until(lambda: any(f.stat().st_blocks for f in derived.glob(".tmp-*-*")), "the copy is begun")
                begun = time.monotonic()
                daemon.run("daemon", "reload")
                assert time.monotonic() - begun < 5
                assert daemon.json("status")["worker_pid"] != before
                assert asked.wait(20) != 0, "it was cut short"
            finally:
                asked.kill()
                asked.communicate()
        assert daemon.json("show", "turned")["native_files"] == 0
        assert list(derived.iterdir()) == [], "nothing of it is left"
        assert daemon.json("assemble", "turned")["native_files"] == 1


def test_without_them_assemble_does_it_for_space(start: Start) -> None:
    daemon = start("ext4")
    content = TUNED["model.safetensors"]
    path = daemon.mount / "tuned" / "model.safetensors"
    assert daemon.json("show", "tuned")["served_files"] == {"shared": 1, "small": 1}
    assert "model.safetensors  " in (tree := daemon.run("tree", "tuned").stdout)
    assert tree.splitlines()[2].endswith("  shared")
    before = free_bytes(str(daemon.client.status().store.path))
    # Open through the daemon, and so until its last handle is closed.
    with path.open("rb") as opened:
        assert opened.read(MB) == content[:MB]
        served = reads(daemon)
        assert served > 0
        said = daemon.run("assemble", "tuned").stdout
        assert said.startswith("tuned: 1 derived copy made; 1 of 2 files native; derived copies take ")
        assert opened.read() == content[MB:]
        with path.open("rb") as second:
            assert second.read(10) == content[:10]
        assert native_opens(daemon) == 0
    until(lambda: daemon.client.status().counters["files_open_served"] == 0, "the handles are closed")
    served = reads(daemon)
    assert read_both_ways(path) == content
    assert native_opens(daemon) == 1
    assert reads(daemon) == served
    status = daemon.client.status().store
    assert (status.native_files, status.derived_files) == (2, 1)
    assert status.derived_bytes == pytest.approx(len(content), abs=MB)
    assert before - free_bytes(status.path) == pytest.approx(status.derived_bytes, abs=MB)
    assert daemon.run("tree", "tuned").stdout.splitlines()[2].endswith("  derived")
    assert "native       2 of 4 files (1 derived copy, 41.8 MB)" in daemon.run("status").stdout


def test_a_copy_that_is_given_back_goes_on_for_who_has_it_open(start: Start) -> None:
    daemon = start("ext4")
    daemon.run("assemble", "tuned")
    content = TUNED["model.safetensors"]
    path = daemon.mount / "tuned" / "model.safetensors"
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as mapped:
        assert native_opens(daemon) == 1
        said = daemon.run("assemble", "tuned", "--drop").stdout
        assert said.startswith("tuned: 1 derived copy dropped, ")
        assert os.listdir(Path(daemon.client.status().store.path) / "derived") == []
        assert file.read() == content
        assert mapped[:] == content
        with path.open("rb") as second:  # the kernel wants the same backing file while one is open
            assert second.read() == content
    until(lambda: daemon.client.status().counters["files_open_native"] == 0, "the handles are closed")
    assert path.read_bytes() == content
    assert reads(daemon) > 0


def test_a_policy_makes_them_within_its_limit(start: Start) -> None:
    daemon = start("ext4", "derived_limit_bytes = 100_000_000")
    until(lambda: daemon.json("show", "tuned")["native_files"] == 1, "the policy has made it native")
    assert (daemon.mount / "tuned" / "model.safetensors").read_bytes() == TUNED["model.safetensors"]
    assert native_opens(daemon) == 1
    assert daemon.client.status().store.derived_limit_bytes == 100_000_000


def test_a_killed_daemon_finds_its_copies_again(start: Start) -> None:
    daemon = start("ext4")
    daemon.run("assemble", "tuned")
    store = Path(daemon.client.status().store.path)
    (store / "derived" / ".tmp-00000002-00000001").write_bytes(b"what a killed daemon was about to make")
    daemon.kill()
    daemon.start()  # clears the dead mount
    assert [name for name in os.listdir(store / "derived") if name.startswith(".tmp-")] == []
    path = daemon.mount / "tuned" / "model.safetensors"
    assert path.read_bytes() == TUNED["model.safetensors"]
    assert (native_opens(daemon), reads(daemon)) == (1, 0)


def test_a_copy_that_rots_is_found_and_dropped(start: Start) -> None:
    daemon = start("ext4")
    daemon.expected_errors.append("wrong derived copies dropped")
    daemon.run("assemble", "tuned")
    (copy,) = (Path(daemon.client.status().store.path) / "derived").iterdir()
    with copy.open("r+b") as file:
        file.seek(3 * MB)
        file.write(b"rot")
    said = daemon.run("verify", "tuned").stdout
    assert "intact" in said
    assert "tuned/model.safetensors: its derived copy was wrong (its bytes at offset " in said
    assert not copy.exists()
    assert (daemon.mount / "tuned" / "model.safetensors").read_bytes() == TUNED["model.safetensors"]
    report = daemon.json("assemble", "tuned")
    assert report["native_files"] == 1
    assert daemon.json("verify", "tuned")["dropped"] == []


def test_the_sdk_assembles(start: Start) -> None:
    daemon = start("ext4")
    checkpoint = daemon.client.checkpoints.get("tuned")
    steps: list[tuple[int, int]] = []
    report = checkpoint.assemble(lambda step: steps.append((step.done, step.total)))
    assert (report.made, report.native_files, report.served_files) == (1, 1, {"small": 1})
    assert steps
    assert checkpoint.drop_derived().dropped == 1
    assert checkpoint.refresh().info.derived_files == 0


def test_copies_go_with_their_checkpoint(start: Start) -> None:
    daemon = start("ext4")
    daemon.run("assemble", "tuned")
    daemon.run("detach", "--job", "j")
    daemon.run("remove", "tuned")
    status = daemon.client.status().store
    assert (status.derived_files, status.derived_bytes) == (0, 0)
    assert os.listdir(Path(status.path) / "derived") == []


def test_a_progress_bar_is_for_terminals_only(start: Start) -> None:
    daemon = start("ext4")
    ran = daemon.run("assemble", "tuned", prefix=[])
    assert ran.stderr == ""
    script = subprocess.run(
        ["script", "-qec", f"{sys.executable} -m ckptfs assemble tuned", "/dev/null"],
        env=daemon.environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    assert "nothing to do" in script.stdout
