"""The size table and `create_model`: parameter counts, resolutions, what is refused. Shapes alone, nothing computed."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import traverse_util

from ge2mst_jax import create_model
from ge2mst_jax.grouping import Scale, keys_first
from ge2mst_jax.models import SIZES, StageSize, model_fields
from ge2mst_jax.spiking import LIFSettings, SpikeCode


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
        ("ge2mst_nano", (8, 8, 1), 10, 116_650),
        ("ge2mst_nano", (28, 28, 1), 10, 116_650),
        ("ge2mst_cifar", (32, 32, 3), 10, 6_646_465),
        ("ge2mst_cifar", (32, 32, 3), 100, 6_669_595),
        ("ge2mst_s", (224, 224, 3), 1000, 10_951_566),
        pytest.param("ge2mst_b", (224, 224, 3), 1000, 28_807_828, marks=pytest.mark.slow),
        pytest.param("ge2mst_l", (224, 224, 3), 1000, 64_496_320, marks=pytest.mark.slow),
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


@pytest.mark.parametrize("name", SIZES)
def test_attention_in_groups_costs_fewer_synops_than_full_attention_in_its_cheaper_order(name):
    """At the rates that were measured, at every grid that the size may have; full attention chooses its order."""
    model = create_model(name)
    of_q, of_k, of_v = model.attention_rates
    width, grids = model.head_width, {"ge2mst_nano": (4, 14), "ge2mst_cifar": (8, 16)}.get(name, (7, 14, 28))
    for side in grids:
        cost = 0
        for scale in model.scales:
            scale.check(side, side)
            cost += min(width * (of_k * of_v + of_q), scale.tokens * (of_q * of_k + of_v)) / len(model.scales)
            assert not keys_first(scale.tokens, width, model.attention_rates)
        full = min(width * (of_k * of_v + of_q), side**2 * (of_q * of_k + of_v))
        assert cost < 0.7 * full, (side, cost / full)


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
    stages = (("conv", 64, 1), ("conv", 64, 1), ("attention", 64, 1), ("attention", 128, 1))
    small = {"head_width": 32, "stages": stages}
    model = create_model("ge2mst_s", scales=scales, **small)
    _, aux = logits_of(model, (side, side, 3))
    found = [aux[f"stage_{i}/block_0/attention/attention"].out_shape[0] for i in (2, 3)]
    assert found == grids
    # Groups have no parameters: a network moves between resolutions.
    assert parameters(model, (side, side, 3)) == expected_parameters(model, 3)


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("ge2mst_s", 384, r"scale block1x7 does not divide the 24x24 token grid: .* 1, 2, 3, 4, 6, 8, 12, 24 \(rows\)"),
        ("ge2mst_s", 256, r"scale block1x7 does not divide the 16x16 token grid: .* 1, 2, 4, 8, 16 \(columns\)"),
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
        ({"lif": {"tau": 1}}, "lif.tau is 1: it must be a number above 1"),
        ({"lif": {"beta": 1}}, "lif is {'beta': 1}: "),
        ({"lif": "hard"}, "lif is 'hard': it must be LIFSettings"),
        ({"rate_steps": 4}, "rate_steps: only qcfs neurons"),
        ({"execution": "sparse"}, "unknown execution 'sparse': known are training, dense, spiking"),
        ({"capture": "all"}, "unknown capture 'all': known are none, counts, levels"),
        ({"stages": (("mlp", 8, 1),)}, "unknown kind of stage 'mlp': known are conv, attention"),
        ({"code": "2by2"}, "'2by2' is not a spike code: a spike code is written GxK"),
        ({"scales": ("block2", "ring4")}, "'ring4' is not a scale: write block or grid"),
        ({"num_classes": 0}, "num_classes is 0: it must be a whole number, 1 to"),
        ({"num_classes": 2.0}, "num_classes is 2.0: it must be a whole number"),
        (
            {"stages": (("attention", 40, 1),)},
            "an attention stage of 40 channels cannot give equal shares of heads of width 24 to 2 scales",
        ),
        (
            {"scales": ("block1", "block2", "grid2")},
            "an attention stage of 48 channels cannot give equal shares of heads of width 24 to 3 scales",
        ),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, dict) else "",
)
def test_field_with_an_unknown_value_is_refused_with_the_known_ones(changes, message):
    with pytest.raises(ValueError, match=message):
        create_model("ge2mst_nano", **changes)


def test_unknown_model_is_refused_with_the_known_ones():
    known = "ge2mst_nano, ge2mst_cifar, ge2mst_s, ge2mst_b, ge2mst_l and 31 peers, such as qkformer_4_384"
    with pytest.raises(ValueError, match=f"^unknown model 'ge2mst_xl': known are {known} "):
        create_model("ge2mst_xl")


@pytest.mark.parametrize("field", ["depth", "parent"])
def test_unknown_field_is_refused_with_the_known_ones(field):
    with pytest.raises(
        ValueError, match=f"unknown field '{field}' of ge2mst_nano: known are num_classes, stages, code"
    ):
        create_model("ge2mst_nano", **{field: 3})


NUMBERS = (0, -1, 2.0, 1e20, float("nan"), True, None, "3", 2**40)
FIELDS = ("num_classes", "stem_kernel", "stem_stride", "head_width", "expand", "group_width")


@pytest.mark.parametrize("value", NUMBERS, ids=str)
@pytest.mark.parametrize("field", FIELDS)
def test_number_that_is_none_is_refused_by_its_field(field, value):
    with pytest.raises(ValueError, match=rf"^{field} is .*: it must be a whole number, 1 to \d+$"):
        create_model("ge2mst_nano", **{field: value})
    with pytest.raises(ValueError, match=rf"^{field} is "):
        create_model("ge2mst_nano").clone(**{field: value})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stem_kernel": 4}, "stem_kernel is 4: it must be odd"),
        ({"group_width": 36}, "group_width is 36: it must divide the 96 hidden channels"),
        ({"scales": ()}, "scales is \\(\\): it must be a tuple of one Scale or more"),
        ({"scales": "block2"}, "scales is 'block2': it must be a tuple such as"),
        ({"scales": (2,)}, "2 is not a scale: write block or grid"),
        ({"stages": ()}, "stages is \\(\\): it must be a tuple of one StageSize or more"),
        ({"stages": "conv"}, "stages is 'conv': it must be a tuple such as"),
        ({"stages": ("conv", 8, 1)}, "a stage is 'conv': it must be \\(kind, channels, depth\\)"),
        ({"stages": (("conv", 8),)}, "a stage is \\('conv', 8\\): it must be"),
        ({"stages": (("conv", 0, 1),)}, "channels of a stage is 0: it must be a whole number"),
        ({"stages": (("conv", 8, -1),)}, "depth of a stage is -1: it must be a whole number"),
        ({"stages": (("conv", 8, True),)}, "depth of a stage is True"),
        ({"drop_path": 1.0}, "drop_path is 1.0: it must be a number at least 0 and below 1"),
        ({"drop_path": float("nan")}, "drop_path is nan"),
        ({"drop_path": float("inf")}, "drop_path is inf"),
        ({"drop_path": True}, "drop_path is True"),
        ({"dtype": "int8"}, "unknown dtype 'int8': known are float32, bfloat16, float16"),
        ({"dtype": None}, "unknown dtype None"),
        ({"dtype": "float64"}, "unknown dtype 'float64'"),
        ({"dtype": "real"}, "unknown dtype 'real'"),
        ({"code": 22}, "22 is not a spike code"),
        ({"code": None}, "None is not a spike code"),
        ({"neuron": None}, "unknown neuron None"),
        ({"remat": "all"}, "unknown remat 'all': known are none"),
    ],
    ids=str,
)
def test_field_that_no_network_follows_from_is_refused(changes, message):
    with pytest.raises(ValueError, match=f"^{message}"):
        create_model("ge2mst_nano", **changes)


@pytest.mark.parametrize("name", [None, 3, [], ("ge2mst_nano",)], ids=str)
def test_name_that_is_no_text_is_refused(name):
    with pytest.raises(ValueError, match=r"^unknown model .*: known are ge2mst_nano"):
        create_model(name)


def test_numpy_numbers_are_numbers():
    model = create_model("ge2mst_nano", num_classes=np.int64(7), expand=np.uint8(2))
    assert json.loads(json.dumps(model_fields(model)))["num_classes"] == 7


@pytest.mark.parametrize(
    ("shape", "dtype", "message"),
    [
        ((8, 8, 1), np.uint8, r"images of shape \(8, 8, 1\): this network takes \[B, H, W, C\]"),
        ((1, 2, 8, 8, 1), np.uint8, r"images of shape \(1, 2, 8, 8, 1\): this network takes \[B, H, W, C\]"),
        *(
            ((1, 8, 8, 1), dtype, f"images of dtype {np.dtype(dtype).name}: they must be uint8, or float in")
            for dtype in (np.int8, np.int32, np.uint16, bool, np.complex64)
        ),
    ],
)
def test_images_that_are_none_are_refused(shape, dtype, message):
    model = create_model("ge2mst_nano")
    with pytest.raises(ValueError, match=message):
        jax.eval_shape(model.init, jax.random.key(0), jax.ShapeDtypeStruct(shape, dtype))


WRONG = {"0 to 255": 200.0, "mean and deviation": -1.3, "nan": np.nan, "infinite": np.inf}


@functools.cache
def smallest(neuron):
    """Variables and passes, not compiled and compiled, of a network of one block."""
    model = create_model("ge2mst_nano", neuron=neuron, stages=(("conv", 8, 1),))
    variables = jax.jit(model.init)(jax.random.key(0), np.full((2, 8, 8, 1), 0.5, np.float32))
    return variables, model.apply, jax.jit(model.apply)


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize("neuron", ["expg", "relu", "lif"])
def test_float_images_out_of_range_are_refused_or_give_nan_where_jit_hides_them(neuron, value):
    variables, apply, compiled = smallest(neuron)
    images = np.full((2, 8, 8, 1), 0.5, np.float32)
    images[1, 3, 3, 0] = value
    with pytest.raises(ValueError, match=r"float images must be finite and in \[0, 1\]; these reach from"):
        apply(variables, images)
    logits = compiled(variables, images)[0]
    assert np.isfinite(logits[0]).all()
    assert np.isnan(logits[1]).all()


@pytest.mark.parametrize("neuron", ["expg", "relu", "lif"])
def test_no_images_give_no_logits(neuron):
    model = create_model("ge2mst_nano", neuron=neuron)
    variables = jax.eval_shape(model.init, jax.random.key(0), jnp.zeros((1, 8, 8, 1), jnp.uint8))
    logits, aux = jax.eval_shape(model.apply, variables, jnp.zeros((0, 8, 8, 1), jnp.uint8))
    assert logits.shape == (0, 10)
    assert aux["stage_1/block_0/attention/attention"].synops.shape == (0,)


def test_rounding_beyond_the_range_is_none():
    variables, apply, _ = smallest("expg")
    assert np.isfinite(apply(variables, np.full((1, 8, 8, 1), 1 + 1e-6, np.float32))[0]).all()


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
    changes = {"neuron": "plif", "code": "2x3/1", "qk_code": "2x2", "dtype": "bfloat16", "input_code": "direct"}
    changes |= {"num_classes": 7, "lif": LIFSettings(tau=3.0)}
    for model in (create_model(name), create_model(name, **changes)):
        fields = json.loads(json.dumps(model_fields(model)))
        assert create_model(name, **fields) == model
        assert create_model("ge2mst_nano", **fields) == model  # they say everything: the name adds nothing


def test_fields_of_different_networks_differ():
    one = create_model("ge2mst_nano")
    for change in (
        {"code": "2x2"},
        {"qk_code": "1x1"},
        {"scales": ("block2",)},
        {"stages": (("conv", 24, 1),)},
        {"dtype": "bfloat16"},
        {"expand": 4},
        {"lif": {"tau": 4.0}},
        {"neuron": "qcfs", "rate_steps": 4},
    ):
        assert model_fields(create_model("ge2mst_nano", **change)) != model_fields(one)


def test_every_layer_with_parameters_has_its_record_in_aux():
    model = create_model("ge2mst_nano", num_classes=3)
    _, aux = logits_of(model, (8, 8, 1))
    paths = traverse_util.flatten_dict(shapes_of(model, (8, 8, 1))["params"])
    layers = {"/".join(path[:-2] if path[-2] == "norm" else path[:-1]) for path in paths}
    without = {"stem/image", "stage_1/block_0/attention/attention", "stage_1/block_1/attention/attention"}
    assert set(aux) == layers | without
