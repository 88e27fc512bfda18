"""Weights that PyTorch left become a run that is evaluated and predicts; what does not fit leaves nothing behind."""

import json
import pickle
import sys

import evaluate
import import_weights
import jax
import numpy as np
import predict
import pytest
from flax import traverse_util
from odd_images import run, write_odd_folder
from tiny_peers import CLASSES, applied, firing_variables, shrink, tiny_peer, torch_state

from ge2mst_jax.data import BatchPlan, eval_batches, open_source
from ge2mst_jax.models.torch_names import NAMES
from ge2mst_jax.train.checkpoints import CheckpointError, Checkpoints, read_about, steps_in
from ge2mst_jax.train.deployed import class_names, decoding, load_network
from ge2mst_jax.train.lock import exclusive

saving = pytest.importorskip("safetensors.numpy")
NAME, SHAPE = "spikformer_4_384", (16, 16, 3)
VARIABLES = firing_variables(tiny_peer(NAME), SHAPE)
FLAT = traverse_util.flatten_dict(VARIABLES, sep="/")
STATE = torch_state(FLAT, NAMES["Spikformer"][1], "Spikformer")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_odd_folder(tmp_path_factory.mktemp("images"))


@pytest.fixture
def here(tmp_path, monkeypatch):
    """A folder to work in, where the size's name stands for its tiny network, with its weights in a file."""
    shrink(monkeypatch, NAME, 16)
    monkeypatch.chdir(tmp_path)
    saving.save_file({f"module.{name}": np.ascontiguousarray(array) for name, array in STATE.items()}, "w.safetensors")
    return tmp_path


def imported(file="w.safetensors", *arguments, name=NAME):
    return run(import_weights, import_weights.ImportWeights, name, file, "--run-dir", "a run", *arguments)


def is_clean(path):
    """Whether nothing was made beside the files that a test wrote."""
    return not (path / "a run").exists() and not list(path.rglob("*.tmp*"))


def refused(capsys, *arguments, **named) -> str:
    """The one line that the script ends with."""
    capsys.readouterr()
    assert imported(*arguments, **named) == 2
    out, said = capsys.readouterr()
    assert not out and said.count("\n") == 1 and said.startswith("import_weights.py: error: ")
    return said.removeprefix("import_weights.py: error: ").rstrip("\n")


def test_weights_become_a_run_that_is_evaluated_and_predicts(here, folder, capsys):
    assert imported("w.safetensors", "--data", f"folder:{folder}") == 0
    said = capsys.readouterr().out
    assert "named as by the authors, CIFAR" in said and "evaluate.py a run --execution trained" in said
    net = load_network("a run", "trained")
    found = traverse_util.flatten_dict(dict(net.variables), sep="/")
    assert found.keys() == FLAT.keys()
    for leaf, array in found.items():
        np.testing.assert_array_equal(array, FLAT[leaf], leaf)
    names = [f"class {number}" for number in range(CLASSES)]
    assert class_names(net) == names and decoding(net).image_size == 16 and net.digest is None

    source = open_source(f"folder:{folder}", "test")
    (batch,) = eval_batches(source, BatchPlan(50, decode=decoding(net)))
    logits, aux = net(batch["image"])
    np.testing.assert_allclose(logits[:4], applied(NAME)(VARIABLES, batch["image"][:4])[0], rtol=1e-5, atol=1e-5)
    assert run(evaluate, evaluate.Evaluate, "a run", "--execution", "trained", "--batch-size", 50) == 0
    written = json.loads((here / "a run" / "evaluation.json").read_text())
    right = np.argmax(logits, -1) == batch["label"]
    assert written["accuracy"] == pytest.approx(right.mean()) and written["images"] == 50
    assert (written["execution"], written["energy_execution"]) == ("trained", "trained")
    assert written["digest"] is None and written["audit"] is None
    layers = {layer["name"]: layer for layer in written["energy"]["exact"]["layers"]}
    arriving = aux["attention_0/joined"].spikes.sum() / 50
    assert layers["feed_forward_0/up"]["synops"] == pytest.approx(64 * arriving)
    assert layers["stem/conv_0"]["macs"] == 46 * 46 * 3 * 2
    assert f"accuracy, top-1 │ {100 * written['accuracy']:.2f} %" in " ".join(capsys.readouterr().out.split())

    options = ("--checkpoint", "a run", "--execution", "trained", "--json", "True", "--top", CLASSES)
    assert run(predict, predict.Predict, folder / "val", *options) == 0
    found = {each["image"]: each["top"] for each in map(json.loads, capsys.readouterr().out.splitlines())}
    expected = np.asarray(jax.nn.softmax(logits))
    order = np.argsort(-expected, 1, kind="stable")
    for index in range(50):
        top = found.pop(str(source.path(index)))
        assert [guess["name"] for guess in top] == [names[n] for n in order[index]]
        np.testing.assert_allclose([guess["probability"] for guess in top], expected[index][order[index]], rtol=1e-4)
    assert not found

    assert run(evaluate, evaluate.Evaluate, "a run") == 2
    assert "--execution trained runs it as it was trained" in capsys.readouterr().err
    before = sorted(path for path in here.rglob("*"))
    assert refused(capsys) == "run_dir: a run holds a run already: name another folder"
    assert sorted(path for path in here.rglob("*")) == before


@pytest.mark.parametrize("classes, data", [(10, "tfds:cifar10"), (CLASSES, "tfds:imagenet2012")])
def test_a_run_of_no_named_data_names_what_its_size_was_published_for(here, monkeypatch, classes, data):
    shrink(monkeypatch, NAME, 16, num_classes=classes)
    heads = {name: np.resize(array, (classes, *array.shape[1:])) for name, array in STATE.items() if "head" in name}
    saving.save_file(STATE | heads, "w.safetensors")
    assert imported() == 0
    assert json.loads((here / "a run" / "config.json").read_text())["data"] == data


def test_a_run_that_another_process_holds_is_left_alone(here, capsys):
    with exclusive(here / "a run"):
        assert "a run" in refused(capsys)
    assert [path.name for path in (here / "a run").iterdir()] == [".lock"]


def test_a_save_that_failed_leaves_nothing_that_is_in_the_way(here, capsys, monkeypatch):
    def full(checkpoints, *_):
        (checkpoints.directory / "0.orbax-checkpoint-tmp").mkdir(parents=True)
        raise CheckpointError("the checkpoint cannot be written: No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoints, "save", full)
        assert "No space left on device" in refused(capsys)
    assert not (here / "a run" / "config.json").exists() and not steps_in(here / "a run" / "checkpoints")
    assert imported() == 0
    assert read_about(here / "a run", "best")[1]["classes"] == [str(i) for i in range(CLASSES)]


def write(here, **arrays):
    """Weights with some in place of others; `None` leaves one out. Returns the file's name."""
    state = {name: array for name, array in (STATE | arrays).items() if array is not None}
    saving.save_file({name: np.ascontiguousarray(array) for name, array in state.items()}, "other.safetensors")
    return "other.safetensors"


def test_files_that_do_not_fit_leave_nothing(here, folder, capsys):
    (here / "cut.safetensors").write_bytes((here / "w.safetensors").read_bytes()[:-100])
    (here / "text.safetensors").write_text("weights")
    saving.save_file({}, "empty.safetensors")
    (here / "a.safetensors").mkdir()
    no_head = write(here, **{"head.weight": None})
    for file, says in (
        ("gone.safetensors", "file: there is no file gone.safetensors"),
        ("a.safetensors", "file: there is no file a.safetensors"),
        ("cut.safetensors", "cut.safetensors is no .safetensors, or a damaged one: "),
        ("text.safetensors", "text.safetensors is no .safetensors, or a damaged one: "),
        ("empty.safetensors", "empty.safetensors holds no arrays"),
        (no_head, "other.safetensors holds no classifier: neither head.weight nor classifier.weight"),
    ):
        assert refused(capsys, file).startswith(says) and is_clean(here), file
    file = write(here, **{"head.weight": np.ones(5, np.float32)})
    assert "holds no classifier" in refused(capsys, file) and is_clean(here)
    file = write(here, **{"head.weight": np.ones((3, 16), np.float32), "head.bias": np.ones(3, np.float32)})
    says = f"data: folder:{folder} has 5 classes, the file's classifier 3"
    assert refused(capsys, file, "--data", f"folder:{folder}") == says and is_clean(here)
    file = write(here, **{"block.0.mlp.fc1_bn.weight": None})
    says = "params/feed_forward_0/up/norm/scale: the file holds no block.0.mlp.fc1_bn.weight (names of the authors, "
    assert refused(capsys, file).startswith(says) and is_clean(here)


@pytest.mark.parametrize(
    ("name", "arguments", "says"),
    [
        ("resnet50", (), "unknown model 'resnet50': known are spikformer_8_384, "),
        ("ge2mst_s", (), "unknown model 'ge2mst_s': known are spikformer_8_384, "),
        (NAME, ("--image-size", 8), "image_size is 8: it must be a whole number, 16 to 4096"),
        (NAME, ("--data", "folder:gone"), "gone: no folder train there"),
    ],
)
def test_options_that_do_not_fit_leave_nothing(here, capsys, name, arguments, says):
    assert says in refused(capsys, "w.safetensors", *arguments, name=name) and is_clean(here)


def test_a_reader_that_is_not_there_is_named(here, capsys, monkeypatch):
    (here / "w.pth").write_bytes(b"")
    for module, file in (("safetensors", "w.safetensors"), ("torch", "w.pth")):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, module, None)
            assert f"{file}: reading " in refused(capsys, file) and is_clean(here)


def test_half_precision_is_read(here):
    half = {name: array.astype(jax.numpy.bfloat16) for name, array in STATE.items()}
    saving.save_file({name: np.ascontiguousarray(array) for name, array in half.items()}, "half.safetensors")
    found = import_weights.read_weights(here / "half.safetensors")
    assert found.keys() == STATE.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, half[name].astype(np.float32))


@pytest.mark.parametrize(
    ("name", "change", "says"),
    [
        ("head.weight", lambda x: np.where(x == x.max(), np.nan, x), "holds numbers that are not finite in float32"),
        ("head.bias", lambda x: np.full(x.shape, 1e300), "holds numbers that are not finite in float32"),
        ("head.weight", lambda x: x.astype(np.int8), "is int8: weights must be floats (those of a quantised network"),
        ("head.weight", lambda x: x > 0, "is bool: weights must be floats"),
        ("head.weight", lambda x: x.astype(np.complex64), "is complex64: weights must be floats"),
        ("block.0.mlp.fc1_bn.running_var", lambda x: -x, "holds a variance below 0: the file is damaged"),
    ],
)
def test_numbers_that_no_weights_can_be_are_refused_by_name(here, capsys, name, change, says):
    file = write(here, **{name: change(STATE[name])})
    assert refused(capsys, file).startswith(f"{file}: {name} {says}") and is_clean(here)


def test_one_name_twice_is_refused(here, capsys):
    file = write(here, **{"module.head.bias": STATE["head.bias"] + 1})
    assert "holds head.bias and module.head.bias: leave one of them out" in refused(capsys, file) and is_clean(here)


# --- PyTorch's own files ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("nested", [None, "model", "state_dict"])
def test_a_file_of_torch_is_read_as_weights_alone(here, nested):
    torch = pytest.importorskip("torch")
    state = {f"module.{name}": torch.tensor(array) for name, array in STATE.items()}
    torch.save(state if nested is None else {nested: state, "epoch": 3, "best": 0.5}, here / "w.pth")
    found = import_weights.read_weights(here / "w.pth")
    assert found.keys() == STATE.keys()
    for name, array in found.items():
        assert array.dtype == np.float32
        np.testing.assert_array_equal(array, STATE[name])


class Harmful:
    def __reduce__(self):
        return open, ("executed", "w")


def test_nothing_in_a_file_of_torch_is_executed(here, capsys):
    torch = pytest.importorskip("torch")
    torch.save({"model": {"head.weight": torch.ones(5, 16)}, "args": Harmful()}, here / "zip.pth")
    (here / "plain.pth").write_bytes(pickle.dumps(Harmful()))
    (here / "text.pt").write_text("weights")
    torch.save([torch.ones(3)], here / "list.pth")
    torch.save({"model": 3}, here / "numbers.pth")
    torch.save({"head.weight": torch.ones(5, 16).to_sparse()}, here / "sparse.pth")
    for file, says in (
        ("zip.pth", "zip.pth cannot be read as weights alone: "),
        ("plain.pth", "plain.pth cannot be read as weights alone: "),
        ("text.pt", "text.pt cannot be read as weights alone: "),
        ("list.pth", "list.pth holds a list: it must be a state dict"),
        ("numbers.pth", "numbers.pth holds no arrays"),
        ("sparse.pth", "sparse.pth holds no arrays"),
    ):
        assert refused(capsys, file).startswith(says) and is_clean(here), file
    assert not (here / "executed").exists()
