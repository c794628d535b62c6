"""When a dead worker is started again, and which requests are given up."""

from __future__ import annotations

from ckptfsd.holder.policy import Death, Restarts

KILLED = Death(ready_seconds=0.5, killed=True)
CRASHED = Death(ready_seconds=0.5, killed=False)
CRASHED_LATE = Death(ready_seconds=3600.0, killed=False)
NEVER_READY = Death(ready_seconds=-1.0, killed=False)


def restarts() -> Restarts:
    return Restarts(failed_starts=5, slowest_seconds=15.0)


def test_a_worker_that_is_killed_comes_back_at_once_however_often() -> None:
    policy = restarts()
    assert [policy.died(KILLED) for _ in range(100)] == [0.0] * 100
    assert not policy.looping


def test_a_worker_that_crashes_soon_comes_back_within_a_second() -> None:
    policy = restarts()
    pauses = [policy.died(CRASHED) for _ in range(8)]
    assert pauses == [0.0, 0.1, 0.2, 0.5, 1.0, 1.0, 1.0, 1.0]
    assert not policy.looping
    assert policy.died(CRASHED_LATE) == 0.0, "it had shown that it can work"


def test_starts_that_fail_in_a_row_slow_down() -> None:
    policy = restarts()
    pauses = [policy.died(NEVER_READY) for _ in range(10)]
    assert pauses == [0.0, 0.1, 0.2, 0.5, 1.0, 2.0, 4.0, 8.0, 15.0, 15.0]
    assert policy.looping
    policy.died(KILLED)  # it was ready
    assert not policy.looping
    assert policy.died(NEVER_READY) == 0.0


def test_a_start_that_is_killed_counts_for_a_third() -> None:
    policy = restarts()
    assert [policy.died(Death(-1.0, killed=True)) for _ in range(14)] == [0.0] * 14
    assert not policy.looping
    assert policy.died(Death(-1.0, killed=True)) == 1.0
    assert policy.looping


def died(policy: Restarts, death: Death, taken: set[int], waiting: set[int]) -> set[int]:
    policy.died(death)
    return policy.condemn(taken, waiting, death)


def test_a_request_that_five_workers_died_with_gets_eio_alone() -> None:
    policy = restarts()
    for _ in range(4):
        assert died(policy, CRASHED, {1}, {2}) == set()
    assert died(policy, CRASHED, {1}, {2}) == {1}


def test_a_request_that_only_waits_is_given_up_after_fifteen_deaths() -> None:
    policy = restarts()
    for _ in range(14):
        assert died(policy, KILLED, set(), {2}) == set()
    assert died(policy, KILLED, set(), {2}) == {2}


def test_requests_that_are_answered_in_between_are_never_given_up() -> None:
    policy = restarts()
    for number in range(200):
        assert died(policy, KILLED, {2 * number}, {2 * number + 1, 2 * number + 3}) == set()


def test_in_a_loop_of_failed_starts_everything_is_given_up() -> None:
    policy = restarts()
    for _ in range(4):
        assert died(policy, NEVER_READY, set(), {1}) == set()
    assert died(policy, NEVER_READY, {1}, {2, 3}) == {1, 2, 3}
    assert died(policy, NEVER_READY, set(), {4}) == {4}, "at each death, so nobody waits longer than a pause"
