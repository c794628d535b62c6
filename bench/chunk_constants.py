"""The constants of chunk boundaries: what each choice finds, and what it costs in chunks.

No bytes are made: a chunk is known by the parts of tensors that it holds, so models of full size can be
cut in seconds. docs/adr/0007-chunk-constants.md quotes what this prints.
"""

from __future__ import annotations

import time
from bisect import bisect_right
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate

from ckptfs.model import boundaries
from ckptfs.model.digest import digest, fingerprint

KIB, MIB = 1024, 1024 * 1024

#: What stands in front of a tensor in a `torch.save` file: the local header, padded to 64 bytes.
LOCAL_HEADER_BYTES = 128


@dataclass(frozen=True, slots=True)
class Tensor:
    name: str
    bytes: int
    content: str  # tensors of the same content have the same bytes, as far as they reach
    row_bytes: int = 0  # of an embedding


@dataclass(frozen=True, slots=True)
class Rules:
    target_bytes: int = boundaries.TARGET_CHUNK_BYTES
    small_bytes: int = boundaries.SMALL_TENSOR_BYTES
    tail_bytes: int = boundaries.TAIL_CHUNK_BYTES


Model = list[Tensor]
Cut = Callable[[Sequence[int]], list[int]]


def tensors(*shapes: tuple[str, int], embedding: str = "", row_bytes: int = 0) -> Model:
    return [Tensor(name, size, name, row_bytes if name == embedding else 0) for name, size in shapes]


def llama_8b() -> Model:
    """Llama 3 8B: 4096 wide, 14336 in the middle, 128256 tokens, bf16."""
    w, f, kv, v = 4096, 14336, 1024, 128256
    layers = [
        (f"model.layers.{i}.{name}", 2 * n)
        for i in range(32)
        for name, n in (
            ("input_layernorm", w),
            ("mlp.down_proj", w * f),
            ("mlp.gate_proj", w * f),
            ("mlp.up_proj", w * f),
            ("post_attention_layernorm", w),
            ("self_attn.k_proj", w * kv),
            ("self_attn.o_proj", w * w),
            ("self_attn.q_proj", w * w),
            ("self_attn.v_proj", w * kv),
        )
    ]
    embedding = ("model.embed_tokens", 2 * v * w)
    head = [("model.norm", 2 * w), ("lm_head", 2 * v * w)]
    return tensors(embedding, *layers, *head, embedding=embedding[0], row_bytes=2 * w)


def minilm() -> Model:
    """all-MiniLM-L6-v2: 384 wide, six layers, 30522 tokens, f32: a small model with many small tensors."""
    w, f, v = 384, 1536, 30522
    layers = [
        (f"encoder.layer.{i}.{name}", 4 * n)
        for i in range(6)
        for name, n in (
            ("attention.output.LayerNorm.bias", w),
            ("attention.output.LayerNorm.weight", w),
            ("attention.output.dense.bias", w),
            ("attention.output.dense.weight", w * w),
            ("attention.self.key.bias", w),
            ("attention.self.key.weight", w * w),
            ("attention.self.query.bias", w),
            ("attention.self.query.weight", w * w),
            ("attention.self.value.bias", w),
            ("attention.self.value.weight", w * w),
            ("intermediate.dense.bias", f),
            ("intermediate.dense.weight", w * f),
            ("output.LayerNorm.bias", w),
            ("output.LayerNorm.weight", w),
            ("output.dense.bias", w),
            ("output.dense.weight", w * f),
        )
    ]
    embeddings = [("embed_tokens", 4 * v * w), ("position", 4 * 512 * w), ("token_type", 8 * w)]
    return tensors(*embeddings, *layers, embedding="embed_tokens", row_bytes=4 * w)


def resnet_50() -> Model:
    """ResNet-50, f32: convolutions of all sizes between small batch norms."""
    shapes = [("conv1", 4 * 64 * 3 * 49)]
    width = 64
    for stage, (planes, blocks) in enumerate(((64, 3), (128, 4), (256, 6), (512, 3))):
        for block in range(blocks):
            convolutions = [(width, planes, 1), (planes, planes, 9), (planes, planes * 4, 1)]
            if block == 0:
                convolutions.append((width, planes * 4, 1))
            for number, (before, after, area) in enumerate(convolutions):
                name = f"layer{stage}.{block}.{number}"
                shapes += [(f"{name}.bn{i}", 4 * after) for i in range(4)]
                shapes.append((f"{name}.conv", 4 * before * after * area))
            width = planes * 4
    return tensors(*shapes, ("classes", 4 * 1000 * 2048), embedding="classes", row_bytes=4 * 2048)


def lora() -> Model:
    """A LoRA adapter of rank 16 for Llama 3 8B: nothing but small tensors, all large ones missing."""
    return tensors(
        *(
            (f"layers.{i}.{name}.{ab}", 2 * 16 * n)
            for i in range(32)
            for name, into, out in (
                ("k", 4096, 1024),
                ("o", 4096, 4096),
                ("q", 4096, 4096),
                ("v", 4096, 1024),
            )
            for ab, n in (("A", into), ("B", out))
        )
    )


MODELS = {"llama 8B": llama_8b, "MiniLM": minilm, "ResNet-50": resnet_50, "LoRA r16": lora}


def fine_tuned(base: Model) -> list[Model]:
    return [[replace(t, content=t.content + "'") if i % 10 == 3 else t for i, t in enumerate(base)]]


def grown(base: Model, rows: int = 100) -> list[Model]:
    """More rows in the embedding, the largest tensor with that name."""
    return [[replace(t, bytes=t.bytes + rows * t.row_bytes) if t.row_bytes else t for t in base]]


def renamed(base: Model) -> list[Model]:
    return [[replace(t, name="base_model." + t.name) for t in base]]


def shards(base: Model, count: int) -> list[Model]:
    """In order, each file up to its part of the whole, as transformers does."""
    limit = sum(t.bytes for t in base) / count
    parts: list[Model] = [[]]
    for tensor in base:
        if len(parts) < count and parts[-1] and sum(t.bytes for t in parts[-1]) + tensor.bytes > limit:
            parts.append([])
        parts[-1].append(tensor)
    return parts


CASES: dict[str, tuple[Callable[[Model], list[Model]], Callable[[Model], list[Model]]]] = {
    "fine-tune": (lambda base: [base], fine_tuned),
    "re-sharded": (lambda base: shards(base, 2), lambda base: shards(base, 3)),
    "grown": (lambda base: [base], grown),
    "renamed": (lambda base: [base], renamed),
}


def pieces(model: Model, container: str, mark: str) -> list[tuple[str, int]]:
    """The file as (content, length) in order. What a header holds differs from file to file (``mark``),
    and that of a variant is longer."""
    longer = 1000 if mark.startswith("new") else 0
    if container == "zip":
        result = [(f"{mark} pickle", 100 * len(model) + 512 + longer)]
        for tensor in model:
            result += [(f"{mark} {tensor.name}", LOCAL_HEADER_BYTES), (tensor.content, tensor.bytes)]
        return [*result, (f"{mark} directory", 80 * len(model) + 100)]
    return [(f"{mark} header", 130 * len(model) + 8 + longer), *((t.content, t.bytes) for t in model)]


Chunk = tuple[tuple[str, int, int], ...]


def chunks(file: list[tuple[str, int]], cut: Cut) -> Iterator[tuple[int, Chunk]]:
    """Each chunk's length and what it holds: parts of contents."""
    starts = list(accumulate((length for _, length in file), initial=0))
    offset = 0
    for length in cut(starts):
        index = bisect_right(starts, offset) - 1
        parts: list[tuple[str, int, int]] = []
        end = offset + length
        while index < len(file) and starts[index] < end:
            begin = max(offset, starts[index])
            parts.append((file[index][0], begin - starts[index], min(end, starts[index + 1]) - begin))
            index += 1
        yield length, tuple(parts)
        offset = end


def found(base: list[Model], variant: list[Model], container: str, cut: Cut) -> float:
    """The variant's bytes in chunks of the base, as a share of its bytes in equal tensors (the rows that
    an embedding had before it grew count as equal)."""
    have = {c for i, m in enumerate(base) for _, c in chunks(pieces(m, container, f"base {i}"), cut)}
    sizes = {t.content: t.bytes for m in base for t in m}
    equal = sum(min(t.bytes, sizes.get(t.content, 0)) for m in variant for t in m)
    shared = sum(
        n
        for i, m in enumerate(variant)
        for n, c in chunks(pieces(m, container, f"new {i}"), cut)
        if c in have
    )
    return shared / equal


def found_when_embedding_grows(base: Model, cut: Cut) -> tuple[float, float]:
    """The mean and the least share of an embedding's rows that are found when it grows by 100, over
    embeddings of many sizes: where its end lies on the grid is chance."""
    embedding = next((t for t in base if t.row_bytes), None)
    if embedding is None:
        return float("nan"), float("nan")
    shares = []
    for step in range(64):
        size = embedding.bytes + step * (4 * MIB // 64 // embedding.row_bytes + 1) * embedding.row_bytes
        one = [replace(embedding, bytes=size)]
        shares.append(found([one], grown(one), "safetensors", cut))
    return sum(shares) / len(shares), min(shares)


def by(rules: Rules) -> Cut:
    return lambda starts: boundaries.from_segments(
        starts,
        target_bytes=rules.target_bytes,
        small_bytes=rules.small_bytes,
        tail_bytes=rules.tail_bytes,
    )


def print_table(title: str, policies: dict[str, Cut], container: str) -> None:
    print(f"\n{title} ({container})")
    print(f"{'':34}" + "".join(f"{case:>12}" for case in CASES) + f"{'chunks':>9}{'mean kB':>9}")
    for words, cut in policies.items():
        for model_name, make in MODELS.items():
            base = make()
            shares = [found(before(base), after(base), container, cut) for before, after in CASES.values()]
            lengths = [n for n, _ in chunks(pieces(base, container, "base"), cut)]
            mean = sum(lengths) / len(lengths) / 1000
            row = "".join(f"{share:12.4f}" for share in shares)
            print(f"{words:22}{model_name:12}{row}{len(lengths):9}{mean:9.0f}")


def print_growth(policies: dict[str, Cut]) -> None:
    print("\nThe rows of an embedding that are found when it grows by 100 (mean and least over 64 sizes)")
    print(f"{'':34}{'MB':>9}{'mean':>9}{'least':>9}{'chunks of the model':>22}")
    for words, cut in policies.items():
        for model_name, make in MODELS.items():
            base = make()
            size = sum(t.bytes for t in base if t.row_bytes)
            if size:
                mean, least = found_when_embedding_grows(base, cut)
                count = len(list(chunks(pieces(base, "safetensors", "base"), cut)))
                print(f"{words:22}{model_name:12}{size / 1e6:9.1f}{mean:9.4f}{least:9.4f}{count:22}")


def print_digest_speed() -> None:
    """Small chunks are hashed more slowly: BLAKE3 works on many kilobytes at once."""
    print(f"\n{'chunk':>10}{'BLAKE3 GB/s':>14}{'with xxh3':>12}")
    data = memoryview(bytearray(16 * MIB))
    for size in (4 * KIB, 16 * KIB, 64 * KIB, 256 * KIB, MIB, 4 * MIB, 16 * MIB):
        speeds = []
        for work in (lambda c: digest(c), lambda c: (digest(c), fingerprint(c))):
            best = 1e9
            for _ in range(5):
                begun = time.perf_counter()
                for start in range(0, len(data), size):
                    work(data[start : start + size])
                best = min(best, time.perf_counter() - begun)
            speeds.append(len(data) / best / 1e9)
        print(f"{size // KIB:7} KiB{speeds[0]:14.1f}{speeds[1]:12.1f}")


def main() -> None:
    none = 1 << 62
    chosen = Rules()
    print_table("No container", {"a plain grid": lambda starts: boundaries.grid(starts[-1])}, "safetensors")
    small = {
        f"small < {k} KiB": by(replace(chosen, small_bytes=k * KIB, tail_bytes=chosen.tail_bytes))
        for k in (1, 4, 16, 64, 256)
    }
    print_table("Which tensors share a chunk", small, "safetensors")
    print_table("Which tensors share a chunk", small, "zip")
    tails = {
        f"tail to {k} KiB" if k else "no tail": by(replace(chosen, tail_bytes=k * KIB if k else none))
        for k in (0, 1024, 512, 256, 128, 64)
    }
    print_growth(tails)
    targets = {f"target {m} MiB": by(replace(chosen, target_bytes=m * MIB)) for m in (1, 2, 4, 8, 16)}
    print_table("The target", targets, "safetensors")
    print_growth(targets)
    print_digest_speed()


if __name__ == "__main__":
    main()
