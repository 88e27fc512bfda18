"""Tries cases, one after another: reads them as lines of JSON, answers each with its verdict.

    python tests/fuzz/worker.py calls|commands FOLDER

A call of Python runs in this process. A command runs the script itself in a child, forked from this process, which has
imported everything beforehand: what runs is the script's own code from its first line on, but its imports cost nothing.
"""

import contextlib
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
import warnings
from pathlib import Path

import commands
import judge
from corpus import Case

SCRIPTS = Path(__file__).parents[2] / "experiments"


def run_call(case: Case, names: dict) -> tuple[str, str]:
    """`(verdict, note)` of a Python call."""
    try:
        value = eval(case.call, dict(names))
        leaves = getattr(value, "block_until_ready", None)
        if leaves is not None:
            leaves()
    except Exception as error:
        return judge.best([judge.judge_error(outcome, error) for outcome in case.outcomes])
    try:
        return judge.best([judge.judge_value(outcome, value, names) for outcome in case.outcomes])
    except Exception as error:
        return "wrong value", judge.short(f"{type(error).__name__}: {error}")


def run_command(case: Case, root: str, seconds: float) -> tuple[str, str]:
    """`(verdict, note)` of a command line."""
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as stack:
        command = commands.parse(case.call, root, folder)
        out, err = (stack.enter_context(open(os.path.join(folder, f".{name}"), "w+b")) for name in ("out", "err"))
        start = start_cold if command.cold else start_warm
        process = start(command, folder, out, err)
        status = wait(process, command.signals, seconds)
        if status is None:
            return "hang", f"after {seconds:g} s: {judge.short(read(err))}"
        return judge.best([judge.judge_exit(outcome, status, read(out), read(err)) for outcome in case.outcomes])


def read(file) -> str:
    file.seek(0)
    return file.read().decode(errors="backslashreplace")


#: A `Popen` that nobody holds waits for a child that has ended, and takes the status that `wait` asks for.
_STARTED: list[subprocess.Popen] = []


def start_cold(command, folder, out, err) -> int:
    """The command as a process of its own; returns its id."""
    words = [sys.executable, *command.words] if command.words[0].endswith(".py") else ["bash", *command.words]
    environ = {**os.environ, "JAX_PLATFORMS": "cpu"} | command.environ
    process = subprocess.Popen(words, cwd=folder, env=environ, stdin=subprocess.DEVNULL, stdout=out, stderr=err,
                               start_new_session=True)  # fmt: skip
    _STARTED.append(process)
    return process.pid


def start_warm(command, folder, out, err) -> int:
    """The script in a child of this process; returns its id."""
    child = os.fork()
    if child:
        return child
    status = 1
    try:
        os.setsid()
        os.chdir(folder)
        for number, file in ((0, os.open(os.devnull, os.O_RDONLY)), (1, out.fileno()), (2, err.fileno())):
            os.dup2(file, number)
        sys.stdin, sys.stdout, sys.stderr = (os.fdopen(n, mode) for n, mode in ((0, "r"), (1, "w"), (2, "w")))
        signal.signal(signal.SIGINT, signal.default_int_handler)
        status = run_script(command.words)
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)


def run_script(words: list[str]) -> int:
    """Runs a script as `python SCRIPT ...` does; returns its exit status."""
    sys.argv = words
    sys.path[0] = os.path.dirname(words[0])
    try:
        runpy.run_path(words[0], run_name="__main__")
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
            return 1
        return end.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
        return 1
    return 0


def wait(process: int, signals, seconds: float) -> int | None:
    """The exit status (128 + n for signal n); none after too long. Sends signals at their times."""
    began, left = time.monotonic(), list(signals)
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        passed = time.monotonic() - began
        if left and passed >= left[0][0]:
            os.kill(process, left.pop(0)[1])
        if passed > seconds:
            os.killpg(process, signal.SIGKILL)
            os.waitpid(process, 0)
            return None
        time.sleep(0.01)


def main() -> None:
    kind, root, seconds = sys.argv[1], sys.argv[2], float(sys.argv[3])
    warnings.filterwarnings("ignore", message=".*os.fork.*")
    answers = os.fdopen(os.dup(1), "w", buffering=1)
    os.dup2(2, 1)  # what the cases print is no answer
    if kind == "calls":
        from namespace import namespace

        names = namespace(root)
    else:
        commands.warm_up()
    print(json.dumps("ready"), file=answers)
    for line in sys.stdin:
        case = Case(**json.loads(line))
        verdict = run_call(case, names) if kind == "calls" else run_command(case, root, seconds)
        print(json.dumps(verdict), file=answers)


if __name__ == "__main__":
    main()
