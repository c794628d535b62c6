"""The command line of the daemon: arguments only."""

from __future__ import annotations

import os
import sys
from typing import Any

import click

from ckptfs import __version__
from ckptfs.errors import CkptfsError
from ckptfsd.config import Effective, load
from ckptfsd.log_output import say
from ckptfsd.logging import escape_text, get_logger

_FLAGS = {
    "store": (("store", "path"), "--store"),
    "mount": (("mount", "path"), "--mount"),
    "no_mount": (("mount", "enabled"), "--no-mount"),
    "socket": (("control", "socket"), "--socket"),
    "log_level": (("log", "level"), "--log-level"),
    "log_format": (("log", "format"), "--log-format"),
}


class _RunByDefault(click.Group):
    """`ckptfsd --store DIR` is `ckptfsd run --store DIR`."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if not args or (args[0].startswith("-") and args[0] not in ("--help", "-h", "--version")):
            args = ["run", *args]
        return super().parse_args(ctx, args)


def configured(function: Any) -> Any:
    """The flags that stand for values of the configuration."""
    options = (
        click.option(
            "--config", metavar="FILE", help="TOML file [/etc/ckptfs/ckptfsd.toml, if it is there]."
        ),
        click.option("--store", metavar="DIR", help="Where the bytes are kept [/var/lib/ckptfs]."),
        click.option("--mount", metavar="DIR", help="Where they are shown [/opt/trainml/checkpoint]."),
        click.option("--no-mount", is_flag=True, default=None, help="Serve the control interface only."),
        click.option("--socket", metavar="PATH", help="The control socket [/run/ckptfs/control.sock]."),
        click.option("--log-level", metavar="LEVEL", help="debug, info, warning or error [info]."),
        click.option("--log-format", metavar="FORMAT", help="text or json [text]."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def _load(config: str | None, values: dict[str, Any]) -> Effective:
    flags: dict[tuple[str, str], str | bool] = {}
    for name, (at, _) in _FLAGS.items():
        value = values.get(name)
        if value is not None:
            flags[at] = False if name == "no_mount" else value
    return load(flags, os.environ, file=config, flag_names=dict(_FLAGS.values()))


@click.group(cls=_RunByDefault, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="ckptfsd", message="%(prog)s %(version)s")
def cli() -> None:
    """The daemon of ckptfs: store, mount and control interface of one node.

    Without a command it runs; `ckptfsd run --help` shows its flags. Flags win over the environment
    (CKPTFSD_STORE, CKPTFSD_MOUNT, CKPTFSD_SOCKET, CKPTFSD_LOG_LEVEL, CKPTFSD_LOG_FORMAT, CKPTFSD_CONFIG),
    that over the configuration file, that over the defaults.
    """


@cli.command("run")
@configured
def run_command(config: str | None, **values: Any) -> None:
    """Run in the foreground until SIGTERM (the default command).

    With a mount these are a small process that holds it, a worker that serves it, and a second worker that
    takes over when the first one dies. SIGHUP replaces the worker, with the configuration as it is then.
    """
    effective = _load(config, values)
    from ckptfsd import launch

    if effective.config.mount.enabled:
        launch.become_holder(effective, _arguments(config, values))
    from ckptfsd import app

    app.prepare_process(effective)
    if note := launch.without_mount():
        get_logger(__name__).warning(note)
    app.serve(effective)


@cli.command("worker", hidden=True)
@configured
def worker_command(config: str | None, **values: Any) -> None:
    """Serve what the holder holds. Started by the holder, not by people."""
    from ckptfsd import worker

    worker.run(lambda: _load(config, values), _arguments(config, values))


def _arguments(config: str | None, values: dict[str, Any]) -> list[str]:
    """The flags that were given, for a process that is to have the same."""
    given = [("--config", config), *((_FLAGS[name][1], value) for name, value in values.items())]
    return [word for flag, value in given if value for word in ((flag,) if value is True else (flag, value))]


@cli.command("check-config")
@configured
def check_config_command(config: str | None, **values: Any) -> None:
    """Print the configuration in force and where each value comes from."""
    click.echo(_load(config, values).render(), nl=False)


@cli.command("doctor")
@configured
@click.option("--json", "as_json", is_flag=True, help="One JSON object.")
def doctor_command(config: str | None, as_json: bool, **values: Any) -> None:
    """Is everything here that the daemon needs? Works while no daemon runs."""
    import msgspec
    import trio

    from ckptfsd.doctor import diagnose

    checks = trio.run(diagnose, _load(config, values).config)
    if as_json:
        click.echo(msgspec.json.encode({"checks": checks}))
    else:
        width = max(len(check.name) for check in checks)
        for check in checks:
            verdict = "ok  " if check.ok else "FAIL" if check.required else "note"
            click.echo(f"{verdict}  {check.name:<{width}}  {escape_text(check.detail)}")
            if check.remedy:
                click.echo(f"      {'':<{width}}  → {escape_text(check.remedy)}")
    if any(check.required and not check.ok for check in checks):
        sys.exit(7)


@cli.command("rebuild")
@configured
def rebuild_command(config: str | None, **values: Any) -> None:
    """Make the store's index anew from its blobs and manifests. The daemon must not be running."""
    effective = _load(config, values)
    from ckptfsd.rebuild import run_rebuild

    sys.exit(run_rebuild(effective.config))


def main() -> None:
    """The console script. Whatever goes wrong is one line on standard error and an exit status."""
    _open_standard_streams()
    try:
        cli.main(prog_name="ckptfsd", standalone_mode=False)
    except click.ClickException as error:
        _fail(error.format_message(), error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        sys.exit(130)
    except CkptfsError as error:
        _fail(error.message, error.exit_code)
    except Exception as error:
        import logging

        logging.getLogger("ckptfsd").critical("the daemon failed", exc_info=error)
        _fail(f"internal error: {type(error).__name__}: {error}", 1)


def _open_standard_streams() -> None:
    """Give 0, 1 and 2 to /dev/null where they are closed: else the next file that is opened gets such a
    number, and what is meant for the log is written into it."""
    for number in (0, 1, 2):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # the lowest number that is free
            os.set_inheritable(number, True)
    sys.stdout = sys.stdout or os.fdopen(1, "w", closefd=False)
    sys.stderr = sys.stderr or os.fdopen(2, "w", closefd=False)


def _fail(message: str, status: int) -> None:
    say(f"ckptfsd: error: {escape_text(message)}")
    sys.exit(status)


if __name__ == "__main__":
    main()
