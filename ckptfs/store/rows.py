"""How the index's rows are encoded (docs/format.md, "Index").

Keys are big-endian, so that they sort as numbers. The values here are bodies: :mod:`ckptfs.store.index`
adds and checks the checksum that each carries.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

import msgspec

from ckptfs.store.records import Checkpoint, Chunk, Why

_CHUNK = struct.Struct(">IQQQI")  # length, blob, offset, fingerprint, refs
_PLACE = struct.Struct(">32sI")  # digest, length
_BLOB = struct.Struct(">BQIQIQ")  # kind, size, live chunks, live bytes, owners, physical bytes
_DRAFT_CHUNK = struct.Struct(">32sI")  # digest, length
_COUNTERS = struct.Struct(">QQQQQ")
_U64 = struct.Struct(">Q")
_U32 = struct.Struct(">I")
_BLOB_OFFSET = struct.Struct(">QQ")
_ORDINAL_ENTRY = struct.Struct(">II")
_DRAFT_CHUNK_KEY = struct.Struct(">I16sI")

OWN = 1  # a blob with the size of one file, its chunks at their own offsets
PACK = 2  # a blob that many small files share


class Counters(NamedTuple):
    """Kept in the transaction that changes what they count. ``next_*`` numbers are never given twice."""

    next_ordinal: int
    next_blob: int
    chunks: int
    stored_bytes: int
    physical_bytes: int


class BlobRow(NamedTuple):
    kind: int
    size: int
    live_chunks: int
    live_bytes: int
    owners: int
    physical_bytes: int


class CheckpointRow(msgspec.Struct, array_like=True, frozen=True):
    name: str
    digest: bytes
    created: float
    creation: str
    source_type: str
    source_uri: str
    size_bytes: int
    files: int
    directories: int


def checkpoint_row(checkpoint: Checkpoint) -> CheckpointRow:
    return CheckpointRow(
        name=checkpoint.name,
        digest=checkpoint.digest,
        created=checkpoint.created,
        creation=checkpoint.creation,
        source_type=checkpoint.source_type,
        source_uri=checkpoint.source_uri,
        size_bytes=checkpoint.size_bytes,
        files=checkpoint.files,
        directories=checkpoint.directories,
    )


class DraftRow(msgspec.Struct, array_like=True, frozen=True):
    name: str
    creation: str
    source_key: str
    source_type: str
    source_uri: str
    created: float
    status: str
    reason: str
    reason_code: str
    bytes_kept: int
    packs: list[int]  # the blobs that its small files were written to


class DraftFileRow(msgspec.Struct, array_like=True, frozen=True):
    size_bytes: int  # -1: not known yet
    blob: int  # its own blob; 0: none yet
    lengths: list[int] | None


class LeaseRow(msgspec.Struct, array_like=True, frozen=True):
    created: float
    expires: float | None
    pid: int | None
    pid_start: int | None


class DerivedRow(msgspec.Struct, array_like=True, frozen=True):
    """A derived copy. ``blobs``: those whose disk blocks it shares."""

    size_bytes: int
    physical_bytes: int  # what it takes of the disk beside what it shares
    why: Why
    created: float
    blobs: list[int]


class NativesRow(msgspec.Struct, array_like=True, frozen=True):
    """A checkpoint that was looked at: how many of its files need no derived copy, and whether the others
    may be given one without being asked for."""

    whole: int
    small: int
    wanted: bool


class ReleaseRow(msgspec.Struct, array_like=True, frozen=True):
    """How far the release of a holder's chunks has come: those up to ``done`` have been given up."""

    manifest: bytes  # empty: the holder is a draft
    done: bytes


_encoder = msgspec.msgpack.Encoder()
encode = _encoder.encode
_checkpoint = msgspec.msgpack.Decoder(CheckpointRow)
_draft = msgspec.msgpack.Decoder(DraftRow)
_draft_file = msgspec.msgpack.Decoder(DraftFileRow)
_lease = msgspec.msgpack.Decoder(LeaseRow)
_derived = msgspec.msgpack.Decoder(DerivedRow)
_natives = msgspec.msgpack.Decoder(NativesRow)
_release = msgspec.msgpack.Decoder(ReleaseRow)

decode_checkpoint = _checkpoint.decode
decode_draft = _draft.decode
decode_draft_file = _draft_file.decode
decode_lease = _lease.decode
decode_derived = _derived.decode
decode_natives = _natives.decode
decode_release = _release.decode

# --- Keys -----------------------------------------------------------------------------------------

ordinal_key = _U32.pack
blob_key = _U64.pack
place_key = _BLOB_OFFSET.pack
owner_key = _ORDINAL_ENTRY.pack
derived_key = _ORDINAL_ENTRY.pack
draft_chunk_key = _DRAFT_CHUNK_KEY.pack


def draft_file_key(ordinal: int, key: bytes) -> bytes:
    return _U32.pack(ordinal) + key


def lease_key(job: str, ordinal: int) -> bytes:
    return job.encode() + b"\0" + _U32.pack(ordinal)


def split_lease_key(key: bytes) -> tuple[str, int]:
    return key[:-5].decode(), number(key[-4:])


def number(key: bytes) -> int:
    """A key that is one big-endian number."""
    return int.from_bytes(key, "big")


def owner_entry(key: bytes) -> int:
    return number(key[4:])


def split_derived_key(key: bytes) -> tuple[int, int]:
    """``(ordinal, entry)``"""
    ordinal, entry = _ORDINAL_ENTRY.unpack(key)
    return ordinal, entry


def draft_chunk_index(key: bytes) -> int:
    return number(key[20:])


def place_offset(key: bytes) -> int:
    return number(key[8:])


# --- Bodies ---------------------------------------------------------------------------------------


def pack_chunk(length: int, blob: int, offset: int, fingerprint: int, refs: int) -> bytes:
    return _CHUNK.pack(length, blob, offset, fingerprint, refs)


def chunk(digest: bytes, body: bytes) -> Chunk:
    # As Chunk(digest, *fields), at half the cost: this runs once per chunk of everything.
    return tuple.__new__(Chunk, (digest, *_CHUNK.unpack(body)))


pack_place = _PLACE.pack
pack_draft_chunk = _DRAFT_CHUNK.pack
pack_blob_number = _U64.pack


def place(body: bytes) -> tuple[bytes, int]:
    """``(digest, length)`` of the chunk at a place in a blob."""
    digest, length = _PLACE.unpack(body)
    return digest, length


draft_chunk = place


def pack_blob(row: BlobRow) -> bytes:
    return _BLOB.pack(*row)


def blob(body: bytes) -> BlobRow:
    return BlobRow(*_BLOB.unpack(body))


def pack_counters(counters: Counters) -> bytes:
    return _COUNTERS.pack(*counters)


def counters(body: bytes) -> Counters:
    return Counters(*_COUNTERS.unpack(body))
