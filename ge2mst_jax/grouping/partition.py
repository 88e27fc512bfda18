"""Token groups: a scale cuts an `H×W` token grid into groups of `m` tokens."""

import dataclasses
import re

import jax.numpy as jnp

from ge2mst_jax.checks import check_choice, check_whole, shown

PARTITIONS = ("block", "grid")
MAX_SIDE = 65536  # tokens
_TEXT = re.compile(r"(block|grid)(\d{1,6})(?:x(\d{1,6}))?", re.ASCII)


@dataclasses.dataclass(frozen=True)
class Scale:
    """One (partition, window) choice.

    A `block` group is a contiguous window. A `grid` group is as large, but strided: its tokens lie
    `H/window` rows and `W/window` columns apart, so that it spans the whole grid.

    Args:
        partition: `"block"` or `"grid"`.
        window: tokens a side, an int, or `(rows, columns)`.

    Raises:
        ValueError: an unknown partition or a window below 1.

    Source: our reading of "multi-scale token grouping" in the abstract of arXiv:2604.08894; the two
    partitions are those of MaxViT (Tu et al., ECCV 2022).

    >>> Scale("block", 7).tokens, str(Scale.parse("grid2x4"))
    (49, 'grid2x4')
    """

    partition: str
    window: int | tuple[int, int]

    def __post_init__(self):
        check_choice("partition", self.partition, PARTITIONS)
        window = self.window if isinstance(self.window, tuple) else (self.window, self.window)
        try:
            rows, columns = (check_whole("window", side, 1, MAX_SIDE) for side in window)
        except ValueError:
            raise ValueError(
                f"window {shown(self.window)}: it must be a whole number of tokens, at least 1, or two"
            ) from None
        object.__setattr__(self, "window", (rows, columns))

    @classmethod
    def parse(cls, text: str) -> "Scale":
        """Reads `"block7"`, `"grid7"` or, for windows that are not square, `"block2x4"`."""
        match = _TEXT.fullmatch(text.strip()) if isinstance(text, str) else None
        if match is None:
            raise ValueError(
                f"{shown(text)} is not a scale: write block or grid and the window, e.g. 'block7', 'grid2x4'"
            )
        partition, rows, columns = match.groups()
        return cls(partition, (int(rows), int(columns or rows)))

    def __str__(self) -> str:
        rows, columns = self.window
        return f"{self.partition}{rows}" + ("" if rows == columns else f"x{columns}")

    @property
    def tokens(self) -> int:
        """`m`, tokens per group."""
        return self.window[0] * self.window[1]

    def check(self, height: int, width: int) -> None:
        """Raises a `ValueError` naming the windows that fit if this one does not divide the grid."""
        rows, columns = self.window
        for name, side in (("height", height), ("width", width)):
            check_whole(f"the token grid's {name}", side, 1, MAX_SIDE)
        if height % rows or width % columns:
            fit = " and ".join(
                f"{', '.join(str(w) for w in range(1, side + 1) if side % w == 0)} ({name})"
                for name, side in (("rows", height), ("columns", width))
            )
            raise ValueError(
                f"scale {self} does not divide the {height}x{width} token grid: windows that fit are {fit}"
            )


def read_scale(scale) -> Scale:
    """A scale as it is, or from its text.

    >>> read_scale("block7")
    Scale(partition='block', window=(7, 7))
    """
    return scale if isinstance(scale, Scale) else Scale.parse(scale)


def read_scales(scales) -> tuple[Scale, ...]:
    """Some scales, each a `Scale` or its text; one alone may stand without a tuple.

    >>> [str(scale) for scale in read_scales(("block7", Scale("grid", 2)))]
    ['block7', 'grid2']
    """
    return tuple(map(read_scale, scales if isinstance(scales, tuple | list) else (scales,)))


def partition(tokens, scale: Scale):
    """Cuts a token grid into groups.

    Args:
        tokens: `[H, W, ...]`, of any dtype.
        scale: its window must divide `H×W`; a text will do.

    Returns:
        `[groups, m, ...]`, `groups = H·W/m`; `unpartition` is its exact inverse.

    Raises:
        ValueError: the scale does not divide the grid.

    >>> tokens = jnp.arange(16).reshape(4, 4)
    >>> partition(tokens, Scale("block", 2))[0], partition(tokens, Scale("grid", 2))[0]
    (Array([0, 1, 4, 5], dtype=int32), Array([ 0,  2,  8, 10], dtype=int32))
    """
    tokens, scale = jnp.asarray(tokens), read_scale(scale)
    if tokens.ndim < 2:
        raise ValueError(f"tokens of shape {tokens.shape}: they must be [H, W, ...]")
    height, width, *rest = tokens.shape
    scale.check(height, width)
    rows, columns = scale.window
    if scale.partition == "block":
        cut = tokens.reshape(height // rows, rows, width // columns, columns, *rest)
        cut = jnp.moveaxis(cut, (1, 3), (2, 3))  # [H/r, W/c, r, c, ...]
    else:
        cut = tokens.reshape(rows, height // rows, columns, width // columns, *rest)
        cut = jnp.moveaxis(cut, (0, 2), (2, 3))  # [H/r, W/c, r, c, ...]
    return cut.reshape(height * width // scale.tokens, scale.tokens, *rest)  # [groups, m, ...]


def unpartition(groups, scale: Scale, height: int, width: int):
    """Puts groups back on their token grid.

    Args:
        groups: `[groups, m, ...]` from `partition`.
        scale, height, width: as they were cut.

    Returns:
        `[H, W, ...]`.

    Raises:
        ValueError: the scale does not divide the grid, or groups of another number or size than it makes.

    >>> tokens = jnp.arange(24).reshape(4, 6)
    >>> scale = Scale("grid", (2, 3))
    >>> bool((unpartition(partition(tokens, scale), scale, 4, 6) == tokens).all())
    True
    """
    groups, scale = jnp.asarray(groups), read_scale(scale)
    scale.check(height, width)
    cut_as = (height * width // scale.tokens, scale.tokens)
    if groups.shape[:2] != cut_as:
        raise ValueError(
            f"groups of shape {groups.shape}: scale {scale} cuts a {height}x{width} token grid into {list(cut_as)}"
        )
    rest = groups.shape[2:]
    rows, columns = scale.window
    cut = groups.reshape(height // rows, width // columns, rows, columns, *rest)
    # Either way back: [H/r, W/c, r, c, ...] -> the grid's own order of axes.
    order = ((2, 3), (1, 3)) if scale.partition == "block" else ((2, 3), (0, 2))
    return jnp.moveaxis(cut, *order).reshape(height, width, *rest)
