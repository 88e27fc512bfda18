"""Kills runs at random moments and flips bits of what they leave: nothing is lost, nothing goes unnoticed.

    python tests/fuzz/kills.py [--kills 100] [--flips 20] [--write docs/reliability.md]

A run of the digits that saves every 3 steps is killed (SIGKILL) again and again until it is complete; its metrics
(wall-clock fields aside) and the arrays of its last checkpoint must equal those of a run that was not killed, bit for
bit. Then bits are flipped in every kind of file that a run and a deployed network leave: reading must refuse or say so,
or give the same, bit for bit. Exit status 1 otherwise.
"""

import collections
import dataclasses
import logging
import os
import queue
import re
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path

import fixtures
import numpy as np
from rich.console import Console
from rich.progress import track

from ge2mst_jax.report.sections import hardware, markdown, write_section
from ge2mst_jax.train import TrainConfig
from ge2mst_jax.train.checkpoints import steps_in
from ge2mst_jax.train.command import run_command

HERE = Path(__file__).parent
TRAIN = HERE.parents[1] / "experiments" / "train.py"
CACHE = HERE.parents[1] / ".cache" / "jax"
EXAMPLES, BATCH, EVERY = 1437, 32, 3
CLOCK = ("seconds", "data_seconds")
#: Most kills of one run: then it may end.
IN_A_ROW = 8


@dataclasses.dataclass(frozen=True)
class Kills:
    """Kills runs at random moments and flips bits of what they leave."""

    kills: int = 100
    """Runs are killed so often, in all."""
    flips: int = 20
    """Bits flipped in every kind of file."""
    steps: int = 48
    """Of a run."""
    seed: int = 0
    """Of the moments and bits."""
    workers: int = 2
    """Runs at a time."""
    write: Path | None = None
    """The page whose section is replaced."""


def config_of(steps: int) -> TrainConfig:
    """A run with everything that has a state, and a checkpoint every 3 steps."""
    return TrainConfig(
        steps=steps, batch_size=BATCH, warmup_epochs=2 * BATCH / EXAMPLES, spike_budget=0.3, drop_path=0.1,
        checkpoint_every_epochs=EVERY * BATCH / EXAMPLES, eval_every_epochs=4 * EVERY * BATCH / EXAMPLES,
    )  # fmt: skip


def start(run_dir, config: TrainConfig) -> subprocess.Popen:
    """The run as a process of its own."""
    names = "steps batch_size warmup_epochs spike_budget drop_path checkpoint_every_epochs eval_every_epochs".split()
    options = [text for name in names for text in (f"--{name.replace('_', '-')}", str(getattr(config, name)))]
    return subprocess.Popen(
        [sys.executable, "-u", TRAIN, "digits", "--run-dir", run_dir, *options],
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def wait_for_loop(process) -> list[str]:
    """What a run says until it knows where it starts from: then it compiles and trains."""
    said = []
    for line in process.stdout:
        said.append(line)
        if "resume order" in line:
            break
    return said


def finish(process) -> tuple[int, list[str]]:
    """Exit status and what is left to be said."""
    said = process.stdout.readlines()
    process.stdout.close()
    return process.wait(), said


def kill_until_complete(run_dir, config, seconds: float, rng, most: int, look=lambda: []) -> tuple[int, list[str]]:
    """`(kills, faults)` of one run: killed at random moments, `most` times at most, then left to end.

    `look` is asked after each sitting for what is wrong with what it left.
    """
    kills, faults = 0, []
    while True:
        before = steps_in(run_dir / "checkpoints")
        process = start(run_dir, config)
        killed = threading.Event()

        def kill(process=process, killed=killed):
            if process.poll() is None:
                killed.set()
                process.kill()

        anywhere = rng.random() < 0.2  # also while it imports and restores
        if kills < most and anywhere:
            timer = threading.Timer(rng.uniform(0, 8), kill)
            timer.start()
        said = wait_for_loop(process)
        if kills < most and not anywhere:
            timer = threading.Timer(rng.uniform(0, 1.1 * seconds), kill)
            timer.start()
        status, rest = finish(process)
        said += rest
        if kills < most:
            timer.cancel()
            timer.join()
        faults += told_faults(said, before) + look()
        if killed.is_set():
            kills += 1
        elif status == 0:
            return kills, faults
        else:
            return kills, [*faults, f"status {status}: {''.join(said)[-500:]}"]


def told_faults(said: list[str], before: list[int]) -> list[str]:
    """Where a sitting did not go on from the last checkpoint that was whole, or met a damaged one."""
    text = "".join(said)
    faults = ["a checkpoint is called damaged"] if "damaged" in text or "falling back" in text else []
    found = re.search(r"resume order (\d) of 3(?:: the checkpoint of step (\d+))?", text)
    if found and before and int(found[2] or -1) < before[-1]:
        faults.append(f"step {before[-1]} was saved, but the run went on from {found[0]!r}")
    return faults


def lines_of(run_dir: Path) -> list[dict]:
    """The run's metrics, wall-clock fields aside."""
    from ge2mst_jax.train import read_metrics

    return [{k: v for k, v in line.items() if k not in CLOCK} for line in read_metrics(run_dir / "metrics.jsonl")]


def state_of(run_dir: Path, config, step: int):
    """The leaves of a checkpoint, as NumPy arrays, and what it says of itself, without its time."""
    import jax

    from ge2mst_jax.train import Checkpoints, read_about, set_up

    setup = set_up(config, (8, 8, 1), 10, EXAMPLES)
    with Checkpoints(run_dir) as checkpoints:
        state = checkpoints.restore(step, setup.abstract_state)[0]
    _, about = read_about(run_dir, step)
    told = {key: about.get(key) for key in ("data", "config", "evaluation", "image_shape", "classes", "examples")}
    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)], told


def same_state(a, b) -> bool:
    return a[1] == b[1] and all(
        x.dtype == y.dtype and x.tobytes() == y.tobytes() for x, y in zip(a[0], b[0], strict=True)
    )


def kill_runs(folder: Path, options: Kills, console) -> tuple[list[list], bool]:
    """Rows of the table, and whether all is well."""
    config = config_of(options.steps)
    for whole in (folder / "first", folder / "whole"):  # the first one compiles: the second one's time is the others'
        process = start(whole, config)
        wait_for_loop(process)
        began = time.monotonic()
        status, said = finish(process)
        seconds = time.monotonic() - began
        if status:
            raise ValueError(f"the run that nobody kills fails: {''.join(said)[-1000:]}")
    expected = lines_of(whole), state_of(whole, config, options.steps)
    waiting, done = queue.Queue(), queue.Queue()
    for number in range(-(-options.kills // IN_A_ROW)):
        waiting.put((number, min(IN_A_ROW, options.kills - number * IN_A_ROW)))

    def work():
        try:
            while True:
                number, most = waiting.get_nowait()
                rng = np.random.default_rng((options.seed, number))
                kills = runs = 0
                while kills < most:  # a run that ends before its kills is followed by another
                    run_dir = folder / f"run_{number}_{runs}"
                    runs += 1
                    more, faults = kill_until_complete(run_dir, config, seconds, rng, most - kills)
                    kills += more
                    done.put((run_dir, more, faults))
        except queue.Empty:
            done.put(None)
        except BaseException as error:
            done.put(error)

    for _ in range(options.workers):
        threading.Thread(target=work, daemon=True).start()
    left, counts = options.workers, collections.Counter()
    while left:
        item = done.get()
        if item is None:
            left -= 1
            continue
        if isinstance(item, BaseException):
            raise item
        run_dir, kills, faults = item
        counts["kills"] += kills
        counts["runs"] += 1
        counts["lost"] += len(faults)
        try:
            if lines_of(run_dir) != expected[0]:
                counts["metrics"] += 1
            if not same_state(state_of(run_dir, config, options.steps), expected[1]):
                counts["states"] += 1
        except ValueError as error:
            counts["lost"] += 1
            faults.append(str(error))
        console.print(f"{counts['kills']} kills, {counts['runs']} runs complete", *faults, sep="\n    ", markup=False)
        shutil.rmtree(run_dir)
    row = [counts[key] for key in ("kills", "runs", "lost", "metrics", "states")]
    return [row], not any(row[2:])


# Bits.


@dataclasses.dataclass(frozen=True)
class Kind:
    """Files of one kind: their pattern in a folder, and how one that may be damaged is read (`None` if unlike)."""

    name: str
    folder: Path
    files: tuple[str, ...]
    read: object


def kinds_of(folder: Path, read) -> list[Kind]:
    """Every kind of file below a folder that is not empty: names without numbers and hashes."""
    kinds = collections.defaultdict(list)
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.is_symlink() and path.stat().st_size:
            name = str(path.relative_to(folder))
            plain = re.sub(r"[0-9a-f]{32}", "*", re.sub(r"tfevents.*", "tfevents.*", name))
            kinds[re.sub(r"(?<=checkpoints/)\d+", "STEP", plain)].append(name)
    return [Kind(f"{folder.name}/{plain}", folder, tuple(names), read) for plain, names in kinds.items()]


def flip_bits(kind: Kind, flips: int, rng, folder: Path) -> tuple[collections.Counter, list[str]]:
    """Outcomes of flips in files of a kind: `noticed`, `harmless`, `undetected`; and what went undetected."""
    counts, faults = collections.Counter(), []
    for _ in range(flips):
        name = kind.files[rng.integers(len(kind.files))]
        copy = folder / kind.folder.name
        shutil.copytree(kind.folder, copy)
        bit = int(rng.integers(8 * (copy / name).stat().st_size))
        fixtures.flip(copy / name, bit)
        try:
            found = kind.read(copy, name)
        except (ValueError, OSError):
            found = "noticed"
        except Exception as error:
            found = "undetected"
            faults.append(f"{name}, bit {bit}: {type(error).__name__}: {error}")
        if found == "undetected" and not (faults and faults[-1].startswith(f"{name}, bit {bit}")):
            faults.append(f"{name}, bit {bit}")
        counts[found] += 1
        shutil.rmtree(copy)
    return counts, faults


class Warnings(logging.Handler):
    """Whether anything was said while a block ran."""

    def __init__(self):
        super().__init__(logging.WARNING)
        self.said: list[str] = []

    def emit(self, record):
        self.said.append(record.getMessage())

    def __enter__(self):
        logging.getLogger("ge2mst_jax").addHandler(self)
        return self

    def __exit__(self, *_):
        logging.getLogger("ge2mst_jax").removeHandler(self)


def run_reader(run: Path, config):
    """Reads a run as its next sitting does, and each of its checkpoints as an evaluation does."""
    from ge2mst_jax.train import load_averaged, train

    steps = steps_in(run / "checkpoints")
    sound = {step: state_of(run, config, step) for step in steps}
    lines = lines_of(run)

    def read(copy: Path, name: str) -> str:
        if "tfevents" in name:
            return "noticed" if broken_events(copy / name) else "harmless"
        step = re.match(r"checkpoints/(\d+)/", name)
        if step is not None:
            found = state_of(copy, config, int(step[1]))
            load_averaged(copy, int(step[1]))
            return "harmless" if same_state(found, sound[int(step[1])]) else "undetected"
        with Warnings() as warnings:
            train(config, copy)
        same = lines_of(copy) == lines and same_state(state_of(copy, config, steps[-1]), sound[steps[-1]])
        return "harmless" if same else ("noticed" if warnings.said else "undetected")

    return read


def broken_events(path: Path) -> bool:
    """Whether a TensorBoard file's own checksums (which every reader of it compares) tell that it is damaged."""
    import struct

    from tensorboardX.record_writer import masked_crc32c

    content, at = path.read_bytes(), 0
    while at < len(content):
        head = content[at : at + 8]
        if len(content) < at + 12 or struct.pack("<I", masked_crc32c(head)) != content[at + 8 : at + 12]:
            return True
        length = struct.unpack("<Q", head)[0]
        data, check = content[at + 12 : at + 12 + length], content[at + 12 + length : at + 16 + length]
        if struct.pack("<I", masked_crc32c(data)) != check:
            return True
        at += 16 + length
    return False


def net_reader(net: Path):
    """Reads a deployed network."""
    import jax

    from ge2mst_jax.convert import load_net

    def all_of(path):
        net = load_net(path)
        rest = net.model, net.formats, tuple(net.image_shape), net.digest, net.about
        return [np.asarray(leaf) for leaf in jax.tree.leaves((net.params, net.source))], rest

    sound = all_of(net)
    return lambda copy, name: "harmless" if same_state(all_of(copy), sound) else "undetected"


def flip_all(folder: Path, options: Kills, console) -> tuple[list[list], bool]:
    """Rows of the table, and whether all is well."""
    from ge2mst_jax.train import train

    config = config_of(2 * EVERY)
    train(config, folder / "run")
    fixtures.make_net(folder / "net")
    kinds = kinds_of(folder / "run", run_reader(folder / "run", config))
    kinds += kinds_of(folder / "net", net_reader(folder / "net"))
    rows, well = [], True
    for number, kind in enumerate(track(kinds, "flips", console=console, disable=not console.is_terminal)):
        rng = np.random.default_rng((options.seed, number))
        with tempfile.TemporaryDirectory(dir=folder) as place:
            counts, faults = flip_bits(kind, options.flips, rng, Path(place))
        rows.append([f"`{kind.name}`", counts.total(), *(counts[k] for k in ("noticed", "harmless", "undetected"))])
        console.print(*rows[-1], *faults, sep="  ", markup=False, highlight=False, soft_wrap=True)
        well = well and not counts["undetected"]
    return rows, well


def main(options: Kills) -> None:
    console, began = Console(), time.monotonic()
    os.environ.update(
        JAX_COMPILATION_CACHE_DIR=str(CACHE), JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS="0.3", JAX_PLATFORMS="cpu",
        PYTHONPATH=str(HERE.parents[1]),
    )  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="kills-") as folder:
        killed, first = kill_runs(Path(folder), options, console) if options.kills else ([], True)
        flipped, second = flip_all(Path(folder), options, console) if options.flips else ([], True)
    header = ["kills", "runs complete", "lost or damaged", "other metrics", "other states"]
    text = "\n\n".join(
        (
            markdown(header, killed),
            markdown(["file", "flips", "noticed", "harmless", "undetected"], flipped),
            f"Seed {options.seed}, {(time.monotonic() - began) / 60:.0f} minutes on {hardware()}.",
        )
    )
    console.print(text, markup=False, highlight=False, soft_wrap=True)
    if options.write is not None:
        write_section(options.write, "kills", text)
    sys.exit(not (first and second))


if __name__ == "__main__":
    run_command(main, Kills)
