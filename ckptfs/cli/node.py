"""`status`, `doctor`: how the daemon is, and whether it has what it needs."""

from __future__ import annotations

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, verb
from ckptfs.errors import CkptfsError, ConnectionError, MountError, PermissionDenied
from ckptfs.model.records import StatusInfo, StoreStatus
from ckptfs.model.sizes import format_bytes


@click.command("status", short_help="The daemon, its store and its mount.")
@verb
def status_command(caller: Caller) -> None:
    """Show how the daemon is: its mount, its store, how much is stored and shared.

    Logical bytes are what all checkpoints' files add up to; stored bytes count each chunk once; physical
    bytes are what the disk holds for them.
    """
    info = caller.client().status()
    if caller.json:
        return rendering.emit(info)
    store = info.store
    mounted = "mounted" if info.mounted else "not mounted"
    saved = store.logical_bytes - store.stored_bytes
    pairs = [
        ("daemon", f"{info.version}, process {info.pid}, {_worker(info)}"),
        ("socket", info.socket),
        ("mount", f"{info.mount} ({mounted})"),
    ]
    if info.mount_note:
        pairs.append(("", info.mount_note))
    if info.upgrade_note:
        pairs.append(("upgrade", f"failed: {info.upgrade_note}"))
    pairs += [
        ("store", f"{store.path} (format {store.format})"),
        ("checkpoints", f"{store.checkpoints}, creations under way: {info.creations}"),
        ("logical", rendering.size(store.logical_bytes)),
        ("stored", f"{rendering.size(store.stored_bytes)} in {rendering.count(store.chunks, 'chunk')}"),
        ("saved", f"{format_bytes(saved)} by sharing" if saved > 0 else "nothing by sharing"),
        ("physical", rendering.size(store.physical_bytes)),
        ("native", f"{store.native_files} of {rendering.count(store.files, 'file')}{_derived(store)}"),
        ("disk", f"{format_bytes(store.disk_free_bytes)} free of {format_bytes(store.disk_total_bytes)}"),
        ("jobs", str(info.jobs)),
    ]
    rendering.facts(pairs)


def _worker(info: StatusInfo) -> str:
    since = rendering.moment(info.started)
    if info.worker_pid == info.pid:
        return f"since {since}"
    times = f", number {info.worker_starts + 1}" if info.worker_starts else ""
    spare = f", {info.spare_pid} in reserve" if info.spare_pid else ""
    return f"worker {info.worker_pid}{times} since {since}{spare}"


def _derived(store: StoreStatus) -> str:
    if not store.derived_files:
        return ""
    copies = rendering.count(store.derived_files, "derived copy", "derived copies")
    return f" ({copies}, {format_bytes(store.derived_bytes)})"


@click.command("doctor", short_help="Is everything here that the daemon needs?")
@verb
def doctor_command(caller: Caller) -> None:
    """Check what ckptfs needs on this node, and say what to do about what is missing.

    Asks the daemon where it answers; where it does not, checks what can be checked without it. Exits
    with 0 when everything that is required is there.
    """
    from ckptfs.cli import checks

    client = caller.client()
    failure: CkptfsError | None = None
    try:
        found = [checks.reachable(client.socket), *client.doctor()]
    except (ConnectionError, PermissionDenied) as error:
        failure = error
        found = [checks.unreachable(client.socket, error), *checks.without_daemon()]
    found.append(checks.namespaces())
    bad = [c for c in found if c.required and not c.ok]
    if caller.json:
        rendering.emit({"reachable": failure is None, "ok": not bad, "checks": found})
    else:
        for check in found:
            mark = "ok" if check.ok else "MISSING" if check.required else "note"
            click.echo(rendering.line(f"{mark:7}  {check.name}: {check.detail}"))
            if check.remedy and not check.ok:
                click.echo(rendering.line(f"{'':7}  -> {check.remedy}"))
    if failure is not None:
        if not caller.json:
            rendering.note(f"ckptfs: error: the daemon is not reachable: {rendering.line(failure.message)}")
        raise SystemExit(failure.exit_code)
    if bad:
        raise SystemExit(MountError.exit_code)
