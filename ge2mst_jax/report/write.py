"""Writes a run's report whole: each file under a temporary name first, then renamed."""

import json

from ge2mst_jax.files import write_whole
from ge2mst_jax.folders import folder, make
from ge2mst_jax.report.figures import draw_figures
from ge2mst_jax.report.page import render_page


def write_report(run_dir, report: dict, net, images, history) -> None:
    """Writes `report.json`, `report.html` and `figures/*.png`.

    Args:
        run_dir: an existing folder.
        report: from `build_report`.
        net: the `DeployedNet`.
        images: `[N, H, W, C]` test images: levels are counted over all of them, the first is drawn.
        history: metrics of every epoch.
    """
    run_dir = folder(run_dir)
    figures = draw_figures(report, net, images, history)
    make(run_dir / "figures")
    for name, png in figures.items():
        write_whole(run_dir / "figures" / f"{name}.png", png)
    write_whole(run_dir / "report.html", render_page(report, figures))
    write_whole(run_dir / "report.json", json.dumps(report, indent=1, allow_nan=False) + "\n")
