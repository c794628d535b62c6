"""`assemble`: have files that share chunks read as fast as others, for the space that it takes."""

from __future__ import annotations

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, complete_name, verb
from ckptfs.cli.progress import steps
from ckptfs.errors import StoreDamaged
from ckptfs.model.records import AssembleReport
from ckptfs.model.sizes import format_bytes


@click.command("assemble", short_help="Make derived copies, so that shared files are read natively.")
@click.argument("checkpoint", shell_complete=complete_name)
@click.option("--drop", is_flag=True, help="Give the derived copies back instead.")
@verb
def assemble_command(caller: Caller, checkpoint: str, drop: bool) -> None:
    """Give every file of CHECKPOINT that shares chunks with another one a derived copy.

    Such a file lies in pieces and is read through the daemon; with a copy that has it in one piece the
    kernel reads it, as any other file. Where the store's file system lets files share blocks (XFS, btrfs)
    copies take no space where that is possible, and those are made without being asked for.

    Copies are given back by themselves when a creation needs the room, and when the checkpoint is removed.
    A file that is open at this moment goes on to be read as it is; its next open is native.
    """
    found = caller.checkpoint(checkpoint)
    if drop:
        report = found.drop_derived()
    else:
        with steps(f"assembling {rendering.safe(found.name)}", hidden=caller.json) as watch:
            report = found.assemble(watch)
    if caller.json:
        rendering.emit(report)
    else:
        click.echo(f"{rendering.safe(report.checkpoint)}: {'; '.join(_said(report, drop=drop))}")
        for damage in report.damaged:
            place = rendering.safe(f"{damage.checkpoint}/{damage.path}")
            click.echo(f"{place}: {damage.problem} at offset {damage.offset}, {damage.length} bytes")
    if report.damaged:
        error = StoreDamaged(
            f"{report.checkpoint} has {rendering.count(len(report.damaged), 'damaged chunk')}: "
            "create it again from its source under another name, and its bytes are mended"
        )
        if caller.json:  # the report is the answer; one document is enough
            rendering.note(f"ckptfs: error: {rendering.line(error.message)}")
            raise SystemExit(error.exit_code)
        raise error


def _said(report: AssembleReport, *, drop: bool) -> list[str]:
    native = f"{report.native_files} of {rendering.count(report.files, 'file')} native"
    if drop:
        dropped = rendering.count(report.dropped, "derived copy", "derived copies")
        return [f"{dropped} dropped, {format_bytes(report.freed_bytes)} given back", native]
    made = rendering.count(report.made, "derived copy", "derived copies")
    said = [f"{made} made" if report.made else "nothing to do", native]
    if report.derived_files:
        said.append(f"derived copies take {format_bytes(report.derived_bytes)}")
    return said
