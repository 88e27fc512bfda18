"""Which PyTorch networks our peers are compared with: SpikingJelly's model zoo, and the authors' own code.

The zoo is a package (extra `peer`); the authors' code is read from checkouts of their repositories, with stand-ins for
what it imports beside PyTorch. Nothing of either is part of this project.
"""

import contextlib
import dataclasses
import importlib.util
import sys
import types
from collections.abc import Callable
from pathlib import Path

from harness.pytorch import zoo


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


_SMALL = dict(dim=64, depth=2, heads=4)
_SMALL_STAGES = dict(dim=64, depths=(1, 1, 1))
_DIMS = dict(dims=(16, 32, 64, 80), heads=4, depths=(1, 1))
_RESET = dict(detach_reset=True)  # as the authors have it; the zoo leaves it out here and there

#: From SpikingJelly's model zoo.
ZOO = {
    "Spikformer": Case(
        lambda: zoo("spikformer").Spikformer(
            T=4, img_size_h=32, img_size_w=32, patch_size=4, num_classes=10, embed_dims=64, num_heads=4, depths=2),
        "spikformer_4_384", _SMALL | dict(pool_currents=True)),
    "Spike-driven Transformer": Case(
        lambda: zoo("spike_driven_transformer").SpikeDrivenTransformer(
            embed_dims=64, num_heads=4, depths=2, num_classes=10, pooling_stat="0011", **_RESET),
        "sdt_2_512", _SMALL, counted=True),
    "QKFormer": Case(
        lambda: zoo("qkformer").QKFormer(
            embed_dims=64, num_heads=(2, 4, 4), depths=(1, 1, 1), num_classes=10, **_RESET),
        "qkformer_10_384", _SMALL_STAGES | dict(heads=(2, 4, 4)), side=64),
    "Max-Former, CIFAR": Case(
        lambda: zoo("maxformer").MaxFormer(embed_dims=64, depths=(1, 1, 1), num_classes=10, cifar=True),
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
