"""Where things lie in a store's directory, and how a small file is published there.

::

    FORMAT                  "ckptfs-store 1\\n"
    lock                    flock'ed by the one daemon that uses the store; holds its pid
    index/                  LMDB: data.mdb, lock.mdb
    blobs/<2 hex>/<16 hex>  a blob by its number; the folder is the number's last two digits
    manifests/<64 hex>      an encoded manifest by its digest
    checkpoints/<ordinal>   what a checkpoint is called and which manifest it has
    placements/<ordinal>    where its chunks lie: with the record above, what the index is rebuilt from
    derived/<8 hex>-<8 hex> a derived copy, by the checkpoint's ordinal and the file's entry index
    spool/<ordinal>/        a source's temporary downloads
    aside/                  what a rebuild found damaged

A temporary name begins with ``.tmp-``; the start-up sweep removes whatever is left under one.
"""

from __future__ import annotations

import os

from ckptfs.errors import StoreError
from ckptfs.store import failure

FORMAT_VERSION = 1
FORMAT_TEXT = f"ckptfs-store {FORMAT_VERSION}\n"
TEMPORARY_PREFIX = ".tmp-"
FOLDERS = ("index", "blobs", "manifests", "checkpoints", "placements", "derived", "spool", "aside")

#: What may lie in a directory that is about to become a store.
_HARMLESS = {"lost+found", "lock", TEMPORARY_PREFIX + "FORMAT", *FOLDERS}


class Layout:
    """The paths of one store."""

    def __init__(self, root: str) -> None:
        self.root = root
        self.format = f"{root}/FORMAT"
        self.lock = f"{root}/lock"
        self.index = f"{root}/index"
        self.data = f"{root}/index/data.mdb"
        self.blobs = f"{root}/blobs"
        self.manifests = f"{root}/manifests"
        self.checkpoints = f"{root}/checkpoints"
        self.placements = f"{root}/placements"
        self.derived_folder = f"{root}/derived"
        self.spools = f"{root}/spool"
        self.aside = f"{root}/aside"

    def blob(self, blob: int) -> str:
        return f"{self.blobs}/{blob & 0xFF:02x}/{blob:016x}"

    def blob_folder(self, blob: int) -> str:
        return f"{self.blobs}/{blob & 0xFF:02x}"

    def manifest(self, digest: bytes) -> str:
        return f"{self.manifests}/{digest.hex()}"

    def record(self, ordinal: int) -> str:
        return f"{self.checkpoints}/{ordinal}"

    def placement(self, ordinal: int) -> str:
        return f"{self.placements}/{ordinal}"

    def derived(self, ordinal: int, entry: int) -> str:
        return f"{self.derived_folder}/{ordinal:08x}-{entry:08x}"

    def spool(self, ordinal: int) -> str:
        return f"{self.spools}/{ordinal}"

    def identity(self) -> tuple[int, int] | None:
        """Two numbers that no other store of this machine has, nor this one when its index was made anew;
        None where there is no store."""
        try:
            found = os.stat(self.data)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def version(self) -> int | None:
        """The format that the directory says it has; None where nothing has been made yet."""
        try:
            with open(self.format, encoding="ascii", errors="replace") as file:
                text = file.read(100)
        except FileNotFoundError:
            return None
        word, _, number = text.strip().partition(" ")
        if word != "ckptfs-store" or not number.isdigit():
            raise StoreError(f"{self.format} does not say that this is a ckptfs store: {text[:40]!r}")
        return int(number)

    def refuse_foreign(self) -> None:
        """Raise when the directory holds something that is not a half-made store."""
        strangers = sorted(set(os.listdir(self.root)) - _HARMLESS)
        if strangers:
            raise StoreError(
                f"{self.root} is not a ckptfs store and not empty (it holds {strangers[0]!r}): "
                "choose an empty directory"
            )

    def make_folders(self) -> None:
        for folder in FOLDERS:
            os.makedirs(f"{self.root}/{folder}", mode=0o700, exist_ok=True)
        for number in range(256):
            os.makedirs(f"{self.blobs}/{number:02x}", mode=0o700, exist_ok=True)
        sync_folder(self.blobs)

    def mark(self) -> None:
        """Last of all: a directory without the marker is not a store yet."""
        publish(self.format, FORMAT_TEXT.encode())
        sync_folder(os.path.dirname(self.root))


def sync_folder(path: str) -> None:
    fd = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def publish(path: str, data: bytes) -> None:
    """Write a small file so that after any crash it is there whole or as it was before."""
    folder, name = os.path.split(path)
    temporary = f"{folder}/{TEMPORARY_PREFIX}{name}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
    try:
        view = memoryview(data)
        while view:
            view = view[os.write(fd, view) :]
        os.fsync(fd)
    finally:
        os.close(fd)
    os.rename(temporary, path)
    sync_folder(folder)


def read(path: str) -> bytes:
    with failure.mapped(f"reading {path}"), open(path, "rb") as file:
        return file.read()


def unlink(path: str) -> bool:
    """Remove a file and make that last; False when it was not there."""
    try:
        os.unlink(path)
    except FileNotFoundError:
        return False
    sync_folder(os.path.dirname(path))
    return True
