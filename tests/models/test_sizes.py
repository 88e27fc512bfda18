"""The size table and `create_model`: parameter counts, resolutions, what is refused. Shapes alone, nothing computed."""

import functools
import json

import jax
import jax.numpy as jnp
import pytest
from flax import traverse_util

from ge2mst_jax import create_model
from ge2mst_jax.grouping import Scale
from ge2mst_jax.models import SIZES, StageSize, model_fields
from ge2mst_jax.spiking import SpikeCode


@functools.cache
def shapes_of(model, image_shape):
    image = jax.ShapeDtypeStruct((1, *image_shape), jnp.uint8)
    return jax.eval_shape(model.init, jax.random.key(0), image)


def parameters(model, image_shape):
    return sum(a.size for a in jax.tree.leaves(shapes_of(model, image_shape)["params"]))


def expected_parameters(model, channels):
    """The sum of the layers' parameters, from the layout alone; a synapse has a gain and a bias a channel."""

    def synapse(kernel, fan_in, features):
        return kernel**2 * fan_in * features + 2 * features

    width = model.stages[0].channels
    total = synapse(model.stem_kernel, channels, width)
    for i, stage in enumerate(model.stages):
        c, hidden = stage.channels, stage.channels * model.expand
        if i:
            total += 1 + synapse(3, width, c)
        if stage.kind == "conv":
            block = 2 * (1 + synapse(3, c, c))
        else:
            block = 4 * synapse(1, c, c) + synapse(3, 1, c) + 3 + 2 * (c // model.head_width)
            block += 3 + synapse(1, c, hidden) + synapse(3, min(model.group_width, hidden), hidden)
            block += synapse(1, hidden, c)
        total += stage.depth * block
        width = c
    return total + 1 + width * model.num_classes + model.num_classes


@pytest.mark.parametrize(
    ("name", "image_shape", "classes", "expected"),
    [
        ("ge2mst_nano", (8, 8, 1), 10, 116_658),
        ("ge2mst_nano", (28, 28, 1), 10, 116_658),
        ("ge2mst_cifar", (32, 32, 3), 10, 6_646_465),
        ("ge2mst_cifar", (32, 32, 3), 100, 6_669_595),
        ("ge2mst_s", (224, 224, 3), 1000, 10_951_622),
        ("ge2mst_b", (224, 224, 3), 1000, 28_807_956),
        ("ge2mst_l", (224, 224, 3), 1000, 64_496_568),
    ],
)
def test_sizes_have_the_parameters_that_they_promise(name, image_shape, classes, expected):
    model = create_model(name, num_classes=classes)
    assert parameters(model, image_shape) == expected == expected_parameters(model, image_shape[-1])
    least, most = {
        "ge2mst_nano": (0, 0.3e6),
        "ge2mst_cifar": (6e6, 7e6),
        "ge2mst_s": (10.5e6, 11.5e6),
        "ge2mst_b": (28e6, 30e6),
        "ge2mst_l": (62e6, 66e6),
    }[name]
    assert least < expected < most


def test_table_holds_the_five_sizes():
    assert list(SIZES) == ["ge2mst_nano", "ge2mst_cifar", "ge2mst_s", "ge2mst_b", "ge2mst_l"]


def logits_of(model, image_shape, batch=2):
    """Shapes of a forward pass: logits and `aux`."""
    variables = shapes_of(model, image_shape)
    return jax.eval_shape(model.apply, variables, jax.ShapeDtypeStruct((batch, *image_shape), jnp.uint8))


def check_train_step(model, image_shape):
    """Builds the gradient of a loss: one for every parameter, and new statistics."""
    variables = shapes_of(model, image_shape)

    def loss(params, batch_stats, images):
        (logits, _), updates = model.apply(
            {"params": params, "batch_stats": batch_stats}, images, train=True, mutable=["batch_stats"]
        )
        return jnp.mean(jnp.square(logits)), updates["batch_stats"]

    images = jax.ShapeDtypeStruct((2, *image_shape), jnp.uint8)
    gradient = jax.grad(loss, has_aux=True)
    gradients, updated = jax.eval_shape(gradient, variables["params"], variables["batch_stats"], images)
    for found, like in ((gradients, variables["params"]), (updated, variables["batch_stats"])):
        assert jax.tree.map(lambda a: (a.shape, a.dtype), found) == jax.tree.map(lambda a: (a.shape, a.dtype), like)


LARGE = [
    "ge2mst_s",
    pytest.param("ge2mst_b", marks=pytest.mark.slow),
    pytest.param("ge2mst_l", marks=pytest.mark.slow),
]


@pytest.mark.parametrize("name", LARGE)
def test_large_sizes_build_forward_and_train_step_at_224(name):
    model = create_model(name, num_classes=1000)
    logits, aux = logits_of(model, (224, 224, 3))
    assert (logits.shape, logits.dtype) == ((2, 1000), jnp.float32)
    assert aux["stem/synapse"].out_shape == (56, 56, model.stages[0].channels)
    grids = [aux[f"stage_{i}/down/synapse"].out_shape[:2] for i in (1, 2, 3)]
    assert grids == [(28, 28), (14, 14), (7, 7)]
    check_train_step(model, (224, 224, 3))


@pytest.mark.parametrize("name", ["ge2mst_nano", pytest.param("ge2mst_cifar", marks=pytest.mark.slow)])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_train_step_builds_in_both_types_of_operands(name, dtype):
    check_train_step(create_model(name, dtype=dtype), (32, 32, 3))


@pytest.mark.parametrize(
    ("side", "scales", "grids"),
    [
        (448, ("block7", "grid7"), [28, 14]),
        (384, ("block12", "grid12"), [24, 12]),
        (384, ("block4", "grid4"), [24, 12]),
    ],
)
def test_other_resolutions_build_where_the_groups_divide_them(side, scales, grids):
    small = {"stages": (("conv", 64, 1), ("conv", 64, 1), ("attention", 64, 1), ("attention", 128, 1))}
    model = create_model("ge2mst_s", scales=scales, **small)
    _, aux = logits_of(model, (side, side, 3))
    found = [aux[f"stage_{i}/block_0/attention/attention"].out_shape[0] for i in (2, 3)]
    assert found == grids
    # Groups have no parameters: a network moves between resolutions.
    assert parameters(model, (side, side, 3)) == expected_parameters(model, 3)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("ge2mst_s", 384, r"scale block7 does not divide the 24x24 token grid: .* 1, 2, 3, 4, 6, 8, 12, 24 \(rows\)"),
        ("ge2mst_s", 256, r"scale block7 does not divide the 16x16 token grid: .* 1, 2, 4, 8, 16 \(columns\)"),
        ("ge2mst_nano", 10, r"scale block2 does not divide the 5x5 token grid: .* 1, 5 \(rows\) and 1, 5 \(columns\)"),
    ],
)
def test_resolution_that_the_groups_do_not_divide_is_refused_with_the_windows_that_fit(name, side, message):
    with pytest.raises(ValueError, match=message):
        shapes_of(create_model(name), (side, side, 3))


def test_scale_that_the_stages_share_must_divide_every_one_of_them():
    # 8x8 and 4x4 tokens: block8 fits the first alone.
    model = create_model("ge2mst_nano", stages=(("attention", 48, 1), ("attention", 48, 1)), scales=("block8",))
    with pytest.raises(ValueError, match="scale block8 does not divide the 4x4 token grid"):
        shapes_of(model, (8, 8, 1))


# --- create_model -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"neuron": "lifs"}, "unknown neuron 'lifs': known are expg, qcfs, sfa, relu, if, lif, plif"),
        ({"input_code": "1x4"}, "unknown input_code '1x4': known are direct, 1x8"),
        ({"execution": "sparse"}, "unknown execution 'sparse': known are training, dense, spiking"),
        ({"capture": "all"}, "unknown capture 'all': known are counts, levels"),
        ({"stages": (("mlp", 8, 1),)}, "unknown stage kind 'mlp': known are conv, attention"),
        ({"code": "2by2"}, "'2by2' is not a spike code: a spike code is written GxK"),
        ({"scales": ("block2", "ring4")}, "'ring4' is not a scale: write block or grid"),
        ({"num_classes": 0}, "num_classes is 0: it must be a whole number, at least 1"),
        ({"num_classes": 2.0}, "num_classes is 2.0: it must be a whole number"),
        (
            {"stages": (("attention", 40, 1),)},
            "an attention stage of 40 channels cannot give equal shares of heads of width 12 to 2 scales",
        ),
        (
            {"scales": ("block1", "block2", "grid2")},
            "an attention stage of 48 channels cannot give equal shares of heads of width 12 to 3 scales",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_field_with_an_unknown_value_is_refused_with_the_known_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        create_model("ge2mst_nano", **changes)


def test_unknown_model_is_refused_with_the_known_ones():
    known = "ge2mst_nano, ge2mst_cifar, ge2mst_s, ge2mst_b, ge2mst_l"
    with pytest.raises(ValueError, match=f"^unknown model 'ge2mst_xl': known are {known}$"):
        create_model("ge2mst_xl")


@pytest.mark.parametrize("field", ["depth", "parent"])
def test_unknown_field_is_refused_with_the_known_ones(field):
    with pytest.raises(
        ValueError, match=f"unknown field '{field}' of ge2mst_nano: known are num_classes, stages, code"
    ):
        create_model("ge2mst_nano", **{field: 3})


def test_channels_that_the_groups_do_not_divide_are_refused_by_layer():
    model = create_model("ge2mst_nano", group_width=36)
    with pytest.raises(
        ValueError, match=r"^stage_1/block_0/feed_forward/group: groups of 36 channels do not divide 96"
    ):
        shapes_of(model, (8, 8, 1))


def test_images_without_a_batch_are_refused():
    with pytest.raises(AssertionError):
        shapes_of(create_model("ge2mst_nano"), (8, 1))


def test_texts_and_values_make_the_same_network():
    texts = create_model("ge2mst_nano", code="2x3/1", scales=["block2", "grid2x4"], stages=[["conv", 8, 1]])
    values = create_model(
        "ge2mst_nano",
        code=SpikeCode(2, 3, 1),
        scales=(Scale("block", 2), Scale("grid", (2, 4))),
        stages=(StageSize("conv", 8, 1),),
    )
    assert texts == values
    assert hash(texts) == hash(values)


@pytest.mark.parametrize("name", SIZES)
def test_fields_make_the_network_again_through_json(name):
    changes = {"neuron": "plif", "code": "2x3/1", "dtype": "bfloat16", "input_code": "direct", "num_classes": 7}
    for model in (create_model(name), create_model(name, **changes)):
        fields = json.loads(json.dumps(model_fields(model)))
        assert create_model(name, **fields) == model
        assert create_model("ge2mst_nano", **fields) == model  # they say everything: the name adds nothing


def test_fields_of_different_networks_differ():
    one = create_model("ge2mst_nano")
    for change in (
        {"code": "1x4"},
        {"scales": ("block2",)},
        {"stages": (("conv", 24, 1),)},
        {"dtype": "bfloat16"},
        {"expand": 3},
    ):
        assert model_fields(create_model("ge2mst_nano", **change)) != model_fields(one)


def test_every_layer_with_parameters_has_its_record_in_aux():
    model = create_model("ge2mst_nano", num_classes=3)
    _, aux = logits_of(model, (8, 8, 1))
    paths = traverse_util.flatten_dict(shapes_of(model, (8, 8, 1))["params"])
    layers = {"/".join(path[:-2] if path[-2] == "norm" else path[:-1]) for path in paths}
    without = {"stem/image", "stage_1/block_0/attention/attention", "stage_1/block_1/attention/attention"}
    assert set(aux) == layers | without
