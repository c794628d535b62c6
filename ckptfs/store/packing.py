"""Which files share a blob, and how it is filled."""

from __future__ import annotations

#: Files up to this size share pack blobs. Larger ones get a blob of their own: the kernel can read those
#: without us later on, and a file of its own wastes half a block on average, under 4 % from here on.
SMALL_FILE_BYTES = 64 << 10

#: A pack that has grown to this is left for a new one. Small enough that a pack which loses most of its
#: files is cheap to walk (16,384 places), large enough that 100,000 files make a few packs only.
PACK_BYTES = 64 << 20

#: Chunks in a pack begin at multiples of this, so that each dead one gives its blocks back.
PACK_ALIGN_BYTES = 4096
