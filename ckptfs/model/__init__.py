"""Pure decisions: no event loop, no files, no clock. What another room reads, it hands in.

- ``digest``: identity (BLAKE3) and fingerprint (xxh3) of bytes; the chunk of zeros
- ``chunking``: where a file is cut; ``boundaries`` turns a directory into chunk lengths
- ``safetensors``, ``gguf``, ``zipdir``: where the tensors or members of a container begin
- ``prefix``: reading no more of a directory than is needed, and no more than is allowed
- ``manifest``: the canonical description of a checkpoint; its digest is the checkpoint's id
- ``admission``: builds a tree from names that nobody may trust
- ``links``: where the symbolic links of a tree lead
- ``tree``: a manifest as directories and nodes, for the mount and for `tree`
- ``resolve``: a path through the links of a tree, as the kernel follows them
- ``names``: what a checkpoint and a job may be called; paths that are safe to show
- ``places``: where a job finds its checkpoints, and the variables that say so
- ``reference``: which checkpoint a user means by a text
- ``sizes``: bytes and durations as people write them
- ``records``: what crosses the control interface
"""
