"""The holder's log: one line an event on standard error, as text or as JSON like the worker's."""

from __future__ import annotations

import json
import time

from ckptfsd.log_output import LOST, LogOutput

# What a pipe takes as a whole or not at all (PIPE_BUF, pipe(7)). Of the texts of a longer line only the
# beginnings are said; the last of these makes every line short enough.
_LINE_BYTES = 4096
_CUT_CHARACTERS = (200, 20, 0)


class Log:
    def __init__(self, form: str) -> None:
        self._json = form == "json"
        self._output = LogOutput()

    def info(self, event: str, **facts: object) -> None:
        self._say("info", event, facts)

    def warning(self, event: str, **facts: object) -> None:
        self._say("warning", event, facts)

    def error(self, event: str, **facts: object) -> None:
        self._say("error", event, facts)

    def _say(self, level: str, event: str, facts: dict[str, object]) -> None:
        self._output.put(
            self._line(level, event, facts), lambda lost: self._line("warning", LOST, {"lines": lost})
        )

    def _line(self, level: str, event: str, facts: dict[str, object]) -> bytes:
        line = self._rendered(level, event, facts)
        for cut in _CUT_CHARACTERS:
            if len(line) <= _LINE_BYTES:
                break
            line = self._rendered(level, event, {key: _cut(value, cut) for key, value in facts.items()})
        return line

    def _rendered(self, level: str, event: str, facts: dict[str, object]) -> bytes:
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


def _cut(value: object, characters: int) -> object:
    return value if isinstance(value, (int, float)) else str(value)[:characters]
