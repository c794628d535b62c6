"""One handler for each operation: read the request, one call of the engine, answer."""

from __future__ import annotations

import os
from functools import partial
from typing import TypeVar

from starlette.requests import Request
from starlette.responses import Response

from ckptfs.errors import PermissionDenied, SpecificationError
from ckptfs.model.records import AttachRequest, CreateRequest
from ckptfsd.control.face import Control
from ckptfsd.control.records import Rename, Upgrade
from ckptfsd.control.requests import byte_range, decode, flag, path, query, read_body, segment
from ckptfsd.control.responses import FileContent, Listing, ProgressLines, answer

T = TypeVar("T")

_PATH_MAX = 4096  # linux/limits.h


async def _body(control: Control, request: Request, kind: type[T]) -> T:
    body = await read_body(
        request, max_bytes=control.max_body_bytes, timeout_seconds=control.body_timeout_seconds
    )
    return decode(body, kind)


# --- Checkpoints ----------------------------------------------------------------------------------


async def list_checkpoints(control: Control, request: Request) -> Response:
    query(request, ())
    return Listing("checkpoints", control.engine.list())


async def create_checkpoint(control: Control, request: Request) -> Response:
    query(request, ())
    return answer(await control.engine.create(await _body(control, request, CreateRequest)), 201)


async def get_checkpoint(control: Control, request: Request) -> Response:
    ref = segment(request, "ref")
    if flag(query(request, ("light",)), "light"):
        return answer(control.engine.get(ref))
    return answer(await control.engine.show(ref))


async def rename_checkpoint(control: Control, request: Request) -> Response:
    query(request, ())
    ref = segment(request, "ref")
    wanted = await _body(control, request, Rename)
    return answer(await control.engine.rename(ref, wanted.name))


async def remove_checkpoint(control: Control, request: Request) -> Response:
    force = flag(query(request, ("force",)), "force")
    return answer(await control.engine.remove(segment(request, "ref"), force=force))


async def cancel_creation(control: Control, request: Request) -> Response:
    query(request, ())
    return answer(await control.engine.cancel(segment(request, "ref")))


async def list_tree(control: Control, request: Request) -> Response:
    below = path(query(request, ("path",)))
    return Listing("entries", await control.engine.tree(segment(request, "ref"), below))


async def read_content(control: Control, request: Request) -> Response:
    file = path(query(request, ("path",)))
    if not file:
        raise SpecificationError("path", "path: say which file of the checkpoint")
    opened = await control.engine.open_content(segment(request, "ref"), file)
    try:
        wanted = byte_range(request.headers.get("range"), opened.size_bytes)
        return FileContent(opened, wanted, without_body=request.method == "HEAD")
    except BaseException:
        opened.close()
        raise


async def verify_checkpoint(control: Control, request: Request) -> Response:
    query(request, ())
    work = partial(control.engine.verify, segment(request, "ref"))
    return ProgressLines(work, every_seconds=control.progress_seconds)


async def assemble_checkpoint(control: Control, request: Request) -> Response:
    query(request, ())
    work = partial(control.engine.assemble, segment(request, "ref"))
    return ProgressLines(work, every_seconds=control.progress_seconds)


async def drop_derived(control: Control, request: Request) -> Response:
    query(request, ())
    return answer(await control.engine.drop_derived(segment(request, "ref")))


# --- Jobs -----------------------------------------------------------------------------------------


async def list_jobs(control: Control, request: Request) -> Response:
    query(request, ())
    return Listing("jobs", control.engine.jobs())


async def attach(control: Control, request: Request) -> Response:
    query(request, ())
    wanted = await _body(control, request, AttachRequest)
    peer = request.scope["state"]["peer"]  # the gate let nobody in without
    return answer(await control.engine.attach(wanted, peer_pid=peer.pid or None), 201)


async def detach(control: Control, request: Request) -> Response:
    refs = query(request, ("checkpoint",)).get("checkpoint")
    return answer(await control.engine.detach(segment(request, "job"), refs))


# --- The daemon -----------------------------------------------------------------------------------


async def get_status(control: Control, request: Request) -> Response:
    query(request, ())
    return answer(control.status())


async def run_doctor(control: Control, request: Request) -> Response:
    query(request, ())
    return Listing("checks", await control.doctor())


async def upgrade(control: Control, request: Request) -> Response:
    query(request, ())
    wanted = await _body(control, request, Upgrade)
    python = wanted.python
    if python and (not os.path.isabs(python) or "\0" in python or len(os.fsencode(python)) > _PATH_MAX):
        raise SpecificationError("python", f"python: {python[:200]!r} is not an absolute path")
    if not control.permissions.is_owner(request.scope["state"]["peer"]):
        raise PermissionDenied("an upgrade decides which program runs as the daemon: only root may ask")
    control.upgrade(python)
    return answer(control.status(), 202)
