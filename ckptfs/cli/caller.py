"""What every verb shares: where the daemon is, how to answer, and completion of names."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec

import click
from click.shell_completion import CompletionItem

if TYPE_CHECKING:
    from ckptfs.client.sync import SyncCheckpoint, SyncClient

P = ParamSpec("P")

_COMPLETION_TIMEOUT_SECONDS = 1.0  # a person pressed a key and waits


@dataclass
class Caller:
    """How this invocation was asked for."""

    socket: str | None = None  # None: CKPTFS_SOCKET, else the default
    json: bool = False
    verb: str = ""

    def client(self, **options: Any) -> SyncClient:
        from ckptfs.client.sync import SyncClient

        return SyncClient(self.socket, **options)

    def checkpoint(self, reference: str) -> SyncCheckpoint:
        return self.client().checkpoints.get(reference)


def _set_socket(ctx: click.Context, _: click.Parameter, value: str | None) -> None:
    if value:
        ctx.ensure_object(Caller).socket = value


def _set_json(ctx: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        ctx.ensure_object(Caller).json = True


socket_option = click.option(
    "--socket",
    type=click.Path(),
    expose_value=False,
    callback=_set_socket,
    is_eager=True,
    metavar="PATH",
    help="The daemon's control socket. Also CKPTFS_SOCKET; by default /run/ckptfs/control.sock.",
)

json_option = click.option(
    "--json",
    is_flag=True,
    expose_value=False,
    callback=_set_json,
    is_eager=True,
    help="Answer with JSON (sizes in bytes, times in seconds since 1970).",
)


def verb(function: Callable[Concatenate[Caller, P], None]) -> Callable[P, None]:
    """Give a verb's function the caller, and its command --socket and --json."""
    return json_option(socket_option(click.make_pass_decorator(Caller, ensure=True)(function)))


def complete_name(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of checkpoints that begin so. No daemon, no names: never an error in a prompt."""
    from ckptfs.errors import CkptfsError

    caller = ctx.find_object(Caller) or Caller()
    try:
        found = caller.client(timeout=_COMPLETION_TIMEOUT_SECONDS).checkpoints.list()
    except CkptfsError:
        return []
    return [CompletionItem(c.name, help=c.status) for c in found if c.name.startswith(incomplete)]


def complete_job(ctx: click.Context, _: click.Parameter, incomplete: str) -> list[CompletionItem]:
    from ckptfs.errors import CkptfsError

    caller = ctx.find_object(Caller) or Caller()
    try:
        found = caller.client(timeout=_COMPLETION_TIMEOUT_SECONDS).jobs.list()
    except CkptfsError:
        return []
    return [CompletionItem(j.job) for j in found if j.job.startswith(incomplete)]
