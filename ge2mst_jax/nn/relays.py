"""What passes on, without a membrane, what others sent: sums and maxima of spikes, counts, real numbers.

A relay leaves a `NeuronRecord` whose `parts` are empty: what it sends is counted where it arrives, and it is no neuron.
"""

import flax.linen as nn
import jax
import jax.numpy as jnp

from ge2mst_jax.nn.images import check_images, pixels
from ge2mst_jax.nn.maps import check_kernel
from ge2mst_jax.nn.neuron import record
from ge2mst_jax.nn.wire import Current, Signal, Wire

#: Mean and standard deviation of each colour, by which images in [0, 1] are normalised, as PyTorch recipes have them.
NORMALIZE = {
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "cifar10": ((0.4914, 0.4822, 0.4465), (0.2470, 0.2435, 0.2616)),
    "cifar100": ((0.5071, 0.4867, 0.4408), (0.2675, 0.2565, 0.2761)),
}


def max_pool(x, size: int = 3, stride: int = 2):
    """Largest of each window of a grid, `k//2` positions beyond its border being no numbers.

    Args:
        x: `[..., H, W, C]`, floating.
        size, stride: of both axes; `size` is odd.

    >>> max_pool(jnp.arange(16.0).reshape(4, 4, 1))[..., 0]
    Array([[ 5.,  7.],
           [13., 15.]], dtype=float32)
    """
    check_kernel(size, stride)
    flat = x.reshape(-1, *x.shape[-3:])
    windows, strides = (1, size, size, 1), (1, stride, stride, 1)
    pad = ((0, 0), (size // 2,) * 2, (size // 2,) * 2, (0, 0))
    pooled = jax.lax.reduce_window(flat, -jnp.inf, jax.lax.max, windows, strides, pad)
    return pooled.reshape(*x.shape[:-3], *pooled.shape[1:])


def pooled(current: Current) -> Current:
    """`max_pool` of a current."""
    return current.replace(value=max_pool(current.value))


def mean_of_tokens(current: Current) -> Current:
    """The mean of a current over its tokens, a grid of one."""
    return current.replace(value=jnp.mean(current.value, (-3, -2), keepdims=True))


class Relay(nn.Module):
    """Sends on `to_send(*arriving)`; `Presented`, `Pooled`, `Joined`, `Counts` and `Analog` say what that is.

    Call: `(*arriving) -> (Signal, aux)`.
    """

    wire: Wire

    @nn.compact
    def __call__(self, *arriving):
        name = "/".join(self.path)
        signal = self.to_send(name, *arriving)
        images = signal.data.shape[0 if signal.form == "levels" else 1]
        return signal, {name: record(signal, jnp.zeros(images), self.wire, None)}


class Presented(Relay):
    """Images as real numbers, `(p/255 - μ)/σ`: analog, the same at every step and so presented once.

    Args:
        wire: the network's agreement.
        normalize: a name from `NORMALIZE`; images of other than three channels take its means over colours.

    Call: `images [B, H, W, C] -> (Signal, aux)`, images as `nn.pixels` takes them.
    """

    normalize: str = "imagenet"

    def to_send(self, name, images):
        check_images(images)
        mean, deviation = (jnp.asarray(x, jnp.float32) for x in NORMALIZE[self.normalize])
        if images.shape[-1] != 3:
            mean, deviation = jnp.mean(mean), jnp.mean(deviation)
        data = (pixels(images) / 255 - mean.reshape(1, 1, 1, -1)) / deviation.reshape(1, 1, 1, -1)
        return Signal(data, None, None, "levels", name)


class Pooled(Relay):
    """Spikes through `max_pool`: one is sent where any neuron of the window fired at that step."""

    def to_send(self, name, signal):
        return signal.replace(data=max_pool(signal.data), source=name, kept=None)


class Joined(Relay):
    """The sum of spikes of several layers at each step, whole numbers: a shortcut that joins spikes, not currents."""

    def to_send(self, name, *signals):
        return signals[0].replace(data=sum(signal.data for signal in signals), source=name, kept=None)


class Counts(Relay):
    """A current of whole numbers as that many spikes: what a mask let through reaches the synapses with no neuron
    between."""

    def to_send(self, name, current):
        return Signal(current.value.astype(self.wire.dtype), None, None, "steps", name)


class Analog(Relay):
    """A current sent as it is, real numbers: every product with them is a multiply-accumulate."""

    def to_send(self, name, current):
        data = current.value.astype(self.wire.dtype)
        return Signal(data, None, None, "steps" if current.steps else "levels", name, analog=True)
