"""systemd's readiness protocol, against a real datagram socket."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from ckptfsd.notify import Notifier


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(tmp_path / "notify"))
        manager.setblocking(False)
        yield manager


def heard(manager: socket.socket) -> list[bytes]:
    messages = []
    while True:
        try:
            messages.append(manager.recv(4096))
        except BlockingIOError:
            return messages


def test_a_message_reaches_the_manager(manager: socket.socket) -> None:
    environ = {"NOTIFY_SOCKET": manager.getsockname(), "HOME": "/"}
    notifier = Notifier(environ)
    assert notifier.send(READY=1, STATUS="serving\nMAINPID=1")
    assert heard(manager) == [b"READY=1\nSTATUS=serving MAINPID=1\n"]  # no second assignment slips in
    assert environ == {"HOME": "/"}, "no child may speak in our name"


def test_abstract_addresses_are_understood() -> None:
    name = f"ckptfsd-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(f"\0{name}")
        assert Notifier({"NOTIFY_SOCKET": f"@{name}"}).send(READY=1)
        assert manager.recv(100) == b"READY=1\n"


def test_without_a_manager_nothing_happens(tmp_path: Path) -> None:
    assert not Notifier({}).send(READY=1)
    assert not Notifier({"NOTIFY_SOCKET": str(tmp_path / "gone")}).send(READY=1)


def test_a_manager_that_does_not_listen_does_not_stop_us(manager: socket.socket) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname()})
    sent = 0
    while notifier.send(STATUS=sent):  # until its queue is full
        sent += 1
        assert sent < 100_000
    assert sent > 0


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "3000000"}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid())}, 3.0),
        ({"WATCHDOG_USEC": "3000000", "WATCHDOG_PID": "1"}, None),  # meant for somebody else
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_the_watchdogs_interval(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog_seconds == seconds
    assert environ == {}


async def test_the_watchdog_is_fed_three_times_an_interval(
    manager: socket.socket, autojump_clock: MockClock
) -> None:
    notifier = Notifier({"NOTIFY_SOCKET": manager.getsockname(), "WATCHDOG_USEC": "3000000"})
    with trio.move_on_after(2.5):
        await notifier.watchdog()
    assert heard(manager) == [b"WATCHDOG=1\n"] * 3


async def test_without_a_watchdog_its_task_ends() -> None:
    with trio.fail_after(1):
        await Notifier({}).watchdog()
