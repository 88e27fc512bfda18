"""Tries every case of the corpus: no traceback, nothing silently accepted, no hang, each error one clear line.

    python tests/fuzz/run.py [--rooms spiking commands] [--only TEXT] [--write docs/reliability.md]

Exit status 1 if a case is not sound. `--write` puts the table into its section of a page.
"""

import collections
import dataclasses
import json
import os
import queue
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import judge
from corpus import Case, read_corpus
from rich.console import Console
from rich.markup import escape
from rich.progress import track

from ge2mst_jax.report.sections import hardware, markdown, write_section
from ge2mst_jax.train.command import run_command

HERE = Path(__file__).parent
CACHE = HERE.parents[1] / ".cache" / "jax"


@dataclasses.dataclass(frozen=True)
class Fuzz:
    """Tries malformed inputs on the package's public functions and on its command lines."""

    rooms: tuple[str, ...] = ()
    """Files of the corpus, such as spiking or commands; all if none."""
    only: str = ""
    """Only calls that hold this text."""
    share: float = 1.0
    """Of the cases, drawn by the seed."""
    seed: int = 0
    """Of what is drawn from families."""
    workers: int = 2
    """Cases at a time."""
    call_seconds: float = 60.0
    """After which a call counts as hanging."""
    command_seconds: float = 120.0
    """After which a command counts as hanging."""
    made: Path | None = None
    """Folder that keeps what the cases are tried on (made if it is not there); a temporary one if none."""
    write: Path | None = None
    """The page whose section is replaced."""


def is_command(case: Case) -> bool:
    return case.room.startswith("commands")


class Worker:
    """A process of `worker.py` that takes one case at a time; a new one when it hangs or dies."""

    def __init__(self, kind: str, root: str, options: Fuzz):
        self.kind, self.root = kind, root
        self.limit = options.command_seconds
        self.patience = options.call_seconds if kind == "calls" else options.command_seconds + 10
        self.process = None

    def judge(self, case: Case) -> tuple[str, str]:
        """`(verdict, note)`."""
        if self.process is None:
            self.start()
        self.process.stdin.write(json.dumps(dataclasses.asdict(case)) + "\n")
        self.process.stdin.flush()
        answer = self.answer(self.patience)
        if answer is not None:
            return tuple(json.loads(answer))
        try:
            status = self.process.wait(1)
        except subprocess.TimeoutExpired:
            status = None
        self.close()
        return ("hang", f"after {self.patience:g} s") if status is None else ("died", f"with status {status}")

    def start(self) -> None:
        words = [sys.executable, str(HERE / "worker.py"), self.kind, self.root, str(self.limit)]
        pipe = subprocess.PIPE
        self.process = subprocess.Popen(words, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)
        self.lines = queue.Queue()
        threading.Thread(target=self._read, args=(self.process.stdout, self.lines), daemon=True).start()
        if self.answer(120) is None:
            raise RuntimeError(f"a worker does not start: {' '.join(words)}")

    @staticmethod
    def _read(stream, lines) -> None:
        for line in stream:
            lines.put(line)
        lines.put(None)

    def answer(self, seconds: float) -> str | None:
        try:
            return self.lines.get(timeout=seconds)
        except queue.Empty:
            return None

    def close(self) -> None:
        if self.process is not None:
            self.process.kill()
            self.process.wait()
            self.process.stdin.close()
            self.process = None


def try_all(cases: list[Case], root: str, options: Fuzz, console: Console) -> list[tuple[Case, str, str]]:
    """`(case, verdict, note)` of each, in the order in which they ended; says at once which are not sound."""
    waiting, done = queue.Queue(), queue.Queue()
    for case in sorted(cases, key=is_command, reverse=True):  # the long ones first
        waiting.put(case)

    def work() -> None:
        workers = {kind: Worker(kind, root, options) for kind in ("calls", "commands")}
        try:
            while True:
                case = waiting.get_nowait()
                done.put((case, *workers["commands" if is_command(case) else "calls"].judge(case)))
        except queue.Empty:
            pass
        except Exception as error:
            done.put(error)
        finally:
            for worker in workers.values():
                worker.close()

    for _ in range(options.workers):
        threading.Thread(target=work, daemon=True).start()
    found = []
    for _ in track(range(len(cases)), "fuzz", console=console, disable=not console.is_terminal):
        item = done.get()
        if isinstance(item, Exception):
            raise item
        found.append(item)
        case, verdict, note = item
        if verdict not in judge.SOUND:
            console.print(f"[red]{verdict}[/red] {escape(f'{case.place}  {case.call}')}", soft_wrap=True)
            console.print(f"    {escape(f'{note}  (not: {case.outcome})')}", soft_wrap=True, highlight=False)
    return found


def table_of(found) -> tuple[list[str], list[list]]:
    """Header and rows: one a room, then the sum."""
    rooms = collections.defaultdict(collections.Counter)
    for case, verdict, _ in found:
        rooms[case.room][verdict] += 1
        rooms["all"][verdict] += 1
    names = [*sorted(name for name in rooms if name != "all"), "all"]
    columns = (*judge.SOUND, *judge.BROKEN)
    header = ["corpus", "cases", *columns]
    return header, [[name, rooms[name].total(), *(rooms[name][c] for c in columns)] for name in names]


def main(options: Fuzz) -> None:
    console, began = Console(), time.monotonic()
    os.environ.update(JAX_COMPILATION_CACHE_DIR=str(CACHE), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3")
    os.environ.update(JAX_PLATFORMS="cpu", PYTHONPATH=str(HERE.parents[1]))
    cases = [case for case in read_corpus(options.seed) if options.only in case.call]
    cases = [case for case in cases if not options.rooms or case.room in options.rooms]
    cases = thinned(cases, options.share, options.seed)
    if not cases:
        raise ValueError("no case: see tests/fuzz/corpus")
    with tempfile.TemporaryDirectory(prefix="fuzz-") as root:
        os.environ["TMPDIR"] = root
        made = (options.made or Path(root) / "made").resolve()
        if not made.is_dir():
            subprocess.run([sys.executable, HERE / "fixtures.py", made], check=True, stdout=subprocess.DEVNULL)
        found = try_all(cases, str(made), options, console)
    header, rows = table_of(found)
    minutes = (time.monotonic() - began) / 60
    table = markdown(header, rows)
    console.print(table, markup=False, highlight=False, soft_wrap=True)
    said = f"{len(found)} cases, seed {options.seed}, {minutes:.1f} minutes on {hardware()}."
    console.print(said)
    if options.write is not None:
        write_section(options.write, "fuzz", f"{table}\n\n{said}")
    sys.exit(any(verdict not in judge.SOUND for _, verdict, _ in found))


def thinned(cases: list[Case], share: float, seed: int) -> list[Case]:
    """Some of the cases, drawn by the seed."""
    import numpy as np

    chosen = np.random.default_rng(seed).random(len(cases)) < share
    return [case for case, kept in zip(cases, chosen, strict=True) if kept]


if __name__ == "__main__":
    run_command(main, Fuzz)
