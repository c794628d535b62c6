"""Logs on standard error that nobody reads, in processes of their own."""

from __future__ import annotations

import contextlib
import json
import os
import socket
import subprocess
import sys

import pytest

from ckptfsd.holder.log import Log

HOLDER = """
from ckptfsd.holder.log import Log
log = Log("json")
"""
WORKER = """
from ckptfsd.config import LogSection
from ckptfsd.logging import configure, get_logger
configure(LogSection(format="json"))
log = get_logger("x")
"""
SAY_MUCH = """
for number in range(1000):
    log.info("an event", number=number, text="x" * (number % 3000))
print("done", flush=True)
input()
log.info("the last one", text="y" * 300)
"""


@pytest.mark.parametrize("log", [HOLDER, WORKER], ids=["holder", "worker"])
@pytest.mark.parametrize("place", ["pipe", "socket"])
def test_they_wait_for_nobody_and_say_what_was_lost(log: str, place: str) -> None:
    reading, writing = os.pipe() if place == "pipe" else (end.detach() for end in socket.socketpair())
    said = said_late(log + SAY_MUCH, reading, writing)
    records = [json.loads(line) for line in said.splitlines()]
    numbers = [record["number"] for record in records if record["event"] == "an event"]
    lost = [r["lines"] for r in records if r["event"] == "lines of this log were lost, nobody read them"]
    assert numbers == sorted(numbers)
    assert lost
    assert len(numbers) + sum(lost) == 1000, "each is there, or counted"
    assert (records[-1]["event"], records[-1]["text"]) == ("the last one", "y" * 300)


def said_late(script: str, reading: int, writing: int) -> bytes:
    """Run a script whose standard error nobody reads before it says "done"; then, before it is told to go on;
    and what comes after that. The descriptors are closed."""
    with subprocess.Popen(
        [sys.executable, "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    ) as process:
        os.close(writing)
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "done\n", "nothing was read until here"
        os.set_blocking(reading, False)
        said = drained(reading)
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.wait(20) == 0
        said += drained(reading)
        os.close(reading)
    return said


def drained(fd: int) -> bytes:
    """All that is there by now."""
    parts = []
    with contextlib.suppress(BlockingIOError):
        while part := os.read(fd, 1 << 16):
            parts.append(part)
    return b"".join(parts)


@pytest.mark.parametrize("text", ["y" * 10_000, "\U0001f600" * 3000], ids=["ascii", "escaped"])
def test_a_line_of_the_holder_is_one_that_a_pipe_takes_as_a_whole(
    text: str, capfd: pytest.CaptureFixture[str]
) -> None:
    """Then it is whole or lost, whoever else writes to the same pipe."""
    argv = [text] * 5
    Log("json").error("an event", argv=argv, reason=text, pid=7)
    said = capfd.readouterr().err
    assert len(said.encode()) <= 4096
    record = json.loads(said)
    assert (record["event"], record["pid"]) == ("an event", 7)
    assert text.startswith(record["reason"])


def test_without_standard_error_nothing_is_said() -> None:
    code = "import os\nfrom ckptfsd.holder.log import Log\nos.close(2)\nLog('text').error('an event')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_value_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    Log("text").info("an event", name="a\n2026 [info] forged")
    said = capfd.readouterr().err
    assert said.count("\n") == 1
    assert 'name="a\\n2026 [info] forged"' in said


def test_half_a_line_spoils_no_other() -> None:
    reading, writing = os.pipe()
    script = """
import fcntl, os, sys
from ckptfsd.log_output import LogOutput
pipe = fcntl.fcntl(2, fcntl.F_GETPIPE_SZ)
os.write(2, b"." * (pipe - 4096 - 1) + b"\\n")
output = LogOutput()
output.put(b"x" * 6000 + b"\\n", lambda lost: b"lost %d\\n" % lost)
print("done", flush=True)
input()
output.put(b"next\\n", lambda lost: b"lost %d\\n" % lost)
"""
    said = said_late(script, reading, writing)
    assert said.split(b"\n")[1:] == [b"x" * 4096, b"lost 1", b"next", b""]


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes somebody else")
@pytest.mark.parametrize(
    ("script", "status"),
    [("log = Log('json')" + SAY_MUCH.partition("print")[0], 0), ("main()", 2)],
    ids=["log", "end"],
)
def test_nor_do_they_wait_where_the_pipe_is_somebody_elses(script: str, status: int) -> None:
    """Then it cannot be opened anew."""
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(writing, b"." * 4096)  # full
    os.set_blocking(writing, True)
    before = "import os; from ckptfsd.holder.log import Log; from ckptfsd.__main__ import main\n"
    become = "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
    command = [sys.executable, "-c", before + become + script, "no-such-command"]
    done = subprocess.run(command, stderr=writing, timeout=20, check=False)
    assert done.returncode == status
    os.close(reading)
    os.close(writing)
