"""`daemon`: replace the process that serves, while jobs go on reading."""

from __future__ import annotations

import os

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, json_option, socket_option, verb
from ckptfs.errors import SpecificationError
from ckptfs.model.records import StatusInfo

_TIMEOUT_SECONDS = 120.0


@json_option
@socket_option
@click.group("daemon", short_help="Upgrade the daemon, or have it read its configuration anew.")
def daemon_command() -> None:
    """Replace the process that serves this node's checkpoints.

    Mounts, open files and mappings stay; reads that come meanwhile wait for a moment. If the new process
    cannot serve, the old one goes on and the reason is said.
    """


@daemon_command.command(
    "upgrade",
    short_help="Go on with another version of ckptfs.",
    epilog="""\b
Examples:
  pip install --upgrade ckptfs && ckptfs daemon upgrade        in the environment that ckptfsd runs from
  ckptfs daemon upgrade --python /opt/ckptfs-0.2/bin/python    in another one
""",
)
@click.option(
    "--python",
    default="",
    metavar="PATH",
    help="The Python of the environment that has the version to go on with [the one that runs ckptfsd].",
)
@click.option("--timeout", type=click.FloatRange(min=0), default=_TIMEOUT_SECONDS, metavar="SECONDS")
@verb
def upgrade_command(caller: Caller, python: str, timeout: float) -> None:
    """Start the worker of the installed version, hand over to it, and end the old one.

    For root only. Creations that are under way are interrupted; what arrived of them is kept. The small
    process that holds the mount stays as it is: a restart of the unit replaces that too.
    """
    if python and not os.access(python, os.X_OK):
        raise SpecificationError("python", f"--python: {python!r} cannot be executed")
    # Not resolved: what makes it the Python of an environment is the path.
    _replace(caller, os.path.abspath(python) if python else "", timeout, "upgraded")


@daemon_command.command("reload", short_help="Read the configuration anew.")
@click.option("--timeout", type=click.FloatRange(min=0), default=_TIMEOUT_SECONDS, metavar="SECONDS")
@verb
def reload_command(caller: Caller, timeout: float) -> None:
    """Go on with a worker that has the configuration as it is now. SIGHUP to the daemon does the same.

    A configuration with a mistake in it changes nothing: the reason is said and the old worker goes on. The
    path of the mount and the readahead are the mount's for as long as it lives.
    """
    _replace(caller, "", timeout, "reloaded")


def _replace(caller: Caller, python: str, timeout: float, done: str) -> None:
    client = caller.client()
    before = client.status()
    now = client.upgrade(python, timeout=timeout)
    if caller.json:
        return rendering.emit({"before": before, "now": now})
    click.echo(rendering.line(f"{done}: {_which(before)} → {_which(now)}"))


def _which(info: StatusInfo) -> str:
    return f"{info.version} (process {info.worker_pid})"
