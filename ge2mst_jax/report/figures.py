"""The pictures of a report, each a function from results to a matplotlib figure."""

import io
import warnings

import jax
import jax.numpy as jnp
import numpy as np
from matplotlib.colors import ListedColormap, PowerNorm
from matplotlib.figure import Figure

from ge2mst_jax.checks import cut, one_line
from ge2mst_jax.grouping import partition, unpartition
from ge2mst_jax.nn import ATTENTIONS, AttentionRecord, NeuronRecord, SynapseRecord

INK, FAINT, BAND = "#1f2933", "#9aa5b1", "#f2f5f8"
ROLES = {"stem": "#7b61a8", "hidden": "#2b7bba", "attention": "#e07b39", "head": "#3d9970"}
#: Neurons of one layer that the raster shows, evenly spread over the layer.
RASTER_ROWS = 40
BATCH = 120


def draw_figures(report: dict, net, images, history) -> dict[str, bytes]:
    """Every picture of a report as PNG bytes, by name: `training`, `energy`, `raster`, `levels`, `groups`.

    Args:
        report: from `build_report`.
        net: the `DeployedNet`.
        images: `[N, H, W, C]`: levels are counted over all of them, the first is drawn.
        history: metrics of every epoch.
    """
    _, aux = net(jnp.asarray(images[:1]), execution="spiking", capture="levels")
    figures = {
        "training": training_figure(history),
        "energy": energy_figure(report["energy"]["exact"]),
        "raster": raster_figure(jax.device_get(aux)),
        "levels": levels_figure(level_counts(net, images)),
        "groups": groups_figure(net, images[0]),
    }
    return {name: _png(figure) for name, figure in figures.items() if figure is not None}


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Glyph")  # a name in a script that the font lacks is drawn as boxes
        figure.savefig(buffer, format="png", dpi=144, facecolor="white")
    return buffer.getvalue()


def _names(set_ticks, places, names, **style) -> None:
    """Labels an axis with names from outside: literally (`$` starts no formula), in one line, not too long."""
    set_ticks(places, [cut(one_line(name), 32) for name in names], parse_math=False, **style)


def _bare(axes) -> None:
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(FAINT)
    axes.tick_params(colors=INK, labelsize=8)


def training_figure(history) -> Figure:
    """Loss, accuracy and spikes per neuron over the epochs: lines of training batches, dots of test images.

    Training counts spikes only where there is a budget; the loss of test images is another one, without smoothing.
    """
    figure = Figure(figsize=(9, 2.6), layout="constrained")
    for axes, key, title in zip(
        figure.subplots(1, 3),
        ("loss", "accuracy", "spikes_per_neuron"),
        ("loss of training batches", "accuracy (dots: test images)", "spikes per neuron (dots: test images)"),
        strict=True,
    ):
        trained = [(m["epoch"], m[key]) for m in history if key in m]
        tested = [(m["epoch"], m["test"][key]) for m in history if "test" in m and key != "loss"]
        for points, style in (trained, {"linewidth": 1.8}), (tested, {"marker": "o", "linestyle": ""}):
            if points:
                axes.plot(*zip(*points, strict=True), color=ROLES["hidden"], **style)
        axes.set_title(title, fontsize=9, color=INK, loc="left")
        axes.set_xlabel("epoch", fontsize=8, color=INK)
        _bare(axes)
    return figure


def energy_figure(exact: dict) -> Figure:
    """Energy of each layer under the exact count, a bar a layer in the order of the network."""
    layers = exact["layers"]
    figure = Figure(figsize=(9, 0.9 + 0.21 * len(layers)), layout="constrained")
    axes = figure.subplots()
    values = [1e6 * layer["mj"] for layer in layers]
    axes.barh(range(len(layers)), values, color=[ROLES[layer["role"]] for layer in layers], height=0.72)
    for row, value in enumerate(values):
        share = value / max(sum(values), 1e-30)
        axes.text(value, row, f" {value:,.1f} nJ, {share:.1%}", va="center", fontsize=7, color=INK)
    _names(axes.set_yticks, range(len(layers)), [layer["name"] for layer in layers])
    axes.invert_yaxis()
    axes.set_xlim(0, 1.2 * max(values, default=1) or 1)
    axes.set_xlabel("nJ an image", fontsize=8, color=INK)
    _bare(axes)
    used = dict.fromkeys(layer["role"] for layer in layers)
    handles = [axes.barh(0, 0, color=ROLES[role]) for role in used]
    axes.legend(handles, used, fontsize=8, frameon=False, loc="lower right")
    return figure


def firing_times(aux) -> dict[str, tuple[int, int]]:
    """`{neuron layer: (first step, step after the last)}` under the layer-synchronous schedule.

    A layer starts to fire when the whole spike train of every layer that it listens to has arrived.
    """
    times: dict[str, tuple[int, int]] = {}
    for name, record in aux.items():
        if isinstance(record, NeuronRecord):
            sources = [s for part in record.parts for s in _sources(aux[part])]
            start = max((times[s][1] for s in sources if s in times), default=0)
            times[name] = (start, start + record.code.num_steps)
    return times


def _sources(record) -> tuple[str, ...]:
    return (record.source,) if isinstance(record, SynapseRecord) else record.sources


def raster_figure(aux) -> Figure:
    """Spikes of one image through the depth of the network, in the order of time; colour is the step's weight."""
    layers = {n: r for n, r in aux.items() if isinstance(r, NeuronRecord) and r.train is not None}
    times = firing_times(aux)
    steps = max(times[name][1] for name in layers)
    heights = {n: min(RASTER_ROWS, int(np.prod(r.shape))) for n, r in layers.items()}
    canvas = np.full((sum(heights.values()), steps), np.nan)
    figure = Figure(figsize=(9, 0.8 + 0.36 * len(layers)), layout="constrained")
    axes = figure.subplots()
    top, ticks = 0, []
    for row, (name, record) in enumerate(layers.items()):
        train = np.asarray(record.train)[:, 0].reshape(record.code.num_steps, -1)  # [T, neurons]
        shown = train[:, np.linspace(0, train.shape[1] - 1, heights[name]).astype(int)]
        weights = np.log2(np.array(record.code.step_weights))[:, None]
        canvas[top : top + heights[name], slice(*times[name])] = np.where(shown, weights, np.nan).T
        if row % 2 == 0:
            axes.axhspan(top - 0.5, top + heights[name] - 0.5, color=BAND, zorder=0)
        ticks.append(top + heights[name] / 2)
        top += heights[name]
    drawn = axes.imshow(canvas, aspect="auto", interpolation="nearest", cmap="viridis", zorder=1, vmin=0)
    _names(axes.set_yticks, ticks, layers)
    axes.set_xlabel(f"time step ({steps} from the first pixel to the last layer's last spike)", fontsize=8, color=INK)
    _bare(axes)
    largest = int(np.nanmax(canvas, initial=0))
    bar = figure.colorbar(drawn, ax=axes, shrink=0.4, ticks=range(largest + 1), aspect=15)
    bar.ax.set_yticklabels([str(2**k) for k in range(largest + 1)], fontsize=8)
    bar.set_label("weight of the step", fontsize=8, color=INK)
    return figure


def level_counts(net, images) -> dict[str, np.ndarray]:
    """`{neuron layer: counts of levels 0..L}` over all images, the image itself left out."""
    totals: dict[str, np.ndarray] = {}
    for start in range(0, len(images), BATCH):
        _, aux = net(jnp.asarray(images[start : start + BATCH]), execution="dense", capture="levels")
        for name, record in jax.device_get(aux).items():
            if isinstance(record, NeuronRecord) and record.parts:
                levels = np.asarray(record.levels).astype(np.int64).ravel()
                counts = np.bincount(levels, minlength=record.code.max_level + 1)
                totals[name] = totals.get(name, 0) + counts
    return totals


def levels_figure(counts: dict[str, np.ndarray]) -> Figure:
    """Histogram of levels: a row a layer, a column a level, the share of neurons and images in the cell."""
    width = max(len(c) for c in counts.values())
    shares = np.full((len(counts), width), np.nan)
    for row, c in enumerate(counts.values()):
        shares[row, : len(c)] = c / c.sum()
    figure = Figure(figsize=(9, 1.0 + 0.24 * len(counts)), layout="constrained")
    axes = figure.subplots()
    drawn = axes.imshow(shares, aspect="auto", cmap="Blues", vmin=0, vmax=1)
    if width <= 16:
        for (row, level), share in np.ndenumerate(shares):
            if not np.isnan(share):
                colour = "white" if share > 0.55 else INK
                axes.text(level, row, f"{100 * share:.1f}", ha="center", va="center", fontsize=7, color=colour)
    _names(axes.set_yticks, range(len(counts)), counts)
    axes.set_xticks(range(width) if width <= 16 else range(0, width, 16))
    axes.set_xlabel("level; cells in per cent of neurons and images", fontsize=8, color=INK)
    _bare(axes)
    figure.colorbar(drawn, ax=axes, shrink=0.4, aspect=15).ax.tick_params(labelsize=8)
    return figure


def confusion_figure(confusion: np.ndarray, classes) -> bytes:
    """PNG of a confusion matrix, `[label, prediction]` counts; a cell's colour is its share of the label's images.

    Up to 20 classes have names, and numbers in their cells. Of more, colours are by the share's square root, so that
    what a few images in a hundred are taken for is seen as well.

    Raises:
        ValueError: no counts, or not one row and one column a class.
    """
    confusion = np.asarray(confusion)
    numbers = np.issubdtype(confusion.dtype, np.number) and np.isfinite(confusion).all()
    counts = numbers and ((confusion >= 0) & (confusion % 1 == 0)).all()
    if not counts or confusion.shape != (len(classes),) * 2:
        raise ValueError(
            f"a confusion matrix of shape {confusion.shape} and dtype {confusion.dtype}: it must hold counts, a row "
            f"and a column for each of {len(classes)} classes"
        )
    side = max(4.0, min(12.0, 0.45 * len(classes)))
    figure = Figure(figsize=(side + 1.5, side), layout="constrained")
    axes = figure.subplots()
    shares = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    few = len(classes) <= 20
    drawn = axes.imshow(shares, cmap="Blues", norm=PowerNorm(1 if few else 0.5, 0, 1))
    if few:
        for (label, guess), count in np.ndenumerate(confusion):
            if count:
                colour = "white" if shares[label, guess] > 0.55 else INK
                axes.text(guess, label, str(count), ha="center", va="center", fontsize=8, color=colour)
        _names(axes.set_xticks, range(len(classes)), classes, rotation=45, ha="right")
        _names(axes.set_yticks, range(len(classes)), classes)
    axes.set_xlabel("prediction", fontsize=8, color=INK)
    axes.set_ylabel("label", fontsize=8, color=INK)
    _bare(axes)
    figure.colorbar(drawn, ax=axes, shrink=0.5, aspect=15).ax.tick_params(labelsize=8)
    return _png(figure)


def groups_figure(net, image) -> Figure | None:
    """The token groups of the first attention over an image, a panel a scale; `None` without attention in groups.

    Tokens of one colour attend to each other; one group is outlined in full colour.
    """
    record = next((r for r in net.layers.values() if isinstance(r, AttentionRecord)), None)
    if record is None or not ATTENTIONS[net.model.attention].groups:
        return None
    height, width = record.out_shape[:2]
    scales = net.model.scales
    figure = Figure(figsize=(3 * len(scales) + 0.4, 3.3), layout="constrained")
    for axes, scale in zip(np.ravel(figure.subplots(1, len(scales))), scales, strict=True):
        groups = partition(jnp.arange(height * width).reshape(height, width), scale)
        number = jnp.broadcast_to(jnp.arange(len(groups))[:, None], groups.shape)
        group = np.asarray(unpartition(number, scale, height, width))
        extent = (0, width, height, 0)
        pixels = np.asarray(image)
        pixels = pixels if pixels.shape[-1] == 3 else pixels.mean(-1)
        axes.imshow(pixels, cmap="gray", extent=extent)
        colours = ListedColormap([_hue(i, len(groups)) for i in range(len(groups))])
        axes.imshow(group, cmap=colours, alpha=0.45, extent=extent, interpolation="nearest")
        axes.set_xticks(range(width + 1), [])
        axes.set_yticks(range(height + 1), [])
        axes.grid(color="white", linewidth=0.6)
        axes.tick_params(length=0)
        axes.set_title(f"{scale}: {len(groups)} groups of {scale.tokens} tokens", fontsize=9, color=INK)
    return figure


def _hue(i: int, n: int):
    from matplotlib import colormaps

    return colormaps["turbo"]((i + 0.5) / n)
