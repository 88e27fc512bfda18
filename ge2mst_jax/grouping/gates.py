"""Attention that masks: what a binary gate's sums count, and which spikes it lets through. Linear in the tokens."""

import functools
import operator

import jax.numpy as jnp


def channel_sums(k, v, weights=None):
    """What a gate of each channel counts, `S_c = Σ_tokens k_c v_c`: coincidences of a key and a value, over all tokens.

    Of spike trains, `k = Σ_s w_s k_s`: spikes meet step by step, and what they have counted is shifted by `w_s`.

    Args:
        k: `[B, H, W, C]`, levels or one step's spikes; floating.
        v: `[B, H, W, C]`, the same.
        weights: of the steps of `k`, `w`, where it is a spike train, time first; powers of two.

    Returns:
        `[B, 1, 1, C]`, linear in `v`; of levels integers up to `H·W·L_k·L_v`.

    Source: Yao et al., NeurIPS 2023 (Spike-driven Transformer), `SN(SUM_c(Q ⊗ K)) ⊗ V`; the roles are those of its
    code, which sums `k ⊙ v` over tokens and masks `q`.

    >>> k = jnp.array([[[[1.0, 1.0], [0.0, 1.0]]]])
    >>> channel_sums(k, jnp.full((1, 1, 2, 2), 3.0)).ravel(), channel_sums(k[None], k, [2]).ravel()
    (Array([3., 6.], dtype=float32), Array([2., 4.], dtype=float32))
    """

    def met(key):
        return jnp.sum(key * v, (1, 2), keepdims=True)

    if weights is None:
        return met(k)
    terms = (met(key) if weight == 1 else weight * met(key) for weight, key in zip(weights, k, strict=True))
    return functools.reduce(operator.add, terms)


def head_sums(q, heads: int):
    """What a gate of each token and head counts, `S_h = Σ_{channels of h} q`.

    Args:
        q: `[B, H, W, C]`, levels or one step's spikes; floating.
        heads: `h`, of `C/h` adjoining channels.

    Returns:
        `[B, H, W, h]`, linear; of levels integers up to `C/h·L_q`.

    Source: Zhou et al., NeurIPS 2024 (QKFormer), token attention.

    >>> head_sums(jnp.array([[[[1.0, 0.0, 3.0, 2.0]]]]), 2).ravel()
    Array([1., 5.], dtype=float32)
    """
    return jnp.sum(q.reshape(*q.shape[:-1], heads, q.shape[-1] // heads), -1)


def gated(gate, x):
    """`gate ⊙ x`: what a binary gate lets through.

    Args:
        gate: `[B, H, W, g]` or `[B, 1, 1, g]`, 0 or 1; `C/g` adjoining channels share one.
        x: `[B, H, W, C]`, levels or one step's spikes, of the gate's type.

    Returns:
        `[B, H, W, C]`, linear in `x`.

    >>> gated(jnp.array([[[[1.0, 0.0]]]]), jnp.array([[[[2.0, 3.0, 1.0, 1.0]]]])).ravel()
    Array([2., 3., 0., 0.], dtype=float32)
    """
    return x * per_channel(gate, x.shape[-1])


def per_channel(gate, channels: int):
    """`[..., g]` -> `[..., C]`, each for its own `C/g` adjoining channels."""
    spread = jnp.broadcast_to(gate[..., None], (*gate.shape, channels // gate.shape[-1]))
    return spread.reshape(*gate.shape[:-1], channels)
