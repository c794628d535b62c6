"""The benchmarks run: tiny, each to its end, with every figure that it promises. Their ratios are judged
at full size only, by a person: `python -m bench.NAME`."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

TINY = {
    "create": ["--bytes", "4000000", "--tensors", "30", "--pairs", "1"],
    "read": ["--bytes", "4000000", "--rounds", "1"],
    "sharing": ["--layers", "2", "--width", "512", "--vocabulary", "4100"],
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
    assert all(target["reached"] > 0 for target in result["targets"].values())
    if name == "create" and shutil.which("casync"):
        assert "throughput of create, of casync make" in result["targets"]
    if name == "sharing":  # follows from the cuts alone, so it holds here too
        assert all(target["met"] for target in result["targets"].values())
    assert list(place.iterdir()) == []
    assert str(tmp_path) not in Path("/proc/mounts").read_text()
