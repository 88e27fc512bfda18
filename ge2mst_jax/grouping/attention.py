"""GW-SSA, group-wise spiking self-attention: counts of coincidences inside token groups."""

import functools
import operator

import jax
import jax.numpy as jnp

from ge2mst_jax.checks import check_number, check_whole, shown
from ge2mst_jax.grouping.partition import MAX_SIDE, Scale, partition, read_scales, unpartition
from ge2mst_jax.spiking.codes import MAX_LEVEL
from ge2mst_jax.spiking.operands import as_numbers, check_known

#: Spikes a neuron and image of `q`, `k` and `v` where all operands are real numbers: products are what costs.
REAL = (1.0, 1.0, 1.0)


def keys_first(tokens: int, width: int, rates=REAL, value_width: int | None = None) -> bool:
    """Whether `q(kᵀv)` is cheaper than `(q kᵀ)v` for `m` tokens of width `d`.

    Expected synops a token and channel of `v` are `d·(r_k r_v + r_q)` and `m·(r_q r_k d/d_v + r_v)`: a spike of `q`
    adds a row of `kᵀv`, one of `v` a column of `q kᵀ`, and `v` sends more of them. Of real numbers, and values as wide
    as keys, the rule is `d < m`.

    Args:
        tokens, width: `m`, `d`.
        rates: `(r_q, r_k, r_v)`, spikes a neuron and image, all steps together.
        value_width: `d_v` of the values, if not `d`.

    >>> keys_first(16, 32), keys_first(16, 32, (0.17, 0.17, 0.65)), keys_first(7, 32, (0.17, 0.17, 0.65))
    (False, True, False)
    """
    of_queries, of_keys, of_values = rates
    share = width / (value_width or width)
    return width * (of_keys * of_values + of_queries) < tokens * (of_queries * of_keys * share + of_values)


def check_rates(rates) -> tuple[float, float, float]:
    """Three expected rates.

    Raises:
        ValueError: says what they must be.

    >>> check_rates([0.2, 0.2, 1])
    (0.2, 0.2, 1.0)
    """
    if not isinstance(rates, tuple | list) or len(rates) != 3:
        raise ValueError(f"rates is {shown(rates)}: it must be spikes a neuron and image of q, k and v, three numbers")
    return tuple(check_number(f"rates of {name}", rate, 0, MAX_LEVEL) for name, rate in zip("qkv", rates, strict=True))


def group_halves(q, k, precision=None, rates=REAL, weights=None, value_width=None):
    """Attention of one group and one head as two linear maps, `q kᵀ v = of_queries(of_values(v))`.

    `q(kᵀv)`: `kᵀv`, then `q` times that; `(q kᵀ)v`: `A v` with `A = q kᵀ`, computed here and once, then nothing.
    Of spike trains, `q = Σ_s w_s q_s`: spikes meet step by step, and what they have counted is shifted by `w_s`.

    Args:
        q, k, precision: as in `group_attention`; axes before the last two are groups and heads of their own.
        rates, value_width: as in `keys_first`.
        weights: of the steps of `q` and `k`, `w`, where they are spike trains, time first; powers of two.

    Returns:
        `(of_values, of_queries)`.

    >>> of_values, of_queries = group_halves(jnp.ones((3, 2)), jnp.ones((3, 2)))
    >>> of_values(jnp.ones((3, 2))).shape, of_queries(of_values(jnp.ones((3, 2))))[0]
    ((2, 2), Array([6., 6.], dtype=float32))
    """

    def dot(a, b):
        whole = all(jnp.issubdtype(x.dtype, jnp.integer) for x in (a, b))
        return jnp.matmul(a, b, precision=precision, preferred_element_type=jnp.int32 if whole else jnp.float32)

    def total(terms):
        return functools.reduce(operator.add, (term if weight == 1 else weight * term for weight, term in terms))

    queries, keys = (list(zip(weights, x, strict=True)) if weights else [(1, x)] for x in (q, k))
    if keys_first(*q.shape[-2:], rates, value_width):
        return (
            lambda v: total((w, dot(x.mT, v)) for w, x in keys),
            lambda summed: total((w, dot(x, summed)) for w, x in queries),
        )
    coincidences = total((w * u, dot(x, y.mT)) for w, x in queries for u, y in keys)
    return lambda v: dot(coincidences, v), lambda summed: summed


def group_attention(q, k, v, precision=None):
    """Attention of one group and one head, `q kᵀ v`: no softmax, no scale.

    Args:
        q, k: `[m, d]`, levels; floating, integer or bool.
        v: `[m, d_v]`, levels or the spikes of one step; mostly as wide as `q` and `k`.
        precision: of the products, as in `jax.lax.dot`; deployed networks ask for `"highest"`.

    Returns:
        `[m, d_v]` float32, or int32 where all three are integers. Of levels every number is an integer up to
        `m·d·L_q·L_k·L_v`, exact in float32 below 2^24.

    Raises:
        ValueError: no numbers, or shapes that are not all `[m, d]`, the last of `v` aside.

    >>> eye = jnp.eye(2)
    >>> group_attention(eye, jnp.ones((2, 2)), jnp.array([[1.0, 2.0], [3.0, 4.0]]))
    Array([[4., 6.],
           [4., 6.]], dtype=float32)
    """
    q, k, v = same_shape(2, "[m, d]", q=q, k=k, v=v)
    of_values, of_queries = group_halves(q, k, precision, value_width=v.shape[-1])
    return of_queries(of_values(v))


def same_shape(rank: int, axes: str, **operands):
    """The operands as arrays of numbers, 32 bits where they are integers.

    Raises:
        ValueError: not all have one shape; values, `v` and `v_spikes`, may be of another width.
    """
    arrays = {name: as_numbers(name, x) for name, x in operands.items()}
    ranks = {x.ndim for x in arrays.values()}
    if ranks != {rank} or len({x.shape[:-1] for x in arrays.values()}) > 1 or len(widths_of(arrays)) > 1:
        shapes = ", ".join(f"{name} {x.shape}" for name, x in arrays.items())
        raise ValueError(f"shapes {shapes}: all must be {axes}, but for the width of v")
    arrays = arrays.values()
    return [x.astype(jnp.int32) if jnp.issubdtype(x.dtype, jnp.integer) else x for x in arrays]


def widths_of(arrays) -> set[int]:
    """Head widths of all but the values."""
    return {x.shape[-1] for name, x in arrays.items() if not name.startswith("v")}


def share_heads(heads: int, scales: tuple[Scale, ...]) -> tuple[slice, ...]:
    """The heads of each scale: equal, contiguous shares.

    Raises:
        ValueError: no scale, or heads that cannot be shared out equally.

    >>> share_heads(4, (Scale("block", 7), Scale("grid", 7)))
    (slice(0, 2, None), slice(2, 4, None))
    """
    check_whole("heads", heads, 1, MAX_SIDE)
    scales = read_scales(scales)
    if not scales or heads % len(scales):
        raise ValueError(f"{heads} heads cannot be shared out equally among {len(scales)} scales")
    share = heads // len(scales)
    return tuple(slice(i * share, (i + 1) * share) for i in range(len(scales)))


def on_grid(grid, **operands):
    """The operands as arrays `[..., H, W, h, d]` of numbers, and `(H, W)`.

    Four axes are an image's, `[H, W, h, d]`, or a batch of token rows, `[B, N, h, d]`: only the caller knows, so that
    the grid has to be named.
    """
    rank = max((jnp.ndim(x) for x in operands.values()), default=0)
    arrays = same_shape(max(rank, 4), "[..., H, W, h, d]", **operands)
    shape = arrays[0].shape
    if not isinstance(grid, tuple | list) or tuple(grid) != shape[-4:-2]:
        raise ValueError(
            f"operands of shape {shape} on grid {shown(grid)}: they must be [..., H, W, h, d], and grid=(H, W) must "
            "name the token grid: a row of N = H·W tokens is reshaped to it first"
        )
    return arrays, tuple(grid)


def attention_halves(q, k, scales, precision=None, *, grid, rates=REAL, weights=None, value_width=None):
    """Group-wise attention as two linear maps, `gw_attention(q, k, v) = of_queries(of_values(v))`.

    What arrives over several steps is added up between them: `of_values` at each step of `v`, `of_queries` once. Where
    the order of products is `(q kᵀ)v`, `A = q kᵀ` is computed here, once.

    Args:
        q, k, scales, precision, grid, rates: as in `gw_attention`.
        weights: as in `group_halves`: `q` and `k` are then `[S, ..., H, W, h, d]`, `v` has no axis of steps.
        value_width: `d_v` of the `v` to come, if not `d`.

    Returns:
        `of_values`: `[..., H, W, h, d_v]` to a tuple with one array a scale, `[..., g, h, d, d_v]` (`kᵀv`) or
        `[..., g, h, m, d_v]` (`A v`); linear. `of_queries`: from that to `[..., H, W, h, d_v]`; linear.

    Raises: as `gw_attention`.

    >>> x = jnp.ones((4, 4, 2, 5))
    >>> of_values, of_queries = attention_halves(x, x, ("block2", "grid4"), grid=(4, 4))
    >>> [part.shape for part in of_values(x)]
    [(4, 1, 4, 5), (1, 1, 5, 5)]
    >>> bool((of_queries(of_values(x)) == gw_attention(x, x, x, ("block2", "grid4"), grid=(4, 4))).all())
    True
    """
    (q, k), grid = on_grid(grid, q=q, k=k)
    scales, rates = read_scales(scales), check_rates(rates)
    shares = share_heads(q.shape[-2], scales)

    def cut(x):
        """One array a scale, `[..., g, h, m, d]`."""
        groups = (
            _over_batch(lambda image, s=s: partition(image, s), x[..., h, :])
            for s, h in zip(scales, shares, strict=True)
        )
        return [jnp.swapaxes(x, -2, -3) for x in groups]

    halves = [
        group_halves(*operands, precision, rates, weights, value_width) for operands in zip(cut(q), cut(k), strict=True)
    ]
    like = q[0] if weights else q

    def of_values(v):
        (v, _like), _grid = on_grid(grid, v=v, q=like)
        return tuple(of_v(x) for (of_v, _), x in zip(halves, cut(v), strict=True))

    def of_queries(summed):
        outputs = [jnp.swapaxes(of_q(x), -2, -3) for (_, of_q), x in zip(halves, summed, strict=True)]
        images = [
            _over_batch(lambda groups, s=s: unpartition(groups, s, *grid), x)
            for s, x in zip(scales, outputs, strict=True)
        ]
        return jnp.concatenate(images, -2)  # [..., H, W, h, d]

    return of_values, of_queries


def _over_batch(function, x):
    """A function of one image's array, with four axes, over whatever axes come before them."""
    for _ in range(x.ndim - 4):
        function = jax.vmap(function)
    return function(x)


def gw_attention(q, k, v, scales, precision=None, *, grid, rates=REAL):
    """Group-wise spiking self-attention: `A·v` with `A = q kᵀ` inside each token group, unscaled.

    Heads are shared out among the scales; each scale cuts the token grid into groups of `m` tokens that
    attend to each other. Of real numbers a head costs `2·N·min(m, d)·d` products where full attention costs
    `2·N·min(N, d)·d`: `q(kᵀv)` costs the same in groups as without. Of spikes every product is an addition, and groups
    cost less than full attention in its cheaper order where `keys_first` is false.

    Args:
        q, k: `[..., H, W, h, d]`, floating, integer or bool; levels, or one step's spikes. Axes before `H` are a
            batch.
        v: `[..., H, W, h, d_v]`; mostly as wide as `q` and `k`.
        scales: one or more `Scale`s or texts, `("block7", "grid7")`; each must divide the token grid.
        precision: as in `group_attention`.
        grid: `(H, W)`, which shapes alone do not tell: `[B, N, h, d]` has four axes too.
        rates: as in `keys_first`; they decide the order of the products, and so what they cost, not what comes out.

    Returns:
        `[..., H, W, h, d_v]` float32, or int32 where all three are integers.

    Raises:
        ValueError: no numbers, shapes that differ (but for the width of `v`) or are not on the grid, a scale that does
            not divide it, heads that the scales cannot share.

    Source: our reading of GW-SSA in the abstract of arXiv:2604.08894, whose formula is not public to us.

    >>> x = jnp.ones((4, 4, 2, 3))
    >>> gw_attention(x, x, x, ("block2", "grid4"), grid=(4, 4))[0, 0, :, 0]
    Array([12., 48.], dtype=float32)
    """
    (q, k, v), grid = on_grid(grid, q=q, k=k, v=v)
    of_values, of_queries = attention_halves(q, k, scales, precision, grid=grid, rates=rates, value_width=v.shape[-1])
    return of_queries(of_values(v))


def ssa(q, k, v, precision=None, *, grid, rates=REAL):
    """Spiking self-attention over the whole token grid: `gw_attention` with one group.

    Args, Returns, Raises: as `gw_attention`.

    Source: Zhou et al., ICLR 2023 (Spikformer), without its constant scale.

    >>> x = jnp.ones((2, 3, 1, 4))
    >>> ssa(x, x, x, grid=(2, 3))[0, 0, 0]
    Array([24., 24., 24., 24.], dtype=float32)
    """
    (q, k, v), grid = on_grid(grid, q=q, k=k, v=v)
    return gw_attention(q, k, v, Scale("block", grid), precision, grid=grid, rates=rates)


def attention_synops(q_spikes, k_spikes, v_spikes, scales, *, grid, rates=REAL):
    """Synops of each image's attention, in the order of products that `gw_attention` takes.

    `(q kᵀ)v`: one accumulate for every pair of a `q` and a `k` spike of one channel, at whatever steps, then every
    `v` spike adds a column of `A` to the group's `m` outputs: `Σ_ij Σ_d q k + m·Σv`. `q(kᵀv)`: one for every pair of a
    `k` and a `v` spike of one token, then every `q` spike adds a row of width `d_v`: `Σ_j (Σ_d k)(Σ_d v) + d_v·Σq`.

    Args:
        q_spikes, k_spikes: `[..., H, W, h, d]`, number of spikes of each neuron over all its steps.
        v_spikes: `[..., H, W, h, d_v]`, the same.
        scales, grid, rates: as in `gw_attention`.

    Returns:
        int32 `[...]`, one count an image.

    Raises: as `gw_attention`; known numbers that are no counts.

    >>> ones = jnp.ones((2, 2, 1, 4))
    >>> int(attention_synops(ones, ones, ones, "block2", grid=(2, 2)))
    128
    """
    arrays, grid = on_grid(grid, q_spikes=q_spikes, k_spikes=k_spikes, v_spikes=v_spikes)
    for name, x in zip("qkv", arrays, strict=True):
        check_known(f"{name}_spikes", x, lambda x: (x >= 0) & (x <= MAX_LEVEL) & (x == x.astype(jnp.int32)), "counts")
    scales, rates = read_scales(scales), check_rates(rates)
    shares = share_heads(arrays[0].shape[-2], scales)

    def of_image(q, k, v):
        total = jnp.zeros((), jnp.int32)
        for scale, share in zip(scales, shares, strict=True):
            qs, ks, vs = (partition(x[:, :, share], scale) for x in (q, k, v))  # [g, m, h, d]
            if keys_first(scale.tokens, q.shape[-1], rates, v.shape[-1]):
                total += jnp.sum(ks.sum(3) * vs.sum(3)) + v.shape[-1] * qs.sum()
            else:
                total += jnp.sum(qs.sum(1) * ks.sum(1)) + scale.tokens * vs.sum()
        return total

    for _ in range(arrays[0].ndim - 4):
        of_image = jax.vmap(of_image)
    return of_image(*(x.astype(jnp.int32) for x in arrays))
