"""`ckptfsd rebuild`: a new index for a store, from what lies on its disk, and what it found."""

from __future__ import annotations

import sys
import time

from ckptfs.store.rebuild import rebuild
from ckptfsd.config import Config
from ckptfsd.logging import configure, escape_text
