"""Our peers beside the PyTorch implementations of them: the same weights, the same images, spike by spike."""

import contextlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ge2mst_jax.energy import SpikeCounter
from ge2mst_jax.models import PEERS, create_model, from_torch
from ge2mst_jax.nn import NeuronRecord, norm
from ge2mst_jax.spiking import if_params, lif_fire, lif_params
from harness.parity_cases import AUTHORS, Case, load

#: Steps of training by which PyTorch's norms get their averages, on random images.
CALIBRATION = 30


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
