"""Checkpoints made straight through the store, without engine or source."""

from __future__ import annotations

import os
import random
import secrets
from dataclasses import dataclass
from functools import partial

from ckptfs.model import chunking
from ckptfs.model import manifest as manifests
from ckptfs.model.digest import digest, fingerprint
from ckptfs.model.manifest import Directory, Entry, File, Link
from ckptfs.store import Checkpoint, Store


@dataclass(frozen=True)
class Executable:
    content: bytes


@dataclass(frozen=True)
class To:
    """A symbolic link."""

    target: bytes


#: path -> content; None is a directory. Parents are made.
Files = dict[bytes, bytes | Executable | To | None]


def make_checkpoint(store: Store, name: str, files: Files) -> Checkpoint:
    draft = store.begin(
        name=name,
        creation="c-" + secrets.token_hex(10),
        source_key=secrets.token_hex(8),
        source_type="local",
        source_uri=f"/made/{name}",
    )
    entries: dict[bytes, Entry] = {}
    drafts = {}
    for path, what in files.items():
        for end in [i for i, byte in enumerate(path) if byte == ord("/")]:
            entries.setdefault(path[:end], Directory(path[:end]))
        if what is None:
            entries[path] = Directory(path)
        elif isinstance(what, To):
            entries[path] = Link(path, what.target)
        else:
            content = what.content if isinstance(what, Executable) else what
            file = draft.file(digest(path)[:16], len(content))
            lengths = chunking.lengths(len(content), partial(_part, content))
            file.set_lengths(lengths, len(content))
            view, offset = memoryview(content), 0
            for index, length in enumerate(lengths):
                part = view[offset : offset + length]
                file.put(index, offset, part, digest(part), fingerprint(part))
                offset += length
            entries[path] = File(path, isinstance(what, Executable), len(content), lengths, file.digests())
            drafts[path] = file
    manifest = manifests.of(list(entries.values()))
    return draft.publish(
        manifests.encode(manifest),
        {index: drafts[file.path] for index, file in manifest.files()},
        files=manifest.file_count,
        directories=sum(isinstance(e, Directory) for e in manifest.entries),
        size_bytes=manifest.size_bytes,
    )


def _part(content: bytes, offset: int, length: int) -> bytes:
    return content[offset : offset + length]


def noise(seed: int, length: int) -> bytes:
    """Bytes that compress and deduplicate like random ones, the same for the same seed."""
    return random.Random(seed).randbytes(length)


def tree_of(root: str) -> dict[str, tuple[int, int]]:
    """path -> (mode, size) of everything below a directory."""
    found = {}
    for folder, folders, files in os.walk(root):
        for name in folders + files:
            path = os.path.join(folder, name)
            status = os.lstat(path)
            found[os.path.relpath(path, root)] = (status.st_mode, status.st_size)
    return found
