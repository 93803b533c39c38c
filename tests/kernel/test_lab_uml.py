"""User-mode Linux runs commands as if they were local, and leaves nothing behind."""

import io
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from terway_core.lab import uml
from terway_core.lab.state import LabError

pytestmark = pytest.mark.kernel


def runnable():
    if problems := uml.missing():
        reason = f"user-mode Linux cannot run: {'; '.join(problems)}"
        if os.environ.get("CI"):
            pytest.fail(reason)
        pytest.skip(reason)


@pytest.fixture(scope="module")
def machine():
    runnable()
    with uml.booted() as machine:
        yield machine


def run(machine, *argv, **options):
    """Exit status, standard output and standard error."""
    stdout, stderr = io.BytesIO(), io.BytesIO()
    status = machine.run(argv, stdout=stdout, stderr=stderr, **options)
    return status, stdout.getvalue().decode(), stderr.getvalue().decode()


def test_another_kernel_with_the_same_files(machine, tmp_path):
    (tmp_path / "in").write_text("from the host")
    status, stdout, _ = run(machine, "sh", "-c", "cat in; uname -r; echo from inside >out", cwd=tmp_path)
    assert status == 0
    assert stdout.splitlines()[0].startswith("from the host")
    assert os.uname().release not in stdout
    assert (tmp_path / "out").read_text() == "from inside\n"


def test_directory_environment_and_arguments_are_the_callers(machine, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ODD", "two words, 'quotes' and\na $line")
    code = "import os, sys; print(os.getcwd(), repr(os.environ['ODD']), sys.argv[1:])"
    arguments = ["*", "a b", "$HOME", "it's", ""]
    status, stdout, stderr = run(machine, sys.executable, "-c", code, *arguments)
    assert (status, stderr) == (0, "")
    assert stdout == f"{tmp_path} {os.environ['ODD']!r} {arguments}\n"


def test_only_the_given_environment(machine):
    assert run(machine, "/usr/bin/env", env={"ONE": "1"})[1] == "ONE=1\n"


def test_channels_are_apart_and_bytes_untouched(machine):
    out = io.BytesIO()
    machine.run(["printf", r"\377\001\r\n\t"], stdout=out, stderr=out)
    assert out.getvalue() == b"\xff\x01\r\n\t"
    assert run(machine, "sh", "-c", "echo one; echo two >&2")[1:] == ("one\n", "two\n")


def test_output_comes_as_it_is_written(machine):
    class Times(io.BytesIO):
        def write(self, data):
            times.append(time.monotonic())
            return super().write(data)

    times = []
    stdout = Times()
    machine.run(["sh", "-c", "echo one; sleep 1; echo two"], stdout=stdout, stderr=io.BytesIO())
    assert stdout.getvalue() == b"one\ntwo\n"
    assert times[-1] - times[0] > 0.5


def test_much_output(machine):
    size = 3_000_000
    status, stdout, _ = run(machine, "sh", "-c", f"head -c {size} /dev/zero | tr '\\0' x")
    assert (status, len(stdout)) == (0, size)


@pytest.mark.parametrize(
    ("argv", "status"),
    [
        (["true"], 0),
        (["sh", "-c", "exit 7"], 7),
        (["sh", "-c", "kill -TERM $$"], 128 + signal.SIGTERM),
        (["no-such-command"], 127),
    ],
)
def test_exit_status(machine, argv, status):
    assert run(machine, *argv)[0] == status


def test_input_is_empty_and_there_is_no_terminal(machine):
    code = (
        "import sys; print(repr(sys.stdin.read()), [f.isatty() for f in (sys.stdin, sys.stdout, sys.stderr)])"
    )
    assert run(machine, sys.executable, "-c", code)[1] == "'' [False, False, False]\n"


def test_a_command_that_takes_too_long_is_killed_with_its_children(machine):
    with pytest.raises(LabError, match=r"sh took longer than 0\.5 s"):
        run(machine, "sh", "-c", "sleep 4321 & sleep 4321", timeout=0.5)
    deadline = time.monotonic() + 20
    while "sleep 4321" in run(machine, "ps", "-eo", "args")[1]:
        assert time.monotonic() < deadline


def test_modules_are_loaded_when_they_are_needed(machine):
    script = (
        "ip link add d0 up type dummy && ip link add i0 link d0 type ipvlan mode l2"
        " && ip link add v0 type veth peer v1 && tc qdisc add dev d0 clsact"
        " && tc filter add dev d0 egress protocol ip flower dst_ip 10.0.0.0/8"
        " action mirred egress redirect dev v0"
        " && tc filter add dev d0 egress bpf da bytecode '1,6 0 0 0,'"
        " && iptables-legacy -t nat -A POSTROUTING -s 10.0.0.0/8 -j MASQUERADE && ip -6 rule"
    )
    status, _, stderr = run(machine, "sh", "-c", script)
    assert (status, stderr) == (0, "")


def test_loopback_is_up_and_the_network_its_own(machine):
    status, stdout, _ = run(machine, "sh", "-c", "ls /sys/class/net; ip -br address show dev lo")
    assert status == 0
    assert "127.0.0.1/8" in stdout
    assert not {line for line in stdout.split() if line in os.listdir("/sys/class/net")} - {"lo"}


def test_the_kernels_own_words_are_kept_apart(machine):
    status, stdout, stderr = run(machine, "sh", "-c", "echo '<1>a word of the kernel' >/dev/kmsg")
    assert (status, stdout, stderr) == (0, "", "")
    assert "a word of the kernel" in (machine.folder / "kernel.log").read_text()


# -- ends -------------------------------------------------------------------------------------------------


def processes_of(folder: Path) -> list[str]:
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        try:
            if str(folder) in (entry / "cmdline").read_text():
                found.append(entry.name)
        except OSError:
            continue
    return found


def gone(folder: Path) -> bool:
    deadline = time.monotonic() + 20
    while processes_of(folder):
        if time.monotonic() > deadline:
            return False
        time.sleep(0.05)
    return True


def test_a_kernel_that_dies_is_told_with_the_end_of_its_log():
    runnable()
    with uml.booted() as machine:
        folder = machine.folder
        with pytest.raises(LabError, match="user-mode Linux ended") as caught:
            run(machine, "sh", "-c", "echo c >/proc/sysrq-trigger; sleep 30")
        assert "Kernel panic" in caught.value.details or "sysrq" in caught.value.details
        with pytest.raises(LabError, match="user-mode Linux does not run"):
            run(machine, "true")
    assert not folder.exists()
    assert gone(folder)


def test_nothing_is_left_after_the_block(monkeypatch, tmp_path):
    runnable()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with uml.booted() as machine:
        folder = machine.folder
        run(machine, "mkdir", "/run/only-inside")
    assert gone(folder)
    assert list(tmp_path.iterdir()) == []
    assert not Path("/run/only-inside").exists()
    assert folder.name not in Path("/proc/self/mountinfo").read_text()


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT])
def test_it_ends_with_whoever_booted_it(tmp_path, number):
    runnable()
    code = (
        # What a shell runs in the background inherits that SIGINT is ignored.
        "import signal\nfrom terway_core.lab import uml\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with uml.booted() as machine:\n"
        "    print(machine.folder, flush=True)\n"
        "    machine.run(['sleep', '600'])\n"
    )
    booter = subprocess.Popen(
        [sys.executable, "-c", code],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        stdin=subprocess.DEVNULL,
        env=os.environ | {"TMPDIR": str(tmp_path)},
    )
    folder = Path(booter.stdout.readline().decode().strip())
    assert processes_of(folder)
    booter.send_signal(number)
    booter.communicate()
    assert gone(folder)
    assert folder.exists() == (number == signal.SIGKILL)


def test_a_machine_can_outlive_its_booter(tmp_path):
    runnable()
    folder = tmp_path / "machine"
    folder.mkdir()
    code = f"from pathlib import Path; from terway_core.lab import uml; uml.boot(Path({str(folder)!r}))"
    subprocess.run([sys.executable, "-c", code], check=True)
    machine = uml.Machine.find(folder)
    try:
        assert run(machine, "echo", "here")[:2] == (0, "here\n")
    finally:
        machine.power_off()
    assert gone(folder)
    assert uml.Machine.find(folder) is None


def test_works_without_standard_streams(tmp_path):
    runnable()
    code = (
        "import io, os\nfor fd in (0, 1, 2): os.close(fd)\n"
        "from terway_core.lab import uml\n"
        f"with uml.booted() as machine, open({str(tmp_path / 'out')!r}, 'wb') as out:\n"
        "    os._exit(machine.run(['echo', 'here'], stdout=out, stderr=out))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"TMPDIR": str(tmp_path)})
    assert done.returncode == 0
    assert (tmp_path / "out").read_text() == "here\n"
    assert gone(tmp_path)
