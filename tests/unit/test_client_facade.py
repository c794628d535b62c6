"""`import ckptfs` is light, and gives what it promises."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import ckptfs

ROOT = Path(ckptfs.__file__).parent.parent


def modules_after(code: str) -> set[str]:
    program = f"import sys; sys.path.insert(0, {str(ROOT)!r})\n{code}\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_the_version_is_that_of_the_project() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert ckptfs.__version__ == project["version"]


def test_every_name_is_there() -> None:
    for name in ckptfs.__all__:
        assert getattr(ckptfs, name) is not None
    assert set(ckptfs.__all__) <= set(dir(ckptfs))
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = ckptfs.Nothing


def test_importing_is_light() -> None:
    loaded = modules_after("import ckptfs")
    assert not loaded & {
        "msgspec",
        "h11",
        "anyio",
        "trio",
        "asyncio",
        "click",
        "rich",
        "json",
        "ckptfs.client",
    }


def test_the_synchronous_face_needs_no_event_loop() -> None:
    loaded = modules_after("import ckptfs; ckptfs.SyncClient")
    assert not loaded & {"anyio", "trio", "asyncio", "click", "rich", "ssl", "lmdb", "pyfuse3"}


def test_the_asynchronous_face_loads_no_particular_loop() -> None:
    loaded = modules_after("import ckptfs; ckptfs.Client")
    assert not loaded & {"trio", "click", "rich", "lmdb", "pyfuse3"}


def test_the_command_loads_only_what_it_needs() -> None:
    loaded = modules_after(
        "from ckptfs.cli.main import main\ntry: main(['--version'])\nexcept SystemExit: pass"
    )
    assert not loaded & {"msgspec", "h11", "anyio", "rich", "ctypes", "ckptfs.client.sync", "ckptfs.cli.run"}
