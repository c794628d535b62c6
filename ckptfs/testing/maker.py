"""Makes what checkpoints are made of: safetensors files, trees of files, archives of every kind.

Everything is a function of its arguments: the same call makes the same bytes.
"""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import os
import random
import stat
import struct
import sys
import tarfile
import zipfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

#: Bytes of one element, for the dtypes that safetensors names.
ELEMENT_BYTES = {"F64": 8, "F32": 4, "F16": 2, "BF16": 2, "I64": 8, "I32": 4, "I8": 1, "U8": 1, "BOOL": 1}
#: A fixed time for archive members (2023-11-14): archives of the same tree are then the same.
MTIME = 1_700_000_000


@dataclass(frozen=True, slots=True)
class Tensor:
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def noise(seed: int | str, size_bytes: int) -> bytes:
    """Bytes that do not compress."""
    return random.Random(f"ckptfs {seed}").randbytes(size_bytes)


def tensor(seed: int | str, *shape: int, dtype: str = "BF16") -> Tensor:
    elements = 1
    for side in shape:
        elements *= side
    return Tensor(dtype, shape, noise(seed, elements * ELEMENT_BYTES[dtype]))


def safetensors(tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """A safetensors file: 8 bytes of header length, a JSON header padded to 8, the tensors in order."""
    out = io.BytesIO()
    write_safetensors(out, tensors, metadata)
    return out.getvalue()


def write_safetensors(
    out: io.BufferedIOBase, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None
) -> None:
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, each in tensors.items():
        header[name] = {
            "dtype": each.dtype,
            "shape": list(each.shape),
            "data_offsets": [at, at + len(each.data)],
        }
        at += len(each.data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    out.write(struct.pack("<Q", len(text)) + text)
    for each in tensors.values():
        out.write(each.data)


def model(seed: int, *, layers: int = 4, width: int = 256, vocabulary: int = 1000) -> dict[str, Tensor]:
    """The tensors of a small model: an embedding, and four matrices and a norm for each layer."""
    tensors = {"embed.weight": tensor(f"{seed} embed", vocabulary, width)}
    for layer in range(layers):
        for part in "qkvo":
            name = f"layers.{layer}.attention.{part}.weight"
            tensors[name] = tensor(f"{seed} {name}", width, width)
        tensors[f"layers.{layer}.norm.weight"] = tensor(f"{seed} {layer} norm", width)
    return tensors


# --- Trees ------------------------------------------------------------------------------------------

#: A tree as a mapping: path → bytes (a file), None (a directory), or ("link", target).
Node = bytes | None | tuple[str, str]
Tree = Mapping[str, Node]


def sample_tree(seed: int = 0, *, big_bytes: int = 3_000_000) -> dict[str, Node]:
    """A tree with one of everything that a checkpoint may hold. ``run.sh`` is executable."""
    return {
        "config.json": json.dumps({"model_type": "test", "seed": seed}).encode(),
        "model.safetensors": safetensors(model(seed, layers=2, width=128)),
        "weights.bin": noise(f"{seed} big", big_bytes),
        "zeros.bin": bytes(300_000),
        "empty.txt": b"",
        "run.sh": b"#!/bin/sh\necho hello\n",
        "tokenizer": None,
        "tokenizer/vocab.txt": b"\n".join(b"token%d" % i for i in range(2_000)),
        "tokenizer/latest.txt": ("link", "vocab.txt"),
        "deep": None,
        "deep/er": None,
        "deep/er/still": None,
        "deep/er/still/file with spaces and ünïcode ☃.txt": b"found\n",
        "deep/up": ("link", "../config.json"),
        "nothing": None,
    }


def is_executable(path: str) -> bool:
    return path.endswith(".sh")


def write_tree(directory: str, tree: Tree) -> str:
    """Put a tree on the disk; returns the directory."""
    os.makedirs(directory, exist_ok=True)
    for path, node in tree.items():
        full = os.path.join(directory, path)
        if node is None:
            os.makedirs(full, exist_ok=True)
            continue
        os.makedirs(os.path.dirname(full), exist_ok=True)
        if isinstance(node, tuple):
            os.symlink(node[1], full)
        else:
            with open(full, "wb") as file:
                file.write(node)
            os.chmod(full, 0o755 if is_executable(path) else 0o644)
    return directory


def small_files(
    count: int, *, per_directory: int = 1000, size_bytes: int = 100
) -> Iterable[tuple[str, bytes]]:
    """Paths and contents of many small files, each different."""
    for number in range(count):
        body = (b"%d " % number) * (size_bytes // 8 + 1)
        yield f"d{number // per_directory:04}/f{number:06}.txt", body[:size_bytes]


def write_small_files(directory: str, count: int, **how: int) -> str:
    made = ""
    for path, body in small_files(count, **how):
        full = os.path.join(directory, path)
        if os.path.dirname(full) != made:
            made = os.path.dirname(full)
            os.makedirs(made, exist_ok=True)
        with open(full, "wb") as file:
            file.write(body)
    return directory


# --- Archives ---------------------------------------------------------------------------------------


def zipped(tree: Tree, compression: int = zipfile.ZIP_STORED) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", compression) as archive:
        for path, node in tree.items():
            info = zipfile.ZipInfo(path + "/" if node is None else path, (2023, 11, 14, 22, 13, 20))
            info.create_system = 3
            info.compress_type = compression
            if node is None:
                info.external_attr = (stat.S_IFDIR | 0o755) << 16 | 0x10
                archive.writestr(info, b"")
            elif isinstance(node, tuple):
                info.external_attr = (stat.S_IFLNK | 0o777) << 16
                archive.writestr(info, node[1])
            else:
                mode = 0o755 if is_executable(path) else 0o644
                info.external_attr = (stat.S_IFREG | mode) << 16
                archive.writestr(info, node)
    return out.getvalue()


def tarred(tree: Tree, format: int = tarfile.PAX_FORMAT, top: str = "") -> bytes:
    """``top`` is put before every path ("./" as ``tar -C dir .`` does)."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=format) as archive:
        if top:
            info = tarfile.TarInfo(top)
            info.type, info.mode, info.mtime = tarfile.DIRTYPE, 0o755, MTIME
            archive.addfile(info)
        for path, node in tree.items():
            info = tarfile.TarInfo(top + path)
            info.mtime = MTIME
            if node is None:
                info.type, info.mode = tarfile.DIRTYPE, 0o755
                archive.addfile(info)
            elif isinstance(node, tuple):
                info.type, info.linkname, info.mode = tarfile.SYMTYPE, node[1], 0o777
                archive.addfile(info)
            else:
                info.size, info.mode = len(node), 0o755 if is_executable(path) else 0o644
                archive.addfile(info, io.BytesIO(node))
    return out.getvalue()


def gzipped(data: bytes) -> bytes:
    return gzip.compress(data, 1, mtime=0)


def zstandard(data: bytes) -> bytes:
    return zstd.compress(data)


def xzipped(data: bytes) -> bytes:
    return lzma.compress(data, preset=0)


def bzipped(data: bytes) -> bytes:
    return bz2.compress(data, 1)


#: Every suffix that is an archive of many files, and what makes one of a tree.
ARCHIVES: dict[str, Callable[[Tree], bytes]] = {
    ".zip": zipped,
    ".deflated.zip": lambda tree: zipped(tree, zipfile.ZIP_DEFLATED),
    ".tar": tarred,
    ".tar.gz": lambda tree: gzipped(tarred(tree)),
    ".tgz": lambda tree: gzipped(tarred(tree, top="./")),
    ".tar.bz2": lambda tree: bzipped(tarred(tree)),
    ".tbz2": lambda tree: bzipped(tarred(tree, tarfile.GNU_FORMAT)),
    ".tar.xz": lambda tree: xzipped(tarred(tree)),
    ".tar.zst": lambda tree: zstandard(tarred(tree)),
}
#: Every suffix of a single compressed file.
SINGLES: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzipped,
    ".bz2": bzipped,
    ".xz": xzipped,
    ".zst": zstandard,
}
