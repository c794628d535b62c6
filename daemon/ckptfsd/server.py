"""Hypercorn's trio worker on our own Unix socket, with the peer's credentials in the ASGI scope.

Hypercorn gives an application no way to the connection's socket, so this module builds the worker's
parts itself, from semi-private names (the reason for the pin ``hypercorn <0.19``):

- ``TCPServer`` serves one connection; :class:`PeerServer` puts a :class:`~ckptfsd.control.peer.Peer`
  into the ``ConnectionState`` that the protocol is given, and Hypercorn copies that into the ``state``
  of every request's scope. The application finds it at ``scope["state"]["peer"]``; where it is absent
  the application refuses (control/gate.py), so a Hypercorn that changed would lock everybody out, not
  let them in;
- ``H11Protocol`` without the switch to HTTP/2, which nobody needs on this socket;
- ``TaskGroup``, ``WorkerContext`` and ``ASGIWrapper`` are what ``worker_serve`` would make.

Each connection is a failure domain: whatever goes wrong in it is logged and closes it, never the daemon.
No wait for a client is unbounded: Hypercorn shields its sends from cancellation, hence the deadlines in
:class:`PeerStream`.
"""

from __future__ import annotations

import logging
import math
import socket
from dataclasses import dataclass
from typing import Any, cast

import h11
import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config as HypercornConfig
from hypercorn.events import Event, Updated
from hypercorn.protocol.h11 import H11Protocol
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.tcp_server import TCPServer
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import ASGIFramework, ConnectionState
from starlette.types import ASGIApp

from ckptfsd.control.peer import Peer, peer_of

_log = logging.getLogger(__name__)

# The longest request line: a path of 4096 bytes with every byte percent-encoded, and room for headers.
_MAX_HEAD_BYTES = 32 * 1024


@dataclass(frozen=True, slots=True)
class ServerLimits:
    max_connections: int = 512
    send_timeout_seconds: float = 30.0
    idle_timeout_seconds: float = 30.0
    stop_grace_seconds: float = 3.0


class PeerStream:
    """The connection as Hypercorn sees it: trio's SocketStream with a deadline for each send."""

    def __init__(self, stream: trio.SocketStream, send_timeout_seconds: float) -> None:
        self._stream = stream
        self._send_timeout_seconds = send_timeout_seconds
        self.socket = stream.socket

    async def send_all(self, data: bytes) -> None:
        with trio.move_on_after(self._send_timeout_seconds) as scope:
            await self._stream.send_all(data)
        if scope.cancelled_caught:
            await trio.aclose_forcefully(self._stream)
            raise trio.BrokenResourceError("the client takes no data")

    async def receive_some(self, max_bytes: int) -> bytes:
        return bytes(await self._stream.receive_some(max_bytes))

    async def send_eof(self) -> None:
        await self._stream.send_eof()

    async def aclose(self) -> None:
        await self._stream.aclose()


class PeerServer(TCPServer):
    """Hypercorn's server of one connection, told who is at the other end."""

    def __init__(
        self,
        app: ASGIWrapper,
        config: HypercornConfig,
        context: WorkerContext,
        peer: Peer,
        stream: PeerStream,
    ) -> None:
        super().__init__(app, config, context, ConnectionState({"peer": peer}), cast(Any, stream))
        self._client_left = False

    async def run(self) -> None:
        """As the original, without TLS and HTTP/2, and without waiting for a client that has left."""
        try:
            async with TaskGroup() as tasks:
                self._task_group = tasks
                protocol = _OnlyHttp1(
                    self.app,
                    self.config,
                    self.context,
                    tasks,
                    ConnectionState(self.state),
                    ssl=False,
                    client=None,
                    server=None,
                    send=self.protocol_send,
                )
                self.protocol = cast(Any, protocol)
                await self.idle_task.restart(tasks, self._idle_timeout)
                await self._read_data()
                self._client_left = True
                await self.idle_task.stop()
        finally:
            await self._close()

    async def protocol_send(self, event: Event) -> None:
        if not (self._client_left and isinstance(event, Updated)):
            await super().protocol_send(event)


class _OnlyHttp1(H11Protocol):
    async def _check_protocol(self, event: h11.Request) -> None:
        """Whoever asks for HTTP/2 is answered in HTTP/1.1."""


class ControlServer:
    """Serves an ASGI application on a listening socket until :meth:`stop`."""

    def __init__(self, app: ASGIApp, listening: socket.socket, limits: ServerLimits) -> None:
        self._app = ASGIWrapper(cast(ASGIFramework, app))
        self._listening = listening
        self._limits = limits
        self._grace_seconds = limits.stop_grace_seconds
        self._slots = trio.Semaphore(limits.max_connections)
        self._streams: set[trio.SocketStream] = set()
        self._context = WorkerContext(None)
        self._accepting = trio.CancelScope()
        self._may_end = trio.Event()
        self._config = HypercornConfig()
        self._config.accesslog = None
        self._config.errorlog = logging.getLogger("hypercorn.error")
        self._config.include_server_header = False
        self._config.h11_max_incomplete_size = _MAX_HEAD_BYTES
        # Hypercorn declares whole seconds, but any number does.
        self._config.keep_alive_timeout = cast(int, limits.idle_timeout_seconds)
        self._served = 0

    def statistics(self) -> dict[str, int]:
        return {"connections": len(self._streams), "connections_served": self._served}

    def stop(self, *, hurry: bool = False, grace_seconds: float = math.inf) -> None:
        """Accept nobody any more; give requests under way ``stop_grace_seconds`` or less, with ``hurry``
        none."""
        self._grace_seconds = min(self._grace_seconds, grace_seconds)
        self._accepting.cancel()
        if hurry or not self._streams:
            self._may_end.set()

    async def run(self, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Returns after :meth:`stop`, with every connection closed."""
        listener = _BoundedListener(self._listening, self._slots)
        async with trio.open_nursery() as connections:
            connections.start_soon(self._cut_off_when_cancelled)
            with self._accepting:
                task_status.started()
                await trio.serve_listeners(self._serve, [listener], handler_nursery=connections)
            await self._context.terminated.set()  # idle connections close themselves on this
            with trio.move_on_after(self._grace_seconds):
                await self._may_end.wait()
            connections.cancel_scope.cancel()

    async def _cut_off_when_cancelled(self) -> None:
        """Sends are shielded from cancellation; closing the socket under them is not."""
        try:
            await trio.sleep_forever()
        finally:
            for stream in self._streams:
                stream.socket.close()

    async def _serve(self, stream: trio.SocketStream) -> None:
        try:
            self._streams.add(stream)
            self._served += 1
            try:
                peer = peer_of(_plain(stream))
            except OSError as error:
                _log.warning("a control connection was refused: its peer is not known: %s", error)
                return
            bounded = PeerStream(stream, self._limits.send_timeout_seconds)
            await PeerServer(self._app, self._config, self._context, peer, bounded).run()
        except Exception:
            _log.exception("a control connection failed")
        finally:
            self._streams.discard(stream)
            if self._accepting.cancel_called and not self._streams:
                self._may_end.set()
            self._slots.release()
            await trio.aclose_forcefully(stream)


def _plain(stream: trio.SocketStream) -> socket.socket:
    # trio's socket offers getsockopt with the same signature.
    return cast(socket.socket, stream.socket)


class _BoundedListener(trio.abc.Listener[trio.SocketStream]):
    """Accepts only while there is a free slot; those who wait queue in the kernel's backlog."""

    def __init__(self, listening: socket.socket, slots: trio.Semaphore) -> None:
        listening.setblocking(False)
        self._listener = trio.SocketListener(trio.socket.from_stdlib_socket(listening))
        self._slots = slots

    async def accept(self) -> trio.SocketStream:
        await self._slots.acquire()
        try:
            return await self._listener.accept()
        except BaseException:
            self._slots.release()
            raise

    async def aclose(self) -> None:
        # The socket belongs to whoever bound it.
        await trio.lowlevel.checkpoint()
