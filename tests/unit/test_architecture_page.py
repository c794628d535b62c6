"""docs/architecture.md names modules and functions; they exist, and where it says."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "architecture.md").read_text()


def hops() -> list[str]:
    """The text of each of the eight hops."""
    chapter = PAGE.split("## One byte, eight hops")[1].split("\n## ")[0]
    return re.split(r"^\d\. ", chapter, flags=re.MULTILINE)[1:]


def test_there_are_eight_hops() -> None:
    assert len(hops()) == 8


def test_every_module_that_is_named_exists() -> None:
    modules = re.findall(r"`((?:source|engine|store|model|fuse)/\w+)`", PAGE)
    assert len(modules) > 8
    assert [m for m in modules if not (ROOT / "ckptfs" / f"{m}.py").is_file()] == []


def test_every_function_of_a_hop_is_in_a_module_of_that_hop() -> None:
    count = 0
    for hop in hops():
        names = re.findall(r"`([\w./]+)`", hop)
        sources = [(ROOT / "ckptfs" / f"{n}.py").read_text() for n in names if "/" in n]
        for name in names:
            if "/" in name:
                continue
            for part in name.split("."):
                pattern = rf"^\s*(?:async )?(?:def|class) {part}\b"
                assert any(re.search(pattern, source, re.MULTILINE) for source in sources), (name, hop)
                count += 1
    assert count > 10
