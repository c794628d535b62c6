"""What ckptfs must reach, measured: each benchmark against something else in the same run.

Run one with ``.venv/bin/python -m bench.NAME --dir DIR``; DIR is where its store and its data go (default:
the temporary directory), and both are gone afterwards. It prints figures and ratios, and writes them to
``bench/results/NAME.json``. Ratios carry over to other machines; absolute figures do not.

- ``create``: a 4 GiB safetensors file into the store, against ``cp`` + ``sync`` and ``casync make``
- ``read``: reads through the mount, past the daemon and by it, against a plain copy, pyfuse3 with default
  settings, squashfuse, casync and rclone
- ``latency``: small reads and `stat` while a checkpoint is being created, against an idle daemon
- ``sharing``: how much of the bytes in equal tensors is stored once
- ``assemble``: a derived copy of a 2 GiB fine-tune, against ``cp`` with shared blocks and without (as root)
- ``small_files``: 100,000 small files created, listed and removed, against the native file system
- ``chunk_constants``: what other sizes of chunks would find and cost; why they are as they are
- ``index``: how soon a daemon is ready over 1,000,000 chunks, and what it takes in memory

Beneath them: ``harness`` (arguments, a daemon, results), ``process`` (CPU and memory of a server), ``data``
(the files that are made), ``plain_pyfuse3`` (a peer of ``read``). From the results ``page`` makes
docs/performance.md, with ``tables`` and ``picture``.
"""
