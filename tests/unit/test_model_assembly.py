"""The plan of a derived copy: carried out in memory it gives the file, within what the kernel allows."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ckptfs.model.assembly import Clone, Plan, plan

BLOCK = 16  # small, so that few bytes meet every case


def planned(extents: list[tuple[int, int, int, int]], sizes: dict[int, int], share: int = BLOCK) -> Plan:
    size = sum(extent[1] for extent in extents)
    return plan(extents, size, share_bytes=share, blob_size=sizes.__getitem__)


def test_a_run_at_its_own_offset_is_shared_but_for_its_edges() -> None:
    found = planned([(0, 20, 1, 0), (20, 100, 2, 20), (120, 8, 1, 120)], {1: 200, 2: 128})
    assert found.clones == [Clone(0, 16, 1, 0), Clone(32, 80, 2, 32)]
    assert found.copies == [(16, 32), (112, 128)]
    assert found.cost_bytes(BLOCK) == 2 * BLOCK


def test_a_run_that_is_shifted_by_whole_blocks_is_shared() -> None:
    found = planned([(0, 64, 1, 3 * BLOCK)], {1: 1000})
    assert found == Plan([Clone(0, 64, 1, 48)], [])


@pytest.mark.parametrize("shift", [1, 8, BLOCK - 1])
def test_a_run_that_is_shifted_by_less_is_copied(shift: int) -> None:
    assert planned([(0, 64, 1, shift)], {1: 1000}) == Plan([], [(0, 64)])


def test_the_last_block_is_shared_only_with_the_last_block() -> None:
    assert planned([(0, 70, 1, 0)], {1: 70}) == Plan([Clone(0, 70, 1, 0)], [])
    assert planned([(0, 70, 1, 0)], {1: 71}) == Plan([Clone(0, 64, 1, 0)], [(64, 70)])


def test_zeros_are_neither_shared_nor_copied() -> None:
    assert planned([(0, 100, 0, 0)], {}) == Plan([], [])
    assert planned([(0, 100, 0, 0), (100, 60, 3, 5)], {3: 65}).copies == [(100, 160)]


def test_without_reflinks_all_but_zeros_is_copied() -> None:
    extents = [(0, 30, 1, 0), (30, 30, 2, 7), (60, 10, 0, 0), (70, 10, 1, 70)]
    assert planned(extents, {}, share=0) == Plan([], [(0, 60), (70, 80)])


def test_copies_that_meet_in_a_block_take_it_once() -> None:
    assert Plan([], [(0, 3), (5, 9), (17, 18)]).cost_bytes(BLOCK) == 2 * BLOCK


@given(st.data())
def test_carried_out_it_gives_the_file(data: st.DataObject) -> None:
    noise = random.Random(data.draw(st.integers(0, 1 << 32)))
    blobs = {
        blob: noise.randbytes(data.draw(st.integers(1, 200)))
        for blob in range(1, data.draw(st.integers(2, 4)))
    }
    extents: list[tuple[int, int, int, int]] = []
    content = b""
    for _ in range(data.draw(st.integers(0, 8))):
        blob = data.draw(st.sampled_from([0, *blobs]))
        length = data.draw(st.integers(1, len(blobs[blob]) if blob else 50))
        offset = 0
        if blob:
            offset = data.draw(st.integers(0, len(blobs[blob]) - length))
            if data.draw(st.booleans()) and (len(content) - offset) % BLOCK:  # as a fine-tune has it
                offset = max(0, min(len(content) % BLOCK, len(blobs[blob]) - length))
        extents.append((len(content), length, blob, offset))
        content += blobs[blob][offset : offset + length] if blob else bytes(length)
    found = planned(extents, {blob: len(body) for blob, body in blobs.items()})
    made = bytearray(len(content))
    touched = [0] * len(content)
    for start, length, blob, offset in found.clones:
        # What ioctl_ficlonerange(2) asks for.
        assert start % BLOCK == offset % BLOCK == 0
        at_both_ends = start + length == len(content) and offset + length == len(blobs[blob])
        assert length % BLOCK == 0 or at_both_ends
        made[start : start + length] = blobs[blob][offset : offset + length]
        for at in range(start, start + length):
            touched[at] += 1
    for start, end in found.copies:
        made[start:end] = content[start:end]
        for at in range(start, end):
            touched[at] += 1
    assert bytes(made) == content
    assert max(touched, default=0) <= 1, "no byte is brought in twice"
    assert all(first[1] < second[0] for first, second in zip(found.copies, found.copies[1:], strict=False))
    blocks = {at // BLOCK for start, end in found.copies for at in range(start, end)}
    assert found.cost_bytes(BLOCK) == len(blocks) * BLOCK
