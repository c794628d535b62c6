"""The command `ckptfs`: one file per family of verbs; each takes arguments, makes one call, renders.

- ``main``         the entry: finds the verb, loads only its file, turns errors into a line and a code
- ``caller``       what every verb shares: --socket, --json, the client, shell completion of names
- ``rendering``    text for people (columns, sizes, safe names), JSON for scripts
- ``create``       `create`; ``progress`` draws it: a bar on a terminal, plain lines elsewhere
- ``checkpoints``  `list`, `show`, `rename`, `remove`, `cancel`, `wait`
- ``content``      `tree`, `cat`, `verify`
- ``jobs``         `attach`, `detach`, `jobs`
- ``run``          `run`: a command with its checkpoints; ``view`` makes its mount namespace out of
                   the system calls in ``mounts``
- ``node``         `status`, `doctor`; ``checks`` is what can be checked without the daemon
- ``completion``   `completion`: the script for a shell
"""
