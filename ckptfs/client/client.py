"""The asynchronous face of the SDK, under asyncio and trio (anyio speaks to both).

One connection per call: calls of many tasks do not wait for each other, and a cancelled one
leaves nothing behind.
"""

from __future__ import annotations

import builtins
import os
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from typing import Literal, TypeVar

import anyio
from anyio.abc import SocketStream

from ckptfs.client import address, calls, origin, waiting
from ckptfs.client.calls import AssembleStep, Call, Details, Step, StepReader, VerifyStep
from ckptfs.client.described import Described
from ckptfs.client.exchange import RECEIVE_BYTES, Exchange, Head, Signal
from ckptfs.errors import ConnectionError, NotFound
from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    TreeEntry,
    VerifyReport,
)

T = TypeVar("T")


class Client:
    """The daemon of this node.

    ``socket``: its control socket; by default ``CKPTFS_SOCKET``, else /run/ckptfs/control.sock.
    ``timeout``: seconds to wait for the next byte of an answer.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 60.0) -> None:
        self.socket = address.resolve(socket)
        self.timeout = timeout
        self.checkpoints = Checkpoints(self)
        self.jobs = Jobs(self)

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(self, *exc: object) -> None:
        """Nothing is held open between calls."""

    async def status(self) -> StatusInfo:
        return await self.request(calls.status())

    async def doctor(self) -> list[DoctorCheck]:
        return await self.request(calls.doctor())

    async def upgrade(self, python: str = "", *, timeout: float = 60.0) -> StatusInfo:
        """Replace the daemon's worker and wait for the new one; mounts and open files stay.

        ``python``: the interpreter of the environment whose ckptfs is to go on (absolute path); empty: the
        same, with the configuration read anew. Raises :class:`UpgradeFailed` when the old one goes on.
        """
        before = await self.request(calls.upgrade(python))
        deadline, pauses = anyio.current_time() + timeout, waiting.Pauses()
        while (left := deadline - anyio.current_time()) > 0:
            await anyio.sleep(pauses.take(left))
            with suppress(ConnectionError):  # cut off with the worker that goes
                now = await self.status()
                if waiting.upgraded(before, now):
                    return now
        raise waiting.not_upgraded(before, timeout)

    async def request(self, call: Call[T]) -> T:
        """Make one call and read its answer whole."""
        async with aclosing(self.stream(call)) as pieces:
            return call.decode(b"".join([piece async for piece in pieces]))

    async def stream(self, call: Call[T]) -> AsyncGenerator[bytes, None]:
        """Make one call and yield the pieces of its answer's body (`contextlib.aclosing` to stop early).

        Raises the error that the daemon answered before anything is yielded.
        """
        exchange = Exchange(call)
        status, refused = 200, list[bytes]()
        async with self._connection() as connection:
            with self._within():
                await connection.send(exchange.request())
            while (event := exchange.next()) is not Signal.END:
                if event is Signal.NEED_DATA:
                    with self._within():
                        exchange.feed(await _receive(connection))
                elif isinstance(event, Head):
                    status = event.status
                elif isinstance(event, bytes):
                    if 200 <= status < 300:
                        yield event
                    else:
                        refused.append(event)
        refusal = calls.error_of(status, b"".join(refused))
        if refusal is not None:
            raise refusal

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[SocketStream]:
        try:
            with anyio.fail_after(self.timeout):
                connection = await anyio.connect_unix(self.socket)
        except TimeoutError:
            raise address.silent(self.socket, self.timeout) from None
        except OSError as error:
            raise address.unreachable(self.socket, error) from error
        async with connection:
            yield connection

    @contextmanager
    def _within(self) -> Iterator[None]:
        """A bound on one step of the exchange; foreign errors become ours here."""
        try:
            with anyio.fail_after(self.timeout):
                yield
        except TimeoutError:
            raise address.silent(self.socket, self.timeout) from None
        except anyio.BrokenResourceError as error:
            cause = error.__cause__
            raise address.lost(
                self.socket, cause if isinstance(cause, OSError) else OSError(str(error))
            ) from error


async def _receive(connection: SocketStream) -> bytes:
    try:
        return await connection.receive(RECEIVE_BYTES)
    except anyio.EndOfStream:
        return b""


class Checkpoints:
    """``client.checkpoints``: the checkpoints of this node."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def create(
        self,
        name: str,
        source_type: str = "",
        source_uri: str = "",
        source_options: Mapping[str, str] | None = None,
        *,
        extract: Literal["auto", "yes", "no"] = "auto",
        credentials: Mapping[str, str] | None = None,
    ) -> Checkpoint:
        """Begin a creation and return at once; ``wait_for("ready")`` waits for its end.

        ``source_type`` empty: by the URI. For ``credentials`` see :mod:`ckptfs.client.origin`.
        """
        request = origin.create_request(
            name=name,
            source_uri=source_uri,
            source_type=source_type,
            source_options=source_options,
            extract=extract,
            credentials=credentials,
        )
        return self._object(await self._client.request(calls.create_checkpoint(request)))

    async def get(self, reference: str) -> Checkpoint:
        """By name, id or unique id prefix."""
        return self._object(await self._client.request(calls.get_checkpoint(reference)))

    async def list(self) -> builtins.list[Checkpoint]:
        return [self._object(info) for info in await self._client.request(calls.list_checkpoints())]

    async def remove(self, reference: str, force: bool = False) -> None:
        await self._client.request(calls.remove_checkpoint(reference, force=force))

    def _object(self, info: CheckpointInfo) -> Checkpoint:
        return Checkpoint(self._client, info)


class Checkpoint(Described):
    def __init__(self, client: Client, info: CheckpointInfo) -> None:
        super().__init__(info)
        self._client = client

    async def refresh(self, *, light: bool = False) -> Checkpoint:
        self.info = await self._client.request(calls.get_checkpoint(self.reference, light=light))
        return self

    async def rename(self, name: str) -> Checkpoint:
        self.info = await self._client.request(calls.rename_checkpoint(self.reference, name))
        return self

    async def remove(self, force: bool = False) -> None:
        """Remove it. ``force``: also when jobs have it attached."""
        self.info = await self._client.request(calls.remove_checkpoint(self.reference, force=force))

    async def cancel(self) -> Checkpoint:
        """Stop its creation. What has arrived is kept for a resume."""
        self.info = await self._client.request(calls.cancel_creation(self.reference))
        return self

    async def wait_for(
        self,
        status: str,
        timeout: float = 300,
        *,
        watch: Callable[[CheckpointInfo], None] | None = None,
    ) -> Checkpoint:
        """Wait until ``status`` (downloading, ready or archived) is reached; seconds, at most 24 h.

        Raises CheckpointError when it failed (with its reason) and WaitTimeout. ``watch`` is called
        with what was seen at every look.
        """
        waiting.check(status, timeout)
        deadline = anyio.current_time() + timeout
        pauses = waiting.Pauses()
        while True:
            try:
                await self.refresh(light=True)
            except NotFound:
                if status == "archived":
                    self.info = waiting.archived(self.info)
                    return self
                raise
            if watch is not None:
                watch(self.info)
            if waiting.settled(self.info, status):
                return self
            left = deadline - anyio.current_time()
            if left <= 0:
                raise waiting.timed_out(self.info, status, timeout)
            await anyio.sleep(pauses.take(left))

    async def get_details(self) -> Details:
        """Its tree, with the counts of files and directories and the size in bytes."""
        return calls.details(await self.tree())

    async def tree(self, path: str = "") -> list[TreeEntry]:
        return await self._client.request(calls.tree(self.reference, path))

    def cat(self, path: str, *, offset: int = 0, length: int | None = None) -> AsyncGenerator[bytes, None]:
        """The content of one file, in pieces as they arrive (`contextlib.aclosing` to stop early)."""
        return self._client.stream(calls.content(self.reference, path, offset=offset, length=length))

    async def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return await self._client.request(calls.content(self.reference, path, offset=offset, length=length))

    async def verify(self, watch: Callable[[VerifyStep], None] | None = None) -> VerifyReport:
        """Compare every chunk with its digest; ``watch`` is called with each step."""
        return await self._steps(calls.verify(self.reference), calls.verify_reader(), watch)

    async def assemble(self, watch: Callable[[AssembleStep], None] | None = None) -> AssembleReport:
        """Give every file that shares chunks a derived copy, so that the kernel can read it past the daemon;
        ``watch`` is called with each step."""
        return await self._steps(calls.assemble(self.reference), calls.assemble_reader(), watch)

    async def drop_derived(self) -> AssembleReport:
        """Give its derived copies back."""
        return await self._client.request(calls.drop_derived(self.reference))

    async def _steps(
        self, call: Call[bytes], reader: StepReader[T], watch: Callable[[Step[T]], None] | None
    ) -> T:
        async with aclosing(self._client.stream(call)) as pieces:
            async for piece in pieces:
                for step in reader.feed(piece):
                    if watch is not None:
                        watch(step)
        return reader.report()


class Jobs:
    """``client.jobs``: what is attached for whom."""

    def __init__(self, client: Client) -> None:
        self._client = client

    async def attach(
        self,
        checkpoints: str | Sequence[str],
        job: str = "",
        *,
        ttl_seconds: float | None = None,
        bind_to_caller: bool = False,
    ) -> JobInfo:
        """Attach checkpoints for a job. The lease ends with `detach`, after ``ttl_seconds``, or,
        with ``bind_to_caller``, when this process ends."""
        request = AttachRequest(
            job=job,
            checkpoints=calls.references(checkpoints),
            bind_to_caller=bind_to_caller,
            ttl_seconds=ttl_seconds,
        )
        return await self._client.request(calls.attach(request))

    async def detach(self, job: str, checkpoints: str | Sequence[str] = ()) -> JobInfo:
        """Detach some or, by default, all of a job's checkpoints; answers what is left."""
        return await self._client.request(calls.detach(job, calls.references(checkpoints)))

    async def list(self) -> builtins.list[JobInfo]:
        return await self._client.request(calls.list_jobs())
