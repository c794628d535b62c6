"""The entry of `ckptfs`: finds the verb, loads only its file, turns errors into a line and a code."""

from __future__ import annotations

import json
import os
import signal
import sys
from importlib import import_module
from typing import Any, NoReturn

import click

import ckptfs
from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, socket_option
from ckptfs.errors import CkptfsError

#: Each verb and the file that has it, in the order in which a person meets them.
VERBS = {
    "create": "create",
    "list": "checkpoints",
    "show": "checkpoints",
    "tree": "content",
    "cat": "content",
    "wait": "checkpoints",
    "cancel": "checkpoints",
    "rename": "checkpoints",
    "remove": "checkpoints",
    "verify": "content",
    "assemble": "assemble",
    "run": "run",
    "attach": "jobs",
    "detach": "jobs",
    "jobs": "jobs",
    "status": "node",
    "doctor": "node",
    "daemon": "daemon",
    "completion": "completion",
}

USAGE_EXIT_CODE = 2
RUN_FAILED_EXIT_CODE = 125  # as env(1) and timeout(1): ours, not the command's
INTERRUPTED_EXIT_CODE = 128 + signal.SIGINT
BROKEN_PIPE_EXIT_CODE = 128 + signal.SIGPIPE


class Verbs(click.Group):
    """Loads a verb's file when it is asked for: `ckptfs list` does not pay for `run`."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        module = import_module(f"ckptfs.cli.{VERBS[cmd_name]}")
        command: click.Command = getattr(module, f"{cmd_name}_command")
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, command, rest = super().resolve_command(ctx, args)
        ctx.ensure_object(Caller).verb = name or ""
        return name, command, rest

    def invoke(self, ctx: click.Context) -> Any:
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            # Who read us has gone (`ckptfs list | head`): nobody is left to tell.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(BROKEN_PIPE_EXIT_CODE) from None


@click.group(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="A CHECKPOINT is named by its name, its id (b3:…) or a unique beginning of its id of at least 4"
    " digits; `name:X` and `b3:X` say which is meant. Sizes are in SI units (1 GB = 1000 MB).",
)
@click.version_option(ckptfs.__version__, prog_name="ckptfs", message="%(prog)s %(version)s")
@socket_option
def cli() -> None:
    """Checkpoints of this node: create them once, use them in any job as read-only files.

    \b
    ckptfs create llama s3://models/llama/       make one from a bucket, a directory, an archive
    ckptfs run --checkpoint llama -- python serve.py
                                                 the job reads it under /opt/trainml/checkpoint
    ckptfs list                                  what there is
    ckptfs COMMAND --help                        everything about a command, with examples
    """


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run one command and leave with its exit code."""
    rendering.prepare_streams()
    caller = Caller()
    try:
        code = cli.main(args=arguments, prog_name="ckptfs", standalone_mode=False, obj=caller)
        sys.exit(code if isinstance(code, int) else 0)
    except CkptfsError as error:
        _fail(caller, error.code, error.message, error.exit_code, error.data)
    except click.exceptions.NoArgsIsHelpError as error:
        click.echo(error.ctx.get_help() if error.ctx else str(error), err=True)
        sys.exit(USAGE_EXIT_CODE)
    except click.UsageError as error:
        path = error.ctx.command_path if error.ctx else "ckptfs"
        _fail(caller, "usage", f"{error.format_message()} (see `{path} --help`)", USAGE_EXIT_CODE, {})
    except click.ClickException as error:
        _fail(caller, "usage", error.format_message(), USAGE_EXIT_CODE, {})
    except (click.Abort, KeyboardInterrupt):
        _fail(caller, "interrupted", "interrupted", INTERRUPTED_EXIT_CODE, {})
    except OSError as error:
        _fail(caller, "system", f"{error.strerror or error}: {error.filename or 'standard output'}", 1, {})
    except Exception as error:
        if os.environ.get("CKPTFS_DEBUG"):
            raise
        what = f"a defect in ckptfs, {type(error).__name__}: {error} (CKPTFS_DEBUG=1 shows where)"
        _fail(caller, "internal", what, 1, {})


def _fail(caller: Caller, code: str, message: str, exit_code: int, data: dict[str, Any]) -> NoReturn:
    if caller.json:
        document = {"error": {"code": code, "message": message, "data": data}}
        click.echo(json.dumps(document, indent=2, default=str))
    click.echo(f"ckptfs: error: {rendering.line(message)}", err=True)
    sys.exit(RUN_FAILED_EXIT_CODE if caller.verb == "run" else exit_code)
