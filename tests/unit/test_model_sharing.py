"""What DESIGN.md promises of chunk boundaries: equal tensors are found wherever they lie.

Each case asks for at least 0.98 of the bytes in equal tensors, by the digests of real files.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy
import pytest
from model_files import found_bytes, model, npz_bytes, random_array
from safetensors.numpy import save

Tensors = dict[str, numpy.ndarray]

EMBEDDING = "model.embed_tokens.weight"
SHARE = 0.98


def size(tensors: Iterable[numpy.ndarray]) -> int:
    return sum(t.nbytes for t in tensors)


def fine_tuned(tensors: Tensors) -> tuple[Tensors, int]:
    """One in ten changed."""
    changed = {name for i, name in enumerate(tensors) if i % 10 == 3}
    tuned = {name: t + 1 if name in changed else t for name, t in tensors.items()}
    return tuned, size(t for name, t in tensors.items() if name not in changed)


def shards(tensors: Tensors, count: int) -> list[Tensors]:
    names = list(tensors)
    return [{name: tensors[name] for name in names[i::count]} for i in range(count)]


def contiguous_shards(tensors: Tensors, count: int) -> list[Tensors]:
    names = list(tensors)
    step = -(-len(names) // count)
    return [{name: tensors[name] for name in names[i : i + step]} for i in range(0, len(names), step)]


def test_a_fine_tune_with_a_longer_header() -> None:
    tuned, equal = fine_tuned(model())
    before = save(model())
    after = save(tuned, metadata={"note": "longer " * 1000})
    assert found_bytes([before], [after]) >= SHARE * equal


@pytest.mark.parametrize("split", [shards, contiguous_shards])
def test_the_same_tensors_sharded_anew(split: Callable[[Tensors, int], list[Tensors]]) -> None:
    two, three = ([save(part) for part in split(model(), count)] for count in (2, 3))
    assert found_bytes(two, three) >= SHARE * size(model().values())
    assert found_bytes([save(model())], two) >= SHARE * size(model().values())


def test_an_embedding_grown_by_100_rows() -> None:
    """The rows that were there before count as equal."""
    grown = model() | {EMBEDDING: random_array(0, 5100, 512)}
    assert (grown[EMBEDDING][:5000] == model()[EMBEDDING]).all()
    assert found_bytes([save(model())], [save(grown)]) >= SHARE * size(model().values())


def test_renamed_tensors() -> None:
    renamed = {f"base_model.{name}": t for name, t in model().items()}
    assert found_bytes([save(model())], [save(renamed)]) >= SHARE * size(model().values())


def test_arrays_in_npz() -> None:
    tuned, equal = fine_tuned(model())
    after = {f"more.{name}": t for name, t in tuned.items()} | {"another": random_array(99, 1000)}
    assert found_bytes([npz_bytes(model())], [npz_bytes(after)]) >= SHARE * equal


def test_an_array_grown_in_npz() -> None:
    grown = model() | {EMBEDDING: random_array(0, 5100, 512)}
    assert found_bytes([npz_bytes(model())], [npz_bytes(grown)]) >= SHARE * size(model().values())


def test_npz_and_safetensors_hold_the_same_chunks() -> None:
    assert found_bytes([npz_bytes(model())], [save(model())]) >= SHARE * size(model().values())


def test_other_tensors_are_not_found() -> None:
    """The measure measures: of equal names and other bytes, the header is all that is found."""
    before, after = save(model(0)), save(model(50_000))
    header = before[: 8 + int.from_bytes(before[:8], "little")]
    assert after.startswith(header)
    assert found_bytes([before], [after]) == len(header)
