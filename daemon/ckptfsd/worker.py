"""The worker: a daemon on the holder's connection, as often and for as long as the holder says.

A worker that is to take over from another one (*standby*) does what it can ahead, which is all but the
store: that has one owner at a time. A *spare* does the same for the case that the one that serves dies, and
reads the configuration once more when it does. One that is paused for its successor stays until that one
serves, and goes on if it does not, or if the holder dies before it said who is to serve.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable

from ckptfs import __version__
from ckptfs.errors import CkptfsError, ConfigurationError, MountError
from ckptfs.fuse import channel
from ckptfs.fuse.mountinfo import settled_path
from ckptfsd import app, privileges
from ckptfsd.config import Effective, decode, encode
from ckptfsd.launch import worker_command
from ckptfsd.logging import get_logger
from ckptfsd.process_name import set_process_name
from ckptfsd.worker_link import HolderLink, Introduction, Order

_log = get_logger(__name__)


def run(load: Callable[[], Effective], arguments: list[str]) -> None:
    """Follow the holder's orders until one of them is to leave. ``arguments``: our own, for whoever comes
    after us. Raises :class:`CkptfsError`; the holder has heard why then."""
    link = HolderLink.from_environment(os.environ)
    if link is None:
        raise ConfigurationError("`ckptfsd worker` is started by `ckptfsd run`, not by hand")
    try:
        _run(load, link, arguments)
    except CkptfsError as error:
        link.failing(error.message)
        raise
    except Exception as error:
        link.failing(f"internal error: {type(error).__name__}: {error}")
        raise


def _run(load: Callable[[], Effective], link: HolderLink, arguments: list[str]) -> None:
    effective, mistake = _prepare(load)
    privileges.drop()
    set_process_name("ckptfsd-worker")
    link.hello(__version__)
    order, note = _next_order(link)
    is_upgrade = order.verb == "standby" and not order.spare
    if order.verb == "standby":
        order, note = _stand_by(link, order, mistake)
        if not is_upgrade:
            effective, mistake = _prepare(load)
    if mistake is not None and order.introduction is not None:
        effective, note = _fall_back(order.introduction, mistake)
    while order.verb in ("serve", "resume"):
        assert effective is not None and order.introduction is not None
        introduction = order.introduction
        try:
            try:
                order = _serve(effective, link, introduction, arguments, note)
            except CkptfsError as error:
                if is_upgrade or not _may_be_a_mistake(error, effective, link, introduction):
                    raise
                effective, note = _fall_back(introduction, error)
                order = _serve(effective, link, introduction, arguments, note)
            note = ""
            if order.verb == "pause":
                link.paused()
                order, note = _next_order(link)
                if order.verb == "gone":
                    # It may have told our successor to serve; then that one has the store, and we end.
                    _log.warning("the holder died in an upgrade: going on")
                    order = Order("resume", introduction.duplicate(link.listener_back()))
        finally:
            introduction.close()
    if order.verb == "misunderstood":
        raise ConfigurationError(order.reason)
    _log.info("stopped")


def _prepare(load: Callable[[], Effective]) -> tuple[Effective | None, ConfigurationError | None]:
    """The configuration, which is in force for this process then, or the mistake in it."""
    try:
        effective = load()
    except ConfigurationError as error:
        return None, error
    app.prepare_process(effective)
    return effective, None


def _stand_by(link: HolderLink, order: Order, mistake: ConfigurationError | None) -> tuple[Order, str]:
    """Wait for the next order. Raises what speaks against an upgrade to this worker: the one that serves goes
    on. Of a spare nothing is asked: a fresh worker in its place would be what it is."""
    if order.spare:
        set_process_name("ckptfsd-spare")
    elif mistake is not None:
        raise mistake
    else:
        _check_native(order.native)
    link.prepared()
    answer = _next_order(link)
    set_process_name("ckptfsd-worker")
    return answer


def _may_be_a_mistake(
    error: CkptfsError, effective: Effective, link: HolderLink, introduction: Introduction
) -> bool:
    """Some mistakes in a configuration are found only in use: a group or a store that is not there, another
    mountpoint. Not one that has been served with, nor one as before; and a connection ends by itself."""
    changed = encode(effective.config) != introduction.configuration
    return changed and not link.was_ready and not isinstance(error, MountError)


def _fall_back(introduction: Introduction, mistake: CkptfsError) -> tuple[Effective, str]:
    """The configuration of the worker before, which is in force then, and a note about it.

    Who edits the file and makes a mistake is told when it is reloaded; a worker that dies meanwhile must not
    take the mount with it. Raises the mistake when no worker was ready before, or none of a version that
    wrote it as we do.
    """
    if not introduction.configuration:
        raise mistake
    try:
        effective = decode(introduction.configuration)
    except ValueError:
        raise mistake from None
    app.prepare_process(effective)
    _log.error("the configuration has a mistake: going on with the one before", reason=mistake.message)
    return effective, f"{mistake.message}; until that is mended the configuration before it is in force"


def _serve(
    effective: Effective, link: HolderLink, introduction: Introduction, arguments: list[str], note: str
) -> Order:
    """Serve until there is another order; ``note``: why the last upgrade failed."""

    def upgrade(python: str) -> None:
        link.upgrade(worker_command(python or sys.executable, arguments))

    _check_mount(effective, introduction)
    return app.serve(effective, app.Held(link, introduction, upgrade, note))


def _next_order(link: HolderLink) -> tuple[Order, str]:
    """What to do next, and why an upgrade failed meanwhile (empty: none did). That says nothing of what to
    do: however often it comes, the order is still to come."""
    note = ""
    while (order := link.wait()).verb == "upgrade_failed":
        note = order.reason
        _log.error("the upgrade failed, this worker goes on", reason=note)
    return order, note


def _check_native(files: int) -> None:
    """While a file is open past the daemon, the kernel refuses to open it in another way."""
    if files and (why := channel.missing()):
        raise MountError(
            f"{files} file(s) are open past the daemon, and this installation could not open them "
            f"once more: {why}"
        )


def _check_mount(effective: Effective, introduction: Introduction) -> None:
    """A mount cannot be moved: jobs have files open there."""
    if not effective.config.mount.enabled:
        raise ConfigurationError("[mount] enabled is false now: restart the daemon to take the mount away")
    wanted, held = settled_path(effective.config.mount.path), introduction.connection.mount
    if wanted != held:
        raise ConfigurationError(
            f"[mount] path is {wanted!r} now and the mount is at {held!r}: restart the daemon to move it"
        )
