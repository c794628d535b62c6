"""The read benchmark's result as a picture: for each way of reading, a bar for each server, as SVG.

By hand, since a plotting library would be many times the size of all that it is to draw.
"""

from __future__ import annotations

from html import escape
from typing import Any

ACROSS = 4  # panels
PANEL_WIDTH = 230
NAMES_WIDTH = 165
LABEL_WIDTH = 80
BAR = 16
GAP = 8
HEAD = 40
FONT = 'font-family="sans-serif" font-size="12"'
FIRST = "#1f6f8b"
SECOND = "#a9d0dc"
INK = "#222222"
GRID = "#cccccc"


def of(result: dict[str, Any]) -> str:
    servers = result["figures"]["servers"]
    ways = list(dict.fromkeys(way for server in servers.values() for way in server["ways"]))
    panel_height = HEAD + len(servers) * (BAR + GAP) + 24
    down = (len(ways) + ACROSS - 1) // ACROSS
    width = NAMES_WIDTH + ACROSS * PANEL_WIDTH + 10
    height = down * panel_height + 56
    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width}" height="{height}" '
        f'viewBox="0 0 {width} {height}" {FONT} fill="{INK}">',
        "<title>Speed of reading through mounts, as a part of a plain copy's</title>",
        f'<rect width="{width}" height="{height}" fill="white"/>',
        '<text x="10" y="24" font-size="15">Speed of reading, as a part of a plain copy\'s</text>',
        *_legend(width),
    ]
    for number, way in enumerate(ways):
        left = NAMES_WIDTH + number % ACROSS * PANEL_WIDTH
        top = 40 + number // ACROSS * panel_height
        if number % ACROSS == 0:
            parts += _names(list(servers), top)
        parts += _panel(way, [server["ways"].get(way) for server in servers.values()], left, top)
    parts.append("</svg>")
    return "\n".join(parts) + "\n"


def _legend(width: int) -> list[str]:
    parts = []
    for words, colour, left in (("first pass", FIRST, width - 250), ("second pass", SECOND, width - 140)):
        parts.append(f'<rect x="{left}" y="13" width="12" height="12" fill="{colour}"/>')
        parts.append(f'<text x="{left + 18}" y="24">{words}</text>')
    return parts


def _names(names: list[str], top: int) -> list[str]:
    return [
        f'<text x="{NAMES_WIDTH - 10}" y="{_row(top, i) + 12}" text-anchor="end">{escape(name)}</text>'
        for i, name in enumerate(names)
    ]


def _panel(way: str, servers: list[dict[str, Any] | None], left: int, top: int) -> list[str]:
    passes = [
        [server[which]["of_native"] for which in ("first", "second")] if server else None
        for server in servers
    ]
    largest = max(1.0, *(ratio for both in passes if both for ratio in both))
    unit = (PANEL_WIDTH - LABEL_WIDTH) / largest
    bottom = _row(top, len(servers))
    parts = [f'<text x="{left}" y="{top + 28}" font-weight="bold">{escape(way)}</text>']
    for ratio in (0.0, 0.5, 1.0):
        x = left + ratio * unit
        parts.append(f'<line x1="{x:.1f}" y1="{top + 36}" x2="{x:.1f}" y2="{bottom}" stroke="{GRID}"/>')
        parts.append(
            f'<text x="{x:.1f}" y="{bottom + 12}" font-size="10" text-anchor="middle">{ratio:g}</text>'
        )
    for i, both in enumerate(passes):
        y = _row(top, i)
        if both is None:
            parts.append(f'<text x="{left + 4}" y="{y + 12}" font-size="10">not measured</text>')
            continue
        for ratio, colour, offset in zip(both, (FIRST, SECOND), (0, BAR // 2), strict=True):
            parts.append(
                f'<rect x="{left}" y="{y + offset}" width="{ratio * unit:.1f}" '
                f'height="{BAR // 2}" fill="{colour}"/>'
            )
        parts.append(
            f'<text x="{left + max(both) * unit + 4:.1f}" y="{y + 12}" font-size="10">'
            f"{both[0]:.2f} / {both[1]:.2f}</text>"
        )
    return parts


def _row(top: int, number: int) -> int:
    return top + HEAD + number * (BAR + GAP)
