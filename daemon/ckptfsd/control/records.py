"""Records that only the control interface has; the others are in :mod:`ckptfs.model.records`."""

from __future__ import annotations

from typing import Any

import msgspec

from ckptfs.model.records import AssembleReport, VerifyReport


class Rename(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    name: str


class Upgrade(msgspec.Struct, kw_only=True, forbid_unknown_fields=True):
    python: str = ""  # the interpreter of the environment to go on with; empty: the one that runs


class ErrorDetail(msgspec.Struct, kw_only=True):
    """``code`` is stable and names a class of ckptfs.errors; ``message`` is one line for people."""

    code: str
    message: str
    data: dict[str, Any]


class ErrorBody(msgspec.Struct, kw_only=True):
    error: ErrorDetail


class VerifyLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of a verification's answer: bytes done of total, or the report, or an error."""

    done: int = 0
    total: int = 0
    report: VerifyReport | None = None
    error: ErrorDetail | None = None


class AssembleLine(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One line of the answer to assemble: bytes done of total, or the report, or an error."""

    done: int = 0
    total: int = 0
    report: AssembleReport | None = None
    error: ErrorDetail | None = None
