"""What a checkpoint and a job may be called, and how a path from outside is shown and passed on.

A path inside a checkpoint is bytes, as POSIX has it. Where JSON or an argument needs text, bytes that
are not UTF-8 become surrogate escapes; where a person sees it, control characters are escaped too, so
that a file name cannot drive a terminal or forge a log line.
"""

from __future__ import annotations

import re
import unicodedata

from ckptfs.errors import SpecificationError

#: A name is a directory entry on the mount: NAME_MAX of Linux.
NAME_LIMIT_BYTES = 255

_JOB_ID = re.compile(r"[A-Za-z0-9._:@-]{1,128}")

# Characters that would let a name look like another or break a line: control (Cc), surrogates (Cs),
# line and paragraph separators (Zl, Zp); and the marks that turn the direction of writing.
_REFUSED_CATEGORIES = frozenset({"Cc", "Cs", "Zl", "Zp"})
_TURNING_MARKS = frozenset("\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069")


def check_checkpoint_name(name: str) -> str:
    """The name in Unicode's composed form (NFC), or SpecificationError saying what is wrong with it."""
    problem = _name_problem(name)
    if not problem:
        name = unicodedata.normalize("NFC", name)
        if len(name.encode()) > NAME_LIMIT_BYTES:
            problem = f"it is longer than {NAME_LIMIT_BYTES} bytes"
    if problem:
        shown = show_text(name) or '""'
        raise SpecificationError("name", f"{shown} cannot be the name of a checkpoint: {problem}")
    return name


def _name_problem(name: str) -> str:
    if not name:
        return "it is empty"
    if any(unicodedata.category(c) in _REFUSED_CATEGORIES or c in _TURNING_MARKS for c in name):
        return "it holds a control character"
    if "/" in name or ":" in name:
        return 'it holds a "/" or ":"'
    if name[0] in ".-":
        return 'it starts with "." or "-"'
    if name != name.strip():
        return "it starts or ends with a blank"
    return ""


def check_job_id(job: str) -> str:
    """The job's id itself, or SpecificationError."""
    if not _JOB_ID.fullmatch(job):
        raise SpecificationError(
            "job", f"{show_text(job)} cannot be a job's id: 1 to 128 letters, digits or . _ - : @ are allowed"
        )
    return job


def decode_path(path: bytes) -> str:
    """A path as text that `encode_path` turns back into the same bytes."""
    return path.decode("utf-8", "surrogateescape")


def encode_path(text: str) -> bytes:
    """The inverse of `decode_path`; SpecificationError for text that no path decodes to."""
    try:
        return text.encode("utf-8", "surrogateescape")
    except UnicodeEncodeError:
        raise SpecificationError("path", f"{show_text(text)} is not a path") from None


def show_path(path: bytes) -> str:
    """A path that is safe to print: what is not printable appears as ``\\xNN`` or ``\\uNNNN``."""
    return show_text(decode_path(path))


def show_text(text: str) -> str:
    """As `show_path`, for text. A backslash is doubled, so nothing can pass for an escape."""
    return "".join(c if c.isprintable() and c != "\\" else _escaped(c) for c in text)


def _escaped(char: str) -> str:
    code = ord(char)
    if char == "\\":
        return "\\\\"
    if 0xDC80 <= code <= 0xDCFF:  # a surrogate escape: one byte that is not UTF-8
        code -= 0xDC00
    if code <= 0xFF:
        return f"\\x{code:02x}"
    return f"\\u{code:04x}" if code <= 0xFFFF else f"\\U{code:08x}"
