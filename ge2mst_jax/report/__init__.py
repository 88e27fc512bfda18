"""What a run leaves for people: `report.json`, one HTML page that opens offline, pictures, a table."""

from ge2mst_jax.report.figures import confusion_figure, draw_figures
from ge2mst_jax.report.page import render_page
from ge2mst_jax.report.record import SCHEMA, build_report
from ge2mst_jax.report.tables import add_drift, differing, summary_table
from ge2mst_jax.report.write import write_report

__all__ = [
    "SCHEMA",
    "add_drift",
    "build_report",
    "confusion_figure",
    "differing",
    "draw_figures",
    "render_page",
    "summary_table",
    "write_report",
]
