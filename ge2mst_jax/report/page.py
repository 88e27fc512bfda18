"""The HTML report: one file that opens offline."""

import base64
import html

from ge2mst_jax.checks import one_line
from ge2mst_jax.report.tables import differing

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #1f2933; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }
h1 { font-size: 1.6rem; margin-bottom: .2rem; } h2 { font-size: 1.15rem; margin-top: 2.2rem; }
p.note { color: #52606d; max-width: 48rem; } img { max-width: 100%; }
.tiles { display: flex; flex-wrap: wrap; gap: .8rem; margin: 1.2rem 0; }
.tile { border: 1px solid #d9e2ec; border-radius: .5rem; padding: .6rem 1rem; min-width: 8.5rem; }
.tile b { display: block; font-size: 1.35rem; } .tile span { color: #52606d; font-size: .85rem; }
.sound b { color: #1b7f4d; } .broken b { color: #b3261e; }
table { border-collapse: collapse; font-size: .85rem; width: 100%; }
th, td { text-align: right; padding: .15rem .6rem; border-bottom: 1px solid #e4e7eb; }
td { font-variant-numeric: tabular-nums; }
th:first-child, td:first-child, td.prose { text-align: left; } th { color: #52606d; font-weight: 600; }
details { margin-top: .6rem; } summary { cursor: pointer; color: #2b7bba; }
"""


def render_page(report: dict, figures: dict[str, bytes]) -> str:
    """The report as one HTML file, pictures inside it.

    Args:
        report: from `build_report`.
        figures: PNG bytes by name, from `draw_figures`.
    """
    model, data = report["model"], report["dataset"]
    title = f"{model['name']} on {data['name']}"
    sections = (_head(report, title), _training(report, figures), _certificate(report), _energy(report, figures))
    rest = (_inside(figures), _audit(report), _environment(report))
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{_STYLE}</style></head><body>\n" + "\n".join(sections + rest) + "\n</body></html>\n"
    )


def escape(value) -> str:
    """A value as text of a page, whatever it holds: one line, no markup, valid UTF-8.

    >>> escape("<b>" + chr(7))
    '&lt;b&gt;\\\\x07'
    """
    return html.escape(one_line(value))


def _table(header, rows) -> str:
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value) -> str:
    prose = " class=prose" if len(str(value)) > 24 else ""
    return f"<td{prose}>{escape(value)}</td>"


def _picture(figures, name, caption) -> str:
    if name not in figures:
        return ""
    data = base64.b64encode(figures[name]).decode()
    return f'<p class="note">{escape(caption)}</p><img alt="{escape(caption)}" src="data:image/png;base64,{data}">'


def _tile(value, label, kind="") -> str:
    return f'<div class="tile {kind}"><b>{escape(value)}</b><span>{escape(label)}</span></div>'


def _head(report, title) -> str:
    model, data, accuracy, certificate = (report[k] for k in ("model", "dataset", "accuracy", "certificate"))
    sound = not any(certificate[f"{w}_differing"] for w in ("spikes", "levels", "logits"))
    tiles = (
        _tile(f"{100 * accuracy['spiking']:.2f} %", f"test accuracy, spiking ({data['test']} images)"),
        _tile(differing(certificate), "spikes, levels, logits that differ", "sound" if sound else "broken"),
        _tile(f"{100 * certificate['drift']['share']:.4f} %", "of levels unlike the trained network's"),
        _tile(f"{1e3 * report['energy']['exact']['total_mj']:.3f} µJ", "an image, exact count"),
        _tile(f"{report['spikes_per_neuron']:.3f}", "spikes per neuron and image"),
        _tile(f"{model['parameters']:,}", "parameters"),
    )
    return (
        f"<h1>{escape(title)}</h1><p class='note'>code {escape(model['code'])}, neuron {escape(model['neuron'])}, "
        f"image as {escape(model['input_code'])}; {data['train']:,} training and {data['test']:,} test images of "
        f"{'×'.join(map(str, data['image_shape']))}.</p><div class='tiles'>{''.join(tiles)}</div>"
    )


def _training(report, figures) -> str:
    accuracy = report["accuracy"]
    rows = [[f"{100 * accuracy[c]:.2f} %" for c in ("training", "dense", "spiking")]]
    rows[0].append(f"{100 * accuracy['change']:+.2f} points")
    settings = _table(("field", "value"), report["training"].items())
    return (
        "<h2>Training and accuracy</h2>"
        + _table(("training network", "deployed, dense", "deployed, spiking", "cost of folding and rounding"), rows)
        + _picture(figures, "training", "Means over the steps of each epoch.")
        + f"<details><summary>what the run was told</summary>{settings}</details>"
    )


def _certificate(report) -> str:
    certificate = report["certificate"]
    rows = [
        (
            layer["name"],
            layer["code"],
            f"{layer['spikes_compared']:,}",
            layer["spikes_differing"],
            layer["levels_differing"],
            f"{layer['spikes_fired']:,}",
            *(
                ("integers", "", "")
                if layer["fraction_bits"] is None
                else (layer["fraction_bits"], f"{layer['bound']:,}", f"{layer['headroom_bits']:.2f}")
            ),
            certificate["drift"]["layers"].get(layer["name"], ""),
        )
        for layer in certificate["layers"]
    ]
    header = (
        "neuron layer",
        "code",
        "spikes compared",
        "spikes differ",
        "levels differ",
        "spikes fired",
        "f",
        "bound",
        "headroom, bits",
        "levels unlike the trained network's",
    )
    drift = certificate["drift"]
    return (
        f"<h2>Certificate</h2><p class='note'>Both executions ran on all {certificate['images']:,} test images; "
        f"{certificate['spikes_compared']:,} spikes were compared one by one, {certificate['spikes_fired']:,} of them "
        f"fired by neurons. Numbers are integers, each worth 2<sup>-f</sup>, and no sum of them can reach "
        f"2<sup>{report['model']['current_bits']}</sup>, so every addition is exact, in any order. "
        f"Network {escape(certificate['digest'][:16])}…</p>"
        "<p class='note'>Beside the network that was trained, "
        f"{drift['levels_differing']:,} of {drift['levels']:,} levels "
        f"differ ({100 * drift['share']:.4f} %), none on {drift['images_equal']:,} of {drift['images']:,} images; the "
        f"largest difference of a logit is {drift['largest_logit_difference']:.2g}. The plain NumPy reference gave the "
        f"same levels and sums on {certificate['reference_images']:,} images.</p>{_table(header, rows)}"
    )


def _energy(report, figures) -> str:
    rows = [
        (
            name,
            f"{1e3 * e['stem_mj']:.4f}",
            f"{1e3 * e['total_mj']:.4f}",
            f"{e['convention']['mac_pj']} / {e['convention']['ac_pj']}",
            e["convention"]["source"],
            e["convention"]["leaves_out"],
        )
        for name, e in report["energy"].items()
    ]
    layers = [
        (layer["name"], f"{layer['synops']:,.1f}", f"{layer['macs']:,.1f}", f"{1e6 * layer['mj']:,.2f}")
        for layer in report["energy"]["exact"]["layers"]
    ]
    neurons = [(n["name"], f"{n['neurons']:,}", f"{n['spikes_per_neuron']:.3f}") for n in report["neurons"]]
    return (
        "<h2>Energy of one image</h2>"
        + _table(("convention", "stem, µJ", "total, µJ", "pJ MAC / AC", "what it is", "leaves out"), rows)
        + _picture(figures, "energy", "Exact count, by layer.")
        + "<details><summary>synops by layer, means an image</summary>"
        + _table(("layer", "synops", "MACs", "nJ"), layers)
        + "</details><details><summary>spikes by neuron layer</summary>"
        + _table(("neuron layer", "neurons", "spikes per neuron and image"), neurons)
        + "</details>"
    )


def _inside(figures) -> str:
    return (
        "<h2>Inside the network</h2>"
        + _picture(figures, "raster", "Spikes of the first test image, up to 40 neurons a layer, layer after layer.")
        + _picture(figures, "levels", "Levels of every neuron over the test images.")
        + _picture(figures, "groups", "Token groups of GW-SSA: tokens of one colour attend to each other.")
    )


def _audit(report) -> str:
    rows = [(kind, sites) for kind, sites in report["audit"].items() if " x " in kind]
    return (
        f"<h2>Audit</h2><p class='note'>Every product of the {escape(report['audit']['execution'])} execution's "
        "program, by the kind of its operands: a binary operand makes it a selection, a power of two a shift. "
        f"Real × real products left: {report['audit']['real_x_real']}; sites that break the execution's promise: "
        f"{report['audit']['violations']}.</p>{_table(('operands', 'sites'), rows)}"
    )


def _environment(report) -> str:
    found = report["environment"]
    rows = [(key, value) for key, value in found.items() if key != "packages"]
    rows += [*found["packages"].items(), *((f"seconds, {p}", s) for p, s in report["seconds"].items())]
    return f"<details><summary>environment</summary>{_table(('what', 'value'), rows)}</details>"
