"""`ckptfsd rebuild`: what a start refuses, a rebuild puts right, and what it cannot it names."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import BareDaemon, run_ckptfsd

from ckptfs.errors import CheckpointError


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BareDaemon]:
    daemon = BareDaemon(tmp_path / "d")
    yield daemon
    daemon.close()


CONTENT = {"sound": b"s" * 200_000, "other": b"o" * 300_000}


def with_two_checkpoints(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.start()
    for name, data in CONTENT.items():
        source = tmp_path / name
        source.mkdir()
        (source / "model\n.bin").write_bytes(data)
        daemon.client().checkpoints.create(name, source_uri=str(source)).wait_for("ready", timeout=60)
    daemon.client().jobs.attach("sound", job="j")


def damage_index(daemon: BareDaemon) -> None:
    database = daemon.store / "index" / "data.mdb"
    database.write_bytes(database.read_bytes()[: 3 * 4096])


def test_a_damaged_index_is_refused_with_the_remedy_and_the_remedy_works(
    daemon: BareDaemon, tmp_path: Path
) -> None:
    with_two_checkpoints(daemon, tmp_path)
    daemon.kill()
    damage_index(daemon)
    daemon.spawn()
    assert daemon.wait() == 7
    assert len(daemon.error_lines()) == 1
    assert "ckptfsd rebuild --store" in daemon.error_lines()[0]

    done = run_ckptfsd("rebuild", "--store", str(daemon.store))
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    assert "2 checkpoint(s)" in done.stdout
    kept = re.search(r"the old index is kept at (\S+);", done.stdout)
    assert kept and Path(kept[1]).exists()

    daemon.start()
    for name, data in CONTENT.items():
        checkpoint = daemon.client().checkpoints.get(name)
        assert checkpoint.read("model\n.bin") == data
        assert checkpoint.verify().damaged == []
    assert daemon.stop() == 0


def test_what_is_damaged_is_named_and_the_rest_is_restored(daemon: BareDaemon, tmp_path: Path) -> None:
    with_two_checkpoints(daemon, tmp_path)
    assert daemon.stop() == 0
    rotten = next(
        path
        for path in (daemon.store / "blobs").rglob("*")
        if path.is_file() and path.stat().st_size == len(CONTENT["other"])
    )
    with open(rotten, "r+b") as blob:
        blob.seek(1000)
        blob.write(b"X")

    done = run_ckptfsd("rebuild", "--store", str(daemon.store))
    assert done.returncode == 7
    *places, last = done.stderr.splitlines()
    assert len(places) == 1
    assert re.search(r"damaged: other: model\\x0a\.bin: byte 0, ", places[0])
    assert last.startswith("ckptfsd: error: 1 checkpoint(s) are damaged and were not restored: other;")

    daemon.start()
    assert daemon.client().checkpoints.get("sound").read("model\n.bin") == CONTENT["sound"]
    with pytest.raises(CheckpointError):
        daemon.client().checkpoints.get("other").read("model\n.bin")
    again = daemon.client().checkpoints.create("other", source_uri=str(tmp_path / "other"))
    again.wait_for("ready", timeout=60)
    assert again.read("model\n.bin") == CONTENT["other"]
    assert daemon.stop() == 0


def test_a_store_in_use_and_a_place_without_a_store(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.start()
    done = run_ckptfsd("rebuild", "--store", str(daemon.store))
    assert done.returncode == 7
    assert re.fullmatch(r"ckptfsd: error: .* is in use by another process .*\n", done.stderr)
    for place in (tmp_path / "absent", tmp_path):
        done = run_ckptfsd("rebuild", "--store", str(place))
        assert done.returncode == 7
        assert done.stderr.count("\n") == 1
        assert "is not a ckptfs store" in done.stderr
    assert not (tmp_path / "absent").exists()
    assert daemon.client().status().store.checkpoints == 0
