"""All questions, in the order in which a person would ask them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import trio

from ckptfs.model.records import DoctorCheck
from ckptfsd.config import Config
from ckptfsd.doctor import fuse, node

Question = Callable[[], DoctorCheck]

_ANSWER_SECONDS = 5.0


@dataclass(frozen=True)
class Running:
    """The daemon that asks of itself, so the mount and the socket are its own. ``mounter``: the process that
    made the mount. ``past_the_daemon``: why whole files are not read so; empty when they are."""

    mounter: int
    past_the_daemon: str


def questions(config: Config, running: Running | None = None) -> dict[str, Question]:
    rights = f"/proc/{running.mounter}/status" if running else "/proc/self/status"
    asked: dict[str, Question] = {
        "python packages": node.packages,
        "libfuse": node.libfuse,
    }
    if config.mount.enabled:
        asked |= {
            "/dev/fuse": fuse.device,
            "fuse in the kernel": fuse.module,
            "right to mount": partial(fuse.right_to_mount, rights),
            "fusermount3": partial(fuse.fusermount, rights),
            "other users": partial(fuse.other_users, rights),
            "mountpoint": partial(fuse.mountpoint, config.mount.path, running=running is not None),
            "passthrough": partial(fuse.passthrough, running.past_the_daemon if running else None),
            "request timeout": fuse.request_timeout,
        }
    store = config.store.path
    asked |= {
        "store": partial(node.store_directory, store),
        "store's place": partial(node.store_place, store, config.mount.path if config.mount.enabled else ""),
        "store's file system": partial(node.store_file_system, store),
        "free space": partial(node.free_space, store, config.store.reserve_free_bytes),
        "reflinks": partial(node.reflinks, store),
        "control socket": partial(node.control_socket, config.control.socket, running=running is not None),
        "open files": node.open_files,
    }
    return asked


async def diagnose(config: Config, running: Running | None = None) -> list[DoctorCheck]:
    """Every answer, whatever happens to the question."""
    return await answers(questions(config, running))


async def answers(asked: dict[str, Question], *, seconds: float = _ANSWER_SECONDS) -> list[DoctorCheck]:
    found: dict[str, DoctorCheck] = {}
    limiter = trio.CapacityLimiter(len(asked))  # one that hangs must not hold up the others

    async def ask(name: str, question: Question) -> None:
        answer = DoctorCheck(
            name=name,
            ok=False,
            detail=f"no answer within {seconds:g} seconds",
            remedy="see in the kernel's log (dmesg) whether a disk or a mount hangs",
        )
        with trio.move_on_after(seconds):
            answer = await trio.to_thread.run_sync(
                partial(_guarded, name, question), abandon_on_cancel=True, limiter=limiter
            )
        found[name] = answer

    async with trio.open_nursery() as nursery:
        for name, question in asked.items():
            nursery.start_soon(ask, name, question)
    return [found[name] for name in asked]


def _guarded(name: str, question: Question) -> DoctorCheck:
    try:
        answer = question()
    except Exception as error:
        return DoctorCheck(name=name, ok=False, detail=f"cannot be found out: {error}", required=False)
    answer.name = name
    return answer
