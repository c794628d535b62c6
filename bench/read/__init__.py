"""How fast a file is read through ckptfs, and through what else one could mount, against a plain copy of it.

Everything is made from one data set that was copied by ``cp``, and that copy is the native file that all are
compared with. Ratios are medians over rounds; in a round all of them take turns.

**Hot** (``hot``): ckptfs with passthrough, its target 0.97 of native. The kernel then reads the blob, so what
is compared is how two files lie in the page cache, and that is made equal: before each pair both are dropped
and read back from the disk, each by the path that a job has. Then both are read in turns of 16 MiB (of one
tensor) whose order alternates, so that a neighbour who takes half of the memory's speed for a second takes it
from both. The same once more before anything is dropped (``just_created``): the page cache then has what
``ckptfs create`` and ``cp`` wrote.

**Served** (``compare``): a server that answers the kernel's requests. Of its file, a first pass finds nothing
in the mount's page cache (checked with cachestat(2)) and in memory all that lies below it: a blob, an image,
chunks; a second pass finds all in the mount's page cache. The first round of all is not counted: memory that
was never used costs more than all else on a virtual machine. Peers have their default settings; squashfs is
without compression, since a checkpoint's bytes do not compress. Slow peers get a smaller file; the ratio is
to the native read of the same one.

``ways`` are the ways of reading, ``servers`` what is mounted, ``cache`` asks and empties the page cache.
``python -m bench.read --render`` makes docs/performance.md anew from the results (as ``bench.page`` does).
"""
