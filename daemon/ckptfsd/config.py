"""Configuration: flags over environment over file over defaults, all checked, each value with its origin.

The file is TOML (``/etc/ckptfs/ckptfsd.toml``). A key that nobody knows, a value of the wrong type and a
limit out of range are errors that name the file, the section and the key: a typing error in a limit
must not silently leave the default in force.
"""

from __future__ import annotations

import difflib
import os
import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import msgspec

from ckptfs.errors import ConfigurationError
from ckptfs.fuse.mountinfo import settled_path

DEFAULT_FILE = "/etc/ckptfs/ckptfsd.toml"
ENVIRONMENT_PREFIX = "CKPTFSD_"

KIB = 1 << 10
MIB = 1 << 20
GIB = 1 << 30

# sockaddr_un.sun_path is 108 bytes and ends with a NUL (unix(7)).
MAX_SOCKET_PATH_BYTES = 107

Seconds = Annotated[float, msgspec.Meta(gt=0, le=86_400)]
Bytes = Annotated[int, msgspec.Meta(ge=0, le=1 << 62)]
Count = Annotated[int, msgspec.Meta(ge=1, le=100_000_000)]
Threads = Annotated[int, msgspec.Meta(ge=1, le=256)]


class StoreSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    path: str = "/var/lib/ckptfs"
    # Address space reserved for the index, not memory or disk: it only has to be larger than the index
    # will ever be (about 300 bytes for each chunk of 4 MiB).
    map_size_bytes: Annotated[int, msgspec.Meta(ge=64 * MIB, le=16 << 40)] = 32 * GIB
    open_blobs: Count = 256  # idle descriptors of blobs that are kept open
    max_checkpoint_bytes: Annotated[int, msgspec.Meta(ge=1, le=1 << 62)] = 500 * 10**9
    # Of the store's disk; never filled by a creation. On a small disk a twentieth of it, if that is less.
    reserve_free_bytes: Bytes = 1 * 10**9
    # For derived copies that are made without being asked for, so that files which share chunks are read
    # natively too. 0: only those that take no space, because the file system shares blocks.
    derived_limit_bytes: Bytes = 0


class MountSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    enabled: bool = True
    path: str = "/opt/trainml/checkpoint"
    # The kernel's default of 128 KiB costs a sequential reader nine tenths of the speed.
    read_ahead_kib: Annotated[int, msgspec.Meta(ge=0, le=1 << 20)] = 8 * KIB
    # Requests that the kernel sends ahead or in the background at a time; its own default is 12.
    max_background: Annotated[int, msgspec.Meta(ge=1, le=65_535)] = 4096
    # Open whole files past the daemon, where the kernel allows it: they are read at the disk's own speed.
    passthrough: bool = True
    # Requests that are served at a time; more than reads can wait for a disk, or a stat waits with them.
    max_requests: Annotated[int, msgspec.Meta(ge=64, le=1_000_000)] = 8192
    # Reads that wait for the disk at a time, and how many of them may be one checkpoint's.
    warm_reads: Threads = 64
    warm_reads_each: Threads = 16
    # Manifests that are decoded at a time.
    metadata_loads: Threads = 2
    # Blobs kept open for the extension that answers reads from the page cache without Python; 0: none.
    spliced_blobs: Annotated[int, msgspec.Meta(ge=0, le=1_000_000)] = 1024
    # For requests under way when the daemon stops. (When another worker goes on they are that one's.)
    stop_grace_seconds: Seconds = 5.0


WhenLost = Literal["remount", "stop"]


class HolderSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    """The process that owns the mount, and how it treats the worker that serves it."""

    # When somebody else unmounts the mount or aborts its connection.
    when_lost: WhenLost = "remount"
    # A worker that is not ready, or not gone, in this time is killed.
    start_timeout_seconds: Seconds = 60.0
    stop_timeout_seconds: Seconds = 20.0
    # How long the old worker of an upgrade may take to let go, and one that is prepared to be ready.
    pause_timeout_seconds: Seconds = 10.0
    # A worker whose event loop says nothing for so long is killed. 0: never.
    hang_timeout_seconds: Annotated[float, msgspec.Meta(ge=0, le=86_400)] = 90.0
    # Starts in a row that fail, after which what waits gets EIO and pauses between starts grow.
    failed_starts: Annotated[int, msgspec.Meta(ge=1, le=1000)] = 5
    slowest_restart_seconds: Seconds = 15.0
    # A second worker waits, prepared, for the death of the one that serves: some 40 MB for half a second.
    spare_worker: bool = True


class ControlSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    socket: str = "/run/ckptfs/control.sock"
    # Whoever may connect may read every checkpoint's files, so not everybody by default.
    socket_mode: Annotated[int, msgspec.Meta(ge=0o600, le=0o777)] = 0o660
    socket_group: str = ""  # empty: the daemon's own group
    admin_group: str = ""  # empty: only root and the daemon's own user may change anything
    max_connections: Count = 512
    max_body_bytes: Annotated[int, msgspec.Meta(ge=1 * KIB, le=1 * GIB)] = 1 * MIB
    # A client that sends or takes nothing for so long is cut off.
    send_timeout_seconds: Seconds = 30.0
    body_timeout_seconds: Seconds = 30.0
    idle_timeout_seconds: Seconds = 30.0
    stop_grace_seconds: Seconds = 3.0  # for requests under way when the daemon stops


class IngestSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    max_creations: Count = 4
    workers: Threads = 3
    remote_workers: Threads = 8
    # At least one chunk of 4 MiB must fit.
    buffer_bytes: Annotated[int, msgspec.Meta(ge=4 * MIB, le=1 * GIB)] = 8 * MIB
    commit_bytes: Annotated[int, msgspec.Meta(ge=1 * MIB, le=1 << 62)] = 512 * MIB
    commit_seconds: Seconds = 5.0


class SourceSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    connect_timeout_seconds: Seconds = 10.0
    read_timeout_seconds: Seconds = 60.0
    min_throughput_bytes_per_second: Bytes = 10_000
    retries: Annotated[int, msgspec.Meta(ge=0, le=1000)] = 5
    max_entries: Count = 2_000_000


class DraftsSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    # How long the bytes of a failed creation are kept, so that it can be resumed.
    retention_hours: Annotated[float, msgspec.Meta(ge=0, le=24 * 366)] = 24.0


class JobsSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    max_jobs: Count = 10_000


LogLevel = Literal["debug", "info", "warning", "error"]
LogFormat = Literal["text", "json"]


class LogSection(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    level: LogLevel = "info"
    format: LogFormat = "text"


class Config(msgspec.Struct, kw_only=True, frozen=True, forbid_unknown_fields=True):
    store: StoreSection = StoreSection()
    mount: MountSection = MountSection()
    holder: HolderSection = HolderSection()
    control: ControlSection = ControlSection()
    ingest: IngestSection = IngestSection()
    source: SourceSection = SourceSection()
    drafts: DraftsSection = DraftsSection()
    jobs: JobsSection = JobsSection()
    log: LogSection = LogSection()


#: What the environment can set: variable → (section, key).
ENVIRONMENT: dict[str, tuple[str, str]] = {
    "CKPTFSD_STORE": ("store", "path"),
    "CKPTFSD_MOUNT": ("mount", "path"),
    "CKPTFSD_SOCKET": ("control", "socket"),
    "CKPTFSD_LOG_LEVEL": ("log", "level"),
    "CKPTFSD_LOG_FORMAT": ("log", "format"),
}

_PATHS = (("store", "path"), ("mount", "path"), ("control", "socket"))
_OCTAL = {("control", "socket_mode")}


@dataclass(frozen=True)
class Effective:
    """The configuration in force. ``origins`` says for (section, key) where a value that is not the
    default comes from; ``file`` is the configuration file that was read, or None."""

    config: Config
    origins: dict[tuple[str, str], str]
    file: str | None

    def render(self) -> str:
        """The whole configuration as TOML, each value with its origin as a comment."""
        lines = [f"# configuration file: {self.file or f'none ({DEFAULT_FILE} is not there)'}"]
        for section_name in Config.__struct_fields__:
            lines += ["", f"[{section_name}]"]
            section = getattr(self.config, section_name)
            settings = []
            for key in section.__struct_fields__:
                at = (section_name, key)
                settings.append((f"{key} = {_toml(getattr(section, key), octal=at in _OCTAL)}", at))
            width = max(len(text) for text, _ in settings)
            lines += [f"{text:<{width}}  # {self.origins.get(at, 'default')}" for text, at in settings]
        return "\n".join(lines) + "\n"


def load(
    flags: Mapping[tuple[str, str], str | bool],
    environ: Mapping[str, str],
    *,
    file: str | None = None,
    flag_names: Mapping[tuple[str, str], str] | None = None,
    default_file: str = DEFAULT_FILE,
) -> Effective:
    """Merge and check. ``flags`` holds only what was given; ``file`` is ``--config`` or None.

    Raises :class:`ConfigurationError` with one line that says where and what.
    """
    _refuse_unknown_variables(environ)
    chosen = file or environ.get("CKPTFSD_CONFIG") or ""
    raw = _read_file(chosen or default_file, must_exist=bool(chosen))
    used_file = None if raw is None else (chosen or default_file)

    origins: dict[tuple[str, str], str] = {}
    merged: dict[str, dict[str, Any]] = {}
    if raw is not None:
        assert used_file is not None
        _integral_floats(raw)
        _convert(raw, used_file)
        for section, values in raw.items():
            merged[section] = dict(values)
            origins.update({(section, key): used_file for key in values})

    overrides: list[tuple[tuple[str, str], Any, str]] = []
    for variable, at in ENVIRONMENT.items():
        if environ.get(variable):
            overrides.append((at, environ[variable], f"environment {variable}"))
    for at, flag in flags.items():
        overrides.append((at, flag, (flag_names or {}).get(at, f"flag for {at[0]}.{at[1]}")))
    for (section, key), value, origin in overrides:
        if (section, key) in _PATHS and isinstance(value, str):
            if not value:
                raise ConfigurationError(f"{origin}: the path is empty")
            value = os.path.abspath(value)
        _convert({section: {key: value}}, origin)
        merged.setdefault(section, {})[key] = value
        origins[(section, key)] = origin

    config = _convert(merged, "configuration")
    effective = Effective(_with_clean_paths(config, origins), origins, used_file)
    _cross_check(effective)
    return effective


def encode(config: Config) -> str:
    """As JSON; :func:`decode` is the way back."""
    return msgspec.json.encode(config).decode()


def decode(text: str) -> Effective:
    """The configuration of an earlier process. Raises :class:`ConfigurationError`."""
    try:
        return Effective(msgspec.json.decode(text, type=Config), {}, None)
    except msgspec.MsgspecError as error:
        raise ConfigurationError(f"the configuration of the worker before this one: {error}") from None


def _refuse_unknown_variables(environ: Mapping[str, str]) -> None:
    known = [*ENVIRONMENT, "CKPTFSD_CONFIG"]
    for name in sorted(environ):
        if name.startswith(ENVIRONMENT_PREFIX) and name not in known:
            raise ConfigurationError(f"environment {name}: unknown variable{_suggest(name, known)}")


def _read_file(path: str, *, must_exist: bool) -> dict[str, Any] | None:
    try:
        with open(path, "rb") as stream:
            return tomllib.load(stream)
    except FileNotFoundError:
        if must_exist:
            raise ConfigurationError(f"{path}: there is no such configuration file") from None
        return None
    except OSError as error:
        raise ConfigurationError(f"{path}: cannot be read: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{path}: not valid TOML: {error}") from None


def _convert(raw: Mapping[str, Any], origin: str) -> Config:
    try:
        return msgspec.convert(raw, Config, strict=True)
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"{origin}: {_explain(str(error))}") from None


_UNKNOWN = re.compile(r"Object contains unknown field `([^`]*)`(?: - at `\$\.?([^`]*)`)?")
_WRONG = re.compile(r"(.*) - at `\$\.([^`]*)`$", re.DOTALL)


def _explain(message: str) -> str:
    """msgspec's message in the words of a TOML file."""
    if unknown := _UNKNOWN.match(message):
        name, section = unknown[1], unknown[2]
        if not section:
            sections = Config.__struct_fields__
            return f"unknown section or key {name!r}{_suggest(name, sections)}"
        keys = type(getattr(Config(), section)).__struct_fields__
        return f"[{section}] unknown key {name!r}{_suggest(name, keys)}"
    if wrong := _WRONG.match(message):
        what = wrong[1].replace("`object`", "a table").replace("`", "").replace("Expected", "expected")
        what = what.replace("Invalid enum value", "invalid value")
        section, _, key = wrong[2].partition(".")
        words = {("log", "level"): LogLevel, ("log", "format"): LogFormat, ("holder", "when_lost"): WhenLost}
        if (section, key) in words and "invalid value" in what:
            allowed = get_args(words[section, key])
            what += f" (one of {', '.join(allowed)})"
        return f"[{section}] {key}: {what}" if key else f"[{section}]: {what}"
    return message


def _suggest(name: str, known: Any) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else f"; known: {', '.join(known)}"


def _integral_floats(raw: dict[str, Any]) -> None:
    """Let ``500e9`` stand for 500000000000 where a whole number is wanted (TOML makes it a float)."""
    for section, values in raw.items():
        if section not in Config.__struct_fields__ or not isinstance(values, dict):
            continue
        hints = get_type_hints(type(getattr(Config(), section)))
        for key, value in values.items():
            hint = hints.get(key)
            wants = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            if wants is int and isinstance(value, float) and value.is_integer():
                values[key] = int(value)


def _with_clean_paths(config: Config, origins: Mapping[tuple[str, str], str]) -> Config:
    for section_name, key in _PATHS:
        section = getattr(config, section_name)
        path = getattr(section, key)
        origin = origins.get((section_name, key), "default")
        if not os.path.isabs(path):
            raise ConfigurationError(f"{origin}: [{section_name}] {key}: {path!r} is not an absolute path")
        if any(c < " " for c in path):
            raise ConfigurationError(
                f"{origin}: [{section_name}] {key}: {path!r} has a control character in it"
            )
        section = msgspec.structs.replace(section, **{key: os.path.normpath(path)})
        config = msgspec.structs.replace(config, **{section_name: section})
    return config


def _cross_check(effective: Effective) -> None:
    config = effective.config
    socket = config.control.socket
    length_bytes = len(os.fsencode(socket))
    if length_bytes > MAX_SOCKET_PATH_BYTES:
        raise ConfigurationError(
            f"[control] socket: {socket!r} has {length_bytes} bytes; a Unix socket's path has at most "
            f"{MAX_SOCKET_PATH_BYTES}"
        )
    if config.mount.enabled:
        # Whatever lies below the mount would be hidden by it, and a daemon that reads its own mount waits
        # for itself.
        for what, path in (("[store] path", config.store.path), ("[control] socket", socket)):
            if lies_in(path, config.mount.path):
                raise ConfigurationError(f"{what}: {path!r} lies in the mount {config.mount.path!r}")
        if lies_in(config.mount.path, config.store.path):
            raise ConfigurationError(
                f"[mount] path: {config.mount.path!r} lies in the store {config.store.path!r}"
            )


def lies_in(path: str, directory: str) -> bool:
    """Whether a path is ``directory`` or below it, symbolic links followed. Neither is looked at through a
    mount that is at ``directory`` or ``path``: a worker comes by here before it serves that mount."""
    if _is_below(os.path.abspath(path), os.path.abspath(directory)):
        return True
    return _is_below(settled_path(path), settled_path(directory))


def _is_below(path: str, directory: str) -> bool:
    return os.path.commonpath([path, directory]) == directory


def _toml(value: object, *, octal: bool) -> str:
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return f"0o{value:o}" if octal else f"{value:_}"
    if isinstance(value, float):
        return repr(value)
    # A TOML basic string takes JSON's escapes.
    return msgspec.json.encode(value).decode()
