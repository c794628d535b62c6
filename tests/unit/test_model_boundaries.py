"""From segments to chunk lengths, and what must hold whatever the segments are."""

from __future__ import annotations

from itertools import accumulate

from hypothesis import given
from hypothesis import strategies as st

from ckptfs.model.boundaries import (
    SMALL_TENSOR_BYTES,
    TAIL_CHUNK_BYTES,
    TARGET_CHUNK_BYTES,
    from_segments,
    grid,
    tensor_grid,
)

KIB, MIB = 1024, 1024 * 1024

sizes = st.one_of(
    st.integers(1, 200),
    st.integers(1, 3 * SMALL_TENSOR_BYTES),
    st.integers(1, 3 * TARGET_CHUNK_BYTES),
    st.sampled_from([SMALL_TENSOR_BYTES - 1, SMALL_TENSOR_BYTES, TARGET_CHUNK_BYTES, TAIL_CHUNK_BYTES]),
)
segments = st.lists(sizes, min_size=1, max_size=30)


def cut(segment_sizes: list[int]) -> list[int]:
    return from_segments(list(accumulate(segment_sizes, initial=0)))


def test_grid() -> None:
    assert grid(0) == []
    assert grid(1) == [1]
    assert grid(4 * MIB) == [4 * MIB]
    assert grid(9 * MIB) == [4 * MIB, 4 * MIB, MIB]


def test_tensor_grid_ends_in_falling_powers_of_two() -> None:
    assert tensor_grid(32 * MIB) == [4 * MIB] * 8
    assert tensor_grid(12 * MIB) == [4 * MIB] * 3
    assert tensor_grid(3 * MIB) == [2 * MIB, MIB]
    assert tensor_grid(4 * MIB + 3 * 512 * KIB + 7) == [4 * MIB, MIB, 512 * KIB, 7]
    assert tensor_grid(TAIL_CHUNK_BYTES - 1) == [TAIL_CHUNK_BYTES - 1]


def test_small_segments_share_and_large_ones_do_not() -> None:
    assert cut([100, 5000, 5000, 20_000, 300, 40_000, 10]) == [100, 10_000, 20_000, 300, 40_000, 10]


def test_gathering_ends_when_enough_has_come_together() -> None:
    assert cut([8, 10_000, 10_000, 10_000, 10_000, 10_000]) == [8, 20_000, 20_000, 10_000]


def test_the_first_segment_stands_alone() -> None:
    assert cut([8, 8]) == [8, 8]
    assert cut([5 * MIB, 8]) == [4 * MIB, MIB, 8]


@given(segments)
def test_chunks_cover_the_file_and_none_is_too_long(segment_sizes: list[int]) -> None:
    result = cut(segment_sizes)
    assert sum(result) == sum(segment_sizes)
    assert all(0 < n <= TARGET_CHUNK_BYTES for n in result)


@given(segments)
def test_there_are_no_more_chunks_than_the_bytes_are_worth(segment_sizes: list[int]) -> None:
    # A large segment has at most one gathered chunk before it and six in its tail.
    large = sum(1 for n in segment_sizes if n >= SMALL_TENSOR_BYTES)
    bound = (
        sum(segment_sizes) // TARGET_CHUNK_BYTES + 6 * large + sum(segment_sizes) // SMALL_TENSOR_BYTES + 3
    )
    assert len(cut(segment_sizes)) <= bound


@given(segments, segments, st.integers(SMALL_TENSOR_BYTES, 3 * TARGET_CHUNK_BYTES))
def test_a_large_segment_is_cut_alike_wherever_it_lies(
    before: list[int], after: list[int], size: int
) -> None:
    borders = set(accumulate(cut([*before, size, *after]), initial=0))
    start = sum(before)
    inside = sorted(b - start for b in borders if start <= b <= start + size)
    assert inside == list(accumulate(tensor_grid(size), initial=0))


@given(st.integers(1, 6 * TARGET_CHUNK_BYTES), st.integers(1, 400 * KIB))
def test_growth_keeps_all_chunks_before_the_end_of_the_last_full_one(size: int, growth: int) -> None:
    old, new = tensor_grid(size), tensor_grid(size + growth)
    full = size // TARGET_CHUNK_BYTES
    assert old[:full] == new[:full]


@given(segments)
def test_what_precedes_a_large_segment_does_not_matter_to_what_follows(run: list[int]) -> None:
    large = SMALL_TENSOR_BYTES
    assert cut([1, 100, 700, large, *run])[2:] == cut([1, large, *run])[1:]
