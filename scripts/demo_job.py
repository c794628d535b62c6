"""A job as any other: it knows a path and safetensors, and nothing of ckptfs.

Loads every tensor of the model below ``$TRAINML_CHECKPOINT_PATH`` (or of the directory that is given), and
prints what it loaded, with one checksum over names, types, shapes and values.
"""

from __future__ import annotations

import hashlib
import os
import sys
from pathlib import Path

from safetensors import safe_open


def main() -> None:
    directory = Path(sys.argv[1] if len(sys.argv) > 1 else os.environ["TRAINML_CHECKPOINT_PATH"])
    tensors = parameters = 0
    checksum = hashlib.sha256()
    for path in sorted(directory.rglob("*.safetensors")):
        with safe_open(path, framework="numpy") as file:
            for name in sorted(file.keys()):
                tensor = file.get_tensor(name)
                tensors += 1
                parameters += tensor.size
                checksum.update(f"{name} {tensor.dtype} {tensor.shape}".encode())
                checksum.update(tensor.tobytes())
    if not tensors:
        sys.exit(f"no tensors below {directory}")
    print(f"loaded {tensors} tensors, {parameters:,} parameters, checksum {checksum.hexdigest()[:32]}")


if __name__ == "__main__":
    main()
