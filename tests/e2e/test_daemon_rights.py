"""What docs/security.md says that each process holds, as the kernel says it."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from bare_daemon import BareDaemon

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="rights are given up by whoever has them")

# linux/capability.h
CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, SETPCAP, SYS_ADMIN = 0, 1, 2, 3, 8, 21
KEPT = {CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER}


def status_of(pid: int) -> dict[str, str]:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return dict(line.split(":\t", 1) for line in lines if ":\t" in line)


def held(pid: int, kind: str) -> set[int]:
    mask = int(status_of(pid)[kind], 16)
    return {number for number in range(64) if mask >> number & 1}


def test_the_holder_may_mount_and_the_worker_may_not(tmp_path: Path) -> None:
    daemon = BareDaemon(tmp_path / "d")
    try:
        daemon.start()
        status = daemon.client().status()
        assert SYS_ADMIN in held(status.pid, "CapEff")
        for kind in ("CapEff", "CapPrm", "CapBnd"):
            assert held(status.worker_pid, kind) <= KEPT, kind
        assert held(status.worker_pid, "CapInh") == held(status.worker_pid, "CapAmb") == set()
        assert status_of(status.worker_pid)["NoNewPrivs"] == "1"
        for thread in os.listdir(f"/proc/{status.worker_pid}/task"):
            assert held(int(thread), "CapEff") <= KEPT, "every thread, not only the first"
        # It asks the right process whether it may mount.
        checks = {check.name: check for check in daemon.client().doctor()}
        assert checks["right to mount"].ok
        assert checks["passthrough"].ok, checks["passthrough"].detail
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_as_the_unit_has_it_two_capabilities_are_left(tmp_path: Path) -> None:
    """Without CAP_SETPCAP the bounding set stays; what is executed gets nothing all the same."""
    bounding = "-all,+chown,+dac_read_search,+sys_admin"
    daemon = BareDaemon(tmp_path / "d")
    daemon.prefix = ["setpriv", f"--bounding-set={bounding}", f"--inh-caps={bounding}", "--no-new-privs"]
    try:
        daemon.start()
        worker = daemon.client().status().worker_pid
        assert held(worker, "CapEff") == {CHOWN, DAC_READ_SEARCH}
        assert SYS_ADMIN in held(worker, "CapBnd")
        assert daemon.stop() == 0
    finally:
        daemon.close()


def test_the_worker_writes_no_core(tmp_path: Path) -> None:
    daemon = BareDaemon(tmp_path / "d")
    try:
        daemon.start()
        limits = Path(f"/proc/{daemon.client().status().worker_pid}/limits").read_text().splitlines()
        core = next(line for line in limits if line.startswith("Max core file size"))
        assert core.split()[4] == "0"
        assert daemon.stop() == 0
    finally:
        daemon.close()
