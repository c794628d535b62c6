"""Other versions of ckptfs, each in a virtual environment of its own, as an upgrade finds them."""

from __future__ import annotations

import shutil
import site
import subprocess
import sys
from pathlib import Path

import ckptfs
import ckptfsd

# Of a version that never says anything: it is imported, and that is all.
HANGS = "import time\ntime.sleep(1000)\n"


def environment(folder: Path, *paths: str) -> str:
    """The Python of a fresh environment that finds packages in ``paths`` and nowhere else."""
    base = getattr(sys, "_base_executable", sys.executable)
    subprocess.run([base, "-m", "venv", "--without-pip", str(folder)], check=True)
    packages = next((folder / "lib").glob("python*/site-packages"))
    (packages / "here.pth").write_text("".join(f"{path}\n" for path in paths))
    return str(folder / "bin" / "python")


def without_ckptfs(folder: Path) -> str:
    return environment(folder)


def that_hangs(folder: Path) -> str:
    """Its ckptfsd starts, and never says hello."""
    package = folder / "packages" / "ckptfsd"
    package.mkdir(parents=True)
    (package / "__init__.py").touch()
    (package / "__main__.py").write_text(HANGS)
    return environment(folder / "env", str(folder / "packages"))


def changed(folder: Path, edits: dict[str, tuple[str, str]]) -> str:
    """Our own version with ``edits``: file -> (what stands there, once, and what shall)."""
    packages = folder / "packages"
    for module in (ckptfs, ckptfsd):
        origin = Path(str(module.__file__)).parent
        shutil.copytree(origin, packages / origin.name, ignore=shutil.ignore_patterns("__pycache__"))
    for name, (before, after) in edits.items():
        file = packages / name
        text = file.read_text()
        assert text.count(before) == 1, f"{before!r} is not once in {file}"
        file.write_text(text.replace(before, after))
    return environment(folder / "env", str(packages), *site.getsitepackages())


def newer(folder: Path, version: str) -> str:
    """One that works."""
    before = f'__version__ = "{ckptfs.__version__}"'
    return changed(folder, {"ckptfs/__init__.py": (before, f'__version__ = "{version}"')})


def of_another_store_format(folder: Path) -> str:
    """Starts, is told to serve, and finds a store that it cannot read."""
    return changed(folder, {"ckptfs/store/layout.py": ("FORMAT_VERSION = 1\n", "FORMAT_VERSION = 2\n")})


def of_another_protocol(folder: Path) -> str:
    """Does not understand what the holder tells it."""
    return changed(folder, {"ckptfsd/holder/wire.py": ("PROTOCOL = 1\n", "PROTOCOL = 2\n")})


def that_crashes_with_the_connection(folder: Path) -> str:
    """Ends by a signal when it has the store, and the mount's requests have begun to come to it."""
    line = "        self.takeover.switch()\n"
    return changed(folder, {"ckptfs/fuse/operations.py": (line, f"{line}        os.abort()\n")})


def that_never_serves(folder: Path) -> str:
    """Says hello, is told to serve, and takes for ever."""
    line = "    _check_mount(effective, introduction)\n"
    return changed(folder, {"ckptfsd/worker.py": (line, f"    import time; time.sleep(1000)\n{line}")})


def without_the_extension(folder: Path) -> str:
    """Installed where there is no compiler."""
    python = changed(folder, {})
    for built in (folder / "packages" / "ckptfs" / "fuse").glob("_channel*.so"):
        built.unlink()
    return python
