"""A mount for a test of this folder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from mounts import Files, Mount, Starter, clean_up, start_mount


@pytest.fixture
def mounted(tmp_path: Path) -> Iterator[Starter]:
    """``mounted({name: files}, option=…)`` starts a mount; all are stopped at the end."""
    with contextlib.ExitStack() as stack:
        count = 0

        def start(checkpoints: dict[str, Files], *, run_as: int | None = None, **options: Any) -> Mount:
            nonlocal count
            count += 1
            folder = tmp_path / f"m{count}"
            folder.mkdir()
            mount = start_mount(folder, checkpoints, options, run_as=run_as)
            stack.callback(clean_up, mount)
            return mount

        yield start
