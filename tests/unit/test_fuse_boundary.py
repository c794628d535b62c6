"""What an exception becomes at the kernel's edge."""

from __future__ import annotations

import errno

import pytest
import structlog
import trio
from pyfuse3 import FUSEError

from ckptfs import errors
from ckptfs.engine.nodes import Answer
from ckptfs.fuse.boundary import Faults, boundary
from ckptfs.fuse.errno_table import answer_for, is_fault


@pytest.mark.parametrize(
    ("error", "number"),
    [
        (Answer(errno.ESTALE), errno.ESTALE),
        (Answer(errno.ENAMETOOLONG), errno.ENAMETOOLONG),
        (errors.StoreDamaged("damaged"), errno.EIO),
        (errors.NotFound("gone"), errno.ENOENT),
        (errors.PermissionDenied("no"), errno.EACCES),
        (errors.StoreFull("full"), errno.ENOSPC),
        (OSError(errno.EIO, "the disk"), errno.EIO),
        (OSError(errno.ENOMEM, "memory"), errno.ENOMEM),
        (TimeoutError(errno.ETIMEDOUT, "late"), errno.ETIMEDOUT),
        (MemoryError(), errno.ENOMEM),
        # a blob that is gone is not a file that is not there, nor is its descriptor the job's
        (FileNotFoundError(errno.ENOENT, "blob"), errno.EIO),
        (OSError(errno.EBADF, "closed"), errno.EIO),
        (OSError(errno.EMFILE, "descriptors"), errno.EIO),
        (OSError("no number"), errno.EIO),
        (ZeroDivisionError(), errno.EIO),
        (KeyError(3), errno.EIO),
    ],
    ids=repr,
)
def test_the_table(error: Exception, number: int) -> None:
    assert answer_for(error) == number
    assert is_fault(error) == (not isinstance(error, Answer))


class Handlers:
    def __init__(self) -> None:
        self.faults = Faults()

    @boundary
    async def handle(self, inode: int, error: BaseException | None) -> str:
        if error:
            raise error
        return "answer"


async def test_nothing_but_fuse_errors_gets_out() -> None:
    handlers = Handlers()
    assert await handlers.handle(1, None) == "answer"
    with structlog.testing.capture_logs() as lines:
        for error, number in (
            (FUSEError(errno.EROFS), errno.EROFS),
            (Answer(errno.ENOTDIR), errno.ENOTDIR),
            (RuntimeError("a bug"), errno.EIO),
        ):
            with pytest.raises(FUSEError) as caught:
                await handlers.handle(7, error)
            assert caught.value.errno == number
    assert handlers.faults.counters["fuse_faults"] == 1
    assert [(line["request"], line["inode"], line["answer"], line["reason"]) for line in lines] == [
        ("handle", 7, "EIO", "a bug")
    ]
    assert isinstance(lines[0]["exc_info"], RuntimeError)


async def test_a_thousand_faults_are_counted_and_said_once() -> None:
    handlers = Handlers()
    with structlog.testing.capture_logs() as lines:
        for _ in range(1000):
            with pytest.raises(FUSEError):
                await handlers.handle(7, errors.StoreDamaged("rot"))
    assert handlers.faults.counters["fuse_faults"] == 1000
    assert len(lines) == 1


async def test_cancellation_goes_through() -> None:
    handlers = Handlers()
    with trio.CancelScope() as scope:
        scope.cancel()

        @boundary
        async def waits(self: Handlers) -> None:
            await trio.sleep_forever()

        await waits(handlers)
    assert scope.cancelled_caught
    assert handlers.faults.counters["fuse_faults"] == 0
