"""The summary that a script prints when it is done."""

from rich.table import Table
from rich.text import Text

from ge2mst_jax.checks import one_line


def summary_table(report: dict) -> Table:
    """Accuracy, certificate, energy and audit of a run in one table for the terminal."""
    model, data, certificate, accuracy = (report[key] for key in ("model", "dataset", "certificate", "accuracy"))
    title = f"{model['name']} on {data['name']}, code {model['code']}, neuron {model['neuron']}"
    table = Table("what", title=Text(one_line(title)))
    table.add_column("found", justify="right")
    images = f"{data['test']} test images"
    table.add_row(f"accuracy, training network, {images}", f"{100 * accuracy['training']:.2f} %")
    table.add_row(f"accuracy, dense, {images}", f"{100 * accuracy['dense']:.2f} %")
    table.add_row(f"accuracy, spiking, {images}", f"{100 * accuracy['spiking']:.2f} %")
    table.add_section()
    table.add_row("spikes compared between dense and spiking", f"{certificate['spikes_compared']:,}")
    table.add_row("of them fired by neurons", f"{certificate['spikes_fired']:,}")
    table.add_row("spikes, levels, logits that differ", differing(certificate))
    add_drift(table, certificate)
    table.add_row("images run by the NumPy reference, all equal", f"{certificate['reference_images']}")
    table.add_row("real × real products left", str(report["audit"]["real_x_real"]))
    table.add_section()
    for name, energy in report["energy"].items():
        table.add_row(f"energy an image, {name}", f"{1e3 * energy['total_mj']:.3f} µJ")
    table.add_row("spikes per neuron and image", f"{report['spikes_per_neuron']:.3f}")
    table.add_row("parameters", f"{model['parameters']:,}")
    table.add_section()
    for phase, seconds in report["seconds"].items():
        table.add_row(f"seconds to {phase}", f"{seconds:.1f}")
    return table


def add_drift(table: Table, certificate: dict) -> None:
    """Rows on how far the deployed network is from the trained one; none where it does not carry that one."""
    drift = certificate["drift"]
    if drift is None:
        return
    share = f"{100 * drift['share']:.4f} %"
    table.add_row("levels unlike the trained network's", f"{drift['levels_differing']:,} ({share})")
    table.add_row("images with none", f"{drift['images_equal']} of {drift['images']}")
    table.add_row("largest difference of a logit", f"{drift['largest_logit_difference']:.2g}")


def differing(certificate: dict) -> str:
    """Spikes, levels and logits that differ, in words.

    >>> differing({"spikes_differing": 0, "levels_differing": 0, "logits_differing": 0})
    '0, 0, 0'
    """
    return ", ".join(str(certificate[f"{what}_differing"]) for what in ("spikes", "levels", "logits"))
