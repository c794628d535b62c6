"""The synchronous face of the SDK: plain blocking calls on a Unix socket, no event loop, no threads.

The CLI uses it because it starts fastest, and `ckptfs run` because a process must have one thread
when it enters a user namespace.
"""

from __future__ import annotations

import builtins
import os
import socket as _socket
import time
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing, suppress
from typing import Literal, TypeVar

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


class SyncClient:
    """The daemon of this node.

    ``socket``: its control socket; by default ``CKPTFS_SOCKET``, else /run/ckptfs/control.sock.
    ``timeout``: seconds to wait for the next byte of an answer.
    """

    def __init__(self, socket: str | os.PathLike[str] | None = None, *, timeout: float = 60.0) -> None:
        self.socket = address.resolve(socket)
        self.timeout = timeout
        self.checkpoints = SyncCheckpoints(self)
        self.jobs = SyncJobs(self)

    def __enter__(self) -> SyncClient:
        return self

    def __exit__(self, *exc: object) -> None:
        """Nothing is held open between calls."""

    def status(self) -> StatusInfo:
        return self.request(calls.status())

    def doctor(self) -> list[DoctorCheck]:
        return self.request(calls.doctor())

    def upgrade(self, python: str = "", *, timeout: float = 60.0) -> StatusInfo:
        """Replace the daemon's worker and wait for the new one; mounts and open files stay.

        ``python``: the interpreter of the environment whose ckptfs is to go on (absolute path); empty: the
        same, with the configuration read anew. Raises :class:`UpgradeFailed` when the old one goes on.
        """
        before = self.request(calls.upgrade(python))
        deadline, pauses = time.monotonic() + timeout, waiting.Pauses()
        while (left := deadline - time.monotonic()) > 0:
            time.sleep(pauses.take(left))
            with suppress(ConnectionError):  # cut off with the worker that goes
                now = self.status()
                if waiting.upgraded(before, now):
                    return now
        raise waiting.not_upgraded(before, timeout)

    def request(self, call: Call[T]) -> T:
        """Make one call and read its answer whole."""
        with closing(self.stream(call)) as pieces:
            return call.decode(b"".join(pieces))

    def stream(self, call: Call[T]) -> Generator[bytes, None, None]:
        """Make one call and yield the pieces of its answer's body; close the iterator to stop.

        Raises the error that the daemon answered before anything is yielded.
        """
        exchange = Exchange(call)
        with self._connect() as connection:
            try:
                connection.sendall(exchange.request())
                status, refused = 200, list[bytes]()
                while (event := exchange.next()) is not Signal.END:
                    if event is Signal.NEED_DATA:
                        exchange.feed(connection.recv(RECEIVE_BYTES))
                    elif isinstance(event, Head):
                        status = event.status
                    elif isinstance(event, bytes):
                        if 200 <= status < 300:
                            yield event
                        else:
                            refused.append(event)
            except TimeoutError:
                raise address.silent(self.socket, self.timeout) from None
            except OSError as error:
                raise address.lost(self.socket, error) from error
        refusal = calls.error_of(status, b"".join(refused))
        if refusal is not None:
            raise refusal

    def _connect(self) -> _socket.socket:
        connection = _socket.socket(_socket.AF_UNIX, _socket.SOCK_STREAM)
        try:
            connection.settimeout(self.timeout)
            connection.connect(self.socket)
        except OSError as error:
            connection.close()
            raise address.unreachable(self.socket, error) from error
        return connection


class SyncCheckpoints:
    """``client.checkpoints``: the checkpoints of this node."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def create(
        self,
        name: str,
        source_type: str = "",
        source_uri: str = "",
        source_options: Mapping[str, str] | None = None,
        *,
        extract: Literal["auto", "yes", "no"] = "auto",
        credentials: Mapping[str, str] | None = None,
    ) -> SyncCheckpoint:
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
        return self._object(self._client.request(calls.create_checkpoint(request)))

    def get(self, reference: str) -> SyncCheckpoint:
        """By name, id or unique id prefix."""
        return self._object(self._client.request(calls.get_checkpoint(reference)))

    def list(self) -> builtins.list[SyncCheckpoint]:
        return [self._object(info) for info in self._client.request(calls.list_checkpoints())]

    def remove(self, reference: str, force: bool = False) -> None:
        self._client.request(calls.remove_checkpoint(reference, force=force))

    def _object(self, info: CheckpointInfo) -> SyncCheckpoint:
        return SyncCheckpoint(self._client, info)


class SyncCheckpoint(Described):
    def __init__(self, client: SyncClient, info: CheckpointInfo) -> None:
        super().__init__(info)
        self._client = client

    def refresh(self, *, light: bool = False) -> SyncCheckpoint:
        self.info = self._client.request(calls.get_checkpoint(self.reference, light=light))
        return self

    def rename(self, name: str) -> SyncCheckpoint:
        self.info = self._client.request(calls.rename_checkpoint(self.reference, name))
        return self

    def remove(self, force: bool = False) -> None:
        """Remove it. ``force``: also when jobs have it attached."""
        self.info = self._client.request(calls.remove_checkpoint(self.reference, force=force))

    def cancel(self) -> SyncCheckpoint:
        """Stop its creation. What has arrived is kept for a resume."""
        self.info = self._client.request(calls.cancel_creation(self.reference))
        return self

    def wait_for(
        self,
        status: str,
        timeout: float = 300,
        *,
        watch: Callable[[CheckpointInfo], None] | None = None,
    ) -> SyncCheckpoint:
        """Wait until ``status`` (downloading, ready or archived) is reached; seconds, at most 24 h.

        Raises CheckpointError when it failed (with its reason) and WaitTimeout. ``watch`` is called
        with what was seen at every look.
        """
        waiting.check(status, timeout)
        deadline = time.monotonic() + timeout
        pauses = waiting.Pauses()
        while True:
            try:
                self.refresh(light=True)
            except NotFound:
                if status == "archived":
                    self.info = waiting.archived(self.info)
                    return self
                raise
            if watch is not None:
                watch(self.info)
            if waiting.settled(self.info, status):
                return self
            left = deadline - time.monotonic()
            if left <= 0:
                raise waiting.timed_out(self.info, status, timeout)
            time.sleep(pauses.take(left))

    def get_details(self) -> Details:
        """Its tree, with the counts of files and directories and the size in bytes."""
        return calls.details(self.tree())

    def tree(self, path: str = "") -> list[TreeEntry]:
        return self._client.request(calls.tree(self.reference, path))

    def cat(self, path: str, *, offset: int = 0, length: int | None = None) -> Generator[bytes, None, None]:
        """The content of one file, in pieces as they arrive."""
        return self._client.stream(calls.content(self.reference, path, offset=offset, length=length))

    def read(self, path: str, *, offset: int = 0, length: int | None = None) -> bytes:
        return self._client.request(calls.content(self.reference, path, offset=offset, length=length))

    def verify(self, watch: Callable[[VerifyStep], None] | None = None) -> VerifyReport:
        """Compare every chunk with its digest; ``watch`` is called with each step."""
        return self._steps(calls.verify(self.reference), calls.verify_reader(), watch)

    def assemble(self, watch: Callable[[AssembleStep], None] | None = None) -> AssembleReport:
        """Give every file that shares chunks a derived copy, so that the kernel can read it past the daemon;
        ``watch`` is called with each step."""
        return self._steps(calls.assemble(self.reference), calls.assemble_reader(), watch)

    def drop_derived(self) -> AssembleReport:
        """Give its derived copies back."""
        return self._client.request(calls.drop_derived(self.reference))

    def _steps(self, call: Call[bytes], reader: StepReader[T], watch: Callable[[Step[T]], None] | None) -> T:
        with closing(self._client.stream(call)) as pieces:
            for piece in pieces:
                for step in reader.feed(piece):
                    if watch is not None:
                        watch(step)
        return reader.report()


class SyncJobs:
    """``client.jobs``: what is attached for whom."""

    def __init__(self, client: SyncClient) -> None:
        self._client = client

    def attach(
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
        return self._client.request(calls.attach(request))

    def detach(self, job: str, checkpoints: str | Sequence[str] = ()) -> JobInfo:
        """Detach some or, by default, all of a job's checkpoints; answers what is left."""
        return self._client.request(calls.detach(job, calls.references(checkpoints)))

    def list(self) -> builtins.list[JobInfo]:
        return self._client.request(calls.list_jobs())
