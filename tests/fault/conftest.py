"""The tests of the holder use the small file system of tests/fuse."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.append(str(Path(__file__).parent.parent / "fuse"))
