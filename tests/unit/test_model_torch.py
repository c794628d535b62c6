"""Files that the real torch writes: bodies of storages are cut where they lie."""

from __future__ import annotations

import io
import struct
import zipfile

import pytest
from model_files import cut, found_bytes, model, starts

from ckptfs.model.boundaries import SMALL_TENSOR_BYTES
from ckptfs.model.chunking import HEAD_BYTES, Container, sniff

torch = pytest.importorskip("torch", reason="torch makes the files of these tests")


def saved(tensors: dict[str, object], tmp_path: object, name: str = "model.pt") -> bytes:
    """As a user saves it: the file's stem becomes part of every member's name."""
    path = f"{tmp_path}/{name}"
    torch.save({k: torch.from_numpy(v) for k, v in tensors.items()}, path)
    with open(path, "rb") as file:
        return file.read()


def test_every_large_storage_is_cut_where_it_lies(tmp_path: object) -> None:
    data = saved(model(), tmp_path)
    assert sniff(data[:HEAD_BYTES], len(data)) is Container.ZIP
    borders = starts(data)
    large = 0
    with zipfile.ZipFile(io.BytesIO(data)) as file:
        for info in file.infolist():
            name_bytes, extra_bytes = struct.unpack_from("<2H", data, info.header_offset + 26)
            begin = info.header_offset + 30 + name_bytes + extra_bytes
            if info.file_size >= SMALL_TENSOR_BYTES:
                large += 1
                assert {begin, begin + info.file_size} <= borders
                assert begin % 64 == 0
    assert large > 20


def test_another_file_name_and_more_tensors_in_front_cost_nothing(tmp_path: object) -> None:
    before = saved(model(), tmp_path)
    after = saved(
        {"a_new_head": model(7)["model.layers.00.mlp.up_proj.weight"]} | model(), tmp_path, "a-longer-name.pt"
    )
    equal = sum(t.nbytes for t in model().values())
    assert found_bytes([before], [after]) >= 0.98 * equal


def test_the_format_before_1_6_is_an_ordinary_file(tmp_path: object) -> None:
    path = f"{tmp_path}/old.pt"
    torch.save({"w": torch.zeros(100_000)}, path, _use_new_zipfile_serialization=False)
    with open(path, "rb") as file:
        data = file.read()
    assert cut(data) == [len(data)]


def test_a_tensor_in_a_torch_file_and_in_safetensors_is_one(tmp_path: object) -> None:
    from safetensors.numpy import save

    equal = sum(t.nbytes for t in model().values())
    assert found_bytes([save(model())], [saved(model(), tmp_path)]) >= 0.98 * equal
