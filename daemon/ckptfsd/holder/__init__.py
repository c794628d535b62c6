"""The holder: a tiny process that owns the mount, so that the worker which serves it can die at any time.

- ``process``  the loop: starts the worker, starts it again, upgrades it, stops
- ``mount``    the connection: mount(2), INIT, what is dead is cleared, what was lost is noticed
- ``policy``   when to start again, and which requests get EIO: decisions only
- ``wire``     the messages between holder and worker
- ``systemd``  readiness, watchdog and the descriptor store
- ``options``  what it is told on its command line

Standard library only, plus the light modules of ckptfs.fuse: it stays below 15 MB, and there is little in
it that can fail. Nothing of the store, the engine or the control interface is known here.

The worker's side is ckptfsd.worker_link.
"""
