"""`report.json`: everything that a run found, in one dictionary."""

import jax
import numpy as np

from ge2mst_jax.energy import CONVENTIONS, energy
from ge2mst_jax.provenance import environment

SCHEMA = 2


def build_report(*, dataset, model_name, net, certificate, counter, audit, seconds, training) -> dict:
    """The content of `report.json`.

    Args:
        dataset: what was trained and tested on: its name, and the numbers of training and of test images.
        model_name: as `create_model` knows it.
        net: the `DeployedNet`, with its training network.
        certificate: from `certify`, with labels.
        counter: `SpikeCounter` over the test images.
        audit: of the spiking execution.
        seconds: of each phase.
        training: the run's configuration.

    Returns:
        `{schema, environment, dataset, model, training, accuracy, certificate, energy, spikes_per_neuron, neurons,
        audit, seconds}`; energies are means per image in mJ.
    """
    parameters = sum(np.size(leaf) for leaf in jax.tree.leaves(net.source["params"]))
    num_steps = net.model.num_steps
    return {
        "schema": SCHEMA,
        "environment": environment(),
        "dataset": dict(zip(("name", "train", "test"), dataset, strict=True)) | {"image_shape": list(net.image_shape)},
        "model": {
            "name": model_name,
            "parameters": int(parameters),
            "code": str(net.model.code),
            "qk_code": str(net.model.qk_code),
            "neuron": net.model.neuron,
            "attention": net.model.attention,
            "local": net.model.local,
            "input_code": net.model.input_code,
            "current_bits": net.model.current_bits,
        },
        "training": training,
        "accuracy": certificate.accuracy,
        "certificate": {key: value for key, value in certificate.as_dict().items() if key != "accuracy"},
        "energy": {name: energy(counter, convention, num_steps) for name, convention in CONVENTIONS.items()},
        "spikes_per_neuron": counter.spikes_per_neuron,
        "neurons": [
            {"name": n.name, "neurons": n.neurons, "spikes_per_neuron": n.spikes / (n.neurons * counter.images)}
            for n in counter.neurons.values()
        ],
        "audit": audit.as_dict(),
        "seconds": dict(seconds),
    }
