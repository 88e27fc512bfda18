"""The deployed network once more, in plain NumPy int64: what both executions are held against.

Written from DESIGN.md §3 alone. It shares no code with `nn`, `grouping` or `spiking`, so that a fault which the dense
and the spiking execution have in common shows as a difference here. One image at a time; made to be read, not fast.
"""

import re

import numpy as np
from flax import traverse_util

from ge2mst_jax.checks import shown

_CODE = re.compile(r"(\d+)x(\d+)(?:/(\d+))?(?:\+(\d+(?:,\d+)*))?")
_SCALE = re.compile(r"(block|grid)(\d+)(?:x(\d+))?")


def reference(net, image) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """What a deployed network makes of one image, in whole numbers alone.

    Args:
        net: a deployed network (`model`, `params` of integers, `image_shape`).
        image: `[H, W, C]`, uint8 or float in [0, 1].

    Returns:
        The levels of every neuron layer by name, `[H, W, C]` int64 (the image's pixels under `"stem/image"`), in the
        order of the network, and the head's certified sums, `[classes]` int64.

    Raises:
        ValueError: names the layer whose arrays do not fit the definition, or whose sums leave int32.

    Source: DESIGN.md §3.
    """
    walk, model = _Walk(net), net.model
    levels = walk.levels["stem/image"] = pixels(image, net.image_shape)
    current = walk.synapse("stem/synapse", levels, model.stages[0].channels, model.stem_kernel, model.stem_stride)
    for i, size in enumerate(model.stages):
        if i > 0:
            levels = walk.neuron(f"stage_{i}/down/neuron", current)
            current = walk.synapse(f"stage_{i}/down/synapse", levels, size.channels, 3, 2)
        for j in range(size.depth):
            block = f"stage_{i}/block_{j}"
            if size.kind == "conv":
                current = inside(block, current + walk.convolutions(block, current))
            else:
                current = inside(block, current + walk.attention(f"{block}/attention", current))
                current = inside(block, current + walk.feed_forward(f"{block}/feed_forward", current))
    sums = walk.head("head", walk.neuron("neuron_head", current))
    for name in sorted(walk.arrays.keys() - walk.read):
        raise ValueError(f"{name} has no part in this network's definition: nothing reads it")
    return walk.levels, sums


class _Walk:
    """One image's way through a network: reads the layers' arrays, keeps the levels."""

    def __init__(self, net):
        self.model, self.levels, self.read = net.model, {}, set()
        self.arrays = traverse_util.flatten_dict(net.params, sep="/")

    def convolutions(self, path, current):
        inner = self.synapse(f"{path}/conv_0", self.neuron(f"{path}/neuron_0", current), current.shape[-1], 3)
        return self.synapse(f"{path}/conv_1", self.neuron(f"{path}/neuron_1", inner), current.shape[-1], 3)

    def attention(self, path, current):
        channels, model = current.shape[-1], self.model
        levels = self.neuron(f"{path}/neuron", current)
        sent = {}
        for key in "qk" if model.attention == "qk_token" else "qkv":
            features = 4 * channels if (key, model.attention) == ("v", "sdsa") else channels
            code = model.code if key == "v" else model.qk_code
            sent[key] = self.neuron(f"{path}/neuron_{key}", self.synapse(f"{path}/{key}", levels, features), code)
        name = f"{path}/attention"
        current = self.shifted(name, self.attended(path, **sent))
        if model.local:
            sender = sent.get("v", sent["k"])
            local = self.synapse(f"{path}/local", sender, sender.shape[-1], 3, group_width=1)
            current = inside(name, current + local)
        return self.synapse(f"{path}/out", self.neuron(f"{path}/neuron_out", current), channels)

    def attended(self, path, q, k, v=None):
        """Counts, before they are shifted."""
        (height, width, _), head_width = q.shape, self.model.head_width
        if self.model.attention == "sdsa_v1":
            return q * self.gate(path, (k * v).sum((0, 1), keepdims=True))
        if self.model.attention == "qk_token":
            gate = self.gate(path, q.reshape(height, width, -1, head_width).sum(-1))
            return k * np.repeat(gate, head_width, -1)
        scales = self.model.scales if self.model.attention == "gw_ssa" else (f"block{height}x{width}",)
        return attend(f"{path}/attention", q, k, v, head_width, scales)

    def gate(self, path, sums):
        """0 or 1, of binary neurons."""
        return self.neuron(f"{path}/neuron_gate", self.shifted(f"{path}/gate", sums), "1x1")

    def shifted(self, name, counts):
        """Counts in the format of the current that they join."""
        shift = self.array(name, "shift", ())
        if not 0 <= shift <= 30:
            raise ValueError(f"{name}: shift is {shift}: it must be 0 to 30")
        return inside(name, inside(name, counts) << shift)

    def feed_forward(self, path, current):
        channels = current.shape[-1]
        hidden = channels * self.model.expand
        width = min(self.model.group_width, hidden)
        up = self.synapse(f"{path}/up", self.neuron(f"{path}/neuron_up", current), hidden)
        grouped = self.synapse(f"{path}/group", self.neuron(f"{path}/neuron_group", up), hidden, 3, group_width=width)
        levels = self.neuron(f"{path}/neuron_down", inside(f"{path}/group", up + grouped))
        return self.synapse(f"{path}/down", levels, channels)

    def neuron(self, name, current, code=None):
        threshold = self.array(name, "threshold", (), current.shape[-1:])
        self.levels[name], _ = fire(name, current, threshold, str(code or self.model.code))
        return self.levels[name]

    def synapse(self, name, levels, features, size=1, stride=1, group_width=None):
        width = group_width or levels.shape[-1]
        kernel = self.array(name, "kernel", (size, size, width, features))
        guard = self.array(name, "guard", ())
        if not 0 <= guard <= 7:
            raise ValueError(f"{name}: guard is {guard}: it must be 0 to 7")
        sums = inside(name, rounded(convolve(levels, kernel, stride), guard))
        return inside(name, sums + self.array(name, "bias", (features,)))

    def head(self, name, levels):
        kernel = self.array(name, "kernel", (levels.shape[-1], self.model.num_classes))
        tokens = inside(name, levels.sum((0, 1)))
        return inside(name, tokens @ kernel + self.array(name, "bias", (self.model.num_classes,)))

    def array(self, name, key, *shapes):
        """An array of a layer as int64; it must be int32 and have one of some shapes."""
        path, wanted = f"{name}/{key}", " or ".join(map(str, shapes))
        if path not in self.arrays:
            raise ValueError(f"{name}: {key} is absent: it must be int32 of shape {wanted}")
        self.read.add(path)
        found = np.asarray(self.arrays[path])
        if found.dtype != np.int32 or found.shape not in shapes:
            raise ValueError(f"{name}: {key} is {found.dtype} of shape {found.shape}: it must be int32 of {wanted}")
        return found.astype(np.int64)


def inside(name: str, numbers: np.ndarray) -> np.ndarray:
    """The numbers, if int32 holds them.

    >>> inside("head", np.array([-(2**31)]))
    Traceback (most recent call last):
    ValueError: head: a number reaches -2147483648: it must stay inside int32, |x| < 2^31
    """
    for extreme in (numbers.min(), numbers.max()):
        if abs(int(extreme)) >= 2**31:
            raise ValueError(f"{name}: a number reaches {extreme}: it must stay inside int32, |x| < 2^31")
    return numbers


def pixels(image, shape) -> np.ndarray:
    """`p = round(255·x)` of a float image, a uint8 one as it is, int64.

    >>> pixels(np.array([[[0.0], [0.2], [1.0]]]), (1, 3, 1)).ravel()
    array([  0,  51, 255])
    """
    image = np.asarray(image)
    if image.shape != tuple(shape):
        raise ValueError(f"stem/image: an image of shape {image.shape}: this network takes {tuple(shape)}")
    if image.dtype != np.uint8:
        # Images are float32 and so is their product, whose rounding is part of the definition.
        image = np.rint(np.asarray(image, np.float32) * np.float32(255))
        if not ((image >= 0) & (image <= 255)).all():
            raise ValueError("stem/image: pixels must be uint8, or finite floats in [0, 1]")
    return image.astype(np.int64)


def step_weights(code: str) -> tuple[list[list[int]], int]:
    """The step weights of each temporal group of a code `GxK[/cap][+s1,s2,…]`, and most spikes in a group.

    >>> step_weights("2x3/1+1,0")
    ([[8, 4, 2], [4, 2, 1]], 1)
    """
    groups, steps, cap, shifts = _CODE.fullmatch(code).groups()
    shifts = [int(s) for s in shifts.split(",")] if shifts else [0] * int(groups)
    return [[2 ** (s + k) for k in reversed(range(int(steps)))] for s in shifts], int(cap or steps)


def fire(name: str, current: np.ndarray, threshold, code: str) -> tuple[np.ndarray, np.ndarray]:
    """A neuron is charged, `V = I + θ/2`, then fires greedily in time: `s_t = [V ≥ θ w_t]` unless it is refractory,
    `V ← V - θ w_t s_t`.

    `current` is `I [..., C]`; `threshold` is `θ`, positive and even, a scalar or `[C]`; `code` is a text. Returns the
    levels `n = Σ_t w_t s_t`, `[..., C]`, and the spike train, `[T, ..., C]` bool.

    >>> levels, train = fire("neuron", np.array([13]), np.array(4), "2x2")
    >>> levels, train.ravel().astype(int)
    (array([3]), array([1, 1, 0, 0]))
    """
    if (threshold <= 0).any() or (threshold % 2).any():
        raise ValueError(f"{name}: a threshold is {shown(threshold)}: it must be positive and even")
    groups, cap = step_weights(code)
    membrane, train = inside(name, current + threshold // 2), []
    levels = np.zeros_like(membrane)
    for weights in groups:
        fired = np.zeros_like(membrane)  # spikes in this group
        for weight in weights:
            spike = (membrane >= inside(name, threshold * weight)) & (fired < cap)
            membrane = inside(name, membrane - threshold * weight * spike)
            levels, fired = levels + weight * spike, fired + spike
            train.append(spike)
    return levels, np.stack(train)


def rounded(sums: np.ndarray, guard: int) -> np.ndarray:
    """`⌊sum/2^g + ½⌋`: whole sums of weights with `g` guard bits, to the bits of their current, halves upwards.

    >>> rounded(np.array([-6, -5, 5, 6, 7]), 2).tolist()
    [-1, -1, 1, 2, 2]
    """
    return (2 * sums + (1 << guard)) >> (guard + 1)


def convolve(levels: np.ndarray, kernel: np.ndarray, stride: int) -> np.ndarray:
    """A convolution, zeros around the grid: `out_ij = Σ_ab n[s·i + a - k//2, s·j + b - k//2] W_ab`.

    `levels` are `n [H, W, Cin]`, `kernel` is `W [k, k, Cin/groups, Cout]`, `k` odd, `stride` is `s`; group `g` of the
    channels that send reaches group `g` of those that receive. Returns `[⌈H/s⌉, ⌈W/s⌉, Cout]`.

    >>> convolve(np.array([[[1], [2], [3]]]), np.ones((3, 3, 1, 1), np.int64), 2).ravel()
    array([3, 5])
    """
    height, columns, channels = levels.shape
    size, _, width, features = kernel.shape
    groups, border = channels // width, (size // 2, size // 2)
    padded = np.pad(levels, (border, border, (0, 0)))
    sums = np.zeros((-(-height // stride), -(-columns // stride), features), np.int64)
    for a, b in np.ndindex(size, size):
        tap = padded[a : a + height : stride, b : b + columns : stride]
        for g in range(groups):
            sender, receiver = (slice(g * n, (g + 1) * n) for n in (width, features // groups))
            sums[..., receiver] += tap[..., sender] @ kernel[a, b, :, receiver]
    return sums


def attend(name: str, q: np.ndarray, k: np.ndarray, v: np.ndarray, head_width: int, scales) -> np.ndarray:
    """Spiking self-attention in token groups: `(q kᵀ) v` for every head and every group of the head's scale.

    `q` and `k`, levels, are `[H, W, C]`, `v` is `[H, W, C_v]`, and so is what is returned. A head is `head_width`
    adjoining channels of `q` and `k`, and its share of `v`'s; each of `scales` has an equal share of adjoining heads.

    >>> ones = np.ones((2, 2, 1), np.int64)
    >>> attend("attention", ones, ones, ones * 3, 1, ("block2",)).ravel()
    array([12, 12, 12, 12])
    """
    height, width, channels = v.shape
    out = np.zeros_like(v)
    heads = q.shape[-1] // head_width
    for head in range(heads):
        part, wide = (slice(head * d, (head + 1) * d) for d in (head_width, channels // heads))
        scale = scales[head * len(scales) // heads]
        for rows, columns in token_groups(str(scale), height, width):
            queries, keys = (x[rows, columns, part] for x in (q, k))  # [m, d]
            counts = inside(name, queries @ keys.T)
            out[rows, columns, wide] = inside(name, counts @ v[rows, columns, wide])
    return out


def token_groups(scale: str, height: int, width: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """Rows and columns of each group's tokens: `block` tokens adjoin, `grid` tokens lie `H/rows`, `W/columns` apart.

    >>> [(rows.tolist(), columns.tolist()) for rows, columns in token_groups("grid1x2", 1, 4)]
    [([0, 0], [0, 2]), ([0, 0], [1, 3])]
    """
    kind, tall, wide = _SCALE.fullmatch(scale).groups()
    tall, wide = int(tall), int(wide or tall)
    if height % tall or width % wide:
        raise ValueError(f"scale {scale} does not divide the {height}x{width} token grid")
    down, across = height // tall, width // wide  # groups
    rows, columns = np.indices((height, width))
    owner = (rows // tall, columns // wide) if kind == "block" else (rows % down, columns % across)
    return [np.nonzero((owner[0] == i) & (owner[1] == j)) for i, j in np.ndindex(down, across)]
