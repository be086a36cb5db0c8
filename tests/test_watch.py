"""bench.watch and bench.flips: no timed call goes unjudged, and right ones cost no more than a comparison."""

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import measure_job

from attn import registry
from attn.contract import Unsupported, Workload
from bench import machine, oracle
from bench.calls import make
from bench.flips import Flips
from bench.measure import measure
from bench.team import Solo
from bench.watch import Watch

pytestmark = pytest.mark.usefixtures("one_thread")

WORKLOAD = Workload(1, 9, 2, 2, 16, "float32", "full", "forward")
GQA = Workload(2, 33, 6, 2, 16, "float32", "causal", "forward_backward")
ROW = '''"""A row for a test."""
import torch
from attn.impl import standard
KIND, DEVICES, DTYPES, MASKS, BACKWARD = "core", ("cpu",), ("float32",), ("full",), False
KEPT, CALLS = {{}}, []


class Lazy(torch.Tensor):
    pass


def attention(q, k, v, *, softmax_scale, mask):
    CALLS.append(1)
    {line}
    return out


def computed(q, k, v, softmax_scale, mask):
    return standard.attention(q, k, v, softmax_scale=softmax_scale, mask=mask)
'''
COMPUTED = "computed(q, k, v, softmax_scale, mask)"
FALSE = {
    "zeros from the 8th call on": (f"out = {COMPUTED} * (len(CALLS) < 8)", "out is off by"),
    "kept while two of the inputs are what they were": (
        f"key = float(q[0, 0, 0, 0]), float(v[0, 0, 0, 0]); out = KEPT[key] = KEPT.get(key, {COMPUTED})",
        "out is off by",
    ),
    "kept by magnitudes": (
        f"key = float(q.abs().sum()), float(v.abs().sum()); out = KEPT[key] = KEPT.get(key, {COMPUTED})",
        "out is off by",
    ),
    "lazy from the 5th call on": (
        f"out = {COMPUTED}; out = out.as_subclass(Lazy) if len(CALLS) > 5 else out",
        "out is a Lazy, not a torch.Tensor",
    ),
    "NaN in every second call after 6": (
        f"out = {COMPUTED} * (float('nan') if len(CALLS) > 6 and len(CALLS) % 2 else 1)",
        "not finite, or should not be",
    ),
}


def measured(folder: Path, line: str, **changes: Any) -> dict[str, Any]:
    path = folder / "row.py"
    path.write_text(ROW.format(line=line), encoding="utf-8")
    job = measure_job(path, WORKLOAD, folder)
    return measure({**job, **{name: str(path) if value is ... else value for name, value in changes.items()}})


def test_an_honest_row_is_timed(tmp_path: Path) -> None:
    found = measured(tmp_path, f"out = {COMPUTED}")
    assert found["status"] == "ok"
    assert found["cpus"] == [machine.cpu_list(sorted(os.sched_getaffinity(0)))]
    series = found["series"]
    assert all(wall > ms * series["calls"] for wall, ms in zip(series["wall_ms"], series["samples_ms"], strict=True))
    wanted = {"truth", "calls", "judging", "memory", "warm_up", "sampling"}
    assert {phase for phase, seconds in found["spent_s"].items() if seconds > 0} >= wanted


@pytest.mark.parametrize("cheat", FALSE)
def test_a_row_that_is_right_when_asked_and_wrong_when_timed_gets_no_time(cheat: str, tmp_path: Path) -> None:
    line, words = FALSE[cheat]
    found = measured(tmp_path, line)
    assert found["status"] == "incorrect"
    assert found["reason"].startswith("in a timed call: ")
    assert words in found["reason"]
    assert found["before"]["right"]
    assert "series" not in found


def test_a_yardstick_that_is_wrong_when_timed_is_no_yardstick_and_no_fault_of_the_row(tmp_path: Path) -> None:
    wrong, row = FALSE["zeros from the 8th call on"][0], registry.IMPL_DIR / "standard.py"
    found = measured(tmp_path, wrong, implementation=str(row), reference=...)
    assert found["status"] == "ok"
    assert found["no_reference"].startswith("the yardstick in a timed call: out is off by")


ROWS = sorted(name for name, row in registry.find().items() if row.kind != "ring" and "cpu" in row.devices)
ROWS.remove("flex_attention")  # on a CPU it has no gradients; tests/test_adapters.py


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("name", ROWS)
def test_images_of_a_problem_give_the_same_bits_signs_apart(name: str, dtype: str, monkeypatch: Any) -> None:
    """So that a timed call is judged by comparing bits: a true judgement takes place once a problem."""
    row, workload = registry.find()[name], replace(GQA, dtype=dtype)
    if row.kind == "module":
        workload = replace(workload, n_kv_heads=workload.n_heads)
    problem = oracle.solve(
        *(kind := "module" if row.kind == "module" else "core", workload), oracle.inputs(kind, workload, 3)
    )
    try:
        call = make(row, workload, problem.inputs, "cpu")
    except Unsupported as error:
        pytest.fail(f"choose another workload: {error}")
    watch, judged, judge = Watch(call, problem, Solo(), seed=5), [], Watch._judge
    monkeypatch.setattr(Watch, "_judge", lambda self, odd: (judged.append(self._which), judge(self, odd)))
    for _ in range(4):
        watch.new_sample()
        for _ in range(3):
            watch.before()
            call()
            watch.after()
    assert sorted(judged) == [0, 1]


def test_signs_differ_from_call_to_call_and_fit_groups_of_heads() -> None:
    flips = Flips("core", GQA, seed=1)
    one, other = flips.draw(), flips.draw()
    assert all(set(x.unique().tolist()) == {-1.0, 1.0} for x in one.values())
    assert {name for name in one if not torch.equal(one[name], other[name])} == set(one)
    assert one["q"].shape == (6, 16)
    assert one["k"].shape == (2, 16)
    assert torch.equal(one["q"][3:], one["k"][1].expand(3, 16))
    again = Flips("core", GQA, seed=1).draw()
    assert all(torch.equal(x, again[name]) for name, x in one.items()), "ranks draw the same"


def test_weight_gradients_are_computed_within_the_call() -> None:
    """Whoever puts them off until they are read is timed all the same."""
    workload = replace(GQA, n_kv_heads=6)
    problem = oracle.solve("module", workload, oracle.inputs("module", workload, 3))
    call = make(registry.find()["multihead_standard"], workload, problem.inputs, "cpu")
    read = []
    gradients = call.attention.gradients
    call.attention.gradients = lambda: (read.append(1), gradients())[1]
    call()
    assert read == [1]
    assert {"dwq", "dwk", "dwv", "dwo"} <= set(call.computed())
    assert read == [1]
