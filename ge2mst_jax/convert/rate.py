"""Rate-coded conversion of a QCFS network: the neurons of its ANN run as integrate-and-fire, and what that loses."""

from ge2mst_jax.checks import check_whole


def rate_coded(model, steps: int):
    """A QCFS network as integrate-and-fire neurons run it over `T` steps; it takes the variables that were trained.

    A neuron of the code's `L` levels and the learned threshold `θ` has `λ = Lθ`. As it was trained, it sends
    `λ·clip(⌊xL/λ + ½⌋/L, 0, 1)` once. Here its membrane starts at `λ/2`, takes its current at each step, fires at `λ`
    and is reset by subtraction, and each spike is worth `λ`: `L` levels, as BatchNorm's averages are of sums of levels.
    The image's current is computed once and arrives at every step; BatchNorm, with its averages, attention and the
    residual sums work step by step; logits are means over the steps. `T` need not be `L`.

    Where a current is the same at every step, as the first layer's is, `T = L` steps fire the twin's level exactly.
    Elsewhere this is lossy, as rate codes are:

    - currents that arrive unevenly fire too many or too few spikes: a membrane that ends outside of `[0, λ)` holds what
      was not sent. This error falls with `T`;
    - a rate has `T + 1` values where the twin has `L + 1`: many steps come near to `clip(x, 0, λ)`, not to the levels
      that it was rounded to in training;
    - attention multiplies the spikes of a step, and the mean of products is not the product of means: that stays,
      whatever `T`, where the trains of `q`, `k` and `v` are not independent in time.

    `deploy` takes networks of `LOSSLESS` neurons without any of it.

    Args:
        model: from `create_model`, with `neuron="qcfs"` and codes without gaps.
        steps: `T`, 1 to 255.

    Returns:
        The network; `.apply(variables, images)` gives `(logits [B, classes] float32, aux)`. `aux` counts the spikes of
        all `T` steps, for `energy.SpikeCounter`; the image's own are counted once.

    Raises:
        ValueError: another neuron, a code with gaps, steps out of range.

    Source: Bu et al., ICLR 2022 (QCFS).

    >>> import jax, numpy as np
    >>> from ge2mst_jax import create_model
    >>> model = create_model("ge2mst_nano", stages=(("conv", 8, 0),), neuron="qcfs", code="4x1")
    >>> images = np.random.default_rng(0).integers(0, 256, (1, 8, 8, 1), np.uint8)
    >>> variables = model.init(jax.random.key(0), images)
    >>> found = [made.apply(variables, images)[1]["neuron_head"] for made in (model, rate_coded(model, 4))]
    >>> bool((found[0].spikes == found[1].spikes).all()), found[1].steps
    (True, 4)
    """
    return model.clone(rate_steps=check_whole("steps", steps, 1, 255))
