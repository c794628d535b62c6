"""All operations of the control interface, as one table: the router and the description are both made
from it, so neither can know what the other does not."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from ckptfs.model.records import (
    AssembleReport,
    AttachRequest,
    CheckpointInfo,
    CreateRequest,
    DoctorCheck,
    JobInfo,
    StatusInfo,
    TreeEntry,
)
from ckptfsd.control import routes
from ckptfsd.control.face import Control
from ckptfsd.control.records import AssembleLine, Rename, Upgrade, VerifyLine

Handler = Callable[[Control, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Field:
    """A field of the query."""

    name: str
    description: str
    schema: dict[str, Any]
    repeated: bool = False


@dataclass(frozen=True, slots=True)
class Operation:
    method: str
    path: str
    name: str
    summary: str
    handler: Handler
    request: type | None = None
    answer: type | None = None
    #: The answer is ``{"listing": [answer, …]}``.
    listing: str = ""
    media_type: str = "application/json"
    status: int = 200
    query: tuple[Field, ...] = ()
    ranges: bool = False

    for_root: bool = False

    @property
    def who(self) -> str:
        """Who may: see docs/control.md."""
        return "root" if self.for_root else "read" if self.method == "GET" else "admin"


_FLAG = {"type": "integer", "enum": [0, 1], "default": 0}
_PATH = Field("path", "A path inside the checkpoint, its raw bytes percent-encoded.", {"type": "string"})

OPERATIONS: tuple[Operation, ...] = (
    Operation(
        "GET",
        "/v1/checkpoints",
        "listCheckpoints",
        "All checkpoints: ready, under way and failed.",
        routes.list_checkpoints,
        answer=CheckpointInfo,
        listing="checkpoints",
    ),
    Operation(
        "POST",
        "/v1/checkpoints",
        "createCheckpoint",
        "Begin to create a checkpoint from a source; answered at once, while it goes on.",
        routes.create_checkpoint,
        request=CreateRequest,
        answer=CheckpointInfo,
        status=201,
    ),
    Operation(
        "GET",
        "/v1/checkpoints/{ref}",
        "getCheckpoint",
        "One checkpoint, with what it takes in the store.",
        routes.get_checkpoint,
        answer=CheckpointInfo,
        query=(Field("light", "1: only what the list says too, which costs nothing.", _FLAG),),
    ),
    Operation(
        "PATCH",
        "/v1/checkpoints/{ref}",
        "renameCheckpoint",
        "Give a checkpoint another name.",
        routes.rename_checkpoint,
        request=Rename,
        answer=CheckpointInfo,
    ),
    Operation(
        "DELETE",
        "/v1/checkpoints/{ref}",
        "removeCheckpoint",
        "Remove a checkpoint and give back the bytes that no other one uses.",
        routes.remove_checkpoint,
        answer=CheckpointInfo,
        query=(Field("force", "1: end the leases on it first.", _FLAG),),
    ),
    Operation(
        "POST",
        "/v1/checkpoints/{ref}/cancel",
        "cancelCreation",
        "Stop a creation; what arrived is kept for a resume.",
        routes.cancel_creation,
        answer=CheckpointInfo,
    ),
    Operation(
        "GET",
        "/v1/checkpoints/{ref}/tree",
        "listTree",
        "The files, directories and links of a checkpoint.",
        routes.list_tree,
        answer=TreeEntry,
        listing="entries",
        query=(_PATH,),
    ),
    Operation(
        "GET",
        "/v1/checkpoints/{ref}/content",
        "readContent",
        "A file's bytes, all or one range of them.",
        routes.read_content,
        media_type="application/octet-stream",
        query=(_PATH,),
        ranges=True,
    ),
    Operation(
        "POST",
        "/v1/checkpoints/{ref}/verify",
        "verifyCheckpoint",
        "Read every stored chunk and compare it with its digest. Answers with lines of JSON: how far it is, "
        "and at the end the report or an error.",
        routes.verify_checkpoint,
        answer=VerifyLine,
        media_type="application/x-ndjson",
    ),
    Operation(
        "POST",
        "/v1/checkpoints/{ref}/assemble",
        "assembleCheckpoint",
        "Give every file that shares chunks a derived copy, so that the kernel can read it past the daemon. "
        "Answers with lines of JSON: how far it is, and at the end the report or an error.",
        routes.assemble_checkpoint,
        answer=AssembleLine,
        media_type="application/x-ndjson",
    ),
    Operation(
        "DELETE",
        "/v1/checkpoints/{ref}/derived",
        "dropDerived",
        "Give a checkpoint's derived copies back; none is made again before somebody asks.",
        routes.drop_derived,
        answer=AssembleReport,
    ),
    Operation(
        "GET",
        "/v1/jobs",
        "listJobs",
        "All jobs and what is attached for them.",
        routes.list_jobs,
        answer=JobInfo,
        listing="jobs",
    ),
    Operation(
        "POST",
        "/v1/jobs",
        "attach",
        "Attach checkpoints for a job.",
        routes.attach,
        request=AttachRequest,
        answer=JobInfo,
        status=201,
    ),
    Operation(
        "DELETE",
        "/v1/jobs/{job}",
        "detach",
        "Detach checkpoints from a job; answers what is left.",
        routes.detach,
        answer=JobInfo,
        query=(
            Field("checkpoint", "Which ones; all if it is not given.", {"type": "string"}, repeated=True),
        ),
    ),
    Operation(
        "GET",
        "/v1/status",
        "getStatus",
        "The daemon: store, mount, jobs, counters.",
        routes.get_status,
        answer=StatusInfo,
    ),
    Operation(
        "POST",
        "/v1/upgrade",
        "upgradeDaemon",
        "Replace the process that serves, with mounts and open files kept: by another version of ckptfs, or "
        "by the same with the configuration read anew. Answered (202) before it happens: it is over when "
        "worker_pid in the status is another one, and has failed when upgrade_note is not empty.",
        routes.upgrade,
        request=Upgrade,
        answer=StatusInfo,
        status=202,
        for_root=True,
    ),
    Operation(
        "GET",
        "/v1/doctor",
        "runDoctor",
        "Is everything here that the daemon needs, and what to do if not.",
        routes.run_doctor,
        answer=DoctorCheck,
        listing="checks",
    ),
)
