"""The holder's log: one line an event on standard error, as text or as JSON like the worker's.

Whoever reads it may have stopped. The holder does not wait for that: a line that there is no room for is
lost, and the next one says how many were.
"""

from __future__ import annotations

import json
import os
import select
import time

_STDERR = 2
# A pipe takes up to this at once, or has no room (PIPE_BUF, pipe(7)).
_LINE_BYTES = 4096
# Of a fact in a line that would be longer.
_CUT_CHARACTERS = 200


class Log:
    def __init__(self, form: str) -> None:
        self._json = form == "json"
        self._lost = 0

    def info(self, event: str, **facts: object) -> None:
        self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        try:
            if not select.select((), (_STDERR,), (), 0)[1]:
                self._lost += 1
                return
            if self._lost:
                lost, self._lost = self._lost, 0
                self.warning("lines of this log were lost, nobody read them", lines=lost)
            line = self._line(level, event, facts)
            if len(line) > _LINE_BYTES:
                line = self._line(level, event, {k: str(v)[:_CUT_CHARACTERS] for k, v in facts.items()})
            os.write(_STDERR, line)
        except OSError:
            return  # a full disk under the log must not take the mount away

    def _line(self, level: str, event: str, facts: dict[str, object]) -> bytes:
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}Z"
        if self._json:
            record = {**facts, "event": event, "level": level, "logger": "ckptfsd.holder", "timestamp": stamp}
            line = json.dumps(record, default=str)
        else:
            # json.dumps of a value escapes what could forge a line or reach a terminal.
            told = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in facts.items())
            line = f"{stamp} [{level:<7}] {event}{told} [ckptfsd.holder]"
        return line.encode(errors="backslashreplace") + b"\n"
