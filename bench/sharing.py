"""How much of the bytes in equal tensors is stored once, for the ways in which models resemble each other.

For each: a base checkpoint is created, then its variant. Found = the variant's size less what the store
grew by; it is compared with the bytes in tensors that base and variant have in common.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from bench.data import Tensor, total_bytes, transformer, write_safetensors
from bench.harness import Daemon, parser, report, workplace

EMBEDDING = "model.embed_tokens.weight"

Files = dict[str, Sequence[Tensor]]


def fine_tune(base: list[Tensor]) -> tuple[Files, Files, int]:
    """One in ten tensors changed, and a longer header."""
    tuned = [replace(t, seed=t.seed + 500_000) if i % 10 == 3 else t for i, t in enumerate(base)]
    equal = total_bytes(t for i, t in enumerate(base) if i % 10 != 3)
    return {"model.safetensors": base}, {"model.safetensors": tuned}, equal


def resharded(base: list[Tensor]) -> tuple[Files, Files, int]:
    return shards(base, 2), shards(base, 3), total_bytes(base)


def grown_embedding(base: list[Tensor]) -> tuple[Files, Files, int]:
    """100 rows more: all that was there counts as equal, the rows of the embedding too."""
    grown = [replace(t, shape=(t.shape[0] + 100, t.shape[1])) if t.name == EMBEDDING else t for t in base]
    return {"model.safetensors": base}, {"model.safetensors": grown}, total_bytes(base)


def renamed(base: list[Tensor]) -> tuple[Files, Files, int]:
    named = [replace(t, name=f"base_model.{t.name}") for t in base]
    return {"model.safetensors": base}, {"model.safetensors": named}, total_bytes(base)


def shards(tensors: list[Tensor], count: int) -> Files:
    """Split as transformers does: in order, each file up to its part of the whole."""
    limit = total_bytes(tensors) / count
    parts: list[list[Tensor]] = [[]]
    for tensor in tensors:
        if len(parts) < count and parts[-1] and total_bytes(parts[-1]) + tensor.size_bytes > limit:
            parts.append([])
        parts[-1].append(tensor)
    return {f"model-{i + 1:05d}-of-{count:05d}.safetensors": part for i, part in enumerate(parts)}


CASES = {
    "a fine-tune": fine_tune,
    "re-sharded": resharded,
    "an embedding grown": grown_embedding,
    "renamed tensors": renamed,
}


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--layers", type=int, default=8)
    arguments.add_argument("--width", type=int, default=1024)
    arguments.add_argument("--vocabulary", type=int, default=32_000)
    options = arguments.parse_args()

    targets = {}
    figures = {}
    with workplace(options.dir) as place, Daemon(place, mount=False) as daemon:
        for number, (words, make) in enumerate(CASES.items()):
            # Every case has bytes of its own, or it would find those of the case before.
            base = [
                replace(t, seed=t.seed + number * 1_000_000)
                for t in transformer(options.layers, options.width, options.vocabulary)
            ]
            before, after, equal_bytes = make(base)
            create(daemon, place, f"base-{number}", before, note="")
            stored = stored_bytes(daemon)
            size_bytes = create(daemon, place, f"variant-{number}", after, note="longer " * 1000)
            grown_bytes = stored_bytes(daemon) - stored
            targets[words] = ((size_bytes - grown_bytes) / equal_bytes, ">=", 0.98)
            figures[words] = {
                "variant_bytes": size_bytes,
                "equal_bytes": equal_bytes,
                "stored_anew_bytes": grown_bytes,
            }
    report("sharing", options.results, options, targets, figures)


def create(daemon: Daemon, place: Path, name: str, files: Files, note: str) -> int:
    """Create a checkpoint of these files; returns its size in bytes."""
    source = place / name
    source.mkdir()
    for file, tensors in files.items():
        write_safetensors(str(source / file), tensors, note)
    daemon.cli("create", name, source)
    shutil.rmtree(source)
    return int(daemon.json("show", name)["size"])


def stored_bytes(daemon: Daemon) -> int:
    return int(daemon.json("status")["store"]["stored_bytes"])


if __name__ == "__main__":
    main()
