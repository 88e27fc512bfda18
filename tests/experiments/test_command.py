"""Where a script meets the world: one line and a status for what a person does or meets, a traceback for a fault."""

import dataclasses
import logging
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Literal

import jax
import pytest
import tyro

from ge2mst_jax.checks import check_whole
from ge2mst_jax.train.command import check_argument, run_command

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
SCRIPTS = sorted(path.name for path in EXPERIMENTS.glob("*.py") if path.name != "signals.py")
TRAIN = [sys.executable, str(EXPERIMENTS / "train.py"), "digits"]


@dataclasses.dataclass(frozen=True)
class Options:
    """Nothing."""

    path: Path = Path("a")
    number: int = 1


def ended(main, *arguments):
    """The exit status of a command line in this process."""
    with pytest.raises(SystemExit) as stop:
        run_command(main, Options, arguments=arguments)
    return stop.value.code


def raises(error):
    def main(options):
        raise error

    return main


BACKEND = "Unable to initialize backend 'foo': Backend 'foo' is not in the list of known backends"
WORKER = "Worker process was terminated unexpectedly with exit code -7."


@pytest.mark.parametrize(
    ("error", "status", "says"),
    [
        (ValueError("epochs is 0:\n it must be above 0"), 2, "error: epochs is 0: it must be above 0"),
        (ValueError("[/x] \x1b[31m"), 2, r"error: [/x] \x1b[31m"),
        (ValueError(), 2, "error: ValueError"),
        (PermissionError(13, "Permission denied", "a"), 2, "error: [Errno 13] Permission denied: 'a'"),
        (OSError(28, "No space left on device"), 2, "device: the run's disk is full, or /dev/shm, of which fewer"),
        (MemoryError(), 2, "error: out of memory: a smaller batch_size needs less"),
        (jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory"), 2, "error: out of memory"),
        (RuntimeError(BACKEND), 2, "error: JAX_PLATFORMS must name what this machine has, such as cpu (Unable"),
        (RuntimeError(WORKER), 2, "error: a worker died"),
        (jax.errors.JaxRuntimeError("INTERNAL: Gloo all-reduce failed"), 2, "error: another process of this run"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_what_a_person_does_or_meets_is_one_line(error, status, says, capsys):
    assert ended(raises(error)) == status
    found = capsys.readouterr()
    assert found.out == ""
    assert says in found.err
    assert len(found.err.splitlines()) == 1


@pytest.mark.parametrize("error", [TypeError("a"), AssertionError("a"), RuntimeError("a"), KeyError("a")])
def test_fault_of_the_program_keeps_its_traceback(error, capsys):
    with pytest.raises(type(error)):
        run_command(raises(error), Options, arguments=())
    assert capsys.readouterr().err == ""


def test_absent_gpus_are_named_though_jax_only_asserts(monkeypatch, capsys):
    def devices():
        raise AssertionError

    monkeypatch.setattr(jax, "devices", devices)
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    assert ended(raises(AssertionError())) == 2
    assert "JAX_PLATFORMS must name what this machine has, such as cpu (it is cuda)" in capsys.readouterr().err


def test_traceback_is_shown_on_request(monkeypatch):
    monkeypatch.setenv("GE2MST_TRACEBACK", "1")
    with pytest.raises(ValueError, match="wrong"):
        run_command(raises(ValueError("wrong")), Options, arguments=())


def test_tracebacks_of_libraries_are_folded_into_the_line(capsys):
    root, listener = logging.getLogger(), logging.StreamHandler(sys.stderr)
    root.addHandler(listener)

    def die():
        raise OSError("no space left")

    def main(options):
        thread = threading.Thread(target=die)
        thread.start()
        thread.join()
        try:
            die()
        except OSError:
            logging.getLogger("absl").exception("the save failed")
            logging.getLogger("absl").warning("a proxy is set")
            logging.getLogger("ge2mst_jax.train").warning("image 3 is skipped", exc_info=True)
            raise

    hooks = threading.excepthook, sys.unraisablehook
    try:
        assert ended(main) == 2
    finally:
        root.removeHandler(listener)
    said = capsys.readouterr().err
    assert "the save failed" not in said
    assert "a proxy is set" in said
    assert said.count("Traceback") == 1  # our own logger's
    assert said.endswith("error: no space left\n")
    assert (threading.excepthook, sys.unraisablehook) == hooks


def test_fault_in_a_thread_is_shown(monkeypatch, capsys):
    def main(options):
        thread = threading.Thread(target=raises(TypeError("a fault")), args=(None,))
        thread.start()
        thread.join()

    monkeypatch.setattr(threading, "excepthook", threading.__excepthook__)  # not pytest's
    run_command(main, Options, arguments=())
    assert "TypeError: a fault" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("text", "becomes"),
    [
        ("~/x", "HOME/x"),
        ("--path=~/x", "--path=HOME/x"),
        ("a~b", "a~b"),
        ("./~nobody", "./~nobody"),
        ("ä[/x]", "ä[/x]"),
    ],
)
def test_home_is_expanded(text, becomes, monkeypatch):
    monkeypatch.setenv("HOME", "/h")
    assert check_argument(text) == becomes.replace("HOME", "/h")


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--path", "~no-such-user/x"], "~no-such-user/x: there is no such user"),
        (["--path=~no-such-user/x"], "--path=~no-such-user/x: there is no such user"),
        (["--path", "a\udcff"], r"a\udcff is no UTF-8"),
        (["--path", ""], "--path is empty: leave it out"),
        (["--num\x1b[31mber", ""], r"--num\x1b[31mber is empty"),
        ([""], "an argument is empty: leave it out"),
        (["--path="], "--path is empty: leave it out"),
        (["--number", "[/x]"], "'[/x]'"),
        (["--num\x1b[31mber", "[/x]"], r"--num\x1b[31mber, [/x]"),
    ],
)
def test_wrong_arguments_are_refused_without_control_characters(arguments, says, capsys):
    assert ended(lambda options: None, *arguments) == 2
    said = capsys.readouterr().err
    assert says in said
    assert "Traceback" not in said
    assert said.replace("\n", "").isprintable()


@dataclasses.dataclass(frozen=True)
class Named(Options):
    """Options with an argument that has its name from its position."""

    images: tyro.conf.Positional[tuple[Path, ...]] = ()


def test_empty_argument_without_an_option_is_refused_by_the_name_of_its_field(capsys):
    with pytest.raises(SystemExit):
        run_command(lambda options: None, Named, arguments=["--number", "3", "a", ""])
    assert "error: images is empty: leave it out" in capsys.readouterr().err


@dataclasses.dataclass(frozen=True)
class Checked:
    """Options whose number is checked when they are made."""

    number: int = 1
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        check_whole("number", self.number, 1, 9)


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--number", "0"], "number is 0: it must be a whole number, 1 to 9 (--help explains the options)"),
        (["--number", "x"], "--number: invalid literal for int() with base 10: 'x'"),
        (["--number"], "Missing value for argument '--number'"),
        (["--kind", "c"], "invalid choice 'c' for argument '--kind'. Expected one of ('a', 'b')."),
        (["--numbr", "3"], "Unrecognized options: --numbr, 3; Perhaps you meant: --number INT"),
        (["--kind", "a" * 300], "a" * 300),
    ],
)
def test_wrong_options_are_answered_in_one_line(arguments, says, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    with pytest.raises(SystemExit) as caught:
        run_command(lambda options: None, Checked, arguments=arguments)
    said = capsys.readouterr()
    assert caught.value.code == 2
    assert says in said.err
    assert len(said.err.splitlines()) == 1
    assert not said.out
    assert os.environ["COLUMNS"] == "40"


@pytest.mark.parametrize("arguments", ["--help", "digits --help"])
def test_reader_that_goes_away_is_no_error(arguments):
    command = f"set -o pipefail; {sys.executable} {EXPERIMENTS / 'train.py'} {arguments} | true"
    found = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=100, check=False)
    assert (found.returncode, found.stderr) == (141, "")


@pytest.mark.parametrize(
    ("environment", "options", "says"),
    [
        ({"JAX_PLATFORMS": "foo"}, [], "JAX_PLATFORMS must name what this machine has"),
        ({}, ["--coordinator", "auto"], "coordinator is auto, but JAX finds no cluster to ask"),
        (
            {"GE2MST_JOIN_SECONDS": "1"},
            ["--coordinator", "no-host.invalid:1234", "--num-processes", "2", "--process-id", "1"],
            "waited 1 s for all 2 processes at coordinator no-host.invalid:1234",
        ),
    ],
)
def test_train_says_in_one_line_what_keeps_it_from_starting(environment, options, says, tmp_path):
    found = subprocess.run(
        TRAIN + options, env=os.environ | environment, cwd=tmp_path, capture_output=True, text=True, timeout=100,
        check=False,
    )  # fmt: skip
    assert (found.returncode, found.stdout) == (2, "")
    assert found.stderr.startswith(f"train.py: error: {says}")
    assert len(found.stderr.splitlines()) == 1
    assert not any(tmp_path.iterdir())


@pytest.mark.parametrize("script", SCRIPTS)
def test_signals_come_before_all_that_takes_time(script):
    lines = (EXPERIMENTS / script).read_text().split('"""')[2].split("\n")
    assert next(line for line in lines if line.strip()).startswith("import signals")
    light = "import signals, sys; print(*sys.modules)"
    found = subprocess.run([sys.executable, "-c", light], cwd=EXPERIMENTS, capture_output=True, text=True, check=True)
    assert not {"jax", "numpy", "tyro", "ge2mst_jax"} & set(found.stdout.split())


def wait_until_it_listens(process: subprocess.Popen) -> None:
    """Until it has a handler of SIGTERM: before that no line of the script has run."""
    deadline = time.monotonic() + 50
    while True:
        status = Path(f"/proc/{process.pid}/status").read_text()
        if int(status.partition("SigCgt:")[2].split()[0], 16) >> (signal.SIGTERM - 1) & 1:
            return
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.001)


SLOW = [pytest.param(seconds, marks=pytest.mark.slow) for seconds in (0.2, 0.5, 2, 3, 4)]


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="asks /proc what a process listens to")
@pytest.mark.parametrize(("number", "says"), [(signal.SIGINT, "interrupted"), (signal.SIGTERM, "ended by SIGTERM")])
@pytest.mark.parametrize("seconds", [0, 1, *SLOW])
def test_early_signal_ends_the_run_in_one_line(number, says, seconds, tmp_path):
    options = ["--epochs", "1000", "--run-dir", "run"]
    with subprocess.Popen(
        TRAIN + options, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as running:
        wait_until_it_listens(running)
        time.sleep(seconds)
        running.send_signal(number)
        try:
            out, err = running.communicate(timeout=60)
        finally:
            running.kill()
    assert running.returncode == 128 + number, err
    saved = "is saved, the same command goes on" in out  # where the loop had begun by then
    assert (err == "") if saved else (err == f"train.py: {says}\n")


def test_signal_is_answered_while_the_main_thread_is_outside_python(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import ctypes, signals\nsignals.listen()\nprint('ready', flush=True)\n"
        "for _ in range(2): ctypes.CDLL(None).sleep(100)\n"
    )
    with subprocess.Popen(
        [sys.executable, script], env=os.environ | {"PYTHONPATH": str(EXPERIMENTS)}, stdout=subprocess.PIPE,
        stderr=subprocess.PIPE, text=True,
    ) as running:  # fmt: skip
        assert running.stdout.readline() == "ready\n"
        time.sleep(0.3)
        running.send_signal(signal.SIGINT)
        try:
            _, err = running.communicate(timeout=20)
        finally:
            running.kill()
    assert (running.returncode, err) == (130, "script.py: interrupted\n")


def test_workers_leave_a_terminal_s_ctrl_c_to_their_parent(tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import signals\nimport multiprocessing, signal\n"
        "def say(): print(signal.getsignal(signal.SIGINT) == signal.SIG_IGN, flush=True)\n"
        "if __name__ == '__main__':\n"
        "    worker = multiprocessing.get_context('spawn').Process(target=say)\n"
        "    say(); worker.start(); worker.join()\n"
    )
    environment = os.environ | {"PYTHONPATH": str(EXPERIMENTS)}
    found = subprocess.run([sys.executable, script], env=environment, capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "True"]
