"""Text for people, JSON for scripts. Names are never trusted: control characters are escaped."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import click

from ckptfs.model.names import show_text
from ckptfs.model.sizes import format_bytes


def safe(text: str) -> str:
    """A name or path that can neither drive a terminal nor break a line."""
    return show_text(text)


def line(message: str) -> str:
    """A message as one line. Names in it were escaped by who wrote it: backslashes stay as they are."""
    return "".join(c if c.isprintable() else show_text(c) for c in message)


def emit(value: Any) -> None:
    """One JSON document on standard output. Bytes that are not UTF-8 are \\\\udcXX escapes."""
    import msgspec

    click.echo(json.dumps(msgspec.to_builtins(value), indent=2))


def columns(head: Sequence[str], rows: Sequence[Sequence[str]], right: frozenset[int] = frozenset()) -> None:
    """A table as aligned text; the columns in ``right`` are numbers and end flush."""
    table = [tuple(head), *(tuple(safe(cell) for cell in row) for row in rows)]
    widths = [max(len(row[i]) for row in table) for i in range(len(head))]
    for row in table:
        cells = [
            cell.rjust(width) if i in right else cell.ljust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        click.echo("  ".join(cells).rstrip())


def facts(pairs: Sequence[tuple[str, str]]) -> None:
    """Lines of name and value."""
    width = max(len(name) for name, _ in pairs)
    for name, value in pairs:
        click.echo(f"{name.ljust(width)}  {safe(value)}".rstrip())


def size(value_bytes: int) -> str:
    """As `4.3 GB (4294967296 bytes)`: the convention, and the truth."""
    text = format_bytes(value_bytes)
    return text if value_bytes < 1000 else f"{text} ({value_bytes} bytes)"


def moment(seconds: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds)) if seconds else ""


def count(number: int, one: str, several: str = "") -> str:
    return f"{number} {one if number == 1 else several or one + 's'}"


def short_id(text: str) -> str:
    """Enough of an id to name it by: 12 of its 64 hex digits."""
    return text[:15] if text.startswith("b3:") else text


def note(text: str) -> None:
    """A line for the person who watches, beside the answer: on standard error."""
    click.echo(text, err=True)


def prepare_streams() -> None:
    """A name that the terminal's encoding cannot hold is escaped instead of ending the command."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")
