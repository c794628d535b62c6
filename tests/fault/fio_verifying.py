"""fio, which reads on a mount what it laid out elsewhere and verifies every block."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

BLOCK_BYTES = 16 << 10

_COMMON = [f"--bs={BLOCK_BYTES}", "--verify=crc32c", "--verify_fatal=1", "--verify_state_save=0"]

# Buffered, mapped, and past the page cache.
ENGINES = {
    "psync": ["--ioengine=psync"],
    "mmap": ["--ioengine=mmap"],
    "libaio": ["--ioengine=libaio", "--direct=1", "--iodepth=4"],
}


class Outcome(NamedTuple):
    reads: int
    worst_seconds: float


def lay_out(file: Path, size_bytes: int) -> None:
    """Write a file whose blocks fio knows again."""
    subprocess.run(
        [
            "fio",
            "--name=lay",
            f"--filename={file}",
            "--rw=write",
            f"--size={size_bytes}",
            "--do_verify=0",
            *_COMMON,
        ],
        check=True,
        capture_output=True,
    )


class Verifying:
    def __init__(self, process: subprocess.Popen[str], jobs: list[str], blocks: int) -> None:
        self._process = process
        self._jobs = jobs
        self._blocks = blocks

    @property
    def running(self) -> bool:
        return self._process.poll() is None

    def outcome(self, *, seconds: float = 120) -> dict[str, Outcome]:
        """Wait for its end. Fails if a read failed, or a block was not what was laid out."""
        out, said = self._process.communicate(timeout=seconds)
        assert self._process.returncode == 0, (self._process.returncode, said, out[-2000:])
        jobs: list[dict[str, Any]] = json.loads(out[out.index("{") :])["jobs"]
        assert [job["jobname"] for job in jobs] == self._jobs
        assert [job["error"] for job in jobs] == [0] * len(jobs)
        assert [job["read"]["total_ios"] for job in jobs] == [self._blocks] * len(jobs)
        return {
            job["jobname"]: Outcome(job["read"]["total_ios"], job["read"]["clat_ns"]["max"] / 1e9)
            for job in jobs
        }


@contextlib.contextmanager
def verifying(files: dict[str, str], size_bytes: int, *, seconds: float) -> Iterator[Verifying]:
    """Read each block of ``files`` (name -> path) once, with every engine, in random order, spread over so
    many seconds: with handles that were opened at the beginning."""
    blocks = size_bytes // BLOCK_BYTES
    jobs = []
    arguments = ["fio", "--readonly", "--output-format=json", "--rw=randread", f"--size={size_bytes}"]
    arguments += [f"--rate_iops={max(1, round(blocks / seconds))}", *_COMMON]
    for name, path in files.items():
        for engine, options in ENGINES.items():
            jobs.append(f"{name}-{engine}")
            arguments += [f"--name={jobs[-1]}", f"--filename={path}", *options]
    process = subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    try:
        yield Verifying(process, jobs, blocks)
    finally:
        if process.poll() is None:
            process.terminate()
        process.communicate(timeout=60)
