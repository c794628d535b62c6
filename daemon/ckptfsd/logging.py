"""Logs: structlog, as text for people or as JSON for machines, one record a line, on standard error, where
nobody is waited for (log_output).

The library's rooms log through the standard library (``logging.getLogger(__name__)``); their records and
those of Hypercorn and boto3 go through the same processors as ours. What strangers chose (names,
paths, URLs) is escaped, so that no record can forge a line or reach a terminal's controls.
"""

from __future__ import annotations

import functools
import logging
import sys
import unicodedata
from typing import Any, TextIO

import structlog
from structlog.typing import EventDict, Processor, WrappedLogger

from ckptfsd.config import LogSection
from ckptfsd.log_output import LOST, LogOutput

# Chatty below WARNING, and their messages may hold URLs with signatures.
_QUIET = ("boto3", "botocore", "s3transfer", "urllib3", "asyncio", "hypercorn")


class LossyHandler(logging.Handler):
    """To standard error, and never waits for who reads it."""

    def __init__(self) -> None:
        super().__init__()
        self._output = LogOutput()

    def emit(self, record: logging.LogRecord) -> None:
        try:
            self._output.put(self._line(record), self._lost)
        except Exception:
            self.handleError(record)

    def _line(self, record: logging.LogRecord) -> bytes:
        return self.format(record).encode(errors="backslashreplace") + b"\n"

    def _lost(self, lines: int) -> bytes:
        warning = {"levelno": logging.WARNING, "levelname": "WARNING"}
        return self._line(logging.makeLogRecord({"name": __name__, **warning, "msg": LOST, "lines": lines}))


# One for the process, however often it is configured: it has a descriptor of its own.
_standard_error = functools.cache(LossyHandler)


def configure(section: LogSection, stream: TextIO | None = None) -> None:
    """Set up the process's logs; ``stream``: elsewhere than standard error. May be called again."""
    handler = logging.StreamHandler(stream) if stream else _standard_error()
    stream = stream or sys.stderr
    logging.raiseExceptions = False  # a full disk under the log must not stop the daemon
    shared: list[Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.stdlib.add_logger_name,
        structlog.stdlib.ExtraAdder(),
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    final: list[Processor] = [structlog.stdlib.ProcessorFormatter.remove_processors_meta]
    if section.format == "json":
        final += [structlog.processors.format_exc_info, structlog.processors.JSONRenderer()]
    else:
        colors = stream.isatty()
        final += [
            escape,
            structlog.dev.ConsoleRenderer(
                colors=colors, exception_formatter=structlog.dev.plain_traceback, pad_event_to=0
            ),
        ]
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    handler.setFormatter(structlog.stdlib.ProcessorFormatter(foreign_pre_chain=shared, processors=final))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(section.level.upper())
    for name in _QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def get_logger(name: str) -> structlog.stdlib.BoundLogger:
    logger: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(name)
    return logger


def escape(_logger: WrappedLogger, _method: str, event: EventDict) -> EventDict:
    """Make control characters visible in every text of a record but its traceback. (JSON escapes by
    itself.)"""
    for key, value in event.items():
        if key != "exception" and isinstance(value, str):
            event[key] = escape_text(value)
    return event


def escape_text(text: str) -> str:
    """Control characters, direction marks and undecodable bytes as ``\\xNN`` or ``\\uNNNN``."""
    if text.isprintable():
        return text
    return "".join(
        _escaped(c) if unicodedata.category(c) in ("Cc", "Cf", "Cs", "Zl", "Zp") else c for c in text
    )


def _escaped(character: str) -> str:
    code = ord(character)
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"


def ready_line(**values: Any) -> str:
    return "ckptfsd ready: " + " ".join(f"{key}={escape_text(str(value))}" for key, value in values.items())
