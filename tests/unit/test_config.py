"""The daemon's configuration: who wins, what is refused, and where each value comes from."""

from __future__ import annotations

import dataclasses
import inspect
import re
import tomllib
from collections.abc import Callable
from pathlib import Path

import pytest

from ckptfs.errors import ConfigurationError
from ckptfsd import config as configuration
from ckptfsd.config import Config, Effective, load

STORE = ("store", "path")


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str], str]:
    def write(text: str) -> str:
        path = tmp_path / "ckptfsd.toml"
        path.write_text(text)
        return str(path)

    return write


def load_file(path: str, **environ: str) -> Effective:
    return load({}, environ, file=path)


def test_without_anything_the_defaults_hold(tmp_path: Path) -> None:
    effective = load({}, {}, default_file=str(tmp_path / "absent.toml"))
    assert effective.config == Config()
    assert effective.file is None
    assert effective.config.store.path == "/var/lib/ckptfs"
    assert effective.config.mount.path == "/opt/trainml/checkpoint"
    assert effective.config.control.socket == "/run/ckptfs/control.sock"
    assert effective.config.store.max_checkpoint_bytes == 500 * 10**9


def test_flags_win_over_environment_over_file_over_default(write: Callable[[str], str]) -> None:
    path = write('[store]\npath = "/from/file"\n[log]\nlevel = "error"\n[ingest]\nworkers = 7\n')
    environ = {"CKPTFSD_STORE": "/from/environment", "CKPTFSD_LOG_LEVEL": "debug"}
    effective = load({STORE: "/from/flag"}, environ, file=path, flag_names={STORE: "--store"})
    assert effective.config.store.path == "/from/flag"
    assert effective.config.log.level == "debug"
    assert effective.config.ingest.workers == 7
    assert effective.config.ingest.max_creations == Config().ingest.max_creations
    assert effective.origins == {
        STORE: "--store",
        ("log", "level"): "environment CKPTFSD_LOG_LEVEL",
        ("ingest", "workers"): path,
    }
    assert load({}, environ, file=path).config.store.path == "/from/environment"
    assert load({}, {}, file=path).config.store.path == "/from/file"


def test_the_file_may_be_named_by_the_environment_and_a_flag_wins(write: Callable[[str], str]) -> None:
    path = write("[ingest]\nworkers = 9\n")
    assert load({}, {"CKPTFSD_CONFIG": path}).config.ingest.workers == 9
    assert load({}, {"CKPTFSD_CONFIG": "/no/such/file"}, file=path).config.ingest.workers == 9


def test_only_the_default_file_may_be_absent(tmp_path: Path) -> None:
    absent = str(tmp_path / "absent.toml")
    assert load({}, {}, default_file=absent).file is None
    with pytest.raises(ConfigurationError, match=r"absent\.toml: there is no such configuration file"):
        load({}, {}, file=absent)
    with pytest.raises(ConfigurationError, match="there is no such configuration file"):
        load({}, {"CKPTFSD_CONFIG": absent})


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("[store", "not valid TOML"),
        ("\x00", "not valid TOML"),
        ('[stor]\npath = "/x"', "unknown section or key 'stor'; did you mean 'store'"),
        ("path = 1", "unknown section or key 'path'"),
        ('[store]\npth = "/x"', r"\[store\] unknown key 'pth'; did you mean 'path'"),
        ("[store]\nx_y_z = 1", r"\[store\] unknown key 'x_y_z'; known: path, map_size_bytes"),
        ("store = 3", r"\[store\]: expected a table, got int"),
        ("[store]\npath = 3", r"\[store\] path: expected str, got int"),
        ('[store]\npath = "relative"', r"\[store\] path: 'relative' is not an absolute path"),
        ('[store]\npath = "/a\\nb"', r"\[store\] path: .* control character"),
        ('[store]\nmax_checkpoint_bytes = "500GB"', r"max_checkpoint_bytes: expected int, got str"),
        ("[store]\nmax_checkpoint_bytes = 1.5", "max_checkpoint_bytes: expected int, got float"),
        ("[store]\nmax_checkpoint_bytes = inf", "max_checkpoint_bytes: expected int, got float"),
        ("[store]\nmax_checkpoint_bytes = 0", "max_checkpoint_bytes: expected int >= 1"),
        ("[store]\nreserve_free_bytes = -1", "reserve_free_bytes: expected int >= 0"),
        (f"[store]\nmax_checkpoint_bytes = {10**30}", r"\[store\] max_checkpoint_bytes: "),
        ("[mount]\nenabled = 1", r"\[mount\] enabled: expected bool, got int"),
        ("[mount]\nread_ahead_kib = true", "read_ahead_kib: expected int, got bool"),
        ('[control]\nsocket_mode = "0660"', "socket_mode: expected int, got str"),
        ("[control]\nsocket_mode = 660", "socket_mode: expected int <= 511"),
        ("[control]\nsend_timeout_seconds = nan", r"\[control\] send_timeout_seconds: "),
        ("[control]\nsend_timeout_seconds = inf", r"\[control\] send_timeout_seconds: "),
        ("[ingest]\nbuffer_bytes = 1024", "buffer_bytes: expected int >= 4194304"),
        ("[ingest]\nworkers = 0", "workers: expected int >= 1"),
        ("[drafts]\nretention_hours = -1", "retention_hours: expected float >= 0"),
        ("[source]\nretries = 1979-05-27", "retries: expected int, got date"),
        (
            '[log]\nlevel = "loud"',
            r"\[log\] level: invalid value 'loud' \(one of debug, info, warning, error",
        ),
        ("[log]\nformat = 3", r"\[log\] format: expected str, got int"),
    ],
)
def test_every_mistake_in_the_file_is_one_line_that_names_file_and_key(
    write: Callable[[str], str], text: str, says: str
) -> None:
    path = write(text)
    with pytest.raises(ConfigurationError, match=says) as caught:
        load_file(path)
    message = caught.value.message
    assert message.startswith(path)
    assert "\n" not in message
    assert caught.value.exit_code == 2


def test_mistakes_in_environment_and_flags_name_them() -> None:
    with pytest.raises(ConfigurationError, match=r"environment CKPTFSD_LOG_FORMAT: \[log\] format"):
        load({}, {"CKPTFSD_LOG_FORMAT": "xml"}, default_file="/no/such")
    with pytest.raises(ConfigurationError, match="environment CKPTFSD_STROE: unknown variable; did you mean"):
        load({}, {"CKPTFSD_STROE": "/x"}, default_file="/no/such")
    with pytest.raises(ConfigurationError, match=r"--store: the path is empty"):
        load({STORE: ""}, {}, flag_names={STORE: "--store"}, default_file="/no/such")
    # The client's own variable is no business of the daemon's.
    load({}, {"CKPTFS_SOCKET": "/x", "CKPTFSD_STORE": ""}, default_file="/no/such")


def test_paths_on_the_command_line_may_be_relative(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    effective = load({STORE: "a/../b"}, {}, default_file="/no/such")
    assert effective.config.store.path == str(tmp_path / "b")


def test_a_socket_path_that_the_system_cannot_hold_is_refused() -> None:
    fits, too_long = "/" + "a" * 106, "/" + "ä" * 54
    assert load({("control", "socket"): fits}, {}, default_file="/no/such").config.control.socket == fits
    with pytest.raises(ConfigurationError, match="has 109 bytes; a Unix socket's path has at most 107"):
        load({("control", "socket"): too_long}, {}, default_file="/no/such")


def test_nothing_of_the_daemon_may_lie_in_its_own_mount(tmp_path: Path) -> None:
    mount = tmp_path / "mnt"
    (tmp_path / "link").symlink_to(mount)
    mount.mkdir()

    def attempt(store: Path, socket: Path = tmp_path / "s") -> Effective:
        flags = {STORE: str(store), ("mount", "path"): str(mount), ("control", "socket"): str(socket)}
        return load(flags, {}, default_file="/no/such")

    attempt(tmp_path / "mnt-store")
    for store in (mount, mount / "deep" / "store", tmp_path / "link" / "store"):
        with pytest.raises(ConfigurationError, match=r"\[store\] path: .* lies in the mount"):
            attempt(store)
    with pytest.raises(ConfigurationError, match=r"\[control\] socket: .* lies in the mount"):
        attempt(tmp_path / "store", mount / "control.sock")
    with pytest.raises(ConfigurationError, match=r"\[mount\] path: .* lies in the store"):
        attempt(tmp_path)
    flags = {STORE: str(mount / "store"), ("mount", "path"): str(mount), ("mount", "enabled"): False}
    assert not load(flags, {}, default_file="/no/such").config.mount.enabled


def test_big_numbers_may_be_written_with_an_exponent(write: Callable[[str], str]) -> None:
    config = load_file(write("[store]\nmax_checkpoint_bytes = 750e9\n")).config
    assert config.store.max_checkpoint_bytes == 750_000_000_000
    assert type(config.store.max_checkpoint_bytes) is int


def test_what_check_config_prints_is_a_configuration_that_gives_the_same(
    write: Callable[[str], str], tmp_path: Path
) -> None:
    path = write('[control]\nsocket_mode = 0o600\nadmin_group = "we\\"ird"\n[mount]\nenabled = false\n')
    effective = load_file(path, CKPTFSD_STORE="/s")
    printed = effective.render()
    again = tmp_path / "again.toml"
    again.write_text(printed)
    assert load_file(str(again)).config == effective.config
    lines = {line.split(" = ")[0]: line for line in printed.splitlines() if " = " in line}
    assert lines["socket_mode"].split() == ["socket_mode", "=", "0o600", "#", path]
    assert lines["path"].endswith("# default")  # the mount's, which comes last
    assert "# environment CKPTFSD_STORE" in printed
    assert f"# configuration file: {path}" in printed


def test_every_limit_says_its_unit() -> None:
    """A number's name ends with its unit, or it is a plain count."""
    units = ("_bytes", "_seconds", "_kib", "_hours", "_bytes_per_second")
    counts = {
        "socket_mode",
        "open_blobs",
        "max_connections",
        "max_creations",
        "workers",
        "remote_workers",
        "retries",
        "failed_starts",
        "max_entries",
        "max_jobs",
        "max_background",
        "max_requests",
        "spliced_blobs",
        "warm_reads",
        "warm_reads_each",
        "metadata_loads",
    }
    found = set()
    for section in tomllib.loads(load({}, {}, default_file="/no/such").render()).values():
        for key, value in section.items():
            if isinstance(value, int | float) and not isinstance(value, bool):
                found.add(key)
                assert key.endswith(units) or key in counts, key
    assert counts <= found


def test_every_limit_of_the_parts_can_be_configured() -> None:
    """A limit that the configuration cannot reach is a limit without a name."""
    from ckptfs.engine.config import EngineConfig
    from ckptfs.fuse.session import MountConfig
    from ckptfsd import launch, limits
    from ckptfsd.holder.options import Options
    from ckptfsd.server import ServerLimits

    not_for_people = {"min_tasks"}
    for made_by, kind in (
        (limits.engine_config, EngineConfig),
        (limits.mount_config, MountConfig),
        (limits.server_limits, ServerLimits),
    ):
        source = inspect.getsource(made_by)
        for field in dataclasses.fields(kind):
            assert f"{field.name}=" in source or field.name in not_for_people, field.name
    source = inspect.getsource(launch.holder_options)
    # The stack depth is the kernel's; resend is for tests; users, the system decides.
    for name in set(Options._fields) - {"max_stack_depth", "resend", "allow_other"}:
        assert f"{name}=" in source, name


def test_the_defaults_are_those_of_the_parts() -> None:
    """One truth: the defaults of the configuration and of the engine agree."""
    from ckptfs.engine.config import EngineConfig
    from ckptfs.fuse.session import MountConfig
    from ckptfs.store import Store
    from ckptfsd import launch, limits
    from ckptfsd.holder.options import Options
    from ckptfsd.server import ServerLimits

    config = load({("mount", "enabled"): False}, {}, default_file="/no/such").config
    assert limits.engine_config(config) == EngineConfig()
    assert limits.mount_config(config) == MountConfig()
    assert limits.server_limits(config) == ServerLimits()
    held = launch.holder_options(load({}, {}, default_file="/no/such").config, [])
    assert held == Options(mount=held.mount, worker=[], store=held.store)
    opened = inspect.signature(Store.open).parameters
    assert config.store.map_size_bytes == opened["map_size_bytes"].default
    assert config.store.open_blobs == opened["open_blobs"].default


def test_the_example_file_is_valid_and_says_the_defaults(tmp_path: Path) -> None:
    example = Path(configuration.__file__).parents[2] / "systemd" / "ckptfsd.toml"
    effective = load_file(str(example))
    groups = {"socket_group": "ckptfs", "admin_group": "ckptfs-admin"}
    for section in Config.__struct_fields__:
        ours, default = getattr(effective.config, section), getattr(Config(), section)
        for key in ours.__struct_fields__:
            expected = groups.get(key, getattr(default, key))
            assert getattr(ours, key) == expected, (section, key)
    # Everything that can be set is shown there, with its default.
    text = re.sub(r"^#(\w+ = )", r"\1", example.read_text(), flags=re.MULTILINE)
    shown = tmp_path / "shown.toml"
    shown.write_text(text)
    assert load_file(str(shown)).config == effective.config
    written = tomllib.loads(text)
    for section in Config.__struct_fields__:
        assert set(written[section]) == set(getattr(Config(), section).__struct_fields__), section
