"""Our peers beside the PyTorch implementations of them: the same weights, the same images, spike by spike.

SpikingJelly's model zoo is a package (extra `peer`); the authors' code is read from checkouts of their repositories,
with stand-ins for what it imports beside PyTorch. Nothing of either is part of this project.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.energy import SpikeCounter
from ge2mst_jax.models import PEERS, create_model, from_torch
from ge2mst_jax.nn import NeuronRecord, norm
from ge2mst_jax.spiking import if_params, lif_fire, lif_params

#: Steps of training by which PyTorch's norms get their averages, on random images.
CALIBRATION = 30


@dataclasses.dataclass(frozen=True)
class Case:
    """One implementation of one peer, at a size that a CPU compares in seconds.

    Args:
        make: the PyTorch network, from what `load` gives.
        model: the name of a size of ours, of the same family.
        fields: what is changed in it.
        side: of the images.
        images: how many; 1 where their network mixes the images of a batch.
        twice: of their neuron layers, those that fire as the one before them: ours is one.
        tokens_last: whether their arrays are `[T, B, N, C]`.
        frozen: whether the norms' averages are held in training, on both sides: the network reads them there, and
            PyTorch's are of unbiased variances.
        counted: whether SpikingJelly's counter is asked.
        seed: of weights, norms and images.
    """

    make: Callable
    model: str
    fields: dict
    side: int = 32
    images: int = 3
    twice: tuple[int, ...] = ()
    tokens_last: bool = False
    frozen: bool = False
    counted: bool = False
    seed: int = 0


def _zoo(name: str):
    return importlib.import_module(f"spikingjelly.activation_based.model.{name}")


_SMALL = dict(dim=64, depth=2, heads=4)
_SMALL_STAGES = dict(dim=64, depths=(1, 1, 1))
_DIMS = dict(dims=(16, 32, 64, 80), heads=4, depths=(1, 1))
_RESET = dict(detach_reset=True)  # as the authors have it; the zoo leaves it out here and there

#: From SpikingJelly's model zoo.
ZOO = {
    "Spikformer": Case(
        lambda: _zoo("spikformer").Spikformer(
            T=4, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=64, num_heads=4, depths=2),
        "spikformer_4_384", _SMALL | dict(pool_currents=True)),
    "Spike-driven Transformer": Case(
        lambda: _zoo("spike_driven_transformer").SpikeDrivenTransformer(
            embed_dims=64, num_heads=4, depths=2, num_classes=10, pooling_stat="0011", **_RESET),
        "sdt_2_512", _SMALL, counted=True),
    "QKFormer": Case(
        lambda: _zoo("qkformer").QKFormer(
            embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 1), num_classes=10, **_RESET),
        "qkformer_10_384", _SMALL_STAGES | dict(heads=(2, 4, 4)), side=64),
    "Max-Former, CIFAR": Case(
        lambda: _zoo("maxformer").MaxFormer(embed_dims=64, depths=(1, 1, 1), num_classes=10, cifar=True),
        "maxformer_4_384", _SMALL_STAGES, twice=(1,), counted=True),
}  # fmt: skip

_OFFICIAL = dict(in_channels=3, num_classes=10)
#: From the authors' repositories: folder, file, and what makes the network of its module.
AUTHORS = {
    "Spikformer, ImageNet": ("spikformer", "imagenet/model.py", Case(
        lambda m: m.Spikformer(img_size_h=64, img_size_w=64, patch_size=16, embed_dims=64, num_heads=4, mlp_ratios=4,
                               depths=2, sr_ratios=1, **_OFFICIAL),
        "spikformer_8_384", _SMALL, side=64)),
    "Spikformer, CIFAR": ("spikformer", "cifar10/model.py", Case(
        lambda m: m.Spikformer(img_size_h=32, img_size_w=32, patch_size=4, embed_dims=64, num_heads=4, mlp_ratios=4,
                               depths=2, sr_ratios=1, **_OFFICIAL),
        "spikformer_4_384", _SMALL, tokens_last=True)),
    "Spike-driven Transformer": ("Spike-Driven-Transformer", "model/spikeformer.py", Case(
        lambda m: m.SpikeDrivenTransformer(img_size_h=32, img_size_w=32, embed_dims=64, num_heads=4, depths=2,
                                           pooling_stat="0011", **_OFFICIAL),
        "sdt_2_512", _SMALL)),
    "Meta-SpikeFormer": ("Spike-Driven-Transformer-V2", "classification/models.py", Case(
        lambda m: _cut(m.Spiking_vit_MetaFormer(embed_dim=[16, 32, 64, 80], num_heads=4, mlp_ratios=4, depths=8,
                                                sr_ratios=1, **_OFFICIAL), T=4),
        "meta_spikeformer_8_256", _DIMS, side=64, frozen=True)),
    "E-SpikeFormer": ("Spike-Driven-Transformer-V3", "SDT_V3/Classification/Model_Base/models.py", Case(
        lambda m: _cut(m.Spiking_vit_MetaFormer_Spike_SepConv(embed_dim=[16, 32, 64, 80], num_heads=4, mlp_ratios=4,
                                                              depths=8, sr_ratios=1, **_OFFICIAL)),
        "e_spikeformer_s", _DIMS, side=64, seed=1)),
    "QKFormer, ImageNet": ("QKFormer", "imagenet/qkformer.py", Case(
        lambda m: m.hierarchical_spiking_transformer(T=4, img_size_h=64, img_size_w=64, embed_dims=64, num_heads=4,
                                                     mlp_ratios=4, depths=4, sr_ratios=1, **_OFFICIAL),
        "qkformer_10_384", dict(dim=64, depths=(1, 2, 1), heads=(4, 4, 4)), side=64, images=1)),
    "QKFormer, CIFAR": ("QKFormer", "cifar10/model.py", Case(
        lambda m: m.spiking_transformer(T=4, img_size_h=32, img_size_w=32, embed_dims=64, num_heads=8, mlp_ratios=4,
                                        depths=4, sr_ratios=1, **_OFFICIAL),
        "qkformer_4_384", dict(dim=64, depths=(1, 1, 2)), images=1)),
    "Max-Former, ImageNet": ("MaxFormer", "imagenet/max_former.py", Case(
        lambda m: m.Max_Former(embed_dims=128, mlp_ratios=4, depths=10, T=4, **_OFFICIAL),
        "maxformer_10_384", dict(dim=128, heads=2), side=64)),
    "SpikingResformer": ("SpikingResformer", "models/spikingresformer.py", Case(
        lambda m: m.SpikingResformer([["DSSA", "GWFFN"], ["DSSA", "GWFFN"] * 2, ["DSSA", "GWFFN"]], [16, 32, 64],
                                     [1, 2, 4], [4, 2, 1], img_size=64, group_size=16, **_OFFICIAL),
        "spikingresformer_ti", dict(dims=(16, 32, 64), heads=(1, 2, 4), depths=(1, 2, 1), group_width=16), side=64)),
}  # fmt: skip


def _cut(network, **attributes):
    """A Meta-SpikeFormer of one block in each attention stage, which its code always makes six and two of."""
    for name, value in attributes.items():
        setattr(network, name, value)
    network.block3, network.block4 = network.block3[:1], network.block4[:1]
    return network


# --- what the authors' code imports -----------------------------------------------------------------------------------


@contextlib.contextmanager
def stand_ins(folder: Path):
    """Modules of the names that the authors' code imports, while it is loaded; its own folders may be imported from."""
    import torch
    from spikingjelly.activation_based import neuron

    class Lif(neuron.LIFNode):
        def __init__(self, tau=2.0, v_threshold=1.0, detach_reset=True, backend=None):
            super().__init__(tau=tau, v_threshold=v_threshold, detach_reset=detach_reset, step_mode="m")

    class Plain(neuron.LIFNode):  # what needs a GPU's backend runs here, too
        def __init__(self, *args, backend=None, **named):
            super().__init__(*args, **named)

    old = types.SimpleNamespace(MultiStepLIFNode=Lif, MultiStepParametricLIFNode=Lif)
    timm = dict(to_2tuple=lambda x: (x, x), trunc_normal_=torch.nn.init.trunc_normal_, DropPath=torch.nn.Identity)
    made = {
        "timm": {}, "timm.models": {"create_model": None}, "timm.models.layers": timm,
        "timm.models.registry": {"register_model": lambda f: f},
        "timm.models.vision_transformer": {"_cfg": lambda **_: {}},
        "einops": {}, "einops.layers": {}, "einops.layers.torch": {"Rearrange": None}, "torchinfo": {},
        "spikingjelly.clock_driven": {"layer": None}, "spikingjelly.clock_driven.neuron": vars(old),
    }  # fmt: skip
    before, path, usual = dict(sys.modules), sys.path[:], neuron.LIFNode
    for name, attributes in made.items():
        sys.modules[name] = types.ModuleType(name)
        vars(sys.modules[name]).update(attributes)
    sys.path[:0] = map(str, (folder, folder.parent))
    neuron.LIFNode = Plain
    try:
        yield
    finally:
        neuron.LIFNode, sys.path[:] = usual, path
        for name in set(sys.modules) - set(before):
            if name in made or str(folder.parent) in str(getattr(sys.modules[name], "__file__", "")):
                del sys.modules[name]


def load(checkouts: Path, folder: str, file: str):
    """The module of a file of the authors'.

    Raises:
        ValueError: it is not there.
    """
    path = checkouts / folder / file
    if not path.is_file():
        raise ValueError(f"authors: there is no {path}: clone the authors' repository {folder} there")
    package = "authors_models" if file.startswith("models/") else ""
    with stand_ins(path.parent):
        if package:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(path.parent)]
        name = f"{package}.{path.stem}" if package else f"authors_{folder}_{path.stem}".replace("-", "_")
        spec = importlib.util.spec_from_file_location(name, path)
        module = sys.modules[name] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    return module


# --- comparing --------------------------------------------------------------------------------------------------------


def lively(network, side: int, seed: int = 0) -> None:
    """Norms such that about a quarter of all neurons fire at a step, with the averages that training gives them."""
    import torch
    from spikingjelly.activation_based import functional

    chance = torch.Generator().manual_seed(seed)
    norms = (torch.nn.BatchNorm1d, torch.nn.BatchNorm2d)
    for module in network.modules():
        if isinstance(module, norms):
            module.weight.data.uniform_(1, 3, generator=chance)
            module.bias.data.uniform_(0, 1.5, generator=chance)
    network.train()
    with torch.no_grad():
        for _ in range(CALIBRATION):
            functional.reset_net(network)
            network(torch.rand(4, 3, side, side, generator=chance))
    functional.reset_net(network)


def answer(network, images):
    """Logits `[B, classes]` of theirs."""
    from spikingjelly.activation_based import functional

    functional.reset_net(network)
    found = network(images)
    found = found[0] if isinstance(found, tuple) else found
    return found.mean(0) if found.ndim == 3 else found


def fired(network, images) -> tuple[list[np.ndarray], np.ndarray]:
    """What each neuron layer of theirs sends, in order, and the logits."""
    import torch
    from spikingjelly.activation_based import neuron

    sent = []
    neurons = [m for m in network.modules() if isinstance(m, neuron.BaseNode) or type(m).__name__ == "MultiSpike"]
    hooks = [
        m.register_forward_hook(lambda m, _, out: sent.append(out.detach().numpy() * getattr(m, "Norm", 1)))
        for m in neurons
    ]
    network.eval()
    with torch.no_grad():
        logits = answer(network, images).numpy()
    for hook in hooks:
        hook.remove()
    return sent, logits


def differing(ours: list[np.ndarray], theirs: list[np.ndarray], case: Case) -> tuple[int, int, int, int]:
    """`(layers, layers that differ, spikes compared, spikes that differ)`; theirs may fire several of ours at once."""
    theirs = [sent for i, sent in enumerate(theirs) if i not in case.twice]
    left, found = list(ours), []
    for sent in theirs:
        parts = [left.pop(0)]
        while sum(part.size for part in parts) < sent.size:
            parts.append(left.pop(0))
        whole = np.concatenate(parts, -1)
        if not (case.tokens_last and sent.ndim == 4 and sent.shape[-1] == whole.shape[-1]):
            whole = np.moveaxis(whole, -1, -3)
        found.append(int((whole.reshape(-1) != sent.reshape(-1)).sum()))
    if left:
        raise AssertionError(f"{len(left)} neuron layers of ours are none of theirs")
    return len(theirs), sum(n > 0 for n in found), sum(sent.size for sent in theirs), sum(found)


@contextlib.contextmanager
def averages_held(network, held: bool):
    """While a step of training is compared: averages of norms that do not move."""
    import torch

    norms = [m for m in network.modules() if isinstance(m, torch.nn.modules.batchnorm._BatchNorm)] if held else []
    usual, momenta = norm.MOMENTUM, [m.momentum for m in norms]
    for module in norms:
        module.momentum = 0.0
    norm.MOMENTUM = 1.0 if held else usual
    try:
        yield
    finally:
        norm.MOMENTUM = usual
        for module, momentum in zip(norms, momenta, strict=True):
            module.momentum = momentum


def gradients(network, model, variables, images, tensor, labels) -> tuple[float, float]:
    """`(|loss - theirs|, ‖g - theirs‖ / ‖theirs‖)` of one step of training."""
    import torch

    network.train()
    network.zero_grad()
    loss = torch.nn.functional.cross_entropy(answer(network, tensor), torch.tensor(labels))
    loss.backward()

    def of(params):
        (logits, _), _ = model.apply({**variables, "params": params}, images, train=True, mutable=["batch_stats"])
        return -jnp.mean(jax.nn.log_softmax(logits)[jnp.arange(len(labels)), jnp.asarray(labels)])

    value, ours = jax.jit(jax.value_and_grad(of))(variables["params"])
    state = {name: buffer.numpy() for name, buffer in network.named_buffers()}
    ones, theirs = dict(state), dict(state)
    for name, parameter in network.named_parameters():
        ones[name] = np.ones(parameter.shape, np.float32)
        theirs[name] = (torch.zeros_like(parameter) if parameter.grad is None else parameter.grad).numpy()
    shape = images.shape[1:]
    factors, theirs = (from_torch(model, x, shape)[0]["params"] for x in (ones, theirs))
    theirs = jax.tree.map(lambda g, f: g / f**2, theirs, factors)  # of `f·W`
    error, size = (
        float(jnp.sqrt(sum(jnp.sum(jnp.square(x)) for x in jax.tree.leaves(tree))))
        for tree in (jax.tree.map(jnp.subtract, ours, theirs), theirs)
    )
    return abs(float(value) - loss.item()), error / size


def synops_of(network, tensor) -> int:
    """What SpikingJelly's counter finds where spikes meet weights, or each other in a matrix product.

    It counts neither masks, which are no matrix products, nor what reads numbers that are not 0 and 1: sums of spikes,
    and the mean over time that its heads read.
    """
    import torch
    from spikingjelly.activation_based import op_counter

    counter = op_counter.SynOpCounter()
    network.eval()
    with torch.no_grad(), op_counter.DispatchCounterMode([counter]):
        answer(network, tensor)
    return int(sum(counter.records["Global"].values()))


def compare(case: Case, network) -> dict:
    """Everything that is compared of one case; the network is PyTorch's, as made."""
    import torch

    lively(network, case.side, case.seed)
    shape = (case.side, case.side, 3)
    fields = dict(num_classes=10, normalize="none") | case.fields
    model = create_model(case.model, **fields)
    images = np.random.default_rng(case.seed).integers(0, 256, (case.images, *shape)).astype(np.uint8)
    tensor = torch.tensor(images.transpose(0, 3, 1, 2).astype(np.float32) / 255)
    state = {name: x.numpy() for name, x in network.state_dict().items()}
    variables, origin = from_torch(model, state, shape)
    sent, expected = fired(network, tensor)
    logits, aux = jax.jit(model.clone(capture="levels").apply)(variables, images)
    ours = [np.asarray(r.levels) for r in aux.values() if isinstance(r, NeuronRecord) and r.parts]
    layers, layers_differ, spikes, differ = differing(ours, sent, case)
    synops = synops_of(network, tensor) if case.counted else None
    with averages_held(network, case.frozen):
        loss, gradient = gradients(network, model, variables, images, tensor, [1, 2, 3][: case.images])
    counter = SpikeCounter()
    counter.add(aux)
    found = {
        "family": PEERS[case.model].family.__name__, "names": origin, "neuron_layers": layers,
        "layers_that_differ": layers_differ, "sent": spikes, "differ": differ,
        "spikes_per_neuron": counter.spikes_per_neuron,
        "logits": float(np.abs(np.asarray(logits) - expected).max()), "loss": loss, "gradient": gradient,
    }  # fmt: skip
    if case.counted:
        products = [c for c in counter.layers.values() if c.role == "hidden" or len(c.products) == 2]
        found |= {"synops": sum(c.synops for c in products), "synops_theirs": synops}
    return found


def neurons_alone() -> list[dict]:
    """LIF and IF neurons, both resets, T = 1 to 8, 1,000 of each: spikes that differ, and the surrogate's gradient."""
    import torch
    from spikingjelly.activation_based import neuron, surrogate

    rows = []
    for kind in ("LIF", "IF"):
        for reset in ("hard", "soft"):
            differ = sent = 0
            worst = 0.0
            for steps in range(1, 9):
                currents = np.random.default_rng(steps).normal(0.8, 1.0, (steps, 1000)).astype(np.float32)
                named = dict(v_reset=0.0 if reset == "hard" else None, detach_reset=True, step_mode="m",
                             surrogate_function=surrogate.Sigmoid(alpha=4.0))  # fmt: skip
                theirs = neuron.LIFNode(tau=2.0, **named) if kind == "LIF" else neuron.IFNode(**named)
                arriving = torch.tensor(currents, requires_grad=True)
                spikes = theirs(arriving)
                weights = np.random.default_rng(0).normal(size=spikes.shape).astype(np.float32)
                (spikes * torch.tensor(weights)).sum().backward()
                made = (lif_params if kind == "LIF" else if_params)(reset=reset, surrogate="sigmoid")
                ours = lif_fire(jnp.asarray(currents), made)
                gradient = jax.grad(lambda x, p=made, w=weights: jnp.sum(lif_fire(x, p) * w))(jnp.asarray(currents))
                sent += spikes.numel()
                differ += int((np.asarray(ours) != spikes.detach().numpy()).sum())
                worst = max(worst, float(np.abs(np.asarray(gradient) - arriving.grad.numpy()).max()))
            rows.append({"neuron": kind, "reset": reset, "sent": sent, "differ": differ, "gradient": worst})
    return rows


def over_the_batch(checkouts: Path, images: int = 32, batch: int = 8) -> dict:
    """What it changes that the authors' QKFormer integrates the neurons after SSA's last synapse over the batch, too.

    Returns:
        Of how many images the prediction changes, and the largest change of a logit, between batches of `batch` and one
        image at a time; the largest logit; the same of ours, with the same weights.
    """
    import torch

    folder, file, case = AUTHORS["QKFormer, CIFAR"]
    torch.manual_seed(0)
    network = case.make(load(checkouts, folder, file))
    lively(network, case.side)
    network.eval()
    tensor = torch.rand(images, 3, case.side, case.side, generator=torch.Generator().manual_seed(1))
    shape, found = (case.side, case.side, 3), {"images": images, "batch": batch}
    model = create_model(case.model, **(dict(num_classes=10, normalize="none") | case.fields))
    variables, _ = from_torch(model, {name: x.numpy() for name, x in network.state_dict().items()}, shape)
    ours = jax.jit(lambda x: model.apply(variables, x)[0])
    pixels = np.round(255 * tensor.numpy().transpose(0, 2, 3, 1)).astype(np.uint8)
    with torch.no_grad():
        runs = ("theirs", lambda x: answer(network, x).numpy(), tensor), ("ours", ours, pixels)
        for name, run, given in runs:
            alone, together = (
                np.concatenate([np.asarray(run(given[i : i + size])) for i in range(0, images, size)])
                for size in (1, batch)
            )
            found[name] = {
                "changed": int((alone.argmax(1) != together.argmax(1)).sum()),
                "by": float(np.abs(alone - together).max()),
                "largest": float(np.abs(alone).max()),
            }
    return found
