"""What is lowered: every kind of work of a tiny experiment, for the devices of the tests."""

import jax
import pytest
from plans import POD
from tiny_networks import SHAPE, random_variables, tiny_model

from ge2mst_jax.convert import deploy, deployed_shapes
from ge2mst_jax.plan import WORKS, lower_work
from ge2mst_jax.train import TrainConfig

DATA = ((8, 8, 1), 10, 1_437)


@pytest.mark.parametrize("changes", [{}, {"code": "2x3/1"}, {"input_code": "direct"}])
def test_shapes_of_a_deployed_network(changes):
    model = tiny_model(**changes)
    net = deploy(model, random_variables(model), SHAPE)
    made = jax.tree.map(lambda a: jax.ShapeDtypeStruct(a.shape, a.dtype), net.params)
    assert deployed_shapes(model, SHAPE) == made


@pytest.mark.parametrize("work", WORKS)
def test_work_is_lowered(work):
    lowered = lower_work(TrainConfig(batch_size=16), work, POD.devices, DATA)
    text = lowered.as_text(debug_info=True)
    assert ("transpose(jvp" in text) == (work == "train")
    assert ("bf16" in text) == (work in ("dense", "spiking"))  # planes as a TPU multiplies them
    assert "stage_1/block_1" in text


@pytest.mark.parametrize("work", ["train", "evaluate"])
def test_only_a_train_step_takes_its_batch_in_parts(work):
    config = TrainConfig(batch_size=24, accumulate=2)
    if work == "train":
        with pytest.raises(ValueError, match="batch_size is 24: 8 devices along data, with accumulate 2"):
            lower_work(config, work, POD.devices, DATA)
    else:
        lower_work(config, work, POD.devices, DATA)


@pytest.mark.parametrize(
    ("changes", "work", "message"),
    [
        ({}, "nothing", "unknown work 'nothing': known are train, evaluate, dense, spiking"),
        ({"neuron": "lif"}, "spiking", "'lif' neurons cannot be converted"),
        ({"model": "sdt_2_512"}, "spiking", "'lif' neurons cannot be converted"),
        ({"model": "e_spikeformer_t"}, "dense", "^ESpikeFormer cannot be converted: only Ge2mST can$"),
        ({"batch_size": 12}, "dense", "batch_size is 12: 8 devices along data"),
    ],
)
def test_work_that_cannot_be_done_is_refused(changes, work, message):
    with pytest.raises(ValueError, match=message):
        lower_work(TrainConfig(**{"batch_size": 16} | changes), work, POD.devices, DATA)
