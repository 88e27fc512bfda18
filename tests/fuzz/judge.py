"""What became of a case, held against what it should have come to."""

import re

import numpy as np

#: What a case may end as; the first two are sound.
SOUND = ("refused", "right")
BROKEN = ("silently accepted", "wrong value", "traceback", "not clear", "wrong status", "hang", "died")


def missing_word(text: str, words: str) -> str | None:
    """The first word (or none of its alternatives) that a text lacks.

    >>> missing_word("heads is 0: at least 1", "heads; whole|at least")
    >>> missing_word("heads is 0", "heads; whole|at least")
    'whole|at least'
    """
    for word in filter(None, (part.strip() for part in words.split(";"))):
        if not any(choice.strip().lower() in text.lower() for choice in word.split("|")):
            return word
    return None


def unclear(text: str, words: str) -> str | None:
    """Why a message is not one clear line that holds the words."""
    if len(text.strip().splitlines()) != 1:
        return f"{len(text.strip().splitlines())} lines"
    if not text.strip().isprintable():
        return "characters that cannot be printed"
    if len(text) > 1000:
        return f"{len(text)} characters"
    word = missing_word(text, words)
    return None if word is None else f"does not say {word!r}"


def same(a, b) -> bool:
    """Equal values; arrays to the bit of each number, NaN equal to NaN."""
    if isinstance(a, tuple | list) and isinstance(b, tuple | list):
        return len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    if hasattr(a, "ndim") or hasattr(b, "ndim"):
        a, b = np.asarray(a), np.asarray(b)
        if a.dtype.kind not in "biuf" or b.dtype.kind not in "biuf":  # bfloat16 and the like
            a, b = a.astype(np.float32), b.astype(np.float32)
        return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())
    return type(a) is type(b) and a == b


def judge_value(outcome: str, value, namespace) -> tuple[str, str]:
    """`(verdict, note)` of a value that came out."""
    kind, _, rest = outcome.partition(" ")
    if kind == "is":
        expected = eval(rest, namespace)
        return ("right", "") if same(value, expected) else ("wrong value", f"{short(value)}, not {short(expected)}")
    if kind == "holds":
        return ("right", "") if eval(rest, namespace | {"it": value}) else ("wrong value", short(value))
    return "silently accepted", short(value)


def judge_error(outcome: str, error: Exception) -> tuple[str, str]:
    """`(verdict, note)` of an error that was raised."""
    kind, _, words = outcome.partition(" ")
    said = f"{type(error).__name__}: {error}"
    if not isinstance(error, ValueError | TypeError | AssertionError | OSError):
        return "traceback", short(said)
    if kind != "refused":
        return "wrong value", short(said)
    why = unclear(str(error), words)
    return ("refused", "") if why is None else ("not clear", f"{why}: {short(said)}")


def judge_exit(outcome: str, status: int, out: str, err: str) -> tuple[str, str]:
    """`(verdict, note)` of a command that ended."""
    kind, _, words = outcome.partition(" ")
    if kind == "status":
        expected, _, words = words.partition(" ")
    else:
        expected = {"refused": 2, "usage": 2, "ok": 0}[kind]
    said = f"status {status}: {short(err.strip() or out.strip(), 300)}"
    if "Traceback (most recent call last)" in out + err:
        return "traceback", said
    if status != int(expected):
        return ("silently accepted" if status == 0 else "wrong status"), said
    if kind == "refused":
        why = unclear(err, words)
    else:
        word = missing_word(re.sub(r"[\s│]+", " ", out + err), words)
        why = None if word is None else f"does not say {word!r}"
    if why is not None:
        return "not clear", f"{why}: {said}"
    return ("right" if kind == "ok" else "refused"), ""


def best(verdicts: list[tuple[str, str]]) -> tuple[str, str]:
    """Of several outcomes that are right, the one that holds; the first if none does."""
    return next((verdict for verdict in verdicts if verdict[0] in SOUND), verdicts[0])


def short(value, most: int = 160) -> str:
    """A value in one line."""
    text = " ".join((value if isinstance(value, str) else repr(value)).split())
    return text if len(text) <= most else text[: most - 1] + "…"
