"""What every script shares: a frozen dataclass becomes a command line; what a person did or met becomes one line."""

import atexit
import contextlib
import dataclasses
import errno
import io
import logging
import os
import re
import signal
import sys
import threading

import jax
import tyro

from ge2mst_jax.checks import one_line

#: What libraries raise as a RuntimeError though it is no fault of the program: a pattern, and what to say of it.
MET = (
    (r"RESOURCE_EXHAUSTED", "out of memory: a smaller batch_size needs less, or accumulate, or remat"),
    (r"Unable to initialize backend|Unknown backend", "JAX_PLATFORMS must name what this machine has, such as cpu"),
    (r"Worker process was terminated", "a worker died, as with little memory or a small /dev/shm: try fewer workers"),
    (r"Gloo|UNAVAILABLE|DEADLINE_EXCEEDED", "another process of this run is gone: its own log says why"),
)


def run_command(main, options, default=None, arguments=None) -> None:
    """Parses `options` (a dataclass) from the command line and calls `main(options)`.

    Exit status: 0; 2 after one line about what a person gave or met (`GE2MST_TRACEBACK=1` shows where it was raised,
    and what libraries log of it); 130 after an interruption; 141 where the reader of its output went away; 1 after the
    traceback of a fault of the program.

    Args:
        main: from an instance of `options` to nothing.
        options: a frozen dataclass; its docstring is the script's help, its fields' docstrings theirs.
        default: makes the instance whose fields the command line changes; the dataclass's own defaults if none.
        arguments: the command line's, if not all of them.
    """
    with answered():
        given = sys.argv[1:] if arguments is None else arguments
        names = [option if option.startswith("--") else unnamed(options) for option in ("", *given)]
        texts = [check_argument(text, name) for name, text in zip(names, given, strict=False)]
        made = {} if default is None else {"default": default()}
        main(parse(options, texts, made))


@contextlib.contextmanager
def answered():
    """Ends the process with a status and one line where what it runs raises something that a person can cause."""
    shows = bool(os.environ.get("GE2MST_TRACEBACK"))
    try:
        with contextlib.nullcontext() if shows else quiet():
            yield
            sys.stdout.flush()
    except KeyboardInterrupt:
        handler = signal.getsignal(signal.SIGINT)
        if getattr(handler, "__module__", None) == "signals":
            handler(signal.SIGINT)  # at once: an interpreter that ends while XLA's threads run may crash
        end("interrupted", 130)
    except BaseException as error:
        if isinstance(error, BrokenPipeError) or isinstance(error.__context__, BrokenPipeError):  # rich's SystemExit
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may the last flush complain
            sys.exit(141)
        line = told(error)
        if line is None or shows:
            raise
        end(f"error: {line}", 2)


def end(line: str, status: int) -> None:
    print(f"{one_line(os.path.basename(sys.argv[0]))}: {line}", file=sys.stderr)
    sys.exit(status)


def told(error: BaseException) -> str | None:
    """What a person gave or met, in one line; `None` for a fault of the program, which is to show its traceback.

    >>> told(ValueError("epochs is 0:\\n it must be above 0")), told(TypeError("not callable"))
    ('epochs is 0: it must be above 0', None)
    """
    line = one_line(error) or type(error).__name__
    if isinstance(error, MemoryError):
        return f"{MET[0][1]} ({line})"
    if isinstance(error, AssertionError):  # JAX's, without a word, where JAX_PLATFORMS names absent GPUs
        return None if has_devices() else f"{MET[1][1]} (it is {os.environ.get('JAX_PLATFORMS')})"
    if isinstance(error, RuntimeError):
        return next((f"{says} ({line})" for pattern, says in MET if re.search(pattern, line)), None)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC and error.filename is None:
        return f"{line}: the run's disk is full, or /dev/shm, of which fewer workers need less"
    return line if isinstance(error, ValueError | OSError) else None


def has_devices() -> bool:
    try:
        return bool(jax.devices())
    except (AssertionError, RuntimeError):
        return False


def unnamed(options) -> str:
    """What an argument without an option is: the field that is one by its position, where there is one."""
    marked = (
        f.name for f in dataclasses.fields(options) if tyro.conf.Positional in getattr(f.type, "__metadata__", ())
    )
    return next(marked, "an argument")


def check_argument(text: str, name: str = "an argument") -> str:
    """An argument of the command line, with `~` at the beginning of its value as the home that it stands for.

    Args:
        text: the argument.
        name: the option before it, or what it is without one.

    Raises:
        ValueError: it is no UTF-8, empty, or there is no such home.
    """
    if not text.isascii() and any("\ud800" <= c <= "\udfff" for c in text):
        raise ValueError(f"the argument {one_line(text)} is no UTF-8: name files and folders in UTF-8")
    option, equals, value = text.partition("=") if text.startswith("--") else ("", "", text)
    if not value and not (option and not equals):
        raise ValueError(
            f"{one_line(option or name)} is empty: leave it out, or set the variable that it is taken from"
        )
    if not value.startswith("~"):
        return text
    home = os.path.expanduser(value)
    if home == value:
        raise ValueError(f"{one_line(text)}: there is no such user; write ./~ for a name that begins with ~")
    return option + equals + home


def parse(options, texts, made):
    """The instance that the command line makes.

    Raises:
        ValueError: it makes none; what tyro says of it in a box, in one line.
    """
    kind = (tyro.conf.FlagConversionOff,)
    if {"-h", "--help"}.intersection(texts):
        return tyro.cli(options, args=texts, config=kind, **made)
    said, width = io.StringIO(), os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "10000"  # no line of the box is broken
    try:
        with contextlib.redirect_stderr(said):
            return tyro.cli(options, args=texts, config=kind, **made)
    except SystemExit as error:
        raise ValueError(unboxed(said.getvalue()) or f"ended with status {error.code}") from None
    finally:
        os.environ.pop("COLUMNS")
        if width is not None:
            os.environ["COLUMNS"] = width


def unboxed(box: str) -> str:
    """What tyro says in a box (or under a title, where the terminal has no lines to draw), in one line.

    >>> unboxed("╭─ Oh ─╮\\n│ Error parsing A: n is 0 │\\n│ ────── │\\n│ For full helptext, run x │\\n╰──────╯")
    'n is 0 (--help explains the options)'
    """
    lines = [line.strip("│| ") for line in box.split("\n") if not line.startswith(("╭", "╰", "+"))]
    parts = [one_line(part) for part in re.split(r"^(?:─+|-+)$", "\n".join(lines), flags=re.MULTILINE)]
    parts = [part for part in parts if part and not part.startswith("For full help")]
    titled = not box.startswith(("╭", "+"))
    kept = [part.removeprefix("Argument helptext: ") for part in parts[titled:]]
    line = re.sub(r"^Error parsing (?!-)[\w.]+: |^Error parsing (?=-)", "", "; ".join(kept))
    return f"{line} (--help explains the options)" if line else ""


@contextlib.contextmanager
def quiet():
    """One voice: the tracebacks that libraries log, or their threads die of, are of errors that are raised here too.

    Their records with a traceback are dropped; all others from WARNING on are printed.
    """
    logging.basicConfig(level=logging.WARNING)
    handlers, before = logging.getLogger().handlers[:], (threading.excepthook, sys.unraisablehook, sys.excepthook)
    for handler in handlers:
        handler.addFilter(own_or_plain)
        if type(handler) is logging.StreamHandler:  # not what a test listens with
            handler.setFormatter(logging.Formatter("%(levelname)s: %(message)s"))
    hush(*before)
    try:
        yield
    except (ValueError, OSError, RuntimeError):
        atexit.register(hush, *before)  # files that cannot be closed complain at the very end
        raise
    finally:
        threading.excepthook, sys.unraisablehook, sys.excepthook = before
        for handler in handlers:
            handler.removeFilter(own_or_plain)


def hush(of_thread, of_object, of_main) -> None:
    """Hooks that leave out what is told anyway, and TensorStore's callback into a loop that Orbax has closed."""

    def is_told(error):
        return told(error) is not None or "Event loop is closed" in str(error)

    threading.excepthook = lambda found: None if is_told(found.exc_value) else of_thread(found)
    sys.unraisablehook = lambda found: None if is_told(found.exc_value) else of_object(found)
    sys.excepthook = lambda kind, error, trace: None if is_told(error) else of_main(kind, error, trace)


def own_or_plain(record: logging.LogRecord) -> bool:
    return not record.exc_info or record.name.startswith("ge2mst_jax")
