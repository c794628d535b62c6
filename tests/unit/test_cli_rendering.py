"""What people read: progress, trees, tables, environments."""

from __future__ import annotations

import subprocess

import pytest

from ckptfs.cli.content import drawing
from ckptfs.cli.jobs import environment
from ckptfs.cli.progress import PLAIN_INTERVAL_SECONDS, PlainProgress, describe
from ckptfs.cli.rendering import columns, line, safe
from ckptfs.model.records import CheckpointInfo, JobInfo, Progress, TreeEntry


def test_progress_in_words() -> None:
    progress = Progress(
        phase="reading",
        bytes_done=1_200_000_000,
        bytes_total=4_300_000_000,
        files_done=3,
        files_total=12,
        bytes_reused=500_000,
        rate_bytes_per_second=210e6,
        eta_seconds=14.7,
    )
    assert describe(progress) == (
        "reading 1.2 GB of 4.3 GB (27 %), 210.0 MB/s, 15 s left, 3 of 12 files, 500.0 kB was here already"
    )
    assert describe(Progress(phase="listing")) == "listing"
    assert describe(Progress(phase="reading", bytes_done=5)) == "reading 5 B"


def test_plain_lines_come_now_and_then_and_with_each_phase() -> None:
    said: list[str] = []
    now = 0.0
    plain = PlainProgress(said.append, lambda: now)

    def look(phase: str, done: int) -> None:
        progress = Progress(phase=phase, bytes_done=done)
        plain(CheckpointInfo(id="c-1", name="x", status="downloading", progress=progress))

    plain(CheckpointInfo(id="c-1", name="x", status="new"))
    look("listing", 0)
    look("reading", 1)
    look("reading", 2)
    now = PLAIN_INTERVAL_SECONDS - 0.1
    look("reading", 3)
    now = PLAIN_INTERVAL_SECONDS
    look("reading", 4)
    look("finishing", 5)
    assert said == ["x: listing", "x: reading 1 B", "x: reading 4 B", "x: finishing 5 B"]


def test_a_tree_is_drawn() -> None:
    entries = [
        TreeEntry(path="a.txt", type="f", size=5),
        TreeEntry(path="bin", type="d"),
        TreeEntry(path="bin/run", type="f", size=1500, executable=True),
        TreeEntry(path="bin/sub", type="d"),
        TreeEntry(path="bin/sub/\x1bx", type="f"),
        TreeEntry(path="link", type="l", target="bin/run"),
    ]
    assert list(drawing(entries)) == [
        "├── a.txt  5 B",
        "├── bin/",
        "│   ├── run*  1.5 kB",
        "│   └── sub/",
        "│       └── \\x1bx  0 B",
        "└── link -> bin/run",
    ]
    below = [e for e in entries if e.path.startswith("bin")]
    assert list(drawing(below, "bin")) == ["├── run*  1.5 kB", "└── sub/", "    └── \\x1bx  0 B"]


def test_a_deep_tree_is_drawn_without_recursion() -> None:
    parts = ["d"] * 3000
    entries = [TreeEntry(path="/".join(parts[:n]), type="d") for n in range(1, 3001)]
    assert len(list(drawing(entries))) == 3000


def test_columns_align(capsys: pytest.CaptureFixture[str]) -> None:
    columns(("NAME", "SIZE"), [("a", "1 B"), ("longer name", "100.0 kB")], right=frozenset({1}))
    assert capsys.readouterr().out == (
        "NAME             SIZE\na                 1 B\nlonger name  100.0 kB\n"
    )


def test_safe_and_line() -> None:
    assert safe("a\\b\n") == "a\\\\b\\x0a"
    assert line("was escaped: \\x1b, was not: \x1b\n") == "was escaped: \\x1b, was not: \\x1b\\x0a"


def test_an_environment_for_a_shell_survives_the_shell() -> None:
    path = '/mnt/it\'s $HOME `x` \\ "q"'
    info = JobInfo(
        job="j", checkpoints=[], path=path, env={"TRAINML_CHECKPOINT_PATH": path, "ML_CHECKPOINT_PATH": path}
    )
    script = "\n".join(environment(info, shell=True)) + '\nprintf %s "$TRAINML_CHECKPOINT_PATH"'
    assert subprocess.run(["sh", "-c", script], capture_output=True, text=True, check=True).stdout == path
    assert environment(info, shell=False) == [f"TRAINML_CHECKPOINT_PATH={path}", f"ML_CHECKPOINT_PATH={path}"]
