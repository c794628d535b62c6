"""docs/performance.md says what bench/results says: tables and picture are made from it, and follow it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results"


def page(*words: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "bench.page", *words], cwd=ROOT, capture_output=True, text=True, timeout=60
    )


def test_the_page_agrees_with_the_results() -> None:
    done = page("--check")
    assert done.returncode == 0, done.stderr


@pytest.mark.parametrize("name", sorted(path.stem for path in RESULTS.glob("*.json")))
def test_every_result_is_on_the_page_and_followed_by_it(name: str, tmp_path: Path) -> None:
    docs, results = tmp_path / "docs", tmp_path / "results"
    docs.mkdir()
    for file in ("performance.md", "performance.svg"):
        shutil.copy(ROOT / "docs" / file, docs)
    shutil.copytree(RESULTS, results)
    result = json.loads((results / f"{name}.json").read_text())
    words = next(iter(result["targets"]))
    result["targets"][words]["reached"] = 12.345
    (results / f"{name}.json").write_text(json.dumps(result))

    where = ("--docs", docs, "--results", results)
    assert page("--check", *where).returncode == 1
    assert page(*where).returncode == 0
    assert f"| {words} | 12.3 |" in (docs / "performance.md").read_text()
    assert page("--check", *where).returncode == 0
