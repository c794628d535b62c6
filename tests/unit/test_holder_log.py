"""The holder's log on a pipe that nobody reads, in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

from ckptfsd.holder.log import Log

SAY_MUCH = """
from ckptfsd.holder.log import Log
log = Log("json")
for number in range(1000):
    log.info("an event", number=number, text="x" * 200)
print("done", flush=True)
input()
log.info("the last one", text="y" * 10_000)
"""


def test_it_waits_for_nobody_and_says_what_was_lost() -> None:
    reading, writing = os.pipe()
    with subprocess.Popen(
        [sys.executable, "-c", SAY_MUCH],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=writing,
        text=True,
    ) as process:
        os.close(writing)
        assert process.stdout
        assert process.stdin
        assert process.stdout.readline() == "done\n", "nothing was read until here"
        with os.fdopen(reading) as log:
            first = [json.loads(log.readline()) for _ in range(100)]
            process.stdin.write("\n")
            process.stdin.flush()
            rest = [json.loads(line) for line in log]
        assert process.wait(20) == 0
    assert [record["number"] for record in first] == list(range(100))
    kept = [record["number"] for record in rest if record["event"] == "an event"]
    assert kept == list(range(100, 100 + len(kept)))
    assert 100 + len(kept) < 1000, "the pipe was full"
    told, last = rest[len(kept) :]
    assert (told["event"], told["lines"]) == (
        "lines of this log were lost, nobody read them",
        900 - len(kept),
    )
    assert last["event"] == "the last one"
    assert last["text"] == "y" * 200, "cut to what a pipe takes as a whole"


def test_without_standard_error_nothing_is_said() -> None:
    code = "import os\nfrom ckptfsd.holder.log import Log\nos.close(2)\nLog('text').error('an event')"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_value_cannot_forge_a_line(capfd: pytest.CaptureFixture[str]) -> None:
    Log("text").info("an event", name="a\n2026 [info] forged")
    _, said = capfd.readouterr()
    assert said.count("\n") == 1
    assert 'name="a\\n2026 [info] forged"' in said
