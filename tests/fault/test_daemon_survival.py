"""SIGKILL of the worker under readers: a pause for them, and nothing else."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path
from typing import Any

import pytest
from survival import Node, checkpoint, node, not_longer, readers, say

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="the daemon mounts, which needs root")

READERS = 64

SERVED_ONLY = "[mount]\npassthrough = false\n"


def kill_under_readers(serving: Node, source: Path, kills: int) -> dict[str, Any]:
    """Kill the worker again and again, each time at another moment after it got ready."""
    mounted = serving.path(source.name)
    with readers(mounted, source, READERS) as jobs:
        time.sleep(1.0)
        for _ in range(kills):
            count = serving.kill_worker()
            serving.wait_ready(count + 1)
            time.sleep(random.uniform(0.0, 0.3))
        time.sleep(0.5)
        report = jobs.end_well()
    assert serving.deaths() == kills
    say(f"{kills} kills", **{k: v for k, v in report.items() if k != "errors"})
    return report


def check_kinds(serving: Node, *, native: bool) -> None:
    """The test is of what it says: some files are read past the daemon, others by it; or none is."""
    counters = serving.counters()
    assert (counters["native_opens"] > 0) == native
    assert counters["reads_inline"] + counters["reads_in_thread"] > 0


@pytest.mark.parametrize(
    ("kills", "config"),
    [
        pytest.param(8, "", id="8"),
        pytest.param(2, SERVED_ONLY, id="2-passthrough-off"),
        pytest.param(100, "", id="100", marks=[pytest.mark.slow, pytest.mark.timeout(600)]),
        pytest.param(
            100, SERVED_ONLY, id="100-passthrough-off", marks=[pytest.mark.slow, pytest.mark.timeout(600)]
        ),
    ],
)
def test_kills_under_readers_cost_a_pause(tmp_path: Path, kills: int, config: str) -> None:
    with node(tmp_path, config=config) as serving:
        source = checkpoint(serving, tmp_path)
        report = kill_under_readers(serving, source, kills)
        check_kinds(serving, native=not config)
        not_longer(report)
