"""The ckptfsd process: everything that needs to know that it is a daemon.

- ``__main__``: the arguments of the command line, nothing else
- ``app``: the one place where store, engine, mount and control interface meet, and the order in which
  they start and stop
- ``config``: TOML file, environment and flags become one checked configuration that knows its origins
- ``control/``: HTTP and JSON on a Unix socket: routes, errors, permissions, OpenAPI
- ``listener``: the Unix socket itself: stale, busy, mode and group
- ``server``: Hypercorn under trio on that socket, with peer credentials in the ASGI scope
- ``doctor/``: is everything here that the daemon needs, and what to do if not
- ``rebuild``: the command that makes a store's index anew
- ``logging``: structlog, as text or JSON, for our own records and those of the libraries
- ``notify``: systemd's readiness protocol and watchdog
"""
