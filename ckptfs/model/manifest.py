"""The manifest: the canonical description of a checkpoint. Its digest is the checkpoint's identity.

Encoding (docs/format.md): one msgpack array ``["ckptfs-manifest", 1, [entry, ...]]`` with entries in
ascending byte order of their paths and every entry an array whose first element is its type:

- ``["d", path]``
- ``["f", path, executable, size_bytes, [chunk_length_bytes, ...], digests]``
- ``["l", path, target]``

``path`` and ``target`` are byte strings (a POSIX name need not be UTF-8); ``digests`` is the
concatenation of the chunks' 32-byte digests. Every parent directory has its own entry, except the
root, which has none. msgpack leaves a choice of widths; the smallest is the only one allowed, so one
value has one encoding, and :func:`decode` refuses every other.
"""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
from blake3 import blake3

from ckptfs.errors import StoreDamaged

MAGIC = "ckptfs-manifest"
VERSION = 1
DIGEST_BYTES = 32


class Directory(msgspec.Struct, frozen=True, array_like=True, tag="d", forbid_unknown_fields=True):
    path: bytes


class File(msgspec.Struct, frozen=True, array_like=True, tag="f", forbid_unknown_fields=True):
    path: bytes
    executable: bool
    size_bytes: int
    lengths: list[int]
    digests: bytes

    def recipe(self) -> Iterator[tuple[int, int, bytes]]:
        """Yield ``(offset_bytes, length_bytes, digest)`` of each chunk in file order."""
        offset = 0
        for i, length in enumerate(self.lengths):
            yield offset, length, self.digests[i * DIGEST_BYTES : (i + 1) * DIGEST_BYTES]
            offset += length


class Link(msgspec.Struct, frozen=True, array_like=True, tag="l", forbid_unknown_fields=True):
    path: bytes
    target: bytes


Entry = Directory | File | Link


class Manifest(msgspec.Struct, frozen=True, array_like=True, forbid_unknown_fields=True):
    """A checkpoint's content. Build one with :func:`of`, read one with :func:`decode`."""

    magic: str
    version: int
    entries: list[Entry]

    @property
    def size_bytes(self) -> int:
        """Logical size: the sum of all file sizes."""
        return sum(e.size_bytes for e in self.entries if isinstance(e, File))

    @property
    def file_count(self) -> int:
        return sum(1 for e in self.entries if isinstance(e, File))

    def files(self) -> Iterator[tuple[int, File]]:
        """Yield ``(entry_index, file)``; the entry index is the file's persistent number."""
        for index, entry in enumerate(self.entries):
            if isinstance(entry, File):
                yield index, entry


_encoder = msgspec.msgpack.Encoder()
_decoder = msgspec.msgpack.Decoder(Manifest)


def of(entries: list[Entry]) -> Manifest:
    """Make a manifest of entries in any order; they are sorted and checked."""
    manifest = Manifest(MAGIC, VERSION, sorted(entries, key=lambda e: e.path))
    problem = _problem(manifest)
    if problem:
        raise ValueError(problem)
    return manifest


def encode(manifest: Manifest) -> bytes:
    return _encoder.encode(manifest)


def decode(data: bytes) -> Manifest:
    """Read a canonical manifest.

    Raises :class:`~ckptfs.errors.StoreDamaged` when the bytes are not the one encoding of a valid
    manifest. The caller compares the digest; this function answers for the form.
    """
    try:
        manifest = _decoder.decode(data)
    except (msgspec.MsgspecError, ValueError) as error:  # ValueError: text that is not UTF-8
        raise StoreDamaged(f"not a manifest: {error}") from error
    problem = _problem(manifest)
    if problem:
        raise StoreDamaged(f"not a valid manifest: {problem}")
    if _encoder.encode(manifest) != data:
        raise StoreDamaged("not a canonical manifest: the same value has another encoding")
    return manifest


def identity(data: bytes) -> bytes:
    """The 32-byte digest of an encoded manifest: the checkpoint's id."""
    return blake3(data).digest()


def _problem(manifest: Manifest) -> str:
    """What is wrong with a manifest, in words; empty when nothing is."""
    if manifest.magic != MAGIC or manifest.version != VERSION:
        return f"magic {manifest.magic!r}, version {manifest.version}"
    directories = {b""}
    previous: bytes | None = None
    for entry in manifest.entries:
        path = entry.path
        if previous is not None and path <= previous:
            return f"{path!r} is out of order"
        previous = path
        parent, _, name = path.rpartition(b"/")
        if name in (b"", b".", b"..") or b"\0" in path or len(name) > 255 or path.startswith(b"/"):
            return f"{path!r} is not a path"
        if parent not in directories:
            return f"{path!r} has no parent directory"
        if isinstance(entry, Directory):
            directories.add(path)
        elif isinstance(entry, Link):
            if not entry.target or b"\0" in entry.target:
                return f"the link {path!r} has no target"
        elif (
            not 0 <= entry.size_bytes < 2**63
            or any(n <= 0 for n in entry.lengths)
            or sum(entry.lengths) != entry.size_bytes
            or len(entry.digests) != DIGEST_BYTES * len(entry.lengths)
        ):
            return f"the recipe of {path!r} does not add up"
    return ""
