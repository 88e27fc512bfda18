"""What the compiler says of a compiled program: cycles of every operation, by stage and kind."""

import collections
import dataclasses
import re

#: Kinds of work, by what stands in an operation's name; the first that matches.
_KINDS = (
    ("attention", r"attention/(attention|gate)/|attention\.attend"),  # ours; an anchor's
    ("depth-wise map", r"local\.convolve/(?!norm)"),
    ("BatchNorm", r"/norm/"),
    ("products", r"conv_general_dilated|dot_general"),
    ("neurons", r"\.fire"),
)
#: And of what stands in no layer.
_OUTSIDE = (("augmentation", r"vmap|augment|_beta|_gamma|shuffle"),)
_COMPUTATION = re.compile(r"^(?:ENTRY )?%?([\w.\-]+) (?:\([^)]*\)|\(.*\)) -> .*\{$")
_CYCLES = re.compile(r'"estimated_cycles":"(\d+)"')
_NAME = re.compile(r'op_name="([^"]*)"')
_STAGE = re.compile(r"/(stem|stage_\d+|neuron_head|head)\b")
_WHILE = re.compile(r" while\(.*condition=%([\w.\-]+), body=%([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_COLLECTIVE = re.compile(r" (all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(?:-start)?\(")
_SHAPE = re.compile(r"\b(pred|s8|u8|bf16|f16|s16|u16|f32|s32|u32|f64|s64|u64)\[([\d,]*)\]")
_BYTES = {"pred": 1, "s8": 1, "u8": 1, "bf16": 2, "f16": 2, "s16": 2, "u16": 2, "f64": 8, "s64": 8, "u64": 8}


@dataclasses.dataclass(frozen=True)
class Operation:
    """One operation of a program, as often as it runs.

    Args:
        name: `op_name`, where in the model it stands.
        cycles: estimated, all runs together.
        stage: `stem`, `stage_0`, ..., `head`, or `outside`: augmentation, optimiser, averages.
        direction: `forward`, `backward` or `outside`; all of a network that is only run is forward.
        kind: of `_KINDS` or `_OUTSIDE`, or `other`.
    """

    name: str
    cycles: int
    stage: str
    direction: str
    kind: str


def named(name: str, cycles: int) -> Operation:
    """What an operation is, by its name.

    >>> found = named("jit(train_step)/transpose(jvp(Ge2mST))/stage_2/block_0/attention/q/q.convolve/norm/mul", 10)
    >>> found.stage, found.direction, found.kind
    ('stage_2', 'backward', 'BatchNorm')
    """
    stage = _STAGE.search(name)
    direction = "backward" if "transpose(jvp" in name else "forward" if "jvp(" in name or stage else "outside"
    kinds = _KINDS if stage else _OUTSIDE
    kind = next((kind for kind, pattern in kinds if re.search(pattern, name)), "other")
    where = {"neuron_head": "head"}.get(stage[1], stage[1]) if stage else "outside"
    return Operation(name, cycles, where, direction, kind)


def read_program(text: str) -> tuple[list[Operation], dict[str, int], int]:
    """`(operations, bytes of each kind of collective, loops of unknown length)` of a scheduled HLO text.

    An operation in a loop counts as often as the loop turns; where the compiler does not say how often, once.
    """
    lines = computations(text)
    trips, unknown = collections.Counter(), 0
    calls = {}
    for caller, body in lines.items():
        for line in body:
            if (loop := _WHILE.search(line)) is not None:
                turns = _turns(line, lines.get(loop[1], ()))
                unknown += turns is None
                calls[loop[2]] = (caller, turns or 1)

    def times(computation) -> int:
        if computation not in trips:
            caller, turns = calls.get(computation, (None, 1))
            trips[computation] = turns * (times(caller) if caller is not None else 1)
        return trips[computation]

    found, collectives = [], collections.Counter()
    for computation, body in lines.items():
        for line in body:
            if (cycles := _CYCLES.search(line)) is not None and int(cycles[1]):
                name = _NAME.search(line)
                found.append(named(name[1] if name else "", int(cycles[1]) * times(computation)))
            if (kind := _COLLECTIVE.search(line)) is not None:
                collectives[kind[1]] += shape_bytes(line[: kind.start()]) * times(computation)
    return found, dict(collectives), unknown


def computations(text: str) -> dict[str, list[str]]:
    """The lines of every computation of an HLO text, by its name."""
    found, current = {}, None
    for line in text.splitlines():
        if line.endswith("{") and (head := _COMPUTATION.match(line)) is not None:
            current = found.setdefault(head[1], [])
        elif line == "}":
            current = None
        elif current is not None:
            current.append(line)
    return found


def _turns(line: str, condition) -> int | None:
    """How often a loop turns: as the compiler notes it, or the one constant that its condition compares with."""
    if (known := _TRIPS.search(line)) is not None:
        return int(known[1])
    constants = [int(n) for text in condition for n in re.findall(r" [su]32\[\][^ ]* constant\((\d+)\)", text)]
    compares = sum("compare(" in text for text in condition)
    return constants[0] if len(constants) == 1 and compares == 1 else None


def shape_bytes(text: str) -> int:
    """Bytes of all arrays whose shapes a text names.

    >>> shape_bytes("(f32[2,3]{1,0}, bf16[4])")
    32
    """
    total = 0
    for kind, sides in _SHAPE.findall(text):
        count = 1
        for side in filter(None, sides.split(",")):
            count *= int(side)
        total += count * _BYTES.get(kind, 4)
    return total
