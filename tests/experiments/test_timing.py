"""How turns are timed: their median, by time as it passes or, on one core, by CPU time."""

import os
import time

import pytest
from harness.timing import medians, one_core_clock


def test_medians_leave_out_the_first_call_and_one_turn_that_took_long():
    now, costs = [0.0], {"a": iter([9.0, 1.0, 1.0, 5.0]), "b": iter([9.0, 2.0, 7.0, 2.0])}
    order = []

    def turn(name):
        order.append(name)
        now[0] += next(costs[name])

    runs = {name: lambda name=name: turn(name) for name in costs}
    assert medians(runs, 3, lambda: now[0]) == {"a": 1.0, "b": 2.0}
    assert order == list("abababab")


@pytest.mark.parametrize(("cores", "clock"), [({3}, time.process_time), ({0, 1}, time.perf_counter)])
def test_cpu_time_counts_where_there_is_one_core_alone(cores, clock, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: cores)
    assert one_core_clock() is clock
