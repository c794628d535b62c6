"""`tree`, `cat`, `verify`: what is in a checkpoint, and whether it is what it should be."""

from __future__ import annotations

import base64
import sys
from contextlib import closing
from typing import TYPE_CHECKING

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, complete_name, verb
from ckptfs.cli.progress import steps
from ckptfs.client import calls
from ckptfs.errors import SpecificationError, StoreDamaged
from ckptfs.model.records import TreeEntry, VerifyReport
from ckptfs.model.sizes import format_bytes

if TYPE_CHECKING:
    from collections.abc import Iterator

#: `cat --json` holds the whole content in memory, and a third more of it as text.
MAX_JSON_CONTENT_BYTES = 64 * 1024 * 1024


@click.command("tree", short_help="The files of a checkpoint.")
@click.argument("checkpoint", shell_complete=complete_name)
@click.argument("path", default="")
@verb
def tree_command(caller: Caller, checkpoint: str, path: str) -> None:
    """Show the files of CHECKPOINT, or of the directory PATH in it, with their sizes.

    Executable files are marked with *, symbolic links show where they point. A file that shares chunks with
    others is marked: `shared` is read through the daemon, `derived` natively, from its derived copy.
    """
    found = caller.checkpoint(checkpoint)
    details = calls.details(found.tree(path.strip("/")))
    if caller.json:
        return rendering.emit(
            {
                "checkpoint": found.name,
                "id": found.id,
                "files": details.files,
                "directories": details.directories,
                "size": details.size,
                "entries": details.entries,
            }
        )
    click.echo(rendering.safe(f"{found.name}/{path.strip('/')}"))
    for line in drawing(details.entries, path.strip("/")):
        click.echo(line)
    directories = rendering.count(details.directories, "directory", "directories")
    click.echo(f"{rendering.count(details.files, 'file')}, {directories}, {format_bytes(details.size)}")


def drawing(entries: list[TreeEntry], top: str = "") -> Iterator[str]:
    """The lines of a tree. ``entries`` come in path order with every directory's own entry."""
    children: dict[str, list[TreeEntry]] = {}
    for entry in entries:
        if entry.path != top:
            children.setdefault(entry.path.rpartition("/")[0], []).append(entry)
    # A stack, not recursion: a path may be 2,000 directories deep.
    stack = [(iter_last(children.get(top, [])), "")]
    while stack:
        siblings, indent = stack[-1]
        try:
            entry, last = next(siblings)
        except StopIteration:
            stack.pop()
            continue
        yield f"{indent}{'└── ' if last else '├── '}{_label(entry)}"
        if entry.type == "d":
            stack.append((iter_last(children.get(entry.path, [])), indent + ("    " if last else "│   ")))


def iter_last(entries: list[TreeEntry]) -> Iterator[tuple[TreeEntry, bool]]:
    return ((entry, i == len(entries) - 1) for i, entry in enumerate(entries))


def _label(entry: TreeEntry) -> str:
    name = rendering.safe(entry.path.rpartition("/")[2])
    if entry.type == "d":
        return f"{name}/"
    if entry.type == "l":
        return f"{name} -> {rendering.safe(entry.target)}"
    form = f"  {entry.form}" if entry.form in ("derived", "shared", "damaged") else ""
    return f"{name}{'*' if entry.executable else ''}  {format_bytes(entry.size)}{form}"


@click.command("cat", short_help="Write a file of a checkpoint to standard output.")
@click.argument("checkpoint", shell_complete=complete_name)
@click.argument("paths", nargs=-1, required=True, metavar="PATH...")
@verb
def cat_command(caller: Caller, checkpoint: str, paths: tuple[str, ...]) -> None:
    """Write the files PATH… of CHECKPOINT to standard output, one after another.

    No job and no mount is needed. With --json: path, size and content in base64, for small files.
    """
    found = caller.checkpoint(checkpoint)
    if caller.json:
        return rendering.emit({"files": [_as_json(found.cat(path), path) for path in paths]})
    for path in paths:
        with closing(found.cat(path)) as pieces:
            for piece in pieces:
                sys.stdout.buffer.write(piece)
    sys.stdout.buffer.flush()


def _as_json(pieces: Iterator[bytes], path: str) -> dict[str, object]:
    content = bytearray()
    for piece in pieces:
        content += piece
        if len(content) > MAX_JSON_CONTENT_BYTES:
            limit = format_bytes(MAX_JSON_CONTENT_BYTES)
            raise SpecificationError("path", f"{path} is larger than {limit}: too large for --json")
    return {"path": path, "size": len(content), "content_base64": base64.b64encode(content).decode()}


@click.command("verify", short_help="Compare every byte of a checkpoint with its digest.")
@click.argument("checkpoint", shell_complete=complete_name)
@verb
def verify_command(caller: Caller, checkpoint: str) -> None:
    """Read every chunk of CHECKPOINT from the disk and compare it with its digest.

    Exits with 7 when something is damaged, and says which paths and where.
    """
    found = caller.checkpoint(checkpoint)
    with steps(f"verifying {rendering.safe(found.name)}", hidden=caller.json) as watch:
        report = found.verify(watch)
    name = rendering.safe(report.checkpoint)
    if caller.json:
        rendering.emit(report)
    elif not report.damaged:
        chunks = rendering.count(report.chunks, "chunk")
        copies = report.copies - len(report.dropped)
        also = f", and {rendering.count(copies, 'derived copy', 'derived copies')}" if copies else ""
        click.echo(f"{name}: intact, {format_bytes(report.bytes)} in {chunks} verified{also}")
        _say_dropped(report)
    else:
        for damage in report.damaged:
            place = rendering.safe(f"{damage.checkpoint}/{damage.path}")
            click.echo(f"{place}: {damage.problem} at offset {damage.offset}, {damage.length} bytes")
        _say_dropped(report)
    if report.damaged:
        count = rendering.count(len(report.damaged), "damaged chunk")
        error = StoreDamaged(
            f"{report.checkpoint} has {count}: remove it and create it again from its source"
        )
        if caller.json:  # the report is the answer; one document is enough
            rendering.note(f"ckptfs: error: {rendering.line(error.message)}")
            raise SystemExit(error.exit_code)
        raise error


def _say_dropped(report: VerifyReport) -> None:
    for copy in report.dropped:
        place = rendering.safe(f"{report.checkpoint}/{copy.path}")
        click.echo(f"{place}: its derived copy was wrong ({rendering.safe(copy.problem)}) and is dropped")
