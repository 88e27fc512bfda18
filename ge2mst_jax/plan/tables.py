"""Plans as tables for a terminal."""

from rich.table import Table
from rich.text import Text

from ge2mst_jax.plan.batches import LargestBatch
from ge2mst_jax.plan.make import Plan
from ge2mst_jax.plan.sweep import Row, ranked

NOTHING = "–"


def gibibytes(size: float) -> str:
    """
    >>> gibibytes(3 * 2**29)
    '1.50 GiB'
    """
    return f"{size / 2**30:.2f} GiB"


def figures(plan: Plan) -> dict[str, str]:
    """What a plan says, row by row."""
    larger, smaller = sorted((plan.seconds, plan.byte_seconds), reverse=True)
    recipe = NOTHING
    if plan.steps is not None:
        recipe = f"{plan.steps:,} steps, {plan.hours:.1f} h, {plan.chip_hours:,.0f} chip-hours"
    return {
        "memory a chip": f"{gibibytes(plan.used)} of {gibibytes(plan.hbm)}",
        **{f"  {part}": gibibytes(size) for part, size in plan.memory.items()},
        "fits": "yes" if plan.fits else "no",
        "operations a step and chip": f"{plan.flops / 1e12:.3f} TFLOP",
        "cycles a step": f"{plan.cycles:,}",
        "bytes accessed a step and chip": gibibytes(plan.bytes_accessed),
        "step, by cycles": f"{1e3 * plan.seconds:.1f} ms",
        "step, by bytes": f"{1e3 * plan.byte_seconds:.1f} ms",
        "  the larger": f"{plan.bound_by}, {larger / smaller:.1f} ×" if smaller else plan.bound_by,
        "by cycles: share of peak": f"{plan.share_of_peak:.1%}",
        "  images/s, a chip": f"{plan.images_per_second:,.0f}",
        "  images/s, all chips": f"{plan.images_per_second * plan.chips:,.0f}",
        "  recipe": recipe,
        "collectives, bytes a step and chip": f"{sum(plan.collectives.values()) / 2**20:.1f} MiB",
        "  on the links alone": f"{1e3 * plan.collective_seconds:.2f} ms",
        "loops of unknown length, counted once": str(plan.unknown_loops),
        "compiled in": f"{plan.compile_seconds:.0f} s",
    }


def plan_table(plans: dict[str, Plan]) -> Table:
    """Plans side by side, a column each, by their names: all of one pod, batch and kind of work."""
    first = next(iter(plans.values()))
    title = f"{first.work} on {first.topology}, batch {first.batch:,}: the compiler's estimate"
    table = Table("what", title=title)
    for name in plans:
        table.add_column(Text(name), justify="right")
    columns = [figures(plan) for plan in plans.values()]
    for what in columns[0]:
        table.add_row(what, *(column[what] for column in columns))
    for by in first.shares:
        table.add_section()
        for part in dict.fromkeys(part for plan in plans.values() for part in plan.shares[by]):
            found = (plan.shares[by].get(part) for plan in plans.values())
            table.add_row(f"{by}: {part}", *(NOTHING if share is None else f"{share:.1%}" for share in found))
    return table


def largest_table(found: LargestBatch, plan_hbm: float) -> Table:
    """What was tried for the largest batch, and what was found."""
    table = Table("batch", title="the largest batch that fits")
    table.add_column("memory a chip", justify="right")
    for batch, size in sorted(found.tried.items()):
        fits = "no room" if size is None else gibibytes(size) + ("" if size <= plan_hbm else ", too much")
        table.add_row(f"{batch:,}", fits)
    table.add_section()
    says = "verified" if found.verified else "extrapolated, not compiled"
    table.add_row(f"largest: {found.batch:,}", says + (", all training images" if found.takes_all else ""))
    return table


def sweep_table(name: str, rows: list[Row]) -> Table:
    """The rows of a sweep, the cheapest recipe first, what does not fit last."""
    table = Table("topology", title=f"{name}: the compiler's estimate, by chip-hours of the recipe")
    for column in ("batch", "remat", "memory a chip", "step, by cycles", "by bytes", "hours", "chip-hours"):
        table.add_column(column, justify="left" if column == "remat" else "right")
    for row in ranked(rows):
        plan, about = row.plan, (row.topology, f"{row.config['batch_size']:,}", row.config["remat"])
        if plan is None:
            table.add_row(*about, "no room", *4 * [NOTHING])
            continue
        times = (f"{1e3 * seconds:.1f} ms" for seconds in (plan.seconds, plan.byte_seconds))
        cost = (f"{plan.hours:,.1f}", f"{plan.chip_hours:,.0f}") if plan.fits else (NOTHING, NOTHING)
        table.add_row(*about, gibibytes(plan.used) + ("" if plan.fits else ", too much"), *times, *cost)
    return table


def cheapest(rows: list[Row]) -> str:
    """Of the rows of a sweep, in one line."""
    best = ranked(rows)[0]
    if best.plan is None or not best.plan.fits:
        return "cheapest: none fits"
    about = f"{best.topology}, batch {best.config['batch_size']:,}, remat {best.config['remat']}"
    return f"cheapest: {about}: {best.chip_hours:,.0f} chip-hours ({best.plan.hours:,.1f} h)"
