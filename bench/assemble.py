"""How long a derived copy takes: with shared blocks against `cp --reflink=always`, by copying against `cp`.

On a file system of its own (XFS on a loop device, as root). The base is a safetensors file; the first
variant has one in ten tensors changed and its header as long, so that blocks can be shared; the second one
a header that is longer by eight bytes, so that everything has to be copied. Every copy is on the disk when
the clock stops (`cp` and a sync of the file). Time is that of the store, without finding out what to do.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from bench.data import equal_tensors, write_safetensors
from bench.harness import command, median, parser, report, settle, timed, workplace
from ckptfs.engine.derive import Deriver, Work
from ckptfs.model import manifest as manifests
from ckptfs.store import Checkpoint, Store
from ckptfs.testing.checkpoints import make_checkpoint
from ckptfs.testing.disks import loop_disk


def main() -> None:
    arguments = parser(__doc__.splitlines()[0])
    arguments.add_argument("--bytes", type=int, default=2 << 30)
    arguments.add_argument("--tensors", type=int, default=300)
    arguments.add_argument("--pairs", type=int, default=5)
    options = arguments.parse_args()
    with workplace(options.dir) as place, loop_disk(str(place), 4 * options.bytes + (1 << 30), "xfs") as disk:
        figures = measure(Path(disk), options.bytes, options.tensors, options.pairs)
    shared, copied = figures["shared"], figures["copied"]
    targets = {
        # cp shares one whole file with one call. Here every border between what is changed and what is not
        # is a copied block, for which two chunks are read and compared with their fingerprints.
        "sharing blocks: time of cp that shares / ours": (shared["ratio"], ">=", 0.05),
        "sharing blocks: time of cp that copies / ours": (
            copied["cp_seconds"] / shared["ours_seconds"],
            ">=",
            10,
        ),
        "sharing blocks: file's size / space taken": (shared["size_per_space"], ">=", 256),
        "copying: time of cp / ours": (copied["ratio"], ">=", 0.5),
    }
    report("assemble", options.results, options, targets, figures)


def measure(disk: Path, size_bytes: int, count: int, pairs: int) -> dict[str, dict[str, float]]:
    base = equal_tensors(count, size_bytes)
    tuned = [replace(t, seed=t.seed + 500_000) if i % 10 == 3 else t for i, t in enumerate(base)]
    with contextlib.closing(Store.open(str(disk / "store"))) as store:
        for name, tensors, note in (("base", base, ""), ("shared", tuned, ""), ("copied", base, "x" * 8)):
            source = disk / name
            write_safetensors(str(source), tensors, note)
            make_checkpoint(store, name, {b"f": source.read_bytes()})
            if name != "base":
                source.unlink()
        return {
            "shared": against(store, "shared", pairs, disk, "always"),
            "copied": against(store, "copied", pairs, disk, "never"),
        }


def against(store: Store, name: str, pairs: int, disk: Path, reflink: str) -> dict[str, float]:
    checkpoint = store.by_name(name)
    assert checkpoint is not None
    deriver = Deriver(store)
    manifest = manifests.decode(store.manifest(checkpoint.digest))
    (work,) = deriver.survey(checkpoint.ordinal, manifest, lambda: None).shared
    ours, theirs = [], []
    space_bytes = 0
    for _ in range(pairs):
        settle(disk)
        ours.append(timed(lambda: make(store, deriver, checkpoint, work)))
        space_bytes = store.copy_totals().physical_bytes
        store.drop_copies([(checkpoint.ordinal, work.entry)])
        settle(disk)
        theirs.append(timed(copy(disk / "base", disk / "copy of base", reflink)))
        os.unlink(disk / "copy of base")
    return {
        "ours_seconds": median(ours),
        "cp_seconds": median(theirs),
        "ratio": median([t / o for t, o in zip(theirs, ours, strict=True)]),
        "file_bytes": work.file.size_bytes,
        "space_bytes": space_bytes,
        "size_per_space": work.file.size_bytes / space_bytes,
    }


def make(store: Store, deriver: Deriver, checkpoint: Checkpoint, work: Work) -> None:
    made = deriver.make(checkpoint.ordinal, work, asked=True, step=lambda count: None)
    assert store.record_copies([made]) == [made]


def copy(source: Path, target: Path, reflink: str) -> Callable[[], None]:
    def run() -> None:
        command("cp", f"--reflink={reflink}", source, target)
        command("sync", target)

    return run


if __name__ == "__main__":
    if os.geteuid() or not shutil.which("mkfs.xfs"):
        raise SystemExit("this benchmark makes a file system: it needs root and xfsprogs")
    main()
