"""The tests of the holder use the small file system of tests/fuse, those of the daemon that of tests/e2e."""

from __future__ import annotations

import sys
from pathlib import Path

for _folder in ("fuse", "e2e"):
    sys.path.append(str(Path(__file__).parent.parent / _folder))
