"""docs/semantics.md names a test for every claim: all of them exist."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_every_claim_has_its_test() -> None:
    page = (ROOT / "docs" / "semantics.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("|") and "---" not in line]
    claims = [row for row in rows if not row.startswith("| claim")]
    assert len(claims) > 25
    for row in claims:
        assert "`test_" in row, row
    named = set(re.findall(r"`(test_\w+)`", page))
    here = {
        name
        for path in (ROOT / "tests").rglob("test_*.py")
        for name in re.findall(r"^(?:async )?def (test_\w+)", path.read_text(), re.MULTILINE)
    }
    assert named - here == set()
