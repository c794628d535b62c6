"""The holder's log: one line an event on standard error, as text or as JSON like the worker's."""

from __future__ import annotations

import json
import os
import sys
import time


class Log:
    def __init__(self, form: str) -> None:
        self._json = form == "json"

    def info(self, event: str, **facts: object) -> None:
        self._write("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._write("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._write("error", event, facts)

    def _write(self, level: str, event: str, facts: dict[str, object]) -> None:
        now = time.time()
        stamp = f"{time.strftime('%Y-%m-%dT%H:%M:%S', time.gmtime(now))}.{int(now % 1 * 1e6):06d}Z"
        if self._json:
            record = {**facts, "event": event, "level": level, "logger": "ckptfsd.holder", "timestamp": stamp}
            line = json.dumps(record, default=str)
        else:
            # json.dumps of a value escapes what could forge a line or reach a terminal.
            told = "".join(f" {key}={json.dumps(value, default=str)}" for key, value in facts.items())
            line = f"{stamp} [{level:<7}] {event}{told} [ckptfsd.holder]"
        try:
            os.write(sys.stderr.fileno(), line.encode(errors="backslashreplace") + b"\n")
        except OSError:
            return  # a full disk under the log must not take the mount away
