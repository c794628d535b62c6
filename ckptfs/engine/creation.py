"""One creation: from a source to a published checkpoint.

The creation is a task of the engine's nursery, not of the request that asked for it. It moves through
listing, reading (:mod:`ckptfs.engine.reading`) and finishing; one task commits what was put every few
seconds, and the first error ends them all. Whatever happens, the name is absent until
:meth:`Draft.publish`, which is one transaction.

What a failure leaves depends on whose fault it is: where a later try can go on (the source died, the
daemon stops, somebody cancelled), what arrived is kept for a resume; where it cannot (a corrupt
archive, a full disk), it is given back at once.
"""

from __future__ import annotations

import contextlib
import time
from collections import deque
from collections.abc import AsyncIterator
from functools import partial

import structlog
import trio
from blake3 import blake3

from ckptfs.engine.config import EngineConfig
from ckptfs.engine.ingest import Meter
from ckptfs.engine.reading import Reading, in_thread
from ckptfs.engine.room import reserve_bytes, room_for
from ckptfs.errors import Cancelled, CkptfsError, Interrupted, SourceError, SourceNotFound, StoreFull
from ckptfs.model import manifest
from ckptfs.model.admission import normalise
from ckptfs.model.names import show_path
from ckptfs.model.records import CheckpointInfo, CreateRequest, Progress
from ckptfs.model.sizes import format_bytes
from ckptfs.source.base import Source
from ckptfs.source.open import Limits, open_source, public_uri, source_type_of
from ckptfs.source.uri import key_of
from ckptfs.store import Checkpoint, Draft, Store

log = structlog.get_logger(__name__)

_RATE_WINDOW_SECONDS = 10.0


def request_key(request: CreateRequest) -> str:
    """Names what is asked for, without secrets: equal keys may resume each other's drafts."""
    kind = source_type_of(request.source_uri, request.source_type)
    uri = key_of(request.source_uri) if kind == "web" else request.source_uri
    options = [f"{key}={value}" for key, value in sorted(request.source_options.items())]
    hasher = blake3()
    for part in (kind, uri, request.extract, *options):
        hasher.update(part.encode("utf-8", "surrogateescape") + b"\0")
    return hasher.hexdigest(16)


class Creation:
    """The state of one creation; :meth:`run` makes the checkpoint."""

    def __init__(self, store: Store, config: EngineConfig, request: CreateRequest, creation_id: str) -> None:
        self.request = request
        self.id = creation_id
        self.created = time.time()
        self.error: CkptfsError | None = None
        self.checkpoint: Checkpoint | None = None
        #: Around the wait for its turn; cancelled by :meth:`cancel`.
        self.waiting = trio.CancelScope()
        self.done = trio.Event()
        self._store = store
        self._config = config
        self._daemon_stops = False
        self._phase = ""
        self._spooled: tuple[int, int] = (0, 0)
        self._meter = Meter(config.max_checkpoint_bytes)
        self._samples: deque[tuple[float, int]] = deque()

    def cancel(self, *, daemon_stops: bool = False) -> None:
        """Stop at the next step, or at once while it waits for its turn; ``done`` says when it did."""
        self._daemon_stops = daemon_stops
        self._meter.cancelled = True
        self.waiting.cancel()

    # --- What others see -------------------------------------------------------------------------

    @property
    def status(self) -> str:
        if self.error is not None:
            return "failed"
        if self.checkpoint is not None:
            return "ready"
        return "downloading" if self._phase in ("fetching", "reading", "finishing") else "new"

    def info(self) -> CheckpointInfo:
        return CheckpointInfo(
            id=self.id,
            name=self.request.name,
            status=self.status,  # type: ignore[arg-type]
            size=self._meter.bytes_total,
            billed_size=0,
            files=self._meter.files_total,
            created=self.created,
            creation=self.id,
            source_type=source_type_of(self.request.source_uri, self.request.source_type),
            source_uri=public_uri(self.request.source_uri),
            reason=str(self.error) if self.error else "",
            reason_code=self.error.code if self.error else "",
            progress=self._progress(),
        )

    def _progress(self) -> Progress:
        done, total = self._meter.bytes_done, self._meter.bytes_total
        if self._phase == "fetching":
            done, total = self._spooled
        now = time.monotonic()
        if not self._samples or now - self._samples[-1][0] >= 0.2:
            self._samples.append((now, done))
        while len(self._samples) > 2 and now - self._samples[0][0] > _RATE_WINDOW_SECONDS:
            self._samples.popleft()
        (t0, b0), (t1, b1) = self._samples[0], self._samples[-1]
        rate = max(0.0, (b1 - b0) / (t1 - t0)) if t1 > t0 else 0.0
        return Progress(
            phase=self._phase,
            bytes_done=done,
            bytes_total=total,
            files_done=self._meter.files_done,
            files_total=self._meter.files_total,
            bytes_reused=self._meter.bytes_reused,
            rate_bytes_per_second=rate,
            eta_seconds=(total - done) / rate if rate > 0 and total >= done else None,
        )

    def _enter(self, phase: str) -> None:
        self._phase = phase
        self._samples.clear()
        log.info("creation phase", checkpoint=self.request.name, creation=self.id, phase=phase)

    # --- The work --------------------------------------------------------------------------------

    async def run(self, limiter: trio.CapacityLimiter) -> None:
        """Make the checkpoint. Never raises but for cancellation: the outcome is in ``self``."""
        draft: Draft | None = None
        try:
            draft = await in_thread(limiter, self._begin)
            self._meter.check()
            self.checkpoint = await self._make(draft, limiter)
            log.info(
                "checkpoint ready",
                checkpoint=self.request.name,
                bytes=self.checkpoint.size_bytes,
                files=self.checkpoint.files,
                reused=self._meter.bytes_reused,
                seconds=round(time.time() - self.created, 3),
            )
        except trio.Cancelled:
            self.error = self._why_interrupted()
            if draft is not None:
                with trio.CancelScope(shield=True):
                    await in_thread(limiter, draft.release)
            raise
        except BaseException as raised:
            error = _first_of(raised, self.request)
            if isinstance(error, Interrupted):
                error = self._why_interrupted()
            if draft is not None:
                await self._give_up(draft, error, limiter)
            self.error = error  # not before: who sees that it failed may remove it at once
        finally:
            # Secrets live as long as the work that needs them.
            self.request.credentials.clear()
            self.done.set()

    def _why_interrupted(self) -> Interrupted:
        name = self.request.name
        if self._meter.cancelled and not self._daemon_stops:
            return Cancelled(f"the creation of {name!r} was cancelled")
        return Interrupted(
            f"the daemon stopped, or another worker took over, before the creation of {name!r} was complete; "
            "create it again to go on from here"
        )

    def _begin(self) -> Draft:
        """Go on from the kept draft of the same source; failures of this name are history from now on."""
        draft = self._store.begin(
            name=self.request.name,
            creation=self.id,
            source_key=request_key(self.request),
            source_type=source_type_of(self.request.source_uri, self.request.source_type),
            source_uri=public_uri(self.request.source_uri),
        )
        for old in self._store.drafts():
            if old.name == self.request.name and old.ordinal != draft.ordinal and old.status == "failed":
                self._store.drop_draft(old.ordinal)
        return draft

    async def _give_up(self, draft: Draft, error: CkptfsError, limiter: trio.CapacityLimiter) -> None:
        # A full disk is retryable for the user, but keeping the bytes would keep the disk full.
        keep = error.retryable and not isinstance(error, StoreFull)
        # A bad source is its user's to look at; the rest is the administrator's.
        tell = log.info if isinstance(error, SourceError | Interrupted) else log.warning
        tell("creation failed", checkpoint=self.request.name, code=error.code, reason=str(error), kept=keep)
        try:
            with trio.CancelScope(shield=True):
                await in_thread(limiter, partial(draft.fail, str(error), error.code, keep=keep))
        except CkptfsError as second:
            # The disk that failed the creation may fail this too; the start-up sweep will do it then.
            log.error("could not record a failed creation", checkpoint=self.request.name, reason=str(second))

    async def _make(self, draft: Draft, limiter: trio.CapacityLimiter) -> Checkpoint:
        self._enter("listing")
        source = await in_thread(limiter, partial(self._open, draft))
        try:
            reading = Reading(draft, self._config, self._meter)
            async with self._committing(draft, limiter):
                if source.sequential:
                    self._enter("reading")
                    self._meter.bytes_total = source.total_bytes or 0
                    await in_thread(limiter, partial(reading.in_order, source))
                else:
                    listed = await in_thread(limiter, partial(reading.listed, source))
                    await in_thread(limiter, partial(self._check_room, draft, self._meter.bytes_total))
                    self._enter("reading")
                    await reading.in_any_order(source, listed, limiter)
            self._enter("finishing")
            return await in_thread(limiter, partial(self._publish, draft, reading))
        finally:
            with trio.CancelScope(shield=True):
                await in_thread(limiter, source.close)

    def _open(self, draft: Draft) -> Source:
        config = self._config

        def fetched(done: int, total: int) -> None:
            if self._phase != "fetching":
                self._enter("fetching")
            self._spooled = (done, total)
            room_for(self._store, config, 0)  # only what can go goes: what does not fit is told later

        open_it = partial(
            open_source,
            self.request.source_uri,
            source_type=self.request.source_type,
            options=self.request.source_options,
            credentials=self.request.credentials,
            extract=self.request.extract,
            spool=self._store.spool_path(draft.ordinal),
            limits=Limits(
                max_bytes=config.max_checkpoint_bytes,
                max_entries=config.max_entries,
                connect_timeout_seconds=config.connect_timeout_seconds,
                read_timeout_seconds=config.read_timeout_seconds,
                min_throughput_bytes_per_second=config.min_throughput_bytes_per_second,
                retries=config.retries,
            ),
            report=fetched,
            cancelled=self._meter.is_over,
        )
        try:
            return open_it()
        except StoreFull as error:
            # All of an archive's room is taken at once, and this is the first that we hear of its size. Where
            # the server says none, we hear nothing before the disk is full.
            missing = error.data.get("missing_bytes", 0)
            if missing:
                fits = missing <= room_for(self._store, config, missing)
            else:
                fits = self._store.make_room(reserve_bytes(self._store, config)) > 0
            if not fits:
                raise
            return open_it()

    def _check_room(self, draft: Draft, total_bytes: int) -> None:
        needed = total_bytes - draft.bytes_known
        free = room_for(self._store, self._config, needed)
        if needed > free:
            reserve = format_bytes(reserve_bytes(self._store, self._config))
            raise StoreFull(
                f"{self.request.name!r} needs {format_bytes(needed)} and the store has "
                f"{format_bytes(max(0, free))} free beside its reserve of {reserve}; "
                "remove checkpoints that nobody needs, or give the store a larger disk"
            )

    def _check_reserve(self) -> None:
        if room_for(self._store, self._config, 0) < 0:
            reserve = format_bytes(reserve_bytes(self._store, self._config))
            raise StoreFull(
                f"{self.request.name!r} does not fit: the store's disk has less than its reserve of "
                f"{reserve} free; remove checkpoints that nobody needs"
            )

    @contextlib.asynccontextmanager
    async def _committing(self, draft: Draft, limiter: trio.CapacityLimiter) -> AsyncIterator[None]:
        """Commit what was put, every few seconds or hundred megabytes, while the body runs."""

        async def commit_now_and_then() -> None:
            committed_at, committed_bytes = time.monotonic(), 0
            while True:
                await trio.sleep(0.1)
                put = self._meter.bytes_done - committed_bytes
                if (
                    put < self._config.commit_bytes
                    and time.monotonic() - committed_at < self._config.commit_seconds
                ):
                    continue
                committed_bytes = self._meter.bytes_done
                with self._meter.failing_together():
                    await in_thread(limiter, draft.commit)
                    await in_thread(limiter, self._check_reserve)
                committed_at = time.monotonic()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(commit_now_and_then)
            yield
            nursery.cancel_scope.cancel()

    def _publish(self, draft: Draft, reading: Reading) -> Checkpoint:
        files = {normalise(path): value for path, value in reading.files.items()}
        for link in reading.hardlinks:
            target = files.get(normalise(link.target))
            if target is None:
                raise SourceNotFound(
                    f"{show_path(link.path)} is a hard link to {show_path(link.target)}, "
                    "which the source does not have"
                )
            files[normalise(link.path)] = target
        entries: list[manifest.Entry] = list(reading.admission.finish())
        if not entries and not files:
            raise SourceNotFound(
                f"the source of {self.request.name!r} is empty: there is nothing to make a checkpoint of"
            )
        directories = sum(1 for e in entries if isinstance(e, manifest.Directory))
        for path, (executable, draft_file) in files.items():
            assert draft_file.lengths is not None
            lengths = list(draft_file.lengths)
            entries.append(manifest.File(path, executable, sum(lengths), lengths, draft_file.digests()))
        whole = manifest.of(entries)
        owners = {index: files[file.path][1] for index, file in whole.files()}
        return draft.publish(
            manifest.encode(whole),
            owners,
            files=len(files),
            directories=directories,
            size_bytes=whole.size_bytes,
        )


def _first_of(raised: BaseException, request: CreateRequest) -> CkptfsError:
    """The one error to tell of: workers that fail together raise a group."""
    while isinstance(raised, BaseExceptionGroup):
        ours = raised.subgroup(CkptfsError) or raised
        # The others only noticed that one had failed.
        raised = (ours.split(Interrupted)[1] or ours).exceptions[0]
    source = public_uri(request.source_uri)
    if isinstance(raised, CkptfsError):
        if isinstance(raised, SourceError) and source not in raised.message:
            raised.message = f"{source}: {raised.message}"
        return raised
    if not isinstance(raised, Exception):
        raise raised
    log.error("unexpected error in a creation", checkpoint=request.name, exc_info=raised)
    # Not its text, which anybody can read in the record: it may hold a URL with its signature.
    return CkptfsError(
        f"unexpected {type(raised).__name__} while creating {request.name!r}; "
        "the daemon's log has the details"
    )
