"""Families of synthetic checkpoints: ``base`` and ``ft1`` to ``ftN``, and ``base-fisher``, ``ft1-fisher``, ...

    python -m tests.benchmarks.checkpoints OUT --size 0.5b --fine-tunes 3 [--fishers]
    python -m tests.benchmarks.checkpoints OUT --small-tensors 10000

Models have Qwen2's shapes in bfloat16; a fine-tune's deltas have the scale (1e-3) and the heavy tail that supervised
fine-tuning leaves. Fishers are float32 on the mean scale, spread over many powers of ten, and zero in the rows of the
embedding that belong to tokens never seen. The numbers are noise, so no such model says anything.

The same arguments give the same bytes on any number of processors. A checkpoint that is there is kept, so a family can
grow. Tensors are made and written in pieces of a million elements, so memory stays near what torch itself takes.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import zlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from merge_cli.checkpoint import DType, Extent, Layout, ShardWriter, plan_shards
from tests.benchmarks.shapes import (
    EMBEDDING,
    SIZES,
    Shapes,
    qwen2_config,
    qwen2_shapes,
    small_shapes,
    tokenizer_files,
)

_SHARD_BYTES = 5 * 10**9
_PIECE_NUMEL = 2**20


@dataclass(frozen=True)
class Piece:
    """A piece of a tensor: ``numel`` elements from element ``start``."""

    place: Extent
    start: int
    numel: int

    def noise(self, purpose: str) -> torch.Generator:
        """Return a source of random numbers that no other piece and no other purpose shares."""
        # torch's generator on the CPU takes 32 bits of a seed and silently drops the rest.
        return torch.Generator().manual_seed(zlib.crc32(f"{purpose} {self.place.name} {self.start}".encode()))


Values = Callable[[Piece], Tensor]


def base_values(piece: Piece) -> Tensor:
    """Return the base's numbers: around one in norms, else around zero; float32, shape ``(numel,)``."""
    normal = torch.randn(piece.numel, generator=piece.noise("base"))
    return normal.mul_(0.1).add_(1) if piece.place.name.endswith("norm.weight") else normal.mul_(0.02)


def fine_tune_values(model: int) -> Values:
    """Return what makes a fine-tune's numbers: the base's plus deltas, one in twenty of them drawn thrice as wide."""

    def values(piece: Piece) -> Tensor:
        noise = piece.noise(f"fine-tune {model}")
        width = torch.rand(piece.numel, generator=noise).lt_(0.05).mul_(2).add_(1)
        deltas = torch.randn(piece.numel, generator=noise).mul_(width)
        return base_values(piece).add_(deltas, alpha=1e-3)

    return values


def fisher_values(model: int) -> Values:
    """Return what makes a model's mean Fisher: squares of products of two normal numbers."""

    def values(piece: Piece) -> Tensor:
        noise = piece.noise(f"fisher {model}")
        fisher = torch.randn(piece.numel, generator=noise).mul_(torch.randn(piece.numel, generator=noise))
        fisher = fisher.square_().mul_(1e-6)
        if piece.place.name == EMBEDDING:
            tokens = torch.arange(piece.start, piece.start + piece.numel) // piece.place.shape[1]
            fisher.mul_(tokens % 4 != 3)
        return fisher

    return values


def pieces(layout: Layout) -> Iterator[Piece]:
    """Cut every tensor of a layout into pieces."""
    for place in layout.targets.values():
        for start in range(0, place.numel, _PIECE_NUMEL):
            yield Piece(place, start, min(_PIECE_NUMEL, place.numel - start))


def make_checkpoint(
    folder: Path, layout: Layout, values: Values, side_files: dict[str, dict[str, object]] | None = None
) -> None:
    """Write a checkpoint, which gets its name when it is complete; one that has the name already is kept.

    Args:
        folder: Where.
        layout: Its tensors; values are cast to their dtype.
        values: Makes the numbers of a piece.
        side_files: JSON files beside the weights: name -> content.
    """
    if folder.exists():
        return
    unfinished = folder.with_name(folder.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    with ShardWriter(unfinished, layout) as writer, ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:

        def write(piece: Piece) -> None:
            stored = values(piece).to(getattr(torch, piece.place.dtype.torch_name))
            writer.write(memoryview(stored.view(torch.uint8).numpy()), piece.place, piece.start)

        for _ in pool.map(write, pieces(layout)):
            pass
    texts = {name: json.dumps(content, indent=1).encode() for name, content in (side_files or {}).items()}
    if (index := layout.index()) is not None:
        texts["model.safetensors.index.json"] = index
    for name, text in texts.items():
        (unfinished / name).write_bytes(text)
    unfinished.rename(folder)


def make_family(
    out: Path, shapes: Shapes, side_files: dict[str, dict[str, object]], *, fine_tunes: int, fishers: bool
) -> None:
    """Make the checkpoints of a family that are missing."""
    named = list(shapes)

    def layout(dtype: DType, metadata: dict[str, str]) -> Layout:
        tensors = ((name, dtype, shape) for name, shape in named)
        return plan_shards(tensors, shard_bytes=_SHARD_BYTES, metadata={"format": "pt"} | metadata)

    for model in range(fine_tunes + 1):
        name = f"ft{model}" if model else "base"
        values = fine_tune_values(model) if model else base_values
        make_checkpoint(out / name, layout(DType.BF16, {}), values, side_files)
        if fishers:
            about = {"kind": "fisher", "reduction": "mean", "train_examples": str(1000 * (model or 10))}
            make_checkpoint(out / f"{name}-fisher", layout(DType.F32, about), fisher_values(model))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path, help="folder of the family")
    parser.add_argument("--size", choices=SIZES, default="0.5b")
    parser.add_argument("--small-tensors", type=int, metavar="COUNT", help="that many of 1,024 elements instead")
    parser.add_argument("--fine-tunes", type=int, default=3)
    parser.add_argument("--fishers", action="store_true", help="a Fisher for each fine-tune and for the base too")
    options = parser.parse_args()
    torch.set_num_threads(1)  # The pieces are what goes in parallel.
    if options.small_tensors:
        shapes, side_files = small_shapes(options.small_tensors), {}
    else:
        sizes = SIZES[options.size]
        shapes, side_files = qwen2_shapes(sizes), {"config.json": qwen2_config(sizes), **tokenizer_files()}
    make_family(options.out, shapes, side_files, fine_tunes=options.fine_tunes, fishers=options.fishers)


if __name__ == "__main__":
    main()
