"""What `wait_for` accepts, and when it is settled."""

from __future__ import annotations

import pytest

from ckptfs.client import waiting
from ckptfs.errors import CheckpointError, SpecificationError, UpgradeFailed
from ckptfs.model.records import CheckpointInfo, StatusInfo


def daemon(worker_pid: int, upgrades: int = -1, *, pid: int = 1, note: str = "") -> StatusInfo:
    named = {"worker_pid": worker_pid, "upgrades": upgrades, "pid": pid, "upgrade_note": note}
    others = {f: None for f in StatusInfo.__struct_fields__ if f not in named}
    return StatusInfo(**others, **named)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("before", "now"),
    [
        (daemon(10, 2), daemon(11, 3)),
        (daemon(10, 2), daemon(12, 3)),  # the next one died, and was followed by one of the new version
        (daemon(10), daemon(11)),  # a holder that does not count
        (daemon(10), daemon(11, 1)),
        (daemon(10, 2, pid=1), daemon(11, 0, pid=2)),  # all of it was restarted
    ],
)
def test_upgraded(before: StatusInfo, now: StatusInfo) -> None:
    assert waiting.upgraded(before, now)


@pytest.mark.parametrize("upgrades", [-1, 2])
def test_not_upgraded_yet(upgrades: int) -> None:
    assert not waiting.upgraded(daemon(10, upgrades), daemon(10, upgrades))


@pytest.mark.parametrize(
    ("before", "now", "why"),
    [
        (daemon(10, 2), daemon(10, 2, note="it is ill"), "it is ill"),
        (daemon(10), daemon(10, note="it is ill"), "it is ill"),
        (daemon(10, 2), daemon(11, 2), "process 10 died meanwhile"),
    ],
)
def test_an_upgrade_that_failed(before: StatusInfo, now: StatusInfo, why: str) -> None:
    with pytest.raises(UpgradeFailed, match=why):
        waiting.upgraded(before, now)


def info(status: str, reason: str = "") -> CheckpointInfo:
    return CheckpointInfo(id="c-1", name="x", status=status, reason=reason, reason_code="source_corrupt")  # type: ignore[arg-type]


@pytest.mark.parametrize("status", ["", "new", "failed", "Ready", "exporting"])
def test_a_bad_target_is_refused(status: str) -> None:
    with pytest.raises(SpecificationError) as caught:
        waiting.check(status, 1)
    assert caught.value.attribute == "status"


@pytest.mark.parametrize("timeout", [86400.1, -1, float("nan"), float("inf"), "10", None, True])
def test_a_bad_timeout_is_refused(timeout: object) -> None:
    with pytest.raises(SpecificationError) as caught:
        waiting.check("ready", timeout)  # type: ignore[arg-type]
    assert caught.value.attribute == "timeout"


@pytest.mark.parametrize("timeout", [0, 0.5, 300, 86400])
def test_a_good_timeout_is_taken(timeout: float) -> None:
    waiting.check("ready", timeout)


@pytest.mark.parametrize(
    ("target", "status", "settled"),
    [
        ("downloading", "new", False),
        ("downloading", "downloading", True),
        ("downloading", "ready", True),  # it passed quickly
        ("ready", "new", False),
        ("ready", "downloading", False),
        ("ready", "ready", True),
        ("archived", "ready", False),
        ("archived", "failed", False),  # can be removed as well
        ("archived", "archived", True),
    ],
)
def test_settled(target: str, status: str, settled: bool) -> None:
    assert waiting.settled(info(status), target) is settled


@pytest.mark.parametrize("target", ["downloading", "ready"])
def test_a_failure_is_raised_with_its_reason(target: str) -> None:
    with pytest.raises(CheckpointError) as caught:
        waiting.settled(info("failed", "the archive is cut off"), target)
    assert caught.value.status == "failed"
    assert caught.value.data["reason"] == "the archive is cut off"
    assert "the archive is cut off" in caught.value.message
    with pytest.raises(CheckpointError) as removed:
        waiting.settled(info("archived"), target)
    assert removed.value.status == "archived"


def test_pauses_grow_and_stay_within_what_is_left() -> None:
    pauses = waiting.Pauses()
    taken = [pauses.take(1000) for _ in range(30)]
    assert taken == sorted(taken)
    assert taken[0] == waiting.FIRST_PAUSE_SECONDS
    assert taken[-1] == waiting.LAST_PAUSE_SECONDS
    assert pauses.take(0.01) == 0.01
    assert pauses.take(-1) == 0
