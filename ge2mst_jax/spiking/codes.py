"""Spike codes: which weight each time step of a spike train carries."""

import dataclasses
import functools
import itertools
import re

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.checks import check_whole, shown
from ge2mst_jax.spiking.operands import as_numbers

MAX_LEVEL = 255

_TEXT = re.compile(r"(\d{1,4})x(\d{1,4})(?:/(\d{1,4}))?(?:\+(\d{1,4}(?:,\d{1,4})*))?", re.ASCII)
_FORM = (
    "a spike code is written GxK[/cap][+s1,...,sG]: G groups of K steps, at most `cap` spikes "
    "a group, group g's weights shifted by 2^s_g; e.g. '2x2', '1x4', '2x3/1', '2x2+1,0'"
)


@dataclasses.dataclass(frozen=True)
class SpikeCode:
    """The weights of a neuron's `T = G·K` time steps, cut into `G` temporal groups.

    Group `g` has the weights `2^s_g · (2^(K-1), ..., 2, 1)`. A spike train `s` stands for the level
    `n = Σ_t w_t s_t`, and a level is encoded greedily in time order: a step fires when what is
    left is at least its weight (and its group has not used up `cap` spikes).

    Args:
        groups: `G >= 1`.
        steps_per_group: `K >= 1`.
        cap: most spikes in one group, `1..K`; `None` (or `K`) is no cap.
        shifts: one exponent a group, `>= 0`; `()` is no shift.

    Raises:
        ValueError: a value out of range, group maxima that increase with time (greedy encoding
            would miss levels: weights 2 1 8 4 turn 4 into 3), or a largest level above 255.

    Source: our reading of the grouped exponential coding named in the abstract of
    arXiv:2604.08894, whose equations are not public to us.

    >>> code = SpikeCode.parse("2x2")
    >>> code.num_steps, code.step_weights, code.max_level
    (4, (2, 1, 2, 1), 6)
    >>> SpikeCode.parse("2x3/1").levels
    (0, 1, 2, 3, 4, 5, 6, 8)
    >>> str(SpikeCode(2, 2, shifts=(1, 0)))
    '2x2+1,0'
    """

    groups: int
    steps_per_group: int
    cap: int | None = None
    shifts: tuple[int, ...] = ()

    def __post_init__(self):
        try:
            for name in ("groups", "steps_per_group"):
                object.__setattr__(self, name, check_whole(name, getattr(self, name), 1, MAX_LEVEL))
            if self.cap is not None:
                object.__setattr__(self, "cap", check_whole("cap", self.cap, 1, self.steps_per_group))
            if not isinstance(self.shifts, tuple | list):
                raise ValueError(f"shifts are {shown(self.shifts)}: they must be whole numbers, one a group")
            shifts = tuple(check_whole("shift", shift, 0, MAX_LEVEL) for shift in self.shifts)
        except ValueError as error:
            raise ValueError(f"{error}; {_FORM}") from None
        object.__setattr__(self, "shifts", shifts)
        if shifts and len(shifts) != self.groups:
            raise ValueError(f"{len(shifts)} shifts for {self.groups} groups: one a group; {_FORM}")
        if any(b > a for a, b in itertools.pairwise(shifts)):
            raise ValueError(
                f"shifts {shifts}: they must not increase with time, or greedy encoding misses levels; {_FORM}"
            )
        # One value, one object: a cap of K and all-zero shifts say nothing.
        if self.cap == self.steps_per_group:
            object.__setattr__(self, "cap", None)
        if not any(self.shifts):
            object.__setattr__(self, "shifts", ())
        # Checked on exponents and counts first: "1x200" must not build its weights to be refused.
        if max(self.shifts, default=0) + self.steps_per_group > 8 or self.max_level > MAX_LEVEL:
            raise ValueError(f"{self} has levels above {MAX_LEVEL}: use fewer steps or smaller shifts; {_FORM}")

    @classmethod
    def parse(cls, text: str) -> "SpikeCode":
        """Reads the text form `GxK[/cap][+s1,...,sG]`; `str(code)` writes it.

        >>> SpikeCode.parse("2x2+2,0").step_weights
        (8, 4, 2, 1)
        """
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(f"{shown(text)} is not a spike code: {_FORM}")
        groups, steps, cap, shifts = match.groups()
        return cls(
            int(groups),
            int(steps),
            None if cap is None else int(cap),
            () if shifts is None else tuple(int(s) for s in shifts.split(",")),
        )

    @classmethod
    def of(cls, code) -> "SpikeCode":
        """A code as it is, or the one that a text writes: what every function here makes of its `code`.

        >>> SpikeCode.of("1x4") == SpikeCode.of(SpikeCode(1, 4))
        True
        """
        return code if isinstance(code, cls) else cls.parse(code)

    def __str__(self) -> str:
        cap = "" if self.cap is None else f"/{self.cap}"
        shifts = "+" + ",".join(map(str, self.shifts)) if self.shifts else ""
        return f"{self.groups}x{self.steps_per_group}{cap}{shifts}"

    @property
    def num_steps(self) -> int:
        """`T = G·K`."""
        return self.groups * self.steps_per_group

    @functools.cached_property
    def step_weights(self) -> tuple[int, ...]:
        """`w_t` for `t = 0..T-1`, each a power of two."""
        shifts = self.shifts or (0,) * self.groups
        return tuple(2 ** (s + k) for s in shifts for k in reversed(range(self.steps_per_group)))

    @functools.cached_property
    def max_level(self) -> int:
        """`L`, the largest level."""
        cap, k = self.cap or self.steps_per_group, self.steps_per_group
        return sum(sum(self.step_weights[g * k : g * k + cap]) for g in range(self.groups))

    @functools.cached_property
    def codebook(self) -> np.ndarray:
        """`[L+1, T]` uint8: the greedy spike train of each integer `0..L` (a gap's is the level below)."""
        left = np.arange(self.max_level + 1)
        book = np.zeros((self.max_level + 1, self.num_steps), np.uint8)
        for t, weight in enumerate(self.step_weights):
            group = book[:, t - t % self.steps_per_group : t]
            fires = (left >= weight) & (group.sum(1) < (self.cap or self.steps_per_group))
            book[:, t] = fires
            left = left - weight * fires
        return book

    @functools.cached_property
    def projection(self) -> tuple[int, ...]:
        """`project(n)` for `n = 0..L`: the largest level `<= n` that greedy encoding reaches."""
        return tuple((self.codebook.astype(int) @ np.array(self.step_weights)).tolist())

    @functools.cached_property
    def levels(self) -> tuple[int, ...]:
        """The sorted levels that greedy encoding reaches."""
        return tuple(sorted(set(self.projection)))

    @functools.cached_property
    def spike_counts(self) -> tuple[int, ...]:
        """Spikes that encode `project(n)`, for `n = 0..L`."""
        return tuple(self.codebook.sum(1, dtype=int).tolist())

    @property
    def has_gaps(self) -> bool:
        """Whether some integer in `0..L` is not a level, so that `project` is not the identity."""
        return len(self.levels) <= self.max_level

    def refractory(self, t: int, spikes_in_group):
        """Whether step `t` may not fire after `spikes_in_group` spikes of its group; `None` without a cap."""
        return None if self.cap is None or t % self.steps_per_group < self.cap else spikes_in_group >= self.cap

    def encode(self, levels):
        """Greedy spike train of each level, `s_t = [left >= w_t]`.

        Args:
            levels: any shape, floating, integer or bool, values `0..L`; others are clipped into the range
                and projected to the next level below.

        Returns:
            `[T, ...]`, 0 or 1 in the dtype of `levels`; no gradient passes.

        Raises:
            ValueError: no numbers.

        >>> SpikeCode.parse("2x2").encode(jnp.array([0, 3, 5])).T
        Array([[0, 0, 0, 0],
               [1, 1, 0, 0],
               [1, 1, 1, 0]], dtype=int32)
        """
        left, fired, spikes = as_numbers("levels", levels), None, []
        dtype = jnp.result_type(levels)
        if dtype == jnp.int8:  # does not hold the weight 128
            left = left.astype(jnp.int32)
        for t, weight in enumerate(self.step_weights):
            fires = left >= weight
            if t % self.steps_per_group == 0:
                fired = jnp.zeros_like(left)
            blocked = self.refractory(t, fired)
            fires = fires if blocked is None else fires & ~blocked
            spike = fires.astype(left.dtype)
            left, fired = left - weight * spike, fired + spike
            spikes.append(spike)
        return jnp.stack(spikes).astype(dtype)

    def count(self, levels):
        """Spikes that encode each level, `Σ_t s_t`; at one cost whatever `T`, but for codes with a cap or shifts.

        Greedy encoding fills a group before the next one gets anything, and a group's spikes are the binary digits of
        what it gets: `K·⌊n/(2^K - 1)⌋`, and as many as the remainder has ones.

        Args:
            levels: integers as in `encode`.

        Returns:
            `[...]`, in the dtype of `levels`; no gradient passes.

        Raises:
            ValueError: no numbers.

        >>> SpikeCode.parse("2x2").count(jnp.arange(7))
        Array([0, 1, 1, 2, 3, 3, 4], dtype=int32)
        """
        levels = as_numbers("levels", levels)
        if self.cap is not None or self.shifts:
            return self.encode(levels).sum(0).astype(levels.dtype)
        whole = jnp.clip(levels, 0, self.max_level).astype(jnp.int32)
        full = 2**self.steps_per_group - 1
        filled = jax.lax.div(whole, jnp.full_like(whole, full))
        count = self.steps_per_group * filled + jax.lax.population_count(whole - full * filled)
        return count.astype(levels.dtype)

    def decode(self, spikes):
        """Levels of a spike train, `n = Σ_t w_t s_t`.

        Args:
            spikes: `[T, ...]`, 0 or 1, any numeric or bool dtype.

        Returns:
            `[...]`, in the dtype of `spikes`; int32 for dtypes that cannot hold 255.

        >>> code = SpikeCode.parse("1x4")
        >>> code.decode(code.encode(jnp.arange(16)))
        Array([ 0,  1,  2,  3,  4,  5,  6,  7,  8,  9, 10, 11, 12, 13, 14, 15],      dtype=int32)
        """
        spikes = self.check_train(as_numbers("spikes", spikes))
        if jnp.issubdtype(spikes.dtype, jnp.integer) and jnp.iinfo(spikes.dtype).max < MAX_LEVEL:
            spikes = spikes.astype(jnp.int32)
        return sum(weight * spikes[t] for t, weight in enumerate(self.step_weights))

    def check_train(self, spikes):
        """Spikes as they are, if their first axis is this code's `T` steps; else a `ValueError`."""
        if spikes.shape[:1] != (self.num_steps,):
            raise ValueError(
                f"spikes of shape {spikes.shape} under code {self}: the first axis must be T = {self.num_steps}"
            )
        return spikes
