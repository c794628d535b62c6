"""What the control interface asks of the engine and of the process around it.

The routes know these protocols, not the engine: they can be exercised with anything that has this face.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Protocol

from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    CreateRequest,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    TreeEntry,
    VerifyReport,
)
from ckptfsd.control.peer import Permissions


class ContentFace(Protocol):
    @property
    def size_bytes(self) -> int: ...
    async def read(self, offset: int, length: int) -> bytes: ...
    def close(self) -> None: ...


class EngineFace(Protocol):
    """A part of :class:`ckptfs.engine.engine.Engine`; what the methods mean is said there."""

    async def create(self, request: CreateRequest) -> CheckpointInfo: ...
    async def cancel(self, ref: str) -> CheckpointInfo: ...
    def get(self, ref: str) -> CheckpointInfo: ...
    async def show(self, ref: str) -> CheckpointInfo: ...
    async def rename(self, ref: str, new_name: str) -> CheckpointInfo: ...
    async def remove(self, ref: str, *, force: bool = False) -> CheckpointInfo: ...
    async def tree(self, ref: str, path: bytes = b"") -> list[TreeEntry]: ...
    async def open_content(self, ref: str, path: bytes) -> ContentFace: ...
    async def verify(self, ref: str, report: Callable[[int, int], None]) -> VerifyReport: ...
    async def assemble(self, ref: str, report: Callable[[int, int], None]) -> AssembleReport: ...
    async def drop_derived(self, ref: str) -> AssembleReport: ...
    async def attach(self, request: AttachRequest, *, peer_pid: int | None) -> JobInfo: ...
    async def detach(self, job: str, refs: list[str] | None = None) -> JobInfo: ...
    def jobs(self) -> list[JobInfo]: ...

    # Last: in a class body it hides the type of the same name.
    def list(self) -> list[CheckpointInfo]: ...


@dataclass(frozen=True)
class Control:
    """Everything that a handler may use."""

    engine: EngineFace
    status: Callable[[], StatusInfo]
    doctor: Callable[[], Awaitable[list[DoctorCheck]]]
    #: Replace the worker, by one that a given Python interpreter starts (empty: the same).
    upgrade: Callable[[str], None]
    permissions: Permissions = field(default_factory=Permissions)
    max_body_bytes: int = 1 << 20
    body_timeout_seconds: float = 30.0
    #: How often a long answer says how far it is.
    progress_seconds: float = 0.5
