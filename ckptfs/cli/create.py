"""`create`: make a checkpoint and follow it until it is ready."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal

import click

from ckptfs.cli import rendering
from ckptfs.cli.caller import Caller, verb
from ckptfs.client.sync import SyncCheckpoint
from ckptfs.client.waiting import MAX_TIMEOUT_SECONDS
from ckptfs.errors import (
    CheckpointError,
    CkptfsError,
    ConnectionError,
    Interrupted,
    SpecificationError,
    WaitTimeout,
    from_code,
)
from ckptfs.model.sizes import format_bytes

if TYPE_CHECKING:
    from ckptfs.cli.progress import Watcher

# A creation goes on by itself after so many changes of the worker; one more may be its own doing.
_RESUMES_MAX = 10

_SOURCE_TYPES = ("local", "s3", "aws", "wasabi", "web")


@click.command(
    "create",
    short_help="Make a checkpoint from a directory, a bucket, a URL or an archive.",
    epilog="""\b
Examples:
  ckptfs create llama ./llama-7b/
  ckptfs create llama s3://models/llama/ --source-option endpoint_url=https://s3.example.org
  ckptfs create minilm https://example.org/minilm.tar.zst
  ckptfs create wheel ./model.whl --extract
  ckptfs create llama s3://models/llama/ --no-wait && ckptfs wait llama --timeout 7200

\b
S3 credentials are taken from the environment (AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY,
AWS_SESSION_TOKEN, AWS_REGION, AWS_ENDPOINT_URL) or from ~/.aws, else the daemon's own are used.
They are never stored, logged or shown.
""",
)
@click.argument("name")
@click.argument("source")
@click.option(
    "--source-type",
    type=click.Choice(_SOURCE_TYPES),
    default=None,
    help="What the source is; by default told by its form.",
)
@click.option(
    "--source-option",
    "source_options",
    multiple=True,
    metavar="KEY=VALUE",
    help="For S3: endpoint_url, region, profile, addressing_style, anonymous. Can be given again.",
)
@click.option(
    "--extract/--no-extract",
    default=None,
    help="Extract any archive, also one that is a model file or a wheel / keep archives as files."
    " By default archives are extracted and model files are not.",
)
@click.option("--wait/--no-wait", default=True, help="Follow the creation to its end (the default).")
@verb
def create_command(
    caller: Caller,
    name: str,
    source: str,
    source_type: str | None,
    source_options: tuple[str, ...],
    extract: bool | None,
    wait: bool,
) -> None:
    """Make the checkpoint NAME from SOURCE.

    SOURCE is a directory, a file, s3://BUCKET/PREFIX/, s3://BUCKET/OBJECT, http(s)://…, or an archive in
    any of these places: zip, tar, tar.gz, tar.bz2, tar.xz, tar.zst, or a single gz, bz2, xz, zst file.
    Archives are told by their content.

    What is in the store already is not stored again, and a creation that was interrupted goes on from
    what had arrived: run the same command again. (When the daemon is upgraded meanwhile, this one goes on by
    itself.) Ctrl-C cancels.
    """
    policy: Literal["auto", "yes", "no"] = "auto" if extract is None else "yes" if extract else "no"

    def begin() -> SyncCheckpoint:
        return caller.client().checkpoints.create(
            name=name,
            source_type=source_type or "",
            source_uri=source,
            source_options=_options(source_options),
            extract=policy,
        )

    checkpoint = begin()
    if wait:
        checkpoint = _follow(checkpoint, begin)
    _report(caller, checkpoint)


def _options(pairs: tuple[str, ...]) -> dict[str, str]:
    options: dict[str, str] = {}
    for pair in pairs:
        key, equals, value = pair.partition("=")
        if not key or not equals:
            # What was given is not repeated: it could be a secret in the wrong place.
            raise SpecificationError("source_options", "--source-option takes KEY=VALUE")
        options[key] = value
    return options


def _follow(checkpoint: SyncCheckpoint, begin: Callable[[], SyncCheckpoint]) -> SyncCheckpoint:
    """Watch until it is ready. A failure is raised as what it is, not as a failed wait. When the daemon is
    replaced meanwhile, ``begin`` goes on from what arrived."""
    from ckptfs.cli import progress

    times = 0
    try:
        with progress.watcher() as watch:
            while True:
                try:
                    return _watch_through_cuts(checkpoint, watch)
                except WaitTimeout:  # a day was not enough: go on
                    continue
                except CheckpointError:
                    if checkpoint.info.reason_code != Interrupted.code or times == _RESUMES_MAX:
                        raise
                times += 1
                checkpoint = begin()
    except KeyboardInterrupt:
        _cancel(checkpoint)
        raise
    except CheckpointError:
        if checkpoint.status == "failed":
            reason = checkpoint.reason or f"the creation of {checkpoint.name} failed"
            raise from_code(checkpoint.info.reason_code or "checkpoint", reason, {}) from None
        raise
    except ConnectionError as error:
        raise ConnectionError(
            f"{error.message}; what has arrived of {checkpoint.name} is kept: run the same command again"
        ) from error


def _watch_through_cuts(checkpoint: SyncCheckpoint, watch: Watcher) -> SyncCheckpoint:
    """A worker that goes cuts its connections; whoever asks again waits for the next one. Raises
    ConnectionError when there is none."""
    while True:
        try:
            return checkpoint.wait_for("ready", MAX_TIMEOUT_SECONDS, watch=watch)
        except ConnectionError:
            checkpoint.refresh(light=True)


def _cancel(checkpoint: SyncCheckpoint) -> None:
    try:
        checkpoint.cancel()
    except CkptfsError as error:
        rendering.note(f"ckptfs: the creation could not be cancelled: {rendering.line(error.message)}")
        return
    if checkpoint.status == "ready":
        rendering.note(f"ckptfs: too late to cancel: {rendering.safe(checkpoint.name)} is ready")
        return
    kept = checkpoint.progress.bytes_done if checkpoint.progress else 0
    name = rendering.safe(checkpoint.name)
    rendering.note(
        f"ckptfs: cancelled; {format_bytes(kept)} that had arrived are kept: run the same command again to go"
        f" on from there, or `ckptfs remove {name}` to give them up"
        if kept
        else f"ckptfs: cancelled; nothing of {name} had arrived"
    )


def _report(caller: Caller, checkpoint: SyncCheckpoint) -> None:
    if checkpoint.status == "ready":
        checkpoint.refresh()  # now with what is shared
    info = checkpoint.info
    if caller.json:
        rendering.emit(info)
    elif info.status != "ready":
        name = rendering.safe(info.name)
        click.echo(f"{name} {info.id} {info.status}")
        rendering.note(f"follow it with: ckptfs wait {name}")
    else:
        shared = f", {format_bytes(info.shared_bytes)} shared with others" if info.shared_bytes else ""
        files = rendering.count(info.files, "file")
        click.echo(
            f"{rendering.safe(info.name)} {info.id} ready, {format_bytes(info.size)} in {files}{shared}"
        )
