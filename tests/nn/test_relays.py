"""What passes on without a membrane: pooled, joined and counted spikes, real numbers, presented images, and records."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from tiny_networks import random_images

from ge2mst_jax.nn import (
    Analog,
    Counts,
    Current,
    Joined,
    Pooled,
    Presented,
    Signal,
    Wire,
    max_pool,
    mean_of_tokens,
    pooled,
)
from ge2mst_jax.spiking import SpikeCode

WIRE = Wire(SpikeCode(3, 1), "lif")
RANDOM = np.random.default_rng(0)
SPIKES = np.float32(RANDOM.random((3, 2, 5, 4, 6)) < 0.3)  # [T, B, H, W, C]
OTHERS = np.float32(RANDOM.random(SPIKES.shape) < 0.3)


def steps_of(data, source="sender"):
    return Signal(jnp.asarray(data), None, None, "steps", source)


def relay(kind, *arriving, wire=WIRE, **fields):
    """The signal and the record of one relay."""
    signal, aux = kind(wire, **fields).apply({}, *arriving)
    (record,) = aux.values()
    return signal, record


def windows(x, size, stride):
    """`(output position, rows and columns of the grid that its window reaches)` of `[H, W]`."""
    for i in range((x.shape[0] + 2 * (size // 2) - size) // stride + 1):
        for j in range((x.shape[1] + 2 * (size // 2) - size) // stride + 1):
            top, left = i * stride - size // 2, j * stride - size // 2
            yield (i, j), (slice(max(top, 0), top + size), slice(max(left, 0), left + size))


# --- pooling ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "stride"), [(3, 2), (3, 1), (5, 3)])
def test_largest_of_each_window_where_the_border_has_no_numbers(size, stride):
    x = RANDOM.normal(-3, 1, (2, 3, 7, 6, 2)).astype(np.float32)  # below 0: padding with it would show
    found = max_pool(jnp.asarray(x), size, stride)
    expected = np.full(found.shape, np.nan, np.float32)
    for (i, j), (rows, columns) in windows(x[0, 0, ..., 0], size, stride):
        expected[..., i, j, :] = x[..., rows, columns, :].max((-3, -2))
    np.testing.assert_array_equal(found, expected)


def test_gradient_goes_to_the_first_of_equal_numbers():
    """As PyTorch's: along rows, then columns; spikes are equal almost everywhere."""
    x = np.float32(RANDOM.random((7, 6, 1)) < 0.4)
    weights = RANDOM.normal(size=(4, 3, 1)).astype(np.float32)
    found = jax.grad(lambda x: jnp.sum(max_pool(x) * weights))(jnp.asarray(x))
    expected = np.zeros_like(x)
    for (i, j), (rows, columns) in windows(x[..., 0], 3, 2):
        part = x[rows, columns, 0]
        row, column = np.unravel_index(np.argmax(part), part.shape)
        expected[rows.start + row, columns.start + column, 0] += weights[i, j, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("window", "says"),
    [((2,), "kernel is 2: its side must be odd"), ((3, 0), "stride is 0: it must be a whole number")],
)
def test_windows_without_a_centre_or_that_go_nowhere_are_refused(window, says):
    with pytest.raises(ValueError, match=says):
        max_pool(jnp.zeros((4, 4, 1)), *window)


def test_currents_are_pooled_and_averaged_step_by_step():
    current = Current(jnp.asarray(RANDOM.normal(size=SPIKES.shape), jnp.float32), ("a", "b"), True)
    small, mean = pooled(current), mean_of_tokens(current)
    assert small.parts == mean.parts == ("a", "b") and small.steps and mean.steps
    np.testing.assert_array_equal(small.value, max_pool(current.value))
    assert mean.value.shape == (3, 2, 1, 1, 6)
    np.testing.assert_allclose(mean.value, np.mean(current.value, (2, 3), keepdims=True), atol=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_pooled_spikes_are_spikes_where_any_of_the_window_fired(dtype):
    signal, record = relay(Pooled, steps_of(SPIKES).replace(data=jnp.asarray(SPIKES, dtype)))
    assert signal.data.dtype == dtype and (signal.form, signal.real) == ("steps", False)
    expected = np.zeros((3, 2, 3, 2, 6))
    for (i, j), (rows, columns) in windows(SPIKES[0, 0, ..., 0], 3, 2):
        expected[:, :, i, j] = SPIKES[:, :, rows, columns].any((2, 3))
    np.testing.assert_array_equal(signal.data.astype(np.float32), expected)
    np.testing.assert_array_equal(record.spikes, expected.sum((0, -1)))


# --- sums, counts, real numbers ---------------------------------------------------------------------------------------


def test_joined_spikes_are_summed_at_each_step_and_counted_one_by_one():
    signal, record = relay(Joined, steps_of(SPIKES), steps_of(OTHERS), steps_of(SPIKES))
    np.testing.assert_array_equal(signal.data, 2 * SPIKES + OTHERS)
    assert (signal.form, signal.code, signal.real, signal.steps) == ("steps", None, False, 3)
    np.testing.assert_array_equal(record.spikes, (2 * SPIKES + OTHERS).sum((0, -1)))


def test_a_gradient_reaches_every_signal_that_joins():
    weights = jnp.asarray(RANDOM.normal(size=SPIKES.shape), jnp.float32)

    def loss(first, second):
        return jnp.sum(relay(Joined, steps_of(first), steps_of(second))[0].data * weights)

    for gradient in jax.grad(loss, (0, 1))(jnp.asarray(SPIKES), jnp.asarray(OTHERS)):
        np.testing.assert_array_equal(gradient, weights)


def test_counts_are_that_many_spikes():
    current = Current(jnp.asarray(SPIKES + 2 * OTHERS), ("mask",), True)
    signal, record = relay(Counts, current)
    np.testing.assert_array_equal(signal.data, SPIKES + 2 * OTHERS)
    assert (signal.form, signal.threshold, signal.real) == ("steps", None, False)
    np.testing.assert_array_equal(record.spikes, (SPIKES + 2 * OTHERS).sum((0, -1)))


@pytest.mark.parametrize(("steps", "form", "passes"), [(True, "steps", 3), (False, "levels", 1)])
def test_real_numbers_are_no_spikes_however_often_they_are_sent(steps, form, passes):
    value = jnp.asarray(RANDOM.normal(size=SPIKES.shape if steps else SPIKES.shape[1:]), jnp.float32)
    signal, record = relay(Analog, Current(value, ("norm",), steps))
    np.testing.assert_array_equal(signal.data, value)
    assert signal.form == form and signal.real and signal.steps == 0
    assert record.real and (record.steps, record.passes) == (0, passes)
    assert record.spikes.shape == (2, 5, 4) and record.spikes.dtype == jnp.int32 and not record.spikes.any()


@pytest.mark.parametrize("kind", [Pooled, Joined, Counts, Analog])
def test_a_relay_is_no_neuron_and_can_be_left_uncounted(kind):
    arriving = steps_of(SPIKES) if kind in (Pooled, Joined) else Current(jnp.asarray(SPIKES), ("a",), True)
    for capture in ("none", "counts", "levels"):
        wire = Wire(WIRE.code, "lif", capture=capture)
        signal, record = relay(kind, arriving, wire=wire)
        assert record.parts == () and record.shape == signal.image_shape and record.current is None
        assert (record.spikes is None) == (capture == "none") and (record.levels is None) == (capture != "levels")
        assert capture == "none" or (record.activity.shape == (2,) and not record.activity.any())
    np.testing.assert_array_equal(record.levels, signal.data)


# --- images -----------------------------------------------------------------------------------------------------------

#: As PyTorch recipes print them.
PRINTED = {
    "none": ([0, 0, 0], [1, 1, 1]),
    "imagenet": ([0.485, 0.456, 0.406], [0.229, 0.224, 0.225]),
    "cifar10": ([0.4914, 0.4822, 0.4465], [0.2470, 0.2435, 0.2616]),
    "cifar100": ([0.5071, 0.4867, 0.4408], [0.2675, 0.2565, 0.2761]),
}


@pytest.mark.parametrize("name", PRINTED)
def test_images_are_normalised_by_each_colour(name):
    images, (mean, deviation) = random_images(2, (3, 4, 3)), PRINTED[name]
    signal, record = relay(Presented, images, normalize=name)
    np.testing.assert_allclose(signal.data, (images / 255 - mean) / deviation, rtol=1e-5, atol=1e-6)
    assert (signal.form, signal.code, signal.threshold) == ("levels", None, None) and signal.real
    assert record.real and record.parts == () and record.passes == 1 and not record.spikes.any()


@pytest.mark.parametrize("channels", [1, 2])
def test_images_of_other_colours_take_the_mean_over_colours(channels):
    images, (mean, deviation) = random_images(2, (3, 4, channels)), PRINTED["cifar10"]
    signal, _ = relay(Presented, images, normalize="cifar10")
    np.testing.assert_allclose(signal.data, (images / 255 - np.mean(mean)) / np.mean(deviation), rtol=1e-5, atol=1e-6)


def test_whole_pixels_are_presented_whatever_their_type():
    images = random_images(2, (3, 4, 3))
    whole, _ = relay(Presented, jnp.asarray(images))
    floating, _ = relay(Presented, jnp.asarray(images / 255, jnp.float32))
    np.testing.assert_array_equal(whole.data, floating.data)


@pytest.mark.parametrize("images", [np.zeros((2, 3, 4), np.uint8), np.zeros((1, 3, 4, 3), np.int32)])
def test_what_are_no_images_are_refused(images):
    with pytest.raises(ValueError, match=r"^images of "):
        relay(Presented, jnp.asarray(images))
