"""What docs/operations.md and docs/control.md say, held against the daemon."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from bare_daemon import BareDaemon, run_ckptfsd

from ckptfs.errors import CkptfsError, StoreFull
from ckptfsd.config import ENVIRONMENT, Config
from ckptfsd.control.operations import OPERATIONS

DOCS = Path(__file__).parents[2] / "docs"
OPERATIONS_PAGE = (DOCS / "operations.md").read_text()
CONTROL_PAGE = (DOCS / "control.md").read_text()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[BareDaemon]:
    daemon = BareDaemon(tmp_path / "d")
    yield daemon
    daemon.close()


def table_rows(page: str, header: str) -> list[list[str]]:
    lines = page[page.index(header) :].splitlines()
    rows = []
    for line in lines[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    return rows


def test_the_settings_of_the_table_are_those_of_the_program() -> None:
    rows = table_rows(OPERATIONS_PAGE, "| what | flag |")
    help_text = run_ckptfsd("run", "--help").stdout
    variables = set()
    for _, flag, variable, key, default in rows:
        assert flag.strip("`").split()[0] in help_text
        if variable:
            variables.add(variable.strip("`"))
        if key and variable:
            section, name = re.fullmatch(r"`\[(\w+)\] (\w+)`", key).groups()  # type: ignore[union-attr]
            assert ENVIRONMENT[variable.strip("`")] == (section, name)
            assert getattr(getattr(Config(), section), name) == default.strip("`")
    assert variables == {*ENVIRONMENT, "CKPTFSD_CONFIG"}


def test_every_setting_that_the_page_names_exists() -> None:
    named = re.findall(r"`\[(\w+)\] (\w+)`", OPERATIONS_PAGE + CONTROL_PAGE)
    assert len(named) > 10
    for section, key in named:
        assert hasattr(getattr(Config(), section), key), (section, key)


def test_the_operations_of_the_table_are_those_of_the_daemon() -> None:
    rows = table_rows(CONTROL_PAGE, "| method and path |")
    said = {(row[0].strip("`"), row[2]) for row in rows}
    there = {(f"{o.method} {o.path}", o.who) for o in OPERATIONS}
    assert said == there | {("GET /v1/openapi.json", "read")}


def test_the_counters_are_there(daemon: BareDaemon) -> None:
    daemon.start()
    start = OPERATIONS_PAGE.index("also has counters")
    paragraph = OPERATIONS_PAGE[start : OPERATIONS_PAGE.index("\n\n", start)]
    named = set(re.findall(r"`(\w+)`", paragraph))
    counters = daemon.client().status().counters
    assert len(named) > 8
    assert named <= set(counters), named - set(counters)
    assert counters["fuse_faults"] == 0


def test_the_files_of_the_installation_are_there() -> None:
    for name in re.findall(r"install -D -m 644 (\S+)", OPERATIONS_PAGE):
        assert (DOCS.parent / name).is_file(), name


@pytest.mark.skipif(os.geteuid() != 0, reason="mounts a small disk")
def test_a_disk_that_fills_up_fails_the_creation_alone(daemon: BareDaemon, tmp_path: Path) -> None:
    daemon.store.mkdir(parents=True)
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", str(daemon.store)], check=True)
    try:
        config = tmp_path / "c.toml"
        config.write_text("[store]\nmap_size_bytes = 67_108_864\n")
        daemon.arguments = ["--config", str(config)]
        daemon.start()
        small, big = tmp_path / "small", tmp_path / "big"
        for source, size in ((small, 1 << 20), (big, 40 << 20)):
            source.mkdir()
            (source / "model.bin").write_bytes(os.urandom(size))
        client = daemon.client()
        client.checkpoints.create("small", source_uri=str(small)).wait_for("ready", timeout=30)
        with pytest.raises(CkptfsError) as caught:
            client.checkpoints.create("big", source_uri=str(big)).wait_for("ready", timeout=30)
        assert StoreFull.code in (caught.value.code, caught.value.data.get("reason_code"))
        assert client.status().store.physical_bytes < 4 << 20, "its size was known: nothing is to be fetched"
        assert client.checkpoints.get("small").read("model.bin") == (small / "model.bin").read_bytes()
        if "big" in [c.name for c in client.checkpoints.list()]:
            client.checkpoints.remove("big")
        (small / "more.bin").write_bytes(os.urandom(1 << 20))
        client.checkpoints.create("again", source_uri=str(small)).wait_for("ready", timeout=30)
        (daemon.store / "spool" / "filler").write_bytes(
            bytes(client.status().store.disk_free_bytes - (1 << 20))
        )
        checks = {check.name: check for check in client.doctor()}
        assert not checks["free space"].ok
        assert "ckptfs remove" in checks["free space"].remedy
        (daemon.store / "spool" / "filler").unlink()
        assert daemon.stop() == 0
    finally:
        daemon.close()
        subprocess.run(["umount", str(daemon.store)], check=True)


@pytest.mark.parametrize("native", [True, False], ids=["native", "daemon"])
def test_what_runs_while_the_daemon_dies_gets_its_bytes_or_an_error(
    daemon: BareDaemon, tmp_path: Path, native: bool
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    data = os.urandom(20 << 20)
    (source / "model.bin").write_bytes(data)
    config = tmp_path / "c.toml"
    config.write_text(f"[mount]\npassthrough = {str(native).lower()}\n")
    daemon.arguments = ["--config", str(config)]
    daemon.start()
    daemon.client().checkpoints.create("m", source_uri=str(source)).wait_for("ready", timeout=60)
    daemon.client().jobs.attach("m", job="j")
    program = (
        "import sys\n"
        "f = open(sys.argv[1], 'rb', buffering=0)\n"
        "print('open', flush=True); sys.stdin.readline()\n"
        "try:\n    f.seek(19 << 20); print(f.read(100).hex())\n"
        "except OSError as error:\n    print(error.strerror)\n"
    )
    assert daemon.mount
    job = subprocess.Popen(
        [sys.executable, "-c", program, str(daemon.mount / "m" / "model.bin")],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert job.stdout
    assert job.stdout.readline() == "open\n"
    daemon.kill()
    said, _ = job.communicate("go on\n", timeout=30)
    wanted = data[19 << 20 :][:100].hex() if native else "Transport endpoint is not connected"
    assert said.strip() == wanted
    daemon.start()
    assert (daemon.mount / "m" / "model.bin").read_bytes() == data
    assert daemon.stop() == 0
