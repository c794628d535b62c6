"""The SDK: what a program says to the daemon of its node. Knows nothing of the storage stack.

Decided purely, then done: a call is built and its answer decoded by functions that touch nothing,
and two thin faces move the bytes.

- ``calls``      every call of the control interface: method, target, body, how to read the answer
- ``exchange``   one HTTP/1.1 request and its response as a state machine over h11; no socket
- ``waiting``    what `wait_for` accepts, when it is settled, how long to pause between looks
- ``described``  what the objects of both faces know about a checkpoint
- ``origin``     what only the caller knows of a source: its working directory, its AWS environment
- ``address``    where the control socket is, and what it means when it cannot be reached
- ``client``     the asynchronous face, ``Client``, under asyncio and trio
- ``sync``       the synchronous face, ``SyncClient``; the CLI uses it
"""
