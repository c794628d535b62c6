# The rooms of this package, top to bottom; imports only point down, siblings are blind to each other
# (import-linter checks it, pyproject.toml says how):
#
#   cli/      the command `ckptfs`: arguments, one call, rendering
#   client/   the SDK over the control interface; what this facade exports
#   fuse/     the kernel's edge: the mount, an adapter only
#   engine/   how bytes move: create, catalog, attach, reader, verify
#   source/   what a checkpoint is created from: local paths, S3, web, archives
#   store/    blobs on disk and the index; the only room that knows lmdb
#   model/    pure decisions: digests, chunking, manifest, names, the wire's records
#   errors    one exception tree
#
# The process that serves all this, `ckptfsd`, has its own source root, daemon/.
"""ckptfs: every job its model checkpoint as ordinary read-only files, from one verified copy per node.

The SDK talks to the daemon of this node over its control socket::

    import ckptfs

    client = ckptfs.SyncClient()  # or ckptfs.Client, with await, under asyncio and trio
    checkpoint = client.checkpoints.create(name="llama", source_uri="s3://models/llama/")
    checkpoint.wait_for("ready", timeout=3600)
    print(checkpoint.id, checkpoint.size)

Importing this package is cheap: a name is loaded when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ckptfs.client.calls import Details as Details
    from ckptfs.client.client import Checkpoint as Checkpoint
    from ckptfs.client.client import Client as Client
    from ckptfs.client.sync import SyncCheckpoint as SyncCheckpoint
    from ckptfs.client.sync import SyncClient as SyncClient
    from ckptfs.errors import ApiError as ApiError
    from ckptfs.errors import CheckpointError as CheckpointError
    from ckptfs.errors import CkptfsError as CkptfsError
    from ckptfs.errors import ConnectionError as ConnectionError
    from ckptfs.errors import NotFound as NotFound
    from ckptfs.errors import SpecificationError as SpecificationError
    from ckptfs.errors import WaitTimeout as WaitTimeout

__version__ = "0.1.0"  # as in pyproject.toml; a test compares them

_HOME = {
    "Client": "ckptfs.client.client",
    "Checkpoint": "ckptfs.client.client",
    "SyncClient": "ckptfs.client.sync",
    "SyncCheckpoint": "ckptfs.client.sync",
    "Details": "ckptfs.client.calls",
    "ApiError": "ckptfs.errors",
    "CheckpointError": "ckptfs.errors",
    "CkptfsError": "ckptfs.errors",
    "ConnectionError": "ckptfs.errors",
    "NotFound": "ckptfs.errors",
    "SpecificationError": "ckptfs.errors",
    "WaitTimeout": "ckptfs.errors",
}

__all__ = [
    "ApiError",
    "Checkpoint",
    "CheckpointError",
    "CkptfsError",
    "Client",
    "ConnectionError",
    "Details",
    "NotFound",
    "SpecificationError",
    "SyncCheckpoint",
    "SyncClient",
    "WaitTimeout",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'ckptfs' has no attribute {name!r}")
    value = getattr(import_module(_HOME[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
