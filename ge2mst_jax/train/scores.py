"""How often a network is right: top-1, top-5 and, where asked for, who is taken for whom; exact, on any mesh."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

#: Top-5 is counted where there are more classes than that: with fewer it is always 1.
TOP = 5


def place(logits, labels):
    """How many classes come before an example's own: 0 is right (top-1), below 5 is top-5.

    A class comes before another if its logit is higher, or equal and its number lower, as `argmax` has it. A logit that
    is no number comes before all others, and after them where it is the example's own: nothing is right by it.

    Args:
        logits: `[B, classes]`.
        labels: `[B]` whole numbers.

    Returns:
        `[B]` int32.

    >>> place(jnp.array([[1.0, 3.0, 3.0]] * 3), jnp.arange(3)).tolist()
    [2, 0, 1]
    """
    own = jnp.take_along_axis(logits, labels[:, None], 1)
    lower = jnp.arange(logits.shape[1])[None] < labels[:, None]
    return jnp.sum(jnp.where(lower, ~(logits < own), ~(logits <= own)), 1, dtype=jnp.int32)


@functools.partial(jax.jit, static_argnames=("confusion",))
def tally(logits, labels, mask, confusion: bool = False) -> dict:
    """Counts of a batch's masked examples, which add up over batches of any size.

    Args:
        logits: `[B, classes]`.
        labels: `[B]` whole numbers.
        mask: `[B]`, 1 for an example, 0 for one that is not to be counted.
        confusion: whether to count who is taken for whom.

    Returns:
        int32: `count`, `top1` and, of more than five classes, `top5` (examples that are right), and where asked for
        `confusion`, `[label, prediction]`.

    >>> found = tally(jnp.eye(3), jnp.array([0, 1, 1]), jnp.ones(3), confusion=True)
    >>> int(found["top1"]), found["confusion"].tolist()
    (2, [[1, 0, 0], [0, 1, 1], [0, 0, 0]])
    """
    before, mask, classes = place(logits, labels), mask.astype(jnp.int32), logits.shape[1]
    sums = {"count": jnp.sum(mask), "top1": jnp.sum(mask * (before == 0))}
    if classes > TOP:
        sums["top5"] = jnp.sum(mask * (before < TOP))
    if confusion:
        table = jnp.zeros((classes, classes), jnp.int32)
        sums["confusion"] = table.at[labels, jnp.argmax(logits, -1)].add(mask)
    return sums


class Scores:
    """Sums of batches, on the host: what `tally` counts, and whatever else is added beside it.

    >>> scores = Scores()
    >>> scores.add(tally(jnp.eye(6), jnp.array([0, 1, 1, 3, 4, 5]), jnp.ones(6)))
    >>> scores.images, scores.accuracy, scores.shares["top5"]
    (6, 0.8333333333333334, 1.0)
    """

    def __init__(self):
        self._sums: dict[str, np.ndarray] = {}

    def add(self, sums: dict) -> None:
        """Adds arrays by name; `count` among them is the number of examples."""
        for name, value in jax.device_get(sums).items():
            self._sums[name] = self._sums.get(name, 0) + np.asarray(value, np.float64)

    def total(self, name: str) -> int:
        """The sum of a count; 0 where nothing was added."""
        return int(self._sums.get(name, 0))

    def mean(self, name: str) -> float:
        """Of what was added, an example."""
        return float(self._sums[name] / self._sums["count"])

    @property
    def images(self) -> int:
        return self.total("count")

    @property
    def accuracy(self) -> float:
        """Share of the examples that are right."""
        return self.mean("top1")

    @property
    def shares(self) -> dict[str, float]:
        """`accuracy` and, of more than five classes, `top5`."""
        return {"accuracy": self.accuracy} | ({"top5": self.mean("top5")} if "top5" in self._sums else {})

    @property
    def confusion(self) -> np.ndarray:
        """`[label, prediction]` int64, where it was counted."""
        return self._sums["confusion"].astype(np.int64)


def confused(confusion, most: int = 5) -> list[tuple[int, int, int]]:
    """The pairs of classes that are taken for each other most often.

    Args:
        confusion: `[label, prediction]` counts.
        most: pairs.

    Returns:
        `(label, prediction, images)`, most images first, then by label and prediction; pairs without any are left out.

    >>> confused([[5, 0, 2], [3, 5, 0], [0, 2, 5]])
    [(1, 0, 3), (0, 2, 2), (2, 1, 2)]
    """
    wrong = np.array(confusion)
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = ((int(i) // len(wrong), int(i) % len(wrong)) for i in order)
    return [(label, guess, int(wrong[label, guess])) for label, guess in pairs if wrong[label, guess]]
