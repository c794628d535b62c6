"""Logs: one record a line, whatever is in it, from us and from the libraries."""

from __future__ import annotations

import io
import json
import logging as standard
from collections.abc import Iterator

import pytest
import structlog

from ckptfsd.config import LogSection
from ckptfsd.logging import configure, escape_text, get_logger, ready_line

HOSTILE = "a\n2026 [error] forged\x1b[31m\u202e\udcff\x7f\u2028end"


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    root = standard.getLogger()
    handlers, level, raises = root.handlers[:], root.level, standard.raiseExceptions
    yield
    root.handlers[:], standard.raiseExceptions = handlers, raises
    root.setLevel(level)
    structlog.reset_defaults()


def logged(form: str, level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    configure(LogSection(format=form, level=level), stream)  # type: ignore[arg-type]
    return stream


@pytest.mark.parametrize("form", ["text", "json"])
def test_what_strangers_chose_cannot_make_a_line_or_move_a_cursor(form: str) -> None:
    stream = logged(form)
    get_logger("ckptfsd.x").info(f"made {HOSTILE}", checkpoint=HOSTILE, names=[HOSTILE], pair={"k": HOSTILE})
    standard.getLogger("ckptfs.y").warning("said %s", HOSTILE)
    written = stream.getvalue()
    assert written.count("\n") == 2
    assert not set("\x1b\u202e\udcff\x7f\u2028") & set(written)
    written.encode()


def test_json_is_one_object_a_line_with_the_same_keys_for_all() -> None:
    stream = logged("json")
    get_logger("ckptfsd.x").info("made", checkpoint="c", size_bytes=5)
    standard.getLogger("ckptfs.y").warning("plain", extra={"path": "/p"})
    ours, theirs = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert ours.pop("timestamp").endswith("Z")
    assert ours == {
        "event": "made",
        "checkpoint": "c",
        "size_bytes": 5,
        "level": "info",
        "logger": "ckptfsd.x",
    }
    assert (theirs["event"], theirs["level"], theirs["path"]) == ("plain", "warning", "/p")


def test_the_level_is_kept_for_all_and_libraries_are_quiet() -> None:
    stream = logged("text", "warning")
    get_logger("ckptfsd.x").info("not this")
    standard.getLogger("ckptfs.y").info("nor this")
    get_logger("ckptfsd.x").warning("but this")
    assert "this" in stream.getvalue() and "not" not in stream.getvalue()
    stream = logged("text", "debug")
    standard.getLogger("urllib3.connectionpool").debug("GET https://x/?X-Amz-Signature=secret")
    standard.getLogger("botocore.auth").debug("secret")
    assert stream.getvalue() == ""


@pytest.mark.parametrize("form", ["text", "json"])
def test_an_error_has_its_traceback(form: str) -> None:
    stream = logged(form)
    try:
        raise ValueError("a mistake")
    except ValueError as error:
        get_logger("ckptfsd.x").error("failed", exc_info=error)
    assert "ValueError: a mistake" in stream.getvalue()
    assert "Traceback" in stream.getvalue()


def test_a_log_that_cannot_be_written_stops_nobody() -> None:
    class Full(io.StringIO):
        def write(self, text: str) -> int:
            raise OSError(28, "No space left on device")

    configure(LogSection(), Full())
    get_logger("ckptfsd.x").info("made")


def test_readable_text_stays_as_it_is() -> None:
    assert escape_text("Modell – größe 7 мб 模型") == "Modell – größe 7 мб 模型"
    assert escape_text("a\tb\r") == "a\\x09b\\x0d"
    assert ready_line(store="/s", mount="/m\n") == "ckptfsd ready: store=/s mount=/m\\x0a"
