"""The benchmarks run: tiny, each to its end, with every figure that it promises. Their ratios are judged
at full size only, by a person: `python -m bench.NAME`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]

TINY = {
    "create": ["--bytes", "4000000", "--tensors", "30", "--pairs", "1"],
    "read": [
        *("--bytes", "4000000", "--peer-bytes", "3000000", "--slow-bytes", "1000000"),
        *("--rounds", "1", "--other-rounds", "1", "--small-reads", "50", "--large-reads", "3"),
        *("--idle-seconds", "0.1"),
    ],
    "latency": ["--bytes", "40000000", "--rounds", "1", "--idle-seconds", "0.3", "--names", "3000"],
    "sharing": ["--layers", "2", "--width", "512", "--vocabulary", "4100"],
    "assemble": ["--bytes", "4000000", "--tensors", "30", "--pairs", "1"],
    "small_files": ["--files", "300", "--per-directory", "100", "--rounds", "1"],
    "index": ["--chunks", "3000", "--files", "7", "--rounds", "1"],
}


@pytest.mark.slow
@pytest.mark.parametrize("name", TINY)
def test_a_benchmark_runs_and_cleans_up(name: str, tmp_path: Path) -> None:
    place, results = tmp_path / "place", tmp_path / "results"
    place.mkdir()
    words = [
        sys.executable,
        "-m",
        f"bench.{name}",
        "--dir",
        str(place),
        "--results",
        str(results),
        *TINY[name],
    ]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stdout + done.stderr

    result = json.loads((results / f"{name}.json").read_text())
    assert result["targets"] and result["figures"]
    for target in result["targets"].values():  # 0 is what is wanted of some costs
        assert target["reached"] > 0 or target["wanted"].startswith("<=")
    if name == "create" and shutil.which("casync"):
        assert "throughput of create, of casync make" in result["targets"]
    if name == "read":
        check_read(result["figures"])
    if name == "sharing":  # follows from the cuts alone, so it holds here too
        assert all(target["met"] for target in result["targets"].values())
    assert list(place.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def check_read(figures: dict[str, Any]) -> None:
    """What holds at any size: who was measured, and that first passes were served and hot ones were not."""
    servers = figures["servers"]
    expected = {"ckptfs, past the daemon", "ckptfs, by the daemon", "plain pyfuse3"} | {
        peer
        for peer, program in (("squashfuse", "mksquashfs"), ("casync mount", "casync"))
        if shutil.which(program)
    }
    assert expected <= set(servers)
    assert set(servers) | set(figures["skipped"]) >= {*expected, "squashfuse", "casync mount", "rclone mount"}
    for server in servers.values():
        for way in server["ways"].values():
            assert way["first"]["of_native"] > 0
            assert way["second"]["of_native"] > 0
    requests = figures["plain_pyfuse3_read_requests"]
    served = sum(int(size) * count for size, count in requests.items())
    assert served > 3_900_000 * 4  # a first pass of each way that reads the whole file
    assert max(requests, key=requests.get) == str(128 << 10)  # as the kernel asks by default
    assert servers["ckptfs, past the daemon"]["times_cached"] < 1.1
    assert servers["ckptfs, by the daemon"]["times_cached"] > 1.9
