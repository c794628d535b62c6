"""A worker that was taken over by somebody: it says to its holder what it is told on its command line.

``saying_worker.py [--spare] MESSAGE...``: each is sent as it is; of ``nested``, so many brackets as fit.
``--spare``: only one that is to wait says them, a first one serves.
After all of them it lives on, as any worker that serves.
"""

from __future__ import annotations

import array
import os
import socket
import sys
import time

from ckptfsd.holder import wire


def main() -> None:
    holder = socket.socket(fileno=int(os.environ[wire.ENVIRONMENT]))
    wire.send(holder, {"do": "hello"})
    received = wire.receive(holder)
    assert received is not None
    waits = received[0]["do"] == "standby"
    wire.send(holder, {"do": "prepared" if waits else "ready"})
    messages = sys.argv[1:]
    if "--spare" in messages:
        messages = messages[1:] if waits else []
    for message in messages:
        said = b"[" * (wire.MAX_BYTES - 1) if message == "nested" else message.encode()
        # With a descriptor each, so that what needs one has it.
        rights = (socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0]))
        holder.sendmsg([said], [rights])
    wire.send(holder, {"do": "the end"})
    time.sleep(1000)


main()
