"""Reads through io_uring, by its system calls alone (io_uring(7)): no library to build."""

from __future__ import annotations

import ctypes
import mmap
import os
import struct

_SETUP, _ENTER = 425, 426  # the same on every architecture
_OP_READ = 22
_ENTER_GETEVENTS = 1
_OFF_SQ_RING, _OFF_CQ_RING, _OFF_SQES = 0, 0x8000000, 0x10000000
_SQE_BYTES, _CQE_BYTES, _PARAMS_BYTES = 64, 16, 120

_libc = ctypes.CDLL(None, use_errno=True)


def _call(*args: object) -> int:
    result = int(_libc.syscall(*[ctypes.c_long(a) if isinstance(a, int) else a for a in args]))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def read_all(path: str, block_bytes: int, depth: int = 16) -> bytes:
    """The file's bytes, read in blocks with up to ``depth`` requests in flight, answered in any order."""
    params = (ctypes.c_char * _PARAMS_BYTES)()
    ring = _call(_SETUP, depth, ctypes.byref(params))
    sq_entries, cq_entries = struct.unpack_from("II", params, 0)
    sq = struct.unpack_from("7I", params, 40)  # head, tail, mask, entries, flags, dropped, array
    cq = struct.unpack_from("6I", params, 80)  # head, tail, mask, entries, overflow, cqes
    fd = os.open(path, os.O_RDONLY)
    try:
        with (
            mmap.mmap(ring, sq[6] + sq_entries * 4, offset=_OFF_SQ_RING) as sq_ring,
            mmap.mmap(ring, cq[5] + cq_entries * _CQE_BYTES, offset=_OFF_CQ_RING) as cq_ring,
            mmap.mmap(ring, sq_entries * _SQE_BYTES, offset=_OFF_SQES) as sqes,
        ):
            return _read_blocks(ring, fd, block_bytes, sq_ring, sq, cq_ring, cq, sqes, sq_entries)
    finally:
        os.close(fd)
        os.close(ring)


def _read_blocks(
    ring: int,
    fd: int,
    block_bytes: int,
    sq_ring: mmap.mmap,
    sq: tuple[int, ...],
    cq_ring: mmap.mmap,
    cq: tuple[int, ...],
    sqes: mmap.mmap,
    depth: int,
) -> bytes:
    size = os.fstat(fd).st_size
    result = bytearray(size)
    offsets = list(range(0, size, block_bytes))
    for start in range(0, len(offsets), depth):
        batch = offsets[start : start + depth]
        buffers = [ctypes.create_string_buffer(min(block_bytes, size - offset)) for offset in batch]
        tail = struct.unpack_from("I", sq_ring, sq[1])[0]
        for slot, (offset, buffer) in enumerate(zip(batch, buffers, strict=True)):
            entry = struct.pack(
                "<BBHiQQIIQ", _OP_READ, 0, 0, fd, offset, ctypes.addressof(buffer), len(buffer), 0, slot
            )
            index = (tail + slot) & struct.unpack_from("I", sq_ring, sq[2])[0]
            sqes[index * _SQE_BYTES : (index + 1) * _SQE_BYTES] = entry.ljust(_SQE_BYTES, b"\0")
            struct.pack_into("I", sq_ring, sq[6] + index * 4, index)
        struct.pack_into("I", sq_ring, sq[1], tail + len(batch))
        _call(_ENTER, ring, len(batch), len(batch), _ENTER_GETEVENTS, None, 0)
        head = struct.unpack_from("I", cq_ring, cq[0])[0]
        mask = struct.unpack_from("I", cq_ring, cq[2])[0]
        for done in range(len(batch)):
            slot, got = struct.unpack_from("<Qi", cq_ring, cq[5] + ((head + done) & mask) * _CQE_BYTES)
            if got < 0:
                raise OSError(-got, os.strerror(-got))
            if got != len(buffers[slot]):
                raise AssertionError(f"{got} bytes at {batch[slot]}, not {len(buffers[slot])}")
            result[batch[slot] : batch[slot] + got] = buffers[slot].raw
        struct.pack_into("I", cq_ring, cq[0], head + len(batch))
    return bytes(result)
