"""The holder: a tiny process that owns the mount, so that the worker which serves it can die at any time.

- ``process``  the loop: deaths, the mount, the stop
- ``crew``     the workers: who serves, who follows, what they are told; upgrades
- ``messages`` what they say, checked
- ``mount``    the connection (ckptfs.fuse.connection), and what the service manager keeps of it
- ``listener`` the control interface's socket, kept from worker to worker
- ``worker``   one worker process: its state, its deadline
- ``policy``   when to start again, and which requests get EIO: decisions only; ``pending`` does it
- ``backings`` files registered with the kernel on behalf of a worker without privileges
- ``wire``     the messages between holder and worker
- ``systemd``  readiness, watchdog and the descriptor store
- ``options``  what it is told by `ckptfsd run`; ``boot``: the program
- ``log``      one line an event, as the worker's

Standard library only, plus the light modules of ckptfs.fuse: it stays below 15 MB, and there is little in
it that can fail. Nothing of the store, the engine or the control interface is known here.

The worker's side is ckptfsd.worker_link.
"""
