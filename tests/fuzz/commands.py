"""Command lines of the corpus.

    [cold] [SIGINT@SECONDS] [VARIABLE=VALUE ...] SCRIPT ARGUMENT ...

SCRIPT is a file of `experiments` or `experiments/launch`. Quotes are the shell's (`$'...'` too). `$RUN` and the other
names of `fixtures.NAMES` are paths, `$NEW` is a folder that is not there yet, `$(...)` is a Python expression. A line
with a variable or a signal, and every launcher, runs as a process of its own; so does one that is `cold`.
"""

import ast
import dataclasses
import importlib
import os
import re
import shlex
import signal
from pathlib import Path

import fixtures

EXPERIMENTS = Path(__file__).parents[2] / "experiments"
#: What the scripts import, and what they import late.
WARM = """ge2mst_jax.convert ge2mst_jax.data.tfds_source ge2mst_jax.report ge2mst_jax.train.command
    ge2mst_jax.train.distributed sklearn.datasets sklearn.model_selection tensorboardX""".split()
_WORD = re.compile(r"\$'((?:[^'\\]|\\.)*)'|\$\(|\$([A-Z]+)")
_SIGNAL = re.compile(r"(SIG[A-Z]+)@([\d.]+)")


@dataclasses.dataclass(frozen=True)
class Command:
    """What is run: the script and its arguments, variables, `(seconds, signal)` of each signal."""

    words: list[str]
    environ: dict[str, str]
    signals: list[tuple[float, int]]
    cold: bool


def parse(line: str, root: str, folder: str) -> Command:
    """Reads a line.

    >>> parse("SIGINT@0.5 A=b train.py digits --steps $'1\\\\n'", "/root", "/new").words[1:]
    ['digits', '--steps', '1\\n']
    """
    words = shlex.split(substitute(line, {**fixtures.paths_of(Path(root)), "NEW": os.path.join(folder, "new")}))
    signals, environ, cold = [], {}, False
    while True:
        timed = _SIGNAL.fullmatch(words[0])
        if timed:
            signals.append((float(timed[2]), signal.Signals[timed[1]]))
        elif words[0] == "cold":
            cold = True
        elif re.match(r"[A-Z_0-9]+=", words[0]):
            name, _, environ_value = words[0].partition("=")
            environ[name] = environ_value
        else:
            break
        words = words[1:]
    script = EXPERIMENTS / ("launch" if words[0].endswith(".sh") else "") / words[0]
    cold = cold or bool(signals or environ) or script.suffix == ".sh"
    return Command([str(script), *words[1:]], environ, signals, cold)


def substitute(line: str, names: dict[str, str]) -> str:
    """Puts paths, Python's values and control characters into a line, each as one word of the shell."""
    helpers = {"os": os, "damaged": fixtures.damaged, "folder_of": fixtures.folder_of}
    done, at = [], 0
    while match := _WORD.search(line, at):
        done.append(line[at : match.start()])
        at = match.end()
        if match[1] is not None:
            done.append(shlex.quote(ast.literal_eval(f"'{match[1]}'")))
        elif match[2]:
            done.append(shlex.quote(names[match[2]]))
        else:
            end = closing(line, at)
            done.append(shlex.quote(str(eval(line[at:end], names | helpers))))
            at = end + 1
    return "".join((*done, line[at:]))


def closing(line: str, at: int) -> int:
    """Where the bracket closes that opened before `at`."""
    depth = 1
    for i in range(at, len(line)):
        depth += (line[i] == "(") - (line[i] == ")")
        if not depth:
            return i
    raise ValueError(f"a bracket stays open in {line!r}")


def warm_up() -> None:
    """Imports all that the scripts do; starts no backend of JAX, so that children may be forked."""
    for name in WARM:
        importlib.import_module(name)
