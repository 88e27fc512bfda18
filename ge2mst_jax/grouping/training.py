"""GW-SSA in training: one function, computed in the form that suits the machine. Reverse mode only."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.grouping.attention import REAL, check_rates, gw_attention, keys_first, on_grid, share_heads
from ge2mst_jax.grouping.partition import Scale, partition, read_scales
from ge2mst_jax.spiking.operands import not_before

#: Up to so many tokens an accelerator computes all pairs and drops those of different groups.
MOST_TOKENS = 256


def group_mask(scale: Scale, height: int, width: int) -> np.ndarray:
    """`[N, N]` bool: which tokens of the grid, row by row, attend to each other.

    >>> group_mask(Scale("block", (1, 2)), 1, 4).astype(int).tolist()
    [[1, 1, 0, 0], [1, 1, 0, 0], [0, 0, 1, 1], [0, 0, 1, 1]]
    """
    with jax.ensure_compile_time_eval():
        groups = np.asarray(partition(np.arange(height * width).reshape(height, width), scale))  # [groups, m]
    mask = np.zeros((height * width,) * 2, bool)
    for members in groups:
        mask[np.ix_(members, members)] = True
    return mask


def masked_attention(q, k, v, scales, *, grid):
    """`gw_attention` as full attention from which the pairs of different groups are dropped, `(M ∘ q kᵀ) v`.

    `N/m` times the products, but no token is moved: on a matrix unit of 128 rows groups of 7 tokens would leave most of
    it idle, and cutting the grid costs more than all its products.

    Args:
        q, k, v, scales, grid: as in `gw_attention`; floating.

    Returns:
        `[..., H, W, h, d_v]` float32.

    Raises: as `gw_attention`.

    >>> x = jnp.ones((4, 4, 2, 3))
    >>> scales = ("block2", "grid4")
    >>> bool((masked_attention(x, x, x, scales, grid=(4, 4)) == gw_attention(x, x, x, scales, grid=(4, 4))).all())
    True
    """
    (q, k, v), (height, width) = on_grid(grid, q=q, k=k, v=v)
    scales = read_scales(scales)
    shares, shape = share_heads(q.shape[-2], scales), v.shape
    # Counts up to 256 are bfloat16 numbers; float16 would overflow where operands are real.
    kind = q.dtype if q.dtype == jnp.bfloat16 and q.shape[-1] <= 256 else jnp.float32
    q, k, v = (x.reshape(-1, height * width, *x.shape[-2:]) for x in (q, k, v))  # [B, N, h, d]
    outputs = []
    for scale, share in zip(scales, shares, strict=True):
        of_q, of_k, of_v = (x[:, :, share] for x in (q, k, v))
        pairs = jnp.einsum("bmhd,bnhd->bhmn", of_q, of_k, preferred_element_type=jnp.float32)
        pairs = jnp.where(group_mask(scale, height, width), pairs, 0).astype(kind)
        outputs.append(jnp.einsum("bhmn,bnhe->bmhe", pairs, of_v, preferred_element_type=jnp.float32))
    return jnp.concatenate(outputs, 2).reshape(shape)


def _form(scales, grid, widths: tuple[int, int], rates):
    """What an accelerator computes, by the head widths of keys and values."""
    width, value_width = widths
    queries_first = not any(keys_first(scale.tokens, width, rates, value_width) for scale in scales)
    if queries_first and grid[0] * grid[1] <= MOST_TOKENS:
        return functools.partial(masked_attention, scales=scales, grid=grid)
    return functools.partial(gw_attention, scales=scales, grid=grid, rates=rates)


@functools.partial(jax.custom_vjp, nondiff_argnums=(3, 4, 5))
def _attention(q, k, v, scales, grid, rates):
    return jax.lax.platform_dependent(
        q, k, v,
        cpu=functools.partial(gw_attention, scales=scales, grid=grid, rates=rates),
        default=_form(scales, grid, (q.shape[-1], v.shape[-1]), rates),
    )  # fmt: skip


def _forward(q, k, v, scales, grid, rates):
    return _attention(q, k, v, scales, grid, rates), (q, k, v)


def _backward(scales, grid, rates, kept, gradient):
    kept, gradient = not_before(gradient, kept)

    def pulled_back(form):
        return lambda gradient, *kept: jax.vjp(form, *kept)[1](gradient)

    grouped = functools.partial(gw_attention, scales=scales, grid=grid, rates=rates)
    masked = _form(scales, grid, (kept[0].shape[-1], kept[2].shape[-1]), rates)
    return jax.lax.platform_dependent(gradient, *kept, cpu=pulled_back(grouped), default=pulled_back(masked))


_attention.defvjp(_forward, _backward)


def training_attention(q, k, v, scales, *, grid, rates=REAL):
    """`gw_attention` whose backward pass keeps `q`, `k` and `v` alone, in groups on a CPU, masked on an accelerator.

    Args:
        q, k, v: `[..., H, W, h, d]` floating, of one type; `v` of any width.
        scales, grid, rates: as in `gw_attention`.

    Returns:
        As wide as `v`, float32: the same number in either form where operands are spikes and levels and every count
        is one that the machine's products hold exactly (256 where they are of bfloat16 numbers, as a TPU's are).

    Raises: as `gw_attention`.

    >>> x = jnp.ones((4, 4, 2, 3))
    >>> jax.grad(lambda q: training_attention(q, x, x, "block2", grid=(4, 4)).sum())(x)[0, 0, 0]
    Array([12., 12., 12.], dtype=float32)
    """
    (q, k, v), grid = on_grid(grid, q=q, k=k, v=v)
    return _attention(q, k, v, read_scales(scales), grid, check_rates(rates))
