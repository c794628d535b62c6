"""`list`, `show`, `rename`, `remove`, `cancel`, `wait`: what there is, and its names and states."""

from __future__ import annotations

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, complete_name, verb
from ckptfs.cli.progress import describe
from ckptfs.model.records import CheckpointInfo
from ckptfs.model.sizes import format_bytes


@click.command("list", short_help="List the checkpoints: ID, STATUS, NAME, SIZE.")
@click.option("--no-trunc", is_flag=True, help="Show whole ids.")
@verb
def list_command(caller: Caller, no_trunc: bool) -> None:
    """List the checkpoints of this node, those that are being created and those that failed."""
    infos = [c.info for c in caller.client().checkpoints.list()]
    if caller.json:
        return rendering.emit({"checkpoints": infos})
    rows = [(i.id if no_trunc else rendering.short_id(i.id), i.status, i.name, _size(i)) for i in infos]
    rendering.columns(("ID", "STATUS", "NAME", "SIZE"), rows, right=frozenset({3}))


@click.command("show", short_help="Everything about one checkpoint.")
@click.argument("checkpoint", shell_complete=complete_name)
@verb
def show_command(caller: Caller, checkpoint: str) -> None:
    """Show one checkpoint: its id, sizes, source, who uses it.

    Logical bytes are what its files add up to; stored bytes are its distinct chunks, each counted once;
    of these, unique bytes would come back if it were removed, shared bytes would not.

    Native files are read by the kernel past the daemon: they are whole, or have a derived copy. The others
    are served by the daemon: small ones, and those that share chunks (`ckptfs assemble` changes that).
    """
    info = caller.checkpoint(checkpoint).info
    if caller.json:
        return rendering.emit(info)
    pairs = [("name", info.name), ("id", info.id), ("status", info.status)]
    if info.reason:
        pairs.append(("reason", info.reason))
    if info.progress and info.progress.phase:
        pairs.append(("progress", describe(info.progress)))
    pairs += [
        ("logical", rendering.size(info.size)),
        ("files", f"{info.files} in {rendering.count(info.directories, 'directory', 'directories')}"),
    ]
    pairs += [
        (name, rendering.size(value))
        for name, value in (
            ("stored", info.stored_bytes),
            ("unique", info.unique_bytes),
            ("shared", info.shared_bytes),
        )
        if value is not None
    ]
    if info.native_files is not None:
        pairs.append(("native", _native(info)))
    if info.served_files:
        others = [f"{info.served_files[why]} {why}" for why in sorted(info.served_files)]
        pairs.append(("served", ", ".join(others)))
    if info.derived_files:
        pairs.append(("derived", rendering.size(info.derived_bytes or 0)))
    if info.source_uri:
        pairs.append(("source", f"{info.source_uri} ({info.source_type})"))
    pairs += [("created", rendering.moment(info.created)), ("jobs", ", ".join(info.jobs) or "none")]
    rendering.facts(pairs)


@click.command("rename", short_help="Give a checkpoint another name.")
@click.argument("checkpoint", shell_complete=complete_name)
@click.argument("new_name")
@verb
def rename_command(caller: Caller, checkpoint: str, new_name: str) -> None:
    """Rename a checkpoint. Its id and content stay as they are."""
    found = caller.checkpoint(checkpoint)
    old = found.name
    found.rename(new_name)
    if caller.json:
        return rendering.emit(found.info)
    click.echo(f"{rendering.safe(old)} is now {rendering.safe(found.name)}")


@click.command("remove", short_help="Remove checkpoints and give their bytes back.")
@click.argument("checkpoints", nargs=-1, required=True, metavar="CHECKPOINT...", shell_complete=complete_name)
@click.option("--force", is_flag=True, help="Also when a job has it attached; the job then loses it.")
@verb
def remove_command(caller: Caller, checkpoints: tuple[str, ...], force: bool) -> None:
    """Remove checkpoints. Bytes that another checkpoint uses stay.

    Of a creation that failed, what had arrived is given back. One that goes on is cancelled first
    (`ckptfs cancel`).
    """
    client = caller.client()
    found = [client.checkpoints.get(reference) for reference in checkpoints]  # all, before the first goes
    for checkpoint in found:
        checkpoint.remove(force=force)
        if not caller.json:
            freed = checkpoint.info.freed_bytes
            given_back = "" if freed is None else f", {format_bytes(freed)} given back"
            click.echo(f"removed {rendering.safe(checkpoint.name)}{given_back}")
    if caller.json:
        rendering.emit({"checkpoints": [c.info for c in found]})


@click.command("cancel", short_help="Stop a creation; what has arrived is kept for a resume.")
@click.argument("checkpoint", shell_complete=complete_name)
@verb
def cancel_command(caller: Caller, checkpoint: str) -> None:
    """Stop the creation of CHECKPOINT, as Ctrl-C does in `ckptfs create`.

    What has arrived is kept: the same `ckptfs create` goes on from there. `ckptfs remove` gives it up.
    """
    found = caller.checkpoint(checkpoint).cancel()
    if caller.json:
        return rendering.emit(found.info)
    click.echo(f"{rendering.safe(found.name)} {found.status}")


@click.command("wait", short_help="Wait until a checkpoint is ready.")
@click.argument("checkpoint", shell_complete=complete_name)
@click.option(
    "--status",
    "status",
    type=click.Choice(("downloading", "ready", "archived")),
    default="ready",
    show_default=True,
    help="The state to wait for.",
)
@click.option(
    "--timeout",
    type=float,
    default=300,
    show_default=True,
    metavar="SECONDS",
    help="At most 86400 (24 hours).",
)
@verb
def wait_command(caller: Caller, checkpoint: str, status: str, timeout: float) -> None:
    """Wait until CHECKPOINT is ready (or downloading, or archived: removed).

    Exits with 6 when it failed, with 10 when the time is over.
    """
    from ckptfs.cli import progress
    from ckptfs.client import waiting
    from ckptfs.errors import NotFound

    waiting.check(status, timeout)
    try:
        found = caller.checkpoint(checkpoint)
    except NotFound:
        if status == "archived":
            if not caller.json:
                click.echo(f"{rendering.safe(checkpoint)} archived")
            else:
                rendering.emit({"name": checkpoint, "status": "archived"})
            return
        raise
    with progress.watcher() as watch:
        found.wait_for(status, timeout, watch=watch)
    if caller.json:
        return rendering.emit(found.info)
    click.echo(f"{rendering.safe(found.name)} {found.status}")


def _size(info: CheckpointInfo) -> str:
    known = info.size or (info.progress.bytes_total if info.progress else 0)
    return format_bytes(known) if known or info.status == "ready" else "-"


def _native(info: CheckpointInfo) -> str:
    native = f"{info.native_files} of {rendering.count(info.files, 'file')}"
    if not info.derived_files:
        return native
    copies = rendering.count(info.derived_files, "derived copy", "derived copies")
    return f"{native} ({info.whole_files} whole, {copies})"
