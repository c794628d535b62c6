"""From the segments of a file (its header, its tensors or members, what lies between) to chunk lengths."""

from __future__ import annotations

from collections.abc import Sequence

#: No chunk is longer. S3 gives its best throughput for ranges of 4 to 16 MiB, so a chunk is worth one
#: request; and a reader that wants one byte waits for no more than this.
TARGET_CHUNK_BYTES = 4 * 1024 * 1024

#: A segment of at least this size has chunks of its own; smaller ones share.
SMALL_TENSOR_BYTES = 64 * 1024


def grid(length_bytes: int) -> list[int]:
    """Chunks of TARGET_CHUNK_BYTES from the start; the last takes what is left."""
    full, rest = divmod(length_bytes, TARGET_CHUNK_BYTES)
    return [TARGET_CHUNK_BYTES] * full + ([rest] if rest else [])


def from_segments(cuts: Sequence[int]) -> list[int]:
    """Chunk lengths for segments given by their borders: ascending, from 0 to the file's size.

    The first segment (the header, which every change moves) stands alone. Of the others a large one is
    cut on a grid from its own start and shares no chunk with a neighbour, so equal tensors have equal
    chunks wherever they lie; small ones are gathered until they are large enough or a large one comes.
    """
    result: list[int] = []
    gathered = 0
    for index in range(1, len(cuts)):
        length = cuts[index] - cuts[index - 1]
        if index == 1:
            result += grid(length)
        elif length >= SMALL_TENSOR_BYTES:
            if gathered:
                result.append(gathered)
                gathered = 0
            result += grid(length)
        else:
            gathered += length
            if gathered >= SMALL_TENSOR_BYTES:
                result.append(gathered)
                gathered = 0
    if gathered:
        result.append(gathered)
    return result
