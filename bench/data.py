"""The files that the benchmarks make: random bytes, so that nothing is shared by accident."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

import numpy

#: Written at a time; large enough that the generator's start-up costs nothing.
BLOCK_BYTES = 16 << 20


@dataclass(frozen=True, slots=True)
class Tensor:
    """A tensor of bf16 whose content is a function of its seed: the same seed, the same bytes (and a
    longer one begins with the bytes of a shorter one)."""

    name: str
    shape: tuple[int, ...]
    seed: int

    @property
    def size_bytes(self) -> int:
        return int(numpy.prod(self.shape, dtype=numpy.int64)) * 2

    def write(self, write: Callable[[bytes], object]) -> None:
        generator = numpy.random.Generator(numpy.random.SFC64(self.seed))
        left = self.size_bytes
        while left:
            # Whole blocks are drawn, or the end of a short tensor would differ from the same place in
            # a longer one: the generator makes eight bytes at a time.
            block = generator.bytes(BLOCK_BYTES if left >= BLOCK_BYTES else (left + 7) // 8 * 8)
            write(block[:left])
            left -= min(left, len(block))


def write_safetensors(path: str, tensors: Sequence[Tensor], note: str = "", dtype: str = "BF16") -> None:
    """Write a safetensors file; ``note`` makes its header longer, as the metadata of a fine-tune does.

    ``dtype``: another type of two bytes. (Of bf16 numpy knows nothing.)
    """
    header: dict[str, object] = {"__metadata__": {"format": "pt", "note": note}}
    offset = 0
    for tensor in tensors:
        header[tensor.name] = {
            "dtype": dtype,
            "shape": list(tensor.shape),
            "data_offsets": [offset, offset + tensor.size_bytes],
        }
        offset += tensor.size_bytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        for tensor in tensors:
            tensor.write(file.write)


def equal_tensors(count: int, total_bytes: int) -> list[Tensor]:
    """``count`` tensors that together have about ``total_bytes``, of three sizes as in a real model: for
    each large matrix a middling one and a small vector. All are aligned, being multiples of 64 bytes."""
    weights = [(16, 4, 0.002)[i % 3] for i in range(count)]
    unit = total_bytes / sum(weights)
    return [
        Tensor(
            f"model.layers.{i // 3}.{('mlp', 'attention', 'norm')[i % 3]}.weight",
            (max(32, int(unit * w / 2) // 32 * 32),),
            i,
        )
        for i, w in enumerate(weights)
    ]


def write_torch(path: str, count: int, total_bytes: int) -> None:
    """Write ``count`` equal tensors as ``torch.save`` does."""
    import torch

    length = max(32, total_bytes // count // 64 * 32)
    generator = numpy.random.Generator(numpy.random.SFC64(count))
    torch.save(
        {
            f"layers.{i}.weight": torch.frombuffer(
                bytearray(generator.bytes(length * 2)), dtype=torch.float16
            )
            for i in range(count)
        },
        path,
    )


def transformer(layers: int, width: int, vocabulary: int) -> list[Tensor]:
    """The tensors of a llama-like model, in the order in which its checkpoint has them."""
    shapes: list[tuple[str, tuple[int, ...]]] = [("model.embed_tokens.weight", (vocabulary, width))]
    for layer in range(layers):
        prefix = f"model.layers.{layer}."
        shapes += [
            (prefix + "input_layernorm.weight", (width,)),
            (prefix + "mlp.down_proj.weight", (width, width * 11 // 4)),
            (prefix + "mlp.gate_proj.weight", (width * 11 // 4, width)),
            (prefix + "mlp.up_proj.weight", (width * 11 // 4, width)),
            (prefix + "post_attention_layernorm.weight", (width,)),
            (prefix + "self_attn.k_proj.weight", (width // 4, width)),
            (prefix + "self_attn.o_proj.weight", (width, width)),
            (prefix + "self_attn.q_proj.weight", (width, width)),
            (prefix + "self_attn.v_proj.weight", (width // 4, width)),
        ]
    shapes += [("model.norm.weight", (width,)), ("lm_head.weight", (vocabulary, width))]
    return [Tensor(name, shape, seed) for seed, (name, shape) in enumerate(shapes)]


def small_files(directory: str, count: int, per_directory: int, size_bytes: int) -> int:
    """Make ``count`` files of ``size_bytes`` random bytes; returns what they hold together."""
    content = numpy.random.Generator(numpy.random.SFC64(1)).bytes(size_bytes)
    for i in range(count):
        if i % per_directory == 0:
            os.mkdir(os.path.join(directory, f"part-{i // per_directory:05d}"))
        path = os.path.join(directory, f"part-{i // per_directory:05d}", f"sample-{i:07d}.bin")
        with open(path, "wb", buffering=0) as file:
            file.write(i.to_bytes(8, "little") + content[8:])
    return count * size_bytes


def total_bytes(tensors: Iterable[Tensor]) -> int:
    return sum(tensor.size_bytes for tensor in tensors)
