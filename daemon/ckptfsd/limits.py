"""The limits of the parts, from the configuration."""

from __future__ import annotations

from ckptfs.engine.config import EngineConfig, ReadLimits
from ckptfs.fuse.session import MountConfig
from ckptfsd.config import Config
from ckptfsd.server import ServerLimits


def engine_config(config: Config) -> EngineConfig:
    """Every limit of the engine, from the configuration."""
    return EngineConfig(
        mount=config.mount.path if config.mount.enabled else None,
        reads=ReadLimits(
            warm_reads=config.mount.warm_reads,
            warm_reads_each=config.mount.warm_reads_each,
            metadata_loads=config.mount.metadata_loads,
        ),
        max_creations=config.ingest.max_creations,
        max_checkpoint_bytes=config.store.max_checkpoint_bytes,
        max_entries=config.source.max_entries,
        reserve_free_bytes=config.store.reserve_free_bytes,
        derived_limit_bytes=config.store.derived_limit_bytes,
        workers=config.ingest.workers,
        remote_workers=config.ingest.remote_workers,
        buffer_bytes=config.ingest.buffer_bytes,
        commit_bytes=config.ingest.commit_bytes,
        commit_seconds=config.ingest.commit_seconds,
        draft_retention_seconds=config.drafts.retention_hours * 3600,
        connect_timeout_seconds=config.source.connect_timeout_seconds,
        read_timeout_seconds=config.source.read_timeout_seconds,
        min_throughput_bytes_per_second=config.source.min_throughput_bytes_per_second,
        retries=config.source.retries,
        max_jobs=config.jobs.max_jobs,
    )


def mount_config(config: Config) -> MountConfig:
    return MountConfig(
        max_tasks=config.mount.max_requests,
        spliced_blobs=config.mount.spliced_blobs,
        stop_grace_seconds=config.mount.stop_grace_seconds,
    )


def server_limits(config: Config) -> ServerLimits:
    return ServerLimits(
        max_connections=config.control.max_connections,
        send_timeout_seconds=config.control.send_timeout_seconds,
        idle_timeout_seconds=config.control.idle_timeout_seconds,
        stop_grace_seconds=config.control.stop_grace_seconds,
    )
