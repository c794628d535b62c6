"""From the segments of a file (its header, its tensors or members, what lies between) to chunk lengths."""

from __future__ import annotations

from collections.abc import Sequence

#: No chunk is longer. S3 gives its best throughput for ranges of 4 to 16 MiB, so a chunk is worth one
#: request; and a reader that wants one byte waits for no more than this.
TARGET_CHUNK_BYTES = 4 * 1024 * 1024

#: A segment of at least this size has chunks of its own; smaller ones share. At 64 KiB the adapters and
#: normalisations that models of one family share were found less often; below 16 KiB BLAKE3 slows down
#: to a third and the index takes more than 1 % of the bytes.
SMALL_TENSOR_BYTES = 16 * 1024

#: What is left of a large segment after its full chunks is cut into falling powers of two, down to this.
#: An embedding that grows by some rows then loses little more than its last rows, not up to a full chunk.
#: Tensors of a power of two or a small multiple, as most are, take no more chunks for it.
TAIL_CHUNK_BYTES = 256 * 1024


def grid(length_bytes: int, *, target_bytes: int = TARGET_CHUNK_BYTES) -> list[int]:
    """Chunks of the target size from the start; the last takes what is left."""
    full, rest = divmod(length_bytes, target_bytes)
    return [target_bytes] * full + ([rest] if rest else [])


def tensor_grid(
    length_bytes: int, *, target_bytes: int = TARGET_CHUNK_BYTES, tail_bytes: int = TAIL_CHUNK_BYTES
) -> list[int]:
    """Chunks of a large tensor or member: the full ones, then falling powers of two, then the rest."""
    full, rest = divmod(length_bytes, target_bytes)
    result = [target_bytes] * full
    while rest >= tail_bytes:
        piece = 1 << (rest.bit_length() - 1)
        result.append(piece)
        rest -= piece
    if rest:
        result.append(rest)
    return result


def from_segments(
    cuts: Sequence[int],
    *,
    target_bytes: int = TARGET_CHUNK_BYTES,
    small_bytes: int = SMALL_TENSOR_BYTES,
    tail_bytes: int = TAIL_CHUNK_BYTES,
) -> list[int]:
    """Chunk lengths for segments given by their borders: ascending, from 0 to the file's size.

    The first segment (the header, which every change moves) stands alone. Of the others a large one is
    cut from its own start and shares no chunk with a neighbour, so equal tensors have equal chunks
    wherever they lie; small ones are gathered until they are large enough or a large one comes.

    The keywords are for the benchmark that chose the constants; another value is another format.
    """
    result: list[int] = []
    gathered = 0
    for index in range(1, len(cuts)):
        length = cuts[index] - cuts[index - 1]
        if index == 1:
            result += grid(length, target_bytes=target_bytes)
        elif length >= small_bytes:
            if gathered:
                result.append(gathered)
                gathered = 0
            result += tensor_grid(length, target_bytes=target_bytes, tail_bytes=tail_bytes)
        else:
            gathered += length
            if gathered >= small_bytes:
                result.append(gathered)
                gathered = 0
    if gathered:
        result.append(gathered)
    return result
