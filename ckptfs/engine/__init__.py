"""How bytes move: the verbs of ckptfs, over a store and sources, under trio.

- ``engine``     the facade that the daemon's control interface and the mount use
- ``config``     every limit, with its unit
- ``catalog``    what checkpoints there are; references; tree
- ``creations``  all creations under way; ``creation`` one of them; ``reading`` all that its source holds;
                 ``ingest`` one file of it
- ``attach``     leases of jobs
- ``verify``     read everything, compare with the digests; ``verify_copies`` derived copies too
- ``assembly``   which files get a derived copy, and when; ``making`` batch by batch; ``derive`` one of them
- ``forms``      how each file lies in the store: can the kernel read it without us
- ``room``       what is left free of the disk, and how it is kept
- ``view``       what the mount shows; ``nodes`` what stat shows of it; ``open_files`` which are open,
                 ``native`` past the daemon; ``reader`` where a file's bytes lie, ``recent`` of files that
                 were open lately; ``warm`` reads them for the mount; ``content`` for `cat`
"""

from ckptfs.engine.config import EngineConfig
from ckptfs.engine.engine import Engine

__all__ = ["Engine", "EngineConfig"]
