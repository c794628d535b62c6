"""`run`: a command with its checkpoints under /opt/trainml/checkpoint.

This process becomes the command (execve), so signals, exit status, terminal, standard streams and
process id are the command's own; nothing stands between. The daemon ties the lease to the process that
attached, so it ends when the command ends, however it ends.
"""

from __future__ import annotations

import json
import os
import signal
import sys
from typing import NoReturn

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, complete_name, verb
from ckptfs.errors import ApiError
from ckptfs.model.records import JobInfo

# As env(1), timeout(1) and the shells.
CANNOT_EXECUTE_EXIT_CODE = 126
NOT_FOUND_EXIT_CODE = 127


@click.command(
    "run",
    short_help="Run a command that sees its checkpoints.",
    context_settings={"ignore_unknown_options": True, "allow_interspersed_args": False},
    epilog="""\b
Examples:
  ckptfs run --checkpoint llama -- python serve.py
        the files of llama lie in /opt/trainml/checkpoint
  ckptfs run --checkpoint llama --checkpoint adapter -- ls /opt/trainml/checkpoint
        adapter  llama
  sudo ckptfs run --checkpoint llama -- setpriv --reuid=me --regid=me --init-groups python serve.py

\b
Exit status: the command's own; 125 when ckptfs fails, 126 when the command cannot be
executed, 127 when it is not found.
""",
)
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    required=True,
    metavar="CHECKPOINT",
    shell_complete=complete_name,
    help="A checkpoint that the command shall see. Can be given again.",
)
@click.option("--job", default="", metavar="ID", help="The job's id in `ckptfs jobs`; by default a new one.")
@click.argument("command", nargs=-1, required=True, type=click.UNPROCESSED, metavar="[--] COMMAND [ARG]...")
@verb
def run_command(caller: Caller, checkpoints: tuple[str, ...], job: str, command: tuple[str, ...]) -> None:
    """Run COMMAND in a mount namespace of its own, in which its checkpoints, and no others, are to be seen.

    One checkpoint lies flat at /opt/trainml/checkpoint; several lie in sub-directories by their names.
    TRAINML_CHECKPOINT_PATH says where. /opt/ml/checkpoint (ML_CHECKPOINT_PATH) is the same place.

    Signals, exit status, terminal and standard streams are the command's own. The lease ends with it,
    also when it is killed. Works as root, and as another user where user namespaces are allowed.
    With --json the job's description goes to standard error before the command starts.
    """
    from ckptfs.cli import view

    info = caller.client().jobs.attach(checkpoints, job, bind_to_caller=True)
    if not info.checkpoints:
        raise ApiError("the daemon attached nothing: is it another version of ckptfs?")
    view.enter(info.checkpoints)
    if caller.json:
        _describe(info)
    _become(command, {**os.environ, **view.ENVIRONMENT})


def _describe(info: JobInfo) -> None:
    import msgspec

    from ckptfs.cli import view

    # As the command sees it, not as the node does.
    seen = msgspec.structs.replace(info, path=view.PLACE, env=view.ENVIRONMENT)
    click.echo(json.dumps(msgspec.to_builtins(seen)), err=True)


def _become(command: tuple[str, ...], environment: dict[str, str]) -> NoReturn:
    sys.stdout.flush()
    sys.stderr.flush()
    # Python ignores these two for itself, and what is ignored stays so across execve.
    for number in (signal.SIGPIPE, signal.SIGXFSZ):
        signal.signal(number, signal.SIG_DFL)
    try:
        os.execvpe(command[0], command, environment)
    except FileNotFoundError as error:
        _leave(command[0], error, NOT_FOUND_EXIT_CODE)
    except (OSError, ValueError) as error:
        _leave(command[0], error, CANNOT_EXECUTE_EXIT_CODE)


def _leave(name: str, error: Exception, code: int) -> NoReturn:
    reason = error.strerror if isinstance(error, OSError) else str(error)
    click.echo(f"ckptfs: error: cannot run {rendering.safe(name)}: {reason}", err=True)
    sys.exit(code)
