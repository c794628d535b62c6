"""`doctor`: each question with the answers that a machine can give, and a remedy where there is one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from ckptfs.model.records import DoctorCheck
from ckptfsd.config import Config, load
from ckptfsd.doctor import diagnose, fuse, node
from ckptfsd.doctor.run import answers, questions


def good(check: DoctorCheck) -> bool:
    assert check.detail
    assert not check.remedy or not check.ok, "nothing is to be done about what is right"
    return check.ok


def bad(check: DoctorCheck, says: str, remedy: str, *, required: bool = True) -> None:
    assert not check.ok
    assert says in check.detail
    assert remedy in check.remedy
    assert check.required is required


def config_in(directory: Path) -> Config:
    flags = {
        ("store", "path"): str(directory / "store"),
        ("mount", "path"): str(directory / "mnt"),
        ("control", "socket"): str(directory / "s"),
    }
    return load(flags, {}, default_file="/no/such").config


async def test_all_questions_are_answered_in_order_and_change_nothing(tmp_path: Path) -> None:
    config = config_in(tmp_path)
    checks = await diagnose(config)
    assert [check.name for check in checks] == list(questions(config))
    assert all(check.detail for check in checks)
    assert list(tmp_path.iterdir()) == []
    without = load({("mount", "enabled"): False}, {}, default_file="/no/such").config
    assert "mountpoint" not in questions(without)


async def test_a_question_that_hangs_or_fails_is_an_answer_too() -> None:
    release = threading.Event()

    def hangs() -> DoctorCheck:
        release.wait(30)
        return DoctorCheck(name="", ok=True, detail="late")

    def fails() -> DoctorCheck:
        raise OSError("no such thing")

    def works() -> DoctorCheck:
        return DoctorCheck(name="", ok=True, detail="fine")

    started = time.monotonic()
    try:
        found = await answers({"hangs": hangs, "fails": fails, "works": works}, seconds=0.2)
    finally:
        release.set()
    assert time.monotonic() - started < 10
    assert [check.name for check in found] == ["hangs", "fails", "works"]
    bad(found[0], "no answer within 0.2 seconds", "dmesg")
    bad(found[1], "cannot be found out: no such thing", "", required=False)
    assert good(found[2])


def test_the_device(tmp_path: Path) -> None:
    bad(fuse.device(str(tmp_path / "fuse")), "No such file", "modprobe fuse")
    (tmp_path / "file").write_text("")
    bad(fuse.device(str(tmp_path / "file")), "is not a device", "modprobe fuse")
    assert good(fuse.device("/dev/null"))


def test_the_kernels_file_systems(tmp_path: Path) -> None:
    table = tmp_path / "filesystems"
    table.write_text("nodev\tproc\n\text4\nnodev\tfuse\n\n")
    assert good(fuse.module(str(table)))
    table.write_text("nodev\tproc\nnodev\tfusectl\n\tfuseblk\n")
    bad(fuse.module(str(table)), "does not know FUSE", "modprobe fuse")


def test_the_right_to_mount(tmp_path: Path) -> None:
    status = tmp_path / "status"
    status.write_text("Name:\tx\nCapEff:\t000001ffffffffff\n")
    assert good(fuse.right_to_mount(str(status)))
    status.write_text("Name:\tx\nCapEff:\t0000000000000004\n")
    bad(fuse.right_to_mount(str(status)), "no CAP_SYS_ADMIN", "run ckptfsd as root", required=False)


def test_the_mountpoint(tmp_path: Path) -> None:
    place = tmp_path / "mnt"
    bad(fuse.mountpoint(str(place), running=False), "does not exist", "mkdir -p")
    place.mkdir()
    assert good(fuse.mountpoint(str(place), running=False))
    bad(fuse.mountpoint(str(place), running=True), "nothing is mounted", "restart the daemon")
    (place / "x").write_text("")
    bad(fuse.mountpoint(str(place), running=False), "is not empty", "empty it")
    bad(fuse.mountpoint(str(place / "x"), running=False), "is not a directory", "remove it")
    bad(fuse.mountpoint("/proc", running=False), "is a mountpoint of", "choose another --mount")


def test_the_request_timeout(tmp_path: Path) -> None:
    setting = tmp_path / "timeout"
    assert good(fuse.request_timeout(str(setting)))
    setting.write_text("0\n")
    assert good(fuse.request_timeout(str(setting)))
    setting.write_text("60\n")
    bad(fuse.request_timeout(str(setting)), "longer than 60 seconds", "sysctl", required=False)


def test_the_kernels_configuration_is_that_of_this_kernel() -> None:
    if not os.path.exists("/proc/config.gz"):
        pytest.skip("this kernel does not tell its configuration")
    assert fuse.kernel_setting("CONFIG_FUSE_FS") in ("y", "m")
    assert fuse.kernel_setting("CONFIG_NO_SUCH_SETTING") == "n"


def test_the_libraries_are_here() -> None:
    assert good(node.packages())
    assert good(node.libfuse())


def test_a_library_that_is_missing_is_named() -> None:
    """In an interpreter that really lacks it."""
    program = (
        "import importlib.abc, sys\n"
        "class Lacking(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pyfuse3', 'lmdb'):\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Lacking())\n"
        "from ckptfsd.doctor import node\n"
        "print(node.libfuse().ok, node.libfuse().detail)\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.startswith("False "), done.stderr
    assert "pyfuse3 cannot be loaded" in done.stdout


def test_the_stores_directory_and_place(tmp_path: Path) -> None:
    assert "the daemon makes it" in node.store_directory(str(tmp_path / "a" / "b")).detail
    assert good(node.store_directory(str(tmp_path)))
    assert good(node.store_place(str(tmp_path / "store"), str(tmp_path / "mnt")))
    bad(node.store_place(str(tmp_path / "mnt" / "s"), str(tmp_path / "mnt")), "lies in the mount", "--store")


def test_the_stores_file_system(tmp_path: Path) -> None:
    assert good(node.store_file_system(str(tmp_path / "not" / "yet")))
    assert list(tmp_path.iterdir()) == []


def test_free_space(tmp_path: Path) -> None:
    assert good(node.free_space(str(tmp_path), 0))
    assert "free of" in node.free_space(str(tmp_path / "not" / "yet"), 0).detail


def test_the_control_socket(tmp_path: Path) -> None:
    path = tmp_path / "s"
    assert "is free" in node.control_socket(str(path), running=False).detail
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listening:
        listening.bind(str(path))
        assert "left over" in node.control_socket(str(path), running=False).detail
        listening.listen()
        bad(
            node.control_socket(str(path), running=False),
            "a process answers",
            "ckptfs doctor",
            required=False,
        )
    assert good(node.control_socket(str(path), running=True))


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become somebody else")
def test_what_an_ordinary_user_may_not_write() -> None:
    program = (
        "import os\n"
        "from ckptfsd.doctor import node\n"  # modules first: not every user may read them
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\n"
        "for check in node.store_directory('/usr/x/store'), node.control_socket('/usr/x/s', running=False):\n"
        "    print(check.ok, check.detail, check.remedy, sep='|')\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.stdout.splitlines() == [
        "False|/usr cannot be written by user 65534|chown or chmod /usr, or choose another --store",
        "False|/usr cannot be written by user 65534|chmod /usr, or choose another --socket",
    ], done.stderr
