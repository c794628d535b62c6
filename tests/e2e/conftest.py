"""Real daemons for the tests of this folder."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from daemon_process import SAMPLES, Daemon, running, write_tree


@pytest.fixture
def daemon() -> Iterator[Daemon]:
    """A daemon for one test."""
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def node(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Daemon]:
    """A daemon for a module's tests, with two checkpoints: ``model`` and ``adapter``."""
    with running() as started:
        for name, files in SAMPLES.items():
            source = tmp_path_factory.mktemp(name)
            write_tree(source, files)
            started.run("create", name, str(source))
        yield started
