"""GW-SSA, group-wise spiking self-attention: counts of coincidences inside token groups."""

import functools

import chex
import jax
import jax.numpy as jnp

from ge2mst_jax.grouping.partition import Scale, partition, unpartition


def keys_first(tokens: int, width: int) -> bool:
    """Whether `q(kᵀv)` is cheaper than `(q kᵀ)v` for `m` tokens of width `d`: `2md² < 2m²d`.

    >>> keys_first(49, 32), keys_first(16, 32)
    (True, False)
    """
    return width < tokens


def group_attention(q, k, v, precision=None):
    """Attention of one group and one head, `q kᵀ v`: no softmax, no scale.

    Args:
        q, k: `[m, d]`, binary for spiking networks.
        v: `[m, d]`, levels or the spikes of one step.
        precision: of the products, as in `jax.lax.dot`; deployed networks ask for `"highest"`.

    Returns:
        `[m, d]` float32. With binary `q, k` and integer `v` every number is an integer up to `m·d·L`.

    >>> eye = jnp.eye(2)
    >>> group_attention(eye, jnp.ones((2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([[4., 6.],
           [4., 6.]], dtype=float32)
    """
    dot = functools.partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    if keys_first(*q.shape):
        return dot("nd,de->ne", q, dot("md,me->de", k, v))
    return dot("nm,me->ne", dot("nd,md->nm", q, k), v)


def share_heads(heads: int, scales: tuple[Scale, ...]) -> tuple[slice, ...]:
    """The heads of each scale: equal, contiguous shares.

    Raises:
        ValueError: no scale, or heads that cannot be shared out equally.

    >>> share_heads(4, (Scale("block", 7), Scale("grid", 7)))
    (slice(0, 2, None), slice(2, 4, None))
    """
    if not scales or heads % len(scales):
        raise ValueError(f"{heads} heads cannot be shared out equally among {len(scales)} scales")
    share = heads // len(scales)
    return tuple(slice(i * share, (i + 1) * share) for i in range(len(scales)))


def gw_attention(q, k, v, scales: tuple[Scale, ...], precision=None):
    """Group-wise spiking self-attention of one image: `A·v` with `A = q kᵀ` inside each token group, unscaled.

    Heads are shared out among the scales; each scale cuts the token grid into groups of `m` tokens that
    attend to each other. Costs `2·N·min(m, d)·d` products a head instead of `2·N²·d`, additions all of them when the
    operands are spikes.

    Args:
        q, k, v: `[H, W, h, d]`; `q`, `k` binary, `v` levels or one step's spikes.
        scales: one or more; each must divide the token grid.
        precision: as in `group_attention`.

    Returns:
        `[H, W, h, d]` float32.

    Raises:
        ValueError: a scale that does not divide the grid, or heads that the scales cannot share.
        AssertionError: shapes that differ.

    Source: our reading of GW-SSA in the abstract of arXiv:2604.08894, whose formula is not public to us.

    >>> x = jnp.ones((4, 4, 2, 3))
    >>> gw_attention(x, x, x, (Scale("block", 2), Scale("grid", 4)))[0, 0, :, 0]
    Array([12., 48.], dtype=float32)
    """
    chex.assert_rank(v, 4)
    chex.assert_equal_shape([q, k, v])
    height, width, heads, _ = v.shape
    over_heads = jax.vmap(functools.partial(group_attention, precision=precision), in_axes=1, out_axes=1)
    outputs = []
    for scale, share in zip(scales, share_heads(heads, scales), strict=True):
        groups = [partition(x[:, :, share], scale) for x in (q, k, v)]  # [g, m, h, d]
        outputs.append(unpartition(jax.vmap(over_heads)(*groups), scale, height, width))
    return jnp.concatenate(outputs, axis=2)  # [H, W, h, d]


def ssa(q, k, v, precision=None):
    """Spiking self-attention over the whole token grid: `gw_attention` with one group.

    Args, Returns: as `gw_attention`.

    Source: Zhou et al., ICLR 2023 (Spikformer), without its constant scale.

    >>> x = jnp.ones((2, 3, 1, 4))
    >>> ssa(x, x, x)[0, 0, 0]
    Array([24., 24., 24., 24.], dtype=float32)
    """
    return gw_attention(q, k, v, (Scale("block", v.shape[:2]),), precision)


def attention_synops(q, k, v_spikes, scales: tuple[Scale, ...]):
    """Synops of one image's attention, in the order of products that `gw_attention` takes.

    `(q kᵀ)v`: one accumulate for every coincidence of a `q` and a `k` spike, then every `v` spike adds a
    column of `A` to the group's `m` outputs: `ΣA + m·Σv`. `q(kᵀv)`: one for every coincidence of a `k`
    and a `v` spike of one token, then every `q` spike adds a row of width `d`: `Σ_j (Σ_d k)(Σ_d v) + d·Σq`.

    Args:
        q, k: `[H, W, h, d]`, binary.
        v_spikes: `[H, W, h, d]`, number of spikes of each `v` neuron over all its steps.
        scales: as in `gw_attention`.

    Returns:
        int32 scalar.

    >>> ones = jnp.ones((2, 2, 1, 4))
    >>> int(attention_synops(ones, ones, ones, (Scale("block", 2),)))
    128
    """
    q, k, v_spikes = (x.astype(jnp.int32) for x in (q, k, v_spikes))
    heads, width = q.shape[2:]
    total = jnp.zeros((), jnp.int32)
    for scale, share in zip(scales, share_heads(heads, scales), strict=True):
        qs, ks, vs = (partition(x[:, :, share], scale) for x in (q, k, v_spikes))  # [g, m, h, d]
        if keys_first(scale.tokens, width):
            total += jnp.sum(ks.sum(3) * vs.sum(3)) + width * qs.sum()
        else:
            total += jnp.sum(qs.sum(1) * ks.sum(1)) + scale.tokens * vs.sum()
    return total
