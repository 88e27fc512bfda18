"""Exported networks: the same numbers without this package, on whatever they are lowered for; nothing changed loads."""

import dataclasses
import hashlib
import json
import random
import re
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from edits import edited, first
from jax import export
from tiny_networks import SHAPE, random_images

from ge2mst_jax.checkpoint import seal
from ge2mst_jax.convert import deploy, export_net, load_exported, save_exported
from ge2mst_jax.convert import export as module

PAGE = Path(__file__).parents[2] / "docs/export.md"
#: Arguments: a file, and images to run it on, each with the number of images in its name. Plain JAX.
STRANGER = """
import sys
sys.modules["ge2mst_jax"] = None
try:
    import ge2mst_jax
    sys.exit("the package is here")
except ImportError:
    pass
import numpy as np
from jax import export
network = export.deserialize(bytearray(open(sys.argv[1], "rb").read()))
for images in sys.argv[2:]:
    np.savez(images + ".npz", **network.call(np.load(images)))
"""


@pytest.fixture(scope="module")
def small_net(small):
    return deploy(*small, SHAPE, about={"data": "folder:/home/someone", "classes": list("abcde")})


@pytest.fixture(scope="module")
def saved(small_net, tmp_path_factory):
    path = tmp_path_factory.mktemp("exported") / "net.jax_export"
    save_exported(path, small_net, platforms=("cpu",))
    return path


@pytest.fixture
def copy(saved, tmp_path):
    """Of the file and of what is said of it."""
    for path in (saved, said_of(saved)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path / saved.name


def said_of(path):
    return path.with_name(path.name + ".json")


def without_this_package(path, folder, batches):
    """What a file gives for each batch of images, in a fresh process."""
    names = [folder / f"{i}.npy" for i in range(len(batches))]
    for name, images in zip(names, batches, strict=True):
        np.save(name, images)
    subprocess.run([sys.executable, "-P", "-c", STRANGER, path, *names], check=True, cwd=folder)
    return [np.load(f"{name}.npz") for name in names]


def equal(found, net, images, execution):
    """Bit for bit: logits, and the sums that they come from."""
    logits, _ = net(images, execution)
    sums, _ = net.executed(execution).apply({"params": net.params}, images)
    assert (found["logits"].dtype, found["sums"].dtype) == (np.float32, np.int32)
    assert np.asarray(found["logits"]).tobytes() == np.asarray(logits).tobytes()
    assert (found["sums"] == sums).all()


def test_a_file_runs_where_this_package_cannot_be_imported(saved, small_net, tmp_path):
    images = random_images(3)
    (found,) = without_this_package(saved, tmp_path, [images])
    equal(found, small_net, images, "dense")


@pytest.mark.slow
@pytest.mark.parametrize("current_bits", [24, 31])
@pytest.mark.parametrize("execution", ["dense", "spiking"])
def test_both_executions_run_without_this_package_on_any_number_of_images(
    model, variables, execution, current_bits, tmp_path
):
    net = deploy(model, variables, SHAPE, current_bits=current_bits)
    save_exported(tmp_path / "net", net, execution)
    batches = [random_images(n, seed=n) for n in (1, 2, 7)] + [np.full((2, *SHAPE), 255, np.uint8)]
    for found, images in zip(without_this_package(tmp_path / "net", tmp_path, batches), batches, strict=True):
        equal(found, net, images, execution)


@pytest.mark.parametrize("platform", ["cpu", "cuda", "rocm", "tpu"])
@pytest.mark.parametrize(
    ("network", "execution"),
    [
        ("small_net", "dense"),
        pytest.param("small_net", "spiking", marks=pytest.mark.slow),
        pytest.param("net", "dense", marks=pytest.mark.slow),
        pytest.param("net", "spiking", marks=pytest.mark.slow),
    ],
)
def test_what_each_platform_computes_is_the_network(platform, network, execution, request):
    net, images = request.getfixturevalue(network), random_images(2, seed=1)
    exported = export_net(net, execution, [platform])
    assert exported.platforms == (platform,)
    anywhere = dataclasses.replace(exported, disabled_safety_checks=(export.DisabledSafetyCheck.platform(),))
    equal(anywhere.call(images), net, images, execution)


def test_one_network_gives_the_same_bytes_with_nothing_of_this_machine_in_them(small_net, saved):
    before = jax.config.jax_traceback_in_locations_limit
    content = bytes(export_net(small_net, platforms=("cpu", "cpu")).serialize())
    assert content == saved.read_bytes()
    assert b".py" not in content
    assert "someone" not in said_of(saved).read_text()
    assert jax.config.jax_traceback_in_locations_limit == before


def test_weights_are_inside_once(small_net):
    program = export_net(small_net, platforms=("cpu", "cuda", "tpu")).mlir_module()
    kernel = small_net.params["stage_0"]["block_0"]["conv_0"]["kernel"]
    assert program.count(f"0x{np.asarray(kernel).tobytes().hex().upper()}") == 1


def test_a_program_that_runs_elsewhere_trusts_no_convolution_that_was_tried_here(small_net):
    assert "stablehlo.convolution" not in export_net(small_net, platforms=("cpu",)).mlir_module()


def test_the_file_says_what_it_is(saved, small_net):
    about = load_exported(saved).about
    assert about == json.loads(said_of(saved).read_text())
    assert about["file_sha256"] == hashlib.sha256(saved.read_bytes()).hexdigest()
    assert about["digest"] == small_net.digest
    assert about["classes"] == list("abcde")
    assert (about["takes"], about["gives"]) == ("uint8[b,8,8,2]", {"logits": "float32[b,5]", "sums": "int32[b,5]"})
    assert (about["execution"], about["platforms"], about["image_shape"]) == ("dense", ["cpu"], [8, 8, 2])
    assert about["versions"]["jax"] == jax.__version__


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"net": None}, "net is None: it must be a DeployedNet, as deploy or load_net give it"),
        ({"execution": "training"}, "unknown execution 'training': known are dense, spiking"),
        ({"platforms": "cpu"}, "platforms is 'cpu': it must be a tuple of some of cpu, cuda, rocm, tpu"),
        ({"platforms": ()}, r"platforms is \(\): it must be"),
        ({"platforms": ("cpu", "gpu")}, "unknown platform 'gpu': known are cpu, cuda, rocm, tpu"),
        ({"platforms": (1,)}, "unknown platform 1: known are"),
    ],
)
def test_what_cannot_be_exported_is_refused(changes, says, small_net, tmp_path):
    with pytest.raises(ValueError, match=says):
        save_exported(tmp_path / "net", **({"net": small_net} | changes))
    assert not any(tmp_path.iterdir())


def test_a_network_that_was_changed_is_refused(small_net):
    with pytest.raises(ValueError, match="the digest is not the one that deploy stored"):
        export_net(edited(small_net, "head/bias", lambda bias: first(bias, bias[0] + 1)))


@pytest.mark.parametrize(
    ("images", "says"),
    [
        (np.zeros((2, *SHAPE), np.float32), "2 images of dtype float32: they must be one or more, and uint8"),
        (np.zeros((2, *SHAPE), np.int32), "images of dtype int32"),
        (np.zeros((0, *SHAPE), np.uint8), "0 images of dtype uint8: they must be one or more"),
        (np.zeros((2, 8, 8, 3), np.uint8), r"images of shape \(2, 8, 8, 3\): this network takes \[B, 8, 8, 2\]"),
        (np.zeros(SHAPE, np.uint8), r"images of shape \(8, 8, 2\): this network takes"),
        ([0, 1], "images are a list"),
    ],
)
def test_wrong_images_are_refused_in_one_line(images, says, saved):
    with pytest.raises(ValueError, match=says) as caught:
        load_exported(saved)(images)
    assert "\n" not in str(caught.value)


def test_a_file_for_other_platforms_says_so(small_net, tmp_path):
    save_exported(tmp_path / "net", small_net, platforms=("tpu",))
    with pytest.raises(ValueError, match=r"exported for platforms '\('tpu',\)' but it is used on '\('cpu',\)'"):
        load_exported(tmp_path / "net")(random_images(1))


def refused(path) -> str:
    with pytest.raises(ValueError) as caught:
        load_exported(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_one_flipped_bit_is_noticed(copy):
    drawn = random.Random(0)
    for file in (copy, said_of(copy)):
        whole = file.read_bytes()
        for _ in range(40):
            place, bit = drawn.randrange(len(whole)), drawn.randrange(8)
            file.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << bit]) + whole[place + 1 :])
            assert "net.jax_export" in refused(copy)
        file.write_bytes(whole)
    load_exported(copy)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda path: path.unlink(), "net.jax_export cannot be read: No such file"),
        (lambda path: path.write_bytes(b""), "is damaged, or not the file that its .json describes: export it again"),
        (lambda path: said_of(path).unlink(), "no exported network at .*net.jax_export: .*json cannot be read"),
        (lambda path: said_of(path).write_text("[]"), r"json: damaged \(holds a list"),
        (lambda path: said_of(path).write_text("{}"), "does not describe an exported network of this version"),
        (lambda path: said_of(path).write_bytes(b"\xff\x00"), "json: damaged"),
    ],
)
def test_damage_ends_in_one_line(damage, says, copy):
    damage(copy)
    assert re.search(says, refused(copy))


def test_bytes_that_this_version_of_jax_cannot_read_are_refused(copy):
    about = {key: value for key, value in json.loads(said_of(copy).read_text()).items() if key != "sha256"}
    about |= {"file_sha256": hashlib.sha256(b"of another age").hexdigest()}
    copy.write_bytes(b"of another age")
    said_of(copy).write_text(json.dumps(seal(about)))
    assert "was written by jax" in refused(copy)


@pytest.mark.parametrize("foreign", ["net", "net.json"])
def test_what_is_no_exported_network_is_not_replaced(foreign, small_net, tmp_path):
    (tmp_path / foreign).write_text("{}")
    with pytest.raises(ValueError, match=r"net or its \.json is there and no exported network: it is not replaced"):
        save_exported(tmp_path / "net", small_net, platforms=("cpu",))
    assert [(file.name, file.read_text()) for file in tmp_path.iterdir()] == [(foreign, "{}")]


def test_a_save_that_was_killed_is_noticed_and_done_again(copy, small_net, monkeypatch):
    whole, write = copy.read_bytes(), module.write_whole

    def killed(path, content):
        if path == copy:
            raise KeyboardInterrupt
        write(path, content)

    monkeypatch.setattr(module, "write_whole", killed)
    with pytest.raises(KeyboardInterrupt):
        save_exported(copy, small_net, platforms=("tpu",))
    assert "is damaged, or not the file" in refused(copy)
    monkeypatch.undo()
    save_exported(copy, small_net, platforms=("cpu",))
    assert load_exported(copy) and copy.read_bytes() == whole


def test_the_examples_of_the_page_run(small_net, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    examples = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)
    images = random_images(2)
    names = {"net": small_net, "images": images}
    exec(compile("\n".join(examples), PAGE.name, "exec"), names)
    equal(names["found"], small_net, images, "dense")
