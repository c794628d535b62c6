"""`attach`, `detach`, `jobs`: leases, for node agents that start jobs themselves."""

from __future__ import annotations

import shlex

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, complete_job, complete_name, verb
from ckptfs.model.records import JobInfo


@click.command(
    "attach",
    short_help="Attach checkpoints for a job; prints its environment.",
    epilog="""\b
Examples:
  ckptfs attach llama --job 4711 > job.env           lines of KEY=VALUE, for docker --env-file, systemd
  eval "$(ckptfs attach llama --job 4711 --format shell)"
  ckptfs attach llama adapter --job 4711 --format json    with what to bind where
""",
)
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", shell_complete=complete_name)
@click.option("--job", required=True, metavar="ID", help="The job's own id: SLURM's, a pod's uid, any word.")
@click.option(
    "--ttl", type=float, default=None, metavar="SECONDS", help="End the lease by itself after so long."
)
@click.option(
    "--format",
    "form",
    type=click.Choice(("env", "json", "shell")),
    default="env",
    show_default=True,
    help="KEY=VALUE lines, JSON, or export lines for a shell.",
)
@verb
def attach_command(
    caller: Caller, checkpoints: tuple[str, ...], job: str, ttl: float | None, form: str
) -> None:
    """Attach checkpoints for the job ID, and print the path and environment that it needs.

    The lease holds until `ckptfs detach` or the end of --ttl: the checkpoints cannot be removed
    meanwhile. TRAINML_CHECKPOINT_PATH names the checkpoint on this host; for a job with a view of its
    own (a container, `ckptfs run`) the JSON form says what to bind where.
    """
    info = caller.client().jobs.attach(checkpoints, job, ttl_seconds=ttl)
    if caller.json or form == "json":
        return rendering.emit(info)
    for line in environment(info, shell=form == "shell"):
        click.echo(line)


def environment(info: JobInfo, *, shell: bool) -> list[str]:
    """The job's environment as lines. Names of checkpoints hold no control characters, so a value is
    one line; a shell's are quoted."""
    values = {"TRAINML_CHECKPOINT_PATH": info.path, **info.env}
    return [f"export {k}={shlex.quote(v)}" if shell else f"{k}={v}" for k, v in values.items()]


@click.command("detach", short_help="End what is attached for a job.")
@click.argument("checkpoints", nargs=-1, metavar="[CHECKPOINT]...", shell_complete=complete_name)
@click.option("--job", required=True, metavar="ID", shell_complete=complete_job, help="The job's id.")
@verb
def detach_command(caller: Caller, checkpoints: tuple[str, ...], job: str) -> None:
    """Detach checkpoints from the job ID; all of them when none is named."""
    info = caller.client().jobs.detach(job, checkpoints)
    if caller.json:
        return rendering.emit(info)
    left = ", ".join(c.name for c in info.checkpoints)
    click.echo(rendering.safe(f"{job}: {f'still attached: {left}' if left else 'nothing is attached'}"))


@click.command("jobs", short_help="List jobs and what they have attached.")
@verb
def jobs_command(caller: Caller) -> None:
    """List the jobs that have checkpoints attached, and when their leases end."""
    infos = caller.client().jobs.list()
    if caller.json:
        return rendering.emit({"jobs": infos})
    rows = [
        (i.job, ", ".join(c.name for c in i.checkpoints), rendering.moment(i.created), _end(i)) for i in infos
    ]
    rendering.columns(("JOB", "CHECKPOINTS", "SINCE", "ENDS"), rows)


def _end(info: JobInfo) -> str:
    ends = []
    if info.pid is not None:
        ends.append(f"with process {info.pid}")
    if info.expires is not None:
        ends.append(rendering.moment(info.expires))
    return " or ".join(ends) or "when detached"
