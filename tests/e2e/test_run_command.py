"""`ckptfs run` as its command sees it: exit status, signals, streams, terminal, lease."""

from __future__ import annotations

import json
import os
import pty
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from daemon_process import CKPTFS, SAMPLES, Daemon, until

pytestmark = pytest.mark.skipif(os.geteuid() != 0, reason="these start a daemon that mounts as root")

PLACE = "/opt/trainml/checkpoint"


def jobs(node: Daemon) -> list[str]:
    return [job["job"] for job in node.json("jobs")["jobs"]]


def start(node: Daemon, *arguments: str, **options: object) -> subprocess.Popen[str]:
    return subprocess.Popen(  # type: ignore[call-overload,no-any-return]
        [*CKPTFS, "run", *arguments],
        env=node.environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
    )


def signals_as_in_a_shell() -> None:
    """Who runs the tests in the background may have had these ignored, and that is inherited."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


def shell(node: Daemon, script: str, *checkpoints: str, code: int = 0) -> str:
    named = [word for name in checkpoints or ("model",) for word in ("--checkpoint", name)]
    return node.run("run", *named, "--", "sh", "-c", script, code=code).stdout


def test_one_checkpoint_lies_flat(node: Daemon) -> None:
    listed = shell(node, f"cd {PLACE} && find . -type f | sort").split()
    assert listed == sorted(f"./{path}" for path in SAMPLES["model"])
    assert shell(node, f"cat {PLACE}/config.json") == SAMPLES["model"]["config.json"].decode()
    assert shell(node, 'cat "$ML_CHECKPOINT_PATH/config.json"') == SAMPLES["model"]["config.json"].decode()
    assert (
        shell(node, 'echo "$TRAINML_CHECKPOINT_PATH $ML_CHECKPOINT_PATH"') == f"{PLACE} /opt/ml/checkpoint\n"
    )


def test_several_lie_in_directories_by_name(node: Daemon) -> None:
    for place in (PLACE, "/opt/ml/checkpoint"):
        assert shell(node, f"ls {place}", "model", "adapter").split() == ["adapter", "model"]
        assert shell(node, f"ls {place}/adapter", "model", "adapter").split() == ["adapter.bin"]
    assert (
        shell(node, f"touch {PLACE}/x 2>&1 || true", "model", "adapter")
        .strip()
        .endswith("Read-only file system")
    )


def test_every_byte_is_the_same_on_both_paths(node: Daemon) -> None:
    for place in (PLACE, "/opt/ml/checkpoint"):
        for path, content in SAMPLES["model"].items():
            done = subprocess.run(
                [*CKPTFS, "run", "--checkpoint", "model", "--", "cat", f"{place}/{path}"],
                env=node.environment(),
                capture_output=True,
                check=True,
            )
            assert done.stdout == content


@pytest.mark.parametrize("code", [0, 1, 2, 42, 125, 255])
def test_the_exit_status_is_the_commands(node: Daemon, code: int) -> None:
    shell(node, f"exit {code}", code=code)


def test_what_cannot_be_run(node: Daemon, tmp_path: Path) -> None:
    text = tmp_path / "text"
    text.write_text("no program")
    for command, code in (
        ("no-such-command-here", 127),
        (str(tmp_path / "none"), 127),
        (str(text), 126),
        ("/", 126),
    ):
        failed = node.run("run", "--checkpoint", "model", "--", command, code=code)
        assert failed.stderr.startswith("ckptfs: error: cannot run ")
        assert failed.stderr.count("\n") == 1
    for arguments in (["--checkpoint", "none", "--", "true"], ["--checkpoint", "model"], ["--", "true"]):
        assert node.run("run", *arguments, code=125).stderr.startswith("ckptfs: error: ")
    until(lambda: not jobs(node), "the leases of what could not be run have ended")


def test_options_of_the_command_are_its_own(node: Daemon) -> None:
    out = node.run("run", "--checkpoint", "model", "printf", "%s,", "--json", "-h", "--", "--socket").stdout
    assert out == "--json,-h,--,--socket,"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGKILL])
def test_a_signal_is_the_commands_and_ends_the_lease(node: Daemon, number: signal.Signals) -> None:
    script = "echo here; exec sleep 60"
    process = start(
        node,
        *("--job", f"job-{number}", "--checkpoint", "model", "--", "sh", "-c", script),
        preexec_fn=signals_as_in_a_shell,
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        assert jobs(node) == [f"job-{number}"]
        in_use = node.run("remove", "model", code=4)
        assert f"job-{number}" in in_use.stderr
        process.send_signal(number)
        assert process.wait(20) == -number
    until(lambda: not jobs(node), "the lease has ended")


def test_the_command_can_handle_a_signal(node: Daemon) -> None:
    process = start(
        node, "--checkpoint", "model", "--", "sh", "-c", "trap 'exit 9' TERM; echo here; sleep 60 & wait"
    )
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == "here\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(20) == 9


def test_the_process_is_the_commands_own(node: Daemon) -> None:
    """No process stands between: number, parent, group and open files are as for a plain command."""
    reader, writer = os.pipe()
    process = start(
        node,
        *(
            "--checkpoint",
            "model",
            "--",
            "sh",
            "-c",
            f"echo $$ $PPID; echo passed >/proc/self/fd/{writer}; ls /proc/self/fd | wc -l",
        ),
        pass_fds=(writer,),
    )
    os.close(writer)
    with process, os.fdopen(reader) as passed:
        out, err = process.communicate(timeout=20)
        assert passed.read() == "passed\n"
    assert err == ""
    own, parent, descriptors = out.split()
    assert (int(own), int(parent)) == (process.pid, os.getpid())
    assert int(descriptors) == 5  # 0, 1, 2, the passed one, and that of ls


def test_a_broken_pipe_ends_the_command_as_it_does_without_us(node: Daemon) -> None:
    """Python ignores SIGPIPE for itself; a command that inherited that would see EPIPE instead."""
    out = shell(node, "grep SigIgn /proc/self/status").split()[1]
    assert int(out, 16) & (1 << (signal.SIGPIPE - 1) | 1 << (signal.SIGXFSZ - 1)) == 0


def test_streams_pass_through(node: Daemon) -> None:
    process = start(node, "--checkpoint", "model", "--", "sh", "-c", "cat; echo to stderr >&2")
    out, err = process.communicate("line one\nline two\n", timeout=20)
    assert (out, err, process.returncode) == ("line one\nline two\n", "to stderr\n", 0)


def test_the_terminal_passes_through(node: Daemon) -> None:
    command = [
        *CKPTFS,
        "run",
        "--checkpoint",
        "model",
        "--",
        "sh",
        "-c",
        'tty && stty size && read x && echo "got $x"',
    ]
    child, leader = pty.fork()
    if child == 0:
        os.environ.update(node.environment())
        os.execv(command[0], command)
    os.write(leader, b"typed\n")
    said = b""
    try:
        while piece := os.read(leader, 4096):
            said += piece
    except OSError:
        pass
    _, status = os.waitpid(child, 0)
    os.close(leader)
    assert os.waitstatus_to_exitcode(status) == 0
    lines = said.decode().split("\r\n")
    assert any(line.startswith("/dev/pts/") for line in lines)
    assert "got typed" in lines


def test_json_describes_the_job_beside_the_commands_output(node: Daemon) -> None:
    ran = node.run("run", "--json", "--job", "described", "--checkpoint", "model", "--", "echo", "out")
    assert ran.stdout == "out\n"
    described = json.loads(ran.stderr)
    assert described["job"] == "described"
    assert described["path"] == described["env"]["TRAINML_CHECKPOINT_PATH"] == PLACE


def test_a_job_may_be_many_processes(node: Daemon) -> None:
    script = f"for i in 1 2 3; do (cat {PLACE}/weights/part-2.bin | wc -c) & done; wait"
    assert shell(node, script).split() == [str(len(SAMPLES["model"]["weights/part-2.bin"]))] * 3


def test_the_files_can_be_mapped(node: Daemon) -> None:
    program = (
        "import mmap,sys; f=open(sys.argv[1],'rb'); m=mmap.mmap(f.fileno(),0,prot=mmap.PROT_READ); "
        "sys.stdout.write(str(sum(m[::4096])))"
    )
    path = f"{PLACE}/weights/part-1.bin"
    out = node.run("run", "--checkpoint", "model", "--", sys.executable, "-c", program, path).stdout
    assert int(out) == sum(SAMPLES["model"]["weights/part-1.bin"][::4096])


def test_the_same_job_again_is_refused_while_it_lives(node: Daemon) -> None:
    first = start(node, "--job", "one", "--checkpoint", "model", "--", "sh", "-c", "echo here; exec sleep 60")
    with first:
        assert first.stdout is not None
        first.stdout.readline()
        assert (
            "one" in node.run("run", "--job", "one", "--checkpoint", "adapter", "--", "true", code=125).stderr
        )
        first.kill()
    until(lambda: not jobs(node), "the lease has ended")
    node.run("run", "--job", "one", "--checkpoint", "adapter", "--", "true")


def test_a_kill_before_the_command_has_begun_ends_the_lease(node: Daemon) -> None:
    for delay in (0.05, 0.1, 0.15, 0.2):
        process = start(node, "--checkpoint", "model", "--", "sleep", "60")
        time.sleep(delay)
        process.kill()
        process.communicate(timeout=20)
    until(lambda: not jobs(node), "the leases have ended")
