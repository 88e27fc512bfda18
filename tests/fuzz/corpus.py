"""The corpus: malformed (and odd but right) inputs as data, one case a line of `corpus/*.txt`.

    CALL => OUTCOME [|| OUTCOME ...]

CALL is a Python expression over the names of `namespace.py`, or, in `corpus/commands*.txt`, a command line (see
`commands.py`). Where it holds `{name}`, it is one case for each value of that family (`families.py`); `{a*3,b}` takes
three values of one, which the seed draws, and all of another. OUTCOME is one of

    refused WORD; WORD|OTHER     one clear line that holds every WORD (or its OTHER): what was wrong and what is right
    is EXPRESSION                this value, bit for bit
    holds EXPRESSION             this is true of the value, `it`

and, of command lines, `refused` (exit status 2), `usage WORDS` (the parser's own box, status 2), `ok WORDS` (status 0)
and `status N WORDS`. Where there are several outcomes, each is right.
"""

import dataclasses
import itertools
import re
from pathlib import Path

import numpy as np
from families import FAMILIES

FOLDER = Path(__file__).parent / "corpus"
_FAMILY = re.compile(r"\{([a-z_]+(?:\*\d+)?(?:,[a-z_]+(?:\*\d+)?)*)\}")


@dataclasses.dataclass(frozen=True)
class Case:
    """What is called, and what it must come to.

    >>> Case("a", 1, "check(3)", "is 3 || refused whole").outcomes
    ('is 3', 'refused whole')
    """

    room: str
    line: int
    call: str
    outcome: str

    @property
    def outcomes(self) -> tuple[str, ...]:
        return tuple(part.strip() for part in self.outcome.split("||"))

    @property
    def place(self) -> str:
        return f"corpus/{self.room}.txt:{self.line}"


def expand(text: str, rng) -> list[str]:
    """A line for each value of the families that it names; the same name twice is the same value.

    >>> expand("f({bool}, {bool})", np.random.default_rng(0))
    ['f(True, True)', 'f(False, False)']
    """
    found = {match.group(0): match for match in _FAMILY.finditer(text)}
    choices = []
    for match in found.values():
        values = []
        for part in match.group(1).split(","):
            name, _, count = part.partition("*")
            family = FAMILIES[name]
            drawn = sorted(rng.choice(len(family), int(count), replace=False)) if count else range(len(family))
            values += [family[i] for i in drawn]
        choices.append(values)
    texts = []
    for chosen in itertools.product(*choices):
        values = dict(zip(found, chosen, strict=True))
        texts.append(_FAMILY.sub(lambda match, values=values: values[match.group(0)], text))
    return texts


def read_corpus(seed: int, folder: Path = FOLDER) -> list[Case]:
    """Every case of every file.

    Raises:
        ValueError: a line that is none, by its place.
    """
    rng, cases = np.random.default_rng(seed), []
    for file in sorted(folder.glob("*.txt")):
        for number, line in enumerate(file.read_text().splitlines(), 1):
            text = line.strip()
            if not text or text.startswith("#"):
                continue
            call, arrow, outcome = (part.strip() for part in text.rpartition(" => "))
            if not arrow:
                raise ValueError(f"{file.name}:{number}: a case is written CALL => OUTCOME")
            cases += [Case(file.stem, number, each, outcome) for each in expand(call, rng)]
    return cases
