"""Anchors: two networks that everyone knows, planned beside ours, so that a share of peak has something to stand by."""

import dataclasses
import functools
from collections.abc import Callable

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from ge2mst_jax.train.config import TrainConfig
from ge2mst_jax.train.setup import check_parts
from ge2mst_jax.train.sharding import batch_sharding, infer_shardings, make_mesh, replicated
from ge2mst_jax.train.step import decayed


def scaled(images):
    """Bytes as numbers in -1..1, bfloat16."""
    return (images.astype(jnp.float32) / 127.5 - 1).astype(jnp.bfloat16)


class ConvNorm(nn.Module):
    """Convolution and BatchNorm, whose statistics are the global batch's; call `(x, train)`."""

    channels: int
    kernel: int
    stride: int = 1

    @nn.compact
    def __call__(self, x, train: bool):
        sides = (self.kernel, self.kernel)
        x = nn.Conv(self.channels, sides, self.stride, use_bias=False, dtype=jnp.bfloat16, name="conv")(x)
        return nn.BatchNorm(not train, momentum=0.9, dtype=jnp.bfloat16, name="norm")(x)


class Bottlenecks(nn.Module):
    """One stage of a ResNet: `depth` bottlenecks, the first of them strided in its 3×3 (what is called v1.5)."""

    channels: int
    depth: int
    stride: int

    @nn.compact
    def __call__(self, x, train: bool):
        for i in range(self.depth):
            stride = self.stride if i == 0 else 1
            y = nn.relu(ConvNorm(self.channels, 1, name=f"reduce_{i}")(x, train))
            y = nn.relu(ConvNorm(self.channels, 3, stride, name=f"map_{i}")(y, train))
            y = ConvNorm(4 * self.channels, 1, name=f"expand_{i}")(y, train)
            if i == 0:
                x = ConvNorm(4 * self.channels, 1, stride, name="shortcut")(x, train)
            x = nn.relu(x + y)
        return x


class ResNet(nn.Module):
    """ResNet of bottlenecks; call `(images [B, H, W, C] uint8, train) -> logits [B, num_classes]` float32.

    Source: K. He et al., "Deep residual learning for image recognition", 2016.
    """

    num_classes: int
    depths: tuple[int, ...] = (3, 4, 6, 3)

    @nn.compact
    def __call__(self, images, train: bool):
        x = nn.relu(ConvNorm(64, 7, 2, name="stem")(scaled(images), train))
        x = nn.max_pool(x, (3, 3), (2, 2), "SAME")
        for i, depth in enumerate(self.depths):
            x = Bottlenecks(64 * 2**i, depth, 1 if i == 0 else 2, name=f"stage_{i}")(x, train)
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(jnp.mean(x, (1, 2)))


class Encoder(nn.Module):
    """`depth` pre-norm transformer blocks and a last LayerNorm, on tokens `[B, N, D]`."""

    depth: int
    heads: int

    @nn.compact
    def __call__(self, x):
        norm = functools.partial(nn.LayerNorm, epsilon=1e-6, dtype=jnp.bfloat16)
        dense = functools.partial(nn.DenseGeneral, dtype=jnp.bfloat16)
        width = x.shape[-1]
        for i in range(self.depth):
            y = dense((3, self.heads, width // self.heads), name=f"qkv_{i}")(norm(name=f"before_attention_{i}")(x))
            with jax.named_scope("attention.attend"):
                y = jax.nn.dot_product_attention(*jnp.moveaxis(y, 2, 0))  # [B, N, h, d]
            x = x + dense(width, axis=(-2, -1), name=f"out_{i}")(y)
            y = nn.gelu(dense(4 * width, name=f"up_{i}")(norm(name=f"before_mlp_{i}")(x)))
            x = x + dense(width, name=f"down_{i}")(y)
        return norm(name="last")(x)


class ViT(nn.Module):
    """Vision transformer with a class token and learnt positions; call as of `ResNet`.

    Source: A. Dosovitskiy et al., "An image is worth 16x16 words", 2021.
    """

    num_classes: int
    patch: int = 16
    width: int = 384
    depth: int = 12
    heads: int = 6

    @nn.compact
    def __call__(self, images, train: bool):
        sides = (self.patch, self.patch)
        x = nn.Conv(self.width, sides, sides, "VALID", dtype=jnp.bfloat16, name="stem")(scaled(images))
        x = x.reshape(len(x), -1, self.width)  # [B, N, D]
        token = self.param("token", nn.initializers.zeros, (1, 1, self.width))
        position = self.param("position", nn.initializers.normal(0.02), (1, x.shape[1] + 1, self.width))
        x = jnp.concatenate([jnp.broadcast_to(token, (len(x), 1, self.width)).astype(x.dtype), x], 1)
        x = Encoder(self.depth, self.heads, name="stage_0")(x + position.astype(x.dtype))
        return nn.Dense(self.num_classes, dtype=jnp.float32, name="head")(x[:, 0])


@dataclasses.dataclass(frozen=True)
class Anchor:
    """A network and how it is trained, in the usual way.

    Args:
        model: makes the module, from the number of classes.
        optimizer: makes the optimiser; its numbers cost nothing.
        patch: divides an image's sides.
    """

    model: Callable[[int], nn.Module]
    optimizer: Callable[[], optax.GradientTransformation]
    patch: int = 1


def sgd() -> optax.GradientTransformation:
    return optax.chain(optax.add_decayed_weights(1e-4, mask=decayed), optax.sgd(0.1, momentum=0.9, nesterov=True))


def adamw() -> optax.GradientTransformation:
    return optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(1e-3, weight_decay=0.05, mask=decayed))


ANCHORS = {"ResNet-50": Anchor(ResNet, sgd), "ViT-S/16": Anchor(ViT, adamw, patch=16)}


def check_anchors(image_shape) -> None:
    """Refuses images that an anchor cannot be given.

    Raises:
        ValueError: names the anchor and the sides.

    >>> check_anchors((28, 28, 1))
    Traceback (most recent call last):
    ValueError: anchor: ViT-S/16 cuts images into patches of 16x16: images of 28x28 are no multiple
    """
    height, width, _ = image_shape
    for name, anchor in ANCHORS.items():
        if height % anchor.patch or width % anchor.patch:
            raise ValueError(
                f"anchor: {name} cuts images into patches of {anchor.patch}x{anchor.patch}: images of "
                f"{height}x{width} are no multiple"
            )


def init_anchor(model, optimizer, image_shape):
    """`{params, others, opt_state}`, float32; `others` is what else the network holds, such as BatchNorm's statistics.

    >>> state = jax.eval_shape(lambda: init_anchor(ViT(1000), adamw(), (224, 224, 3)))
    >>> sum(leaf.size for leaf in jax.tree.leaves(state["params"]))
    22050664
    """
    others = dict(model.init(jax.random.key(0), jnp.zeros((1, *image_shape), jnp.uint8), False))
    params = others.pop("params")
    return {"params": params, "others": others, "opt_state": optimizer.init(params)}


def anchor_step(state, batch, *, model, optimizer):
    """Forward, backward, update: the next state and the loss. No augmentation, no average of parameters."""

    def loss_of(params):
        variables = {"params": params} | state["others"]
        logits, others = model.apply(variables, batch["image"], True, mutable=list(state["others"]))
        return jnp.mean(optax.softmax_cross_entropy_with_integer_labels(logits, batch["label"])), others

    (loss, others), gradients = jax.value_and_grad(loss_of, has_aux=True)(state["params"])
    updates, opt_state = optimizer.update(gradients, state["opt_state"], state["params"])
    params = optax.apply_updates(state["params"], updates)
    return {"params": params, "others": others, "opt_state": opt_state}, loss


def lower_anchor(name: str, config: TrainConfig, devices, image_shape, classes: int):
    """The train step of an anchor, lowered for devices that need not be there.

    Its batch, mesh and rules of sharding are the config's; the batch is taken at once, whatever `accumulate` is.

    Raises:
        ValueError: as `check_anchors`, and a batch that the devices cannot share.
    """
    check_anchors(image_shape)
    config = dataclasses.replace(config, accumulate=1)
    mesh = make_mesh(config.mesh_data, config.mesh_model, devices)
    check_parts(config, mesh)
    model, optimizer = ANCHORS[name].model(classes), ANCHORS[name].optimizer()
    shapes = jax.eval_shape(functools.partial(init_anchor, model, optimizer, image_shape))
    shardings = infer_shardings(shapes, mesh, fsdp_min_elements=config.fsdp_min_elements)
    step = jax.jit(
        functools.partial(anchor_step, model=model, optimizer=optimizer),
        in_shardings=(shardings, batch_sharding(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=(0,),
    )
    size = config.batch_size
    batch = {
        "image": jax.ShapeDtypeStruct((size, *image_shape), jnp.uint8),
        "label": jax.ShapeDtypeStruct((size,), jnp.int32),
    }
    return step.lower(shapes, batch)
