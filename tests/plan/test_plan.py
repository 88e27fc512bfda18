"""Plans: reading what the compiler wrote, topologies, and, where the TPU's compiler is installed, a plan itself."""

import functools
import importlib.util
import io
import json
import re

import jax
import jax.numpy as jnp
import plan as script
import pytest
import rich.console
from plans import a_plan
from tiny_networks import SHAPE, random_variables, tiny_model

from ge2mst_jax.plan import CHIPS, Plan, named, plan_table, read_program, read_topology, shape_bytes, shape_of
from ge2mst_jax.plan.make import uncached
from ge2mst_jax.train import TrainConfig

HLO = """HloModule jit_train_step, is_scheduled=true

%region_0 (a: s32[]) -> pred[] {
  %a = s32[] parameter(0)
  %c = u32[]{:T(128)} constant(5)
  ROOT %less = pred[] compare(%a, %c), direction=LT
}

%body_0 (t: (s32[], f32[8])) -> (s32[], f32[8]) {
  %f = f32[8]{0} fusion(%t), kind=kLoop, metadata={op_name="jit(train_step)/jvp(Ge2mST)/stage_0/block_0/neuron_0/neuron_0.fire/while/body/ge"}, backend_config={"estimated_cycles":"10"}
  %g = f32[8]{0} all-gather(%f), replica_groups={{0,1}}
}

%region_1 (a: s32[]) -> pred[] {
  ROOT %less = pred[] custom-call(%a), custom_call_target="unknown"
}

%body_1 (t: (s32[])) -> (s32[]) {
  %h = s32[] fusion(%t), kind=kLoop, backend_config={"estimated_cycles":"7"}
}

ENTRY %main (p: f32[8]) -> (f32[8], f32[]) {
  %w = (s32[], f32[8]) while(%t), condition=%region_0, body=%body_0
  %w2 = (s32[]) while(%t2), condition=%region_1, body=%body_1
  %conv = bf16[2,4]{1,0} fusion(%p), kind=kOutput, metadata={op_name="jit(train_step)/transpose(jvp(Ge2mST))/stage_1/block_0/attention/q/q.convolve/conv_general_dilated"}, backend_config={"estimated_cycles":"100"}
  %r = (f32[4], bf16[2]) all-reduce-start(%conv), to_apply=%add
  %zero = f32[] fusion(%p), kind=kLoop, backend_config={"estimated_cycles":"0"}
}
"""  # noqa: E501


@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_cycles_count_as_often_as_loops_turn(kind):
    found, collectives, unknown = read_program(HLO.replace("%c = u32", f"%c = {kind}"))
    assert [(w.cycles, w.stage, w.direction, w.kind) for w in found] == [
        (50, "stage_0", "forward", "neurons"),
        (7, "outside", "outside", "other"),
        (100, "stage_1", "backward", "products"),
    ]
    assert collectives == {"all-gather": 5 * 32, "all-reduce": 20}
    assert unknown == 1


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("jit(train_step)/vmap(jit(_where))/select_n", "augmentation"),
        ("jit(train_step)/jvp(Ge2mST)/stage_2/block_0/attention/attention/attention.count/dot", "attention"),
        ("jit(train_step)/jvp(ViT)/stage_0/attention.attend/dot", "attention"),
        ("jit(train_step)/jvp(Ge2mST)/stage_2/block_0/attention/local/local.convolve/mul", "depth-wise map"),
        ("jit(train_step)/jvp(Ge2mST)/stage_2/block_0/attention/local/local.convolve/norm/mul", "BatchNorm"),
        ("jit(train_step)/add", "other"),
    ],
)  # fmt: skip
def test_kinds_of_work(name, kind):
    assert named(name, 1).kind == kind


def test_kinds_are_those_that_a_lowered_network_has():
    model = tiny_model()
    images = jnp.zeros((1, *SHAPE), jnp.uint8)
    lowered = jax.jit(functools.partial(model.apply, train=False)).lower(random_variables(model), images)
    names = re.findall(r'"(jit[^"]*)"', lowered.as_text(debug_info=True))
    kinds = {named(name, 1).kind for name in names if "stage_1/block_0/attention/" in name}
    assert kinds == {"attention", "depth-wise map", "BatchNorm", "products", "neurons", "other"}


def test_bytes_of_shapes():
    assert shape_bytes("%x = (f32[2,3]{1,0:T(8,128)}, pred[7], bf16[]) all-reduce") == 24 + 7 + 2


@pytest.mark.parametrize(
    "text", ["v5e", "v5e:", "v5e:4", "v5e:0x4", "v7:2x2", "v5e:4x4x4x4", "v5e:99x99", "[/x]:2x2", None]
)
def test_topology_that_is_none_is_refused(text):
    with pytest.raises(ValueError, match=r"topology") as error:
        read_topology(text)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("text", "count"), [("v4:2x2x1", 4), ("v5e:16x16", 256), ("v5p:4x4x4", 64), ("v6e:2x4", 8)])
def test_topologies(text, count):
    chip, found = read_topology(text)
    assert (chip, found) == (CHIPS[text.partition(":")[0]], count)


@pytest.mark.parametrize("data", ["folder:x", "folder:/data/cifar10", "tfds:cifar10_1", "idx:/data/digits_of_mine"])
def test_data_that_no_table_knows_is_refused(data):
    with pytest.raises(ValueError, match=f"data is '{data}': of what it holds a plan knows nothing; it knows digits"):
        shape_of(TrainConfig(data=data))


def test_figures_follow_from_each_other():
    plan = a_plan()
    assert (plan.fits, plan.share_of_peak, plan.images_per_second) == (True, 0.1, 200.0)
    assert (plan.hours, plan.chip_hours, plan.bound_by) == (1.0, 4.0, "bytes")
    found = json.loads(json.dumps(plan.as_dict()))
    assert found["chip_hours"] == 4.0
    assert Plan.from_dict(found) == plan
    assert a_plan(work="evaluate", steps=None).as_dict()["hours"] is None


@pytest.mark.parametrize("changes", [{"hbm": "7"}, {"batch": True}, {"shares": []}, {"more": 1}, {"fits": None}])
def test_what_is_no_plan_is_refused(changes):
    found = a_plan().as_dict() | changes
    if changes == {"fits": None}:
        del found["fits"]
    with pytest.raises(ValueError, match="holds"):
        Plan.from_dict(found)


def test_table_sets_plans_side_by_side():
    console = rich.console.Console(width=120, record=True, file=io.StringIO())
    console.print(plan_table({"ours": a_plan(), "ViT-S/16": a_plan(steps=None, seconds=0.25, shares={"stage": {}})}))
    text = console.export_text()
    for line in (
        r"train on v5e:2x2, batch 400",
        r"step, by cycles +│ +500.0 ms │ +250.0 ms",
        r"step, by bytes +│ +1000.0 ms │ +1000.0 ms",
        r"the larger +│ +bytes, 2.0 × │ +bytes, 4.0 ×",
        r"recipe +│ 7,200 steps, 1.0 h, 4 chip-hours │ +–",
        r"stage: stem +│ +100.0% │ +–",
    ):
        assert re.search(line, text), line


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nothing"], "unknown experiment 'nothing'"),
        (["digits", "--topology", "v5e:3"], "unknown topology 'v5e:3'"),
        (["digits", "--batch", "0"], "batch is 0"),
        (["digits", "--json", "no/where.json"], "there is no folder no"),
        (["digits", "--json", "/"], "that is a folder"),
        (["digits", "--work", "dense", "--neuron", "relu"], "'relu' neurons cannot be converted"),
        (["digits", "--work", "dense", "--anchor", "True"], "anchor and work dense contradict each other"),
        (["digits", "--anchor", "True"], "ViT-S/16 cuts images into patches of 16x16: images of 8x8"),
        (["digits", "--largest-batch", "True", "--batch", "64"], "largest_batch and batch contradict"),
        (["digits", "--largest-batch", "True", "--anchor", "True"], "largest_batch and anchor contradict"),
        (["digits", "--sweep", "True", "--batch", "64"], "sweep and batch contradict each other: give batches"),
        (["digits", "--sweep", "True", "--topology", "v5e:2x2"], "contradict each other: give topologies"),
        (["digits", "--sweep", "True", "--work", "spiking"], "sweep and work spiking contradict each other"),
        (["digits", "--sweep", "True", "--largest-batch", "True"], "sweep and largest_batch contradict"),
        (["digits", "--topologies", "v5e:2x2"], "topologies are of a sweep: add --sweep True"),
        (["digits", "--remats", "none"], "remats are of a sweep"),
        (["digits", "--sweep", "True", "--topologies", "v5e:2x2", "v9:2x2"], "unknown topology 'v9:2x2'"),
        (["digits", "--sweep", "True", "--batches", "64", "0"], "batches is 0"),
        (["digits", "--sweep", "True", "--remats", "all"], "unknown remat 'all': known are none"),
        (["digits", "--sweep", "True", "--json", __file__], "damaged"),
    ],
)
def test_script_says_what_is_wrong_before_it_compiles(arguments, message, capsys):
    with pytest.raises(SystemExit) as ended:
        script.run_command(script.main, script.Options, arguments=arguments)
    assert ended.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.skipif(importlib.util.find_spec("libtpu") is not None, reason="libtpu is installed")
def test_without_the_compiler_one_line_says_how_to_get_it(capsys):
    with pytest.raises(SystemExit) as ended:
        script.run_command(script.main, script.Options, arguments=["digits"])
    assert ended.value.code == 2
    assert "pip install 'libtpu==" in capsys.readouterr().err


def test_what_is_planned_is_not_taken_from_a_cache():
    before = jax.config.jax_enable_compilation_cache
    with uncached():
        assert not jax.config.jax_enable_compilation_cache
    assert jax.config.jax_enable_compilation_cache == before
