"""What people give: numbers in range, known names, text that prints; one clear line where it is not so."""

import math
import numbers

import numpy as np


def check_whole(name: str, value, low: int, high: int) -> int:
    """A whole number in `low..high`; a bool is none.

    Raises:
        ValueError: names what it is and what it must be.

    >>> check_whole("heads", np.int64(4), 1, 64)
    4
    >>> check_whole("heads", 2.0, 1, 64)
    Traceback (most recent call last):
    ValueError: heads is 2.0: it must be a whole number, 1 to 64
    """
    if isinstance(value, bool | np.bool_) or not isinstance(value, numbers.Integral) or not low <= value <= high:
        raise ValueError(f"{name} is {shown(value)}: it must be a whole number, {low} to {high}")
    return int(value)


def check_number(name: str, value, low: float, high: float, *, above: bool = False, below: bool = False) -> float:
    """A finite real number in `low..high`, without `low` itself if `above`, without `high` itself if `below`.

    Raises:
        ValueError: names what it is and what it must be.

    >>> check_number("rate", 0.5, 0, 1, below=True)
    0.5
    >>> check_number("rate", float("inf"), 0, 1, above=True)
    Traceback (most recent call last):
    ValueError: rate is inf: it must be a number above 0 and at most 1
    """
    real = isinstance(value, numbers.Real) and not isinstance(value, bool | np.bool_) and math.isfinite(value)
    if not real or value < low or value > high or (above and value == low) or (below and value == high):
        limits = f"{'above' if above else 'at least'} {low:g} and {'below' if below else 'at most'} {high:g}"
        raise ValueError(f"{name} is {shown(value)}: it must be a number {limits}")
    return float(value)


def check_flag(name: str, value) -> None:
    """True or false, and nothing that merely counts as one: the text "False" does as true.

    Raises:
        ValueError: names what it is.

    >>> check_flag("flip", "False")
    Traceback (most recent call last):
    ValueError: flip is 'False': it must be True or False
    """
    if not isinstance(value, bool | np.bool_):
        raise ValueError(f"{name} is {shown(value)}: it must be True or False")


def check_choice(name: str, value, known) -> None:
    """One of some names.

    Raises:
        ValueError: lists those that are known.

    >>> check_choice("reset", "firm", ("soft", "hard"))
    Traceback (most recent call last):
    ValueError: unknown reset 'firm': known are soft, hard
    """
    if not isinstance(value, str) or value not in known:
        raise ValueError(f"unknown {name} {shown(value)}: known are {', '.join(known)}")


def shown(value, most: int = 80) -> str:
    """A value as an error shows it: its `repr` in one line, cut off where it is long."""
    return cut(one_line(repr(value)), most)


def cut(text: str, most: int) -> str:
    """Text that is too long, cut off.

    >>> cut("abcdef", 4)
    'abc…'
    """
    return text if len(text) <= most else text[: most - 1] + "…"


def one_line(text) -> str:
    """Text that prints as one line in any terminal: runs of white space are one space, whatever else cannot be printed
    (control characters, broken UTF-8) is written as an escape.

    For `rich`, give it to `print(..., markup=False)`, or through `rich.markup.escape`.

    >>> one_line("a\\n b\\x1b[31m")
    'a b\\\\x1b[31m'
    """
    return printable(" ".join(str(text).split()))


def printable(text: str) -> str:
    """Text whose white space is left alone but for new lines: whatever cannot be printed is written as an escape.

    >>> printable("a  b\\x1b[31m")
    'a  b\\\\x1b[31m'
    """
    return "".join(c if c.isprintable() else c.encode("unicode_escape", "backslashreplace").decode() for c in text)
