"""The one place where time is scanned."""

import functools

import jax

#: Longest scan that is unrolled whole; measured on CPU, longer ones are slower unrolled.
MAX_UNROLL = 8


def scan_time(step, params, state, inputs, unroll: bool = True):
    """Runs `step(params, state, input) -> (state, output)` over the leading axis of `inputs`.

    Args:
        step: a pure neuron step.
        params: passed to every step as it is.
        state: pytree, the state before the first step.
        inputs: pytree of `[T, ...]`.
        unroll: whether short scans are written out: not where a step is heavy, for all temporaries would live at once.

    Returns:
        The last state and the outputs, `[T, ...]`.

    Raises:
        ValueError: inputs that have no common time axis of 1 step or more.

    >>> import jax.numpy as jnp
    >>> scan_time(lambda p, v, x: (v + p * x, v), 2.0, jnp.array(0.0), jnp.array([1.0, 2.0, 3.0]))[1].tolist()
    [0.0, 2.0, 6.0]
    """
    lengths = {leaf.shape[:1] for leaf in jax.tree.leaves(inputs)}
    if len(lengths) != 1 or lengths & {(), (0,)}:
        raise ValueError(f"inputs of {sorted(lengths)} time steps: all must be [T, ...] of one T, 1 or more")
    ((length,),) = lengths
    written_out = unroll and length <= MAX_UNROLL
    return jax.lax.scan(functools.partial(step, params), state, inputs, unroll=length if written_out else 1)
