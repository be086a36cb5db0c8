"""Right rows are accepted whatever the seed: a budget that is too small rejects one of them sooner or later.

Besides the rows of the table those of tests/right, which are right in other ways than they are.
"""

from pathlib import Path

import pytest
import torch
from conftest import ROOT
from safetensors.torch import save_file

from attn import registry
from bench import cases, launch
from bench.cases import REAL_LAYERS
from bench.check import check
from bench.jobs import REAL

OTHERS = registry.find(ROOT / "tests" / "right")
ELSEWHERE = ("flex_attention", "torch_context_parallel")  # a compilation a shape; no case of one rank: test_adapters.py
ROWS = {n: row for n, row in (registry.find() | OTHERS).items() if "cpu" in row.devices and n not in ELSEWHERE}
RING = registry.IMPL_DIR / "ring_v2_collective.py"
LEFT_OUT = ("nan", "real")  # where NaN is judged there is no budget; real inputs have a test of their own

pytestmark = pytest.mark.usefixtures("one_thread")


def job(path, seed, world_size=1, real="nothing was captured"):
    fields = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": seed}
    return {**fields, "world_size": world_size, "workloads": [], "real": str(real)}


def longest(case):
    return max(case.workload.seq_len, case.workload.kv_seq_len)


def judged_here(seed, wanted, monkeypatch, real="nothing was captured"):
    """(row, case) of every row in this process, as the bench checks it; rows share what the oracle solves."""
    every_case, solve, kept = cases.cases, cases.solve, {}

    def solve_once(case, kind, *others):
        key = (kind == "module", case.problem)
        if key not in kept:
            kept[key] = solve(case, kind, *others)
        return kept[key]

    with monkeypatch.context() as patch:
        patch.setattr(cases, "cases", lambda row: [case for case in every_case(row) if wanted(seed, case)])
        patch.setattr(cases, "solve", solve_once)
        for name, row in ROWS.items():
            for case in check(job(row.path, seed, real=real))["cases"]:
                yield name, case


def judged_by_2_ranks(seeds):
    """(seed, row, case) of the ring."""
    results = launch.run("check", [job(RING, seed, 2) for seed in seeds], 2, deadline_s=600)
    for seed, result in zip(seeds, results, strict=True):
        assert result["status"] == "ok", (seed, result)
        yield from ((seed, RING.stem, case) for case in result["cases"] if not case["variant"].startswith(LEFT_OUT))


def assert_all_accepted(found, seeds, capsys, count):
    """`found`: (seed, row, case). Says how many, and each refusal as it comes; returns the rows that were judged."""
    judged, refused, worst, rows = 0, [], 0.0, set()
    for seed, name, case in found:
        capsys.readouterr()  # the name of every case
        assert case["status"] in ("ok", "incorrect", "unsupported", "not_measured"), case
        if case["status"] in ("ok", "incorrect"):
            judged += 1
            rows.add(name)
            worst = max(worst, *case["over_budget"].values())
        if case["status"] == "incorrect":
            refused.append(f"seed {seed}, {name}, {case['case']}: {case['reason']}")
            with capsys.disabled():
                print(f"\nrefused: {refused[-1]}", flush=True)
    accepted = f"{judged - len(refused)} of {judged} over {len(seeds)} seeds"
    count(f"right ones accepted {accepted}, worst error {worst:.2f} of its budget")
    assert not refused, "\n".join(refused)
    return rows


def made_up(case):
    return not case.variant.startswith(LEFT_OUT)


def test_right_rows_are_accepted_over_20_seeds(monkeypatch, capsys, count):
    """Cases of up to 70 tokens; each of those of up to 130 at one seed. Of tf32, with budgets of its own, 2 seeds."""

    def wanted(seed, case):
        short = longest(case) <= 70 or (longest(case) <= 130 and sum(case.problem.encode()) % 20 == seed)
        return made_up(case) and short and (case.precision == "dtype" or seed < 2)

    seeds = range(20)
    found = ((seed, name, case) for seed in seeds for name, case in judged_here(seed, wanted, monkeypatch))
    rows = assert_all_accepted(found, seeds, capsys, count)
    assert set(OTHERS) <= rows
    assert {ROWS[name].kind for name in rows} == {"core", "module", "ring"}


@pytest.mark.slow
def test_right_rows_are_accepted_over_200_seeds(monkeypatch, capsys, count):
    """Cases of up to 130 tokens; those of more than 70 at every eighth seed each."""

    def wanted(seed, case):
        short = longest(case) <= 70 or (longest(case) <= 130 and sum(case.problem.encode()) % 8 == seed % 8)
        return made_up(case) and short

    seeds = range(200)
    found = ((seed, name, case) for seed in seeds for name, case in judged_here(seed, wanted, monkeypatch))
    rows = assert_all_accepted(found, seeds, capsys, count)
    assert {ROWS[name].kind for name in rows} == {"core", "module", "ring"}


@pytest.fixture
def real(tmp_path):
    """The captured file, or one with what is hard about it: logits of up to 80, one token that all the others see."""
    if (ROOT / REAL).exists():
        return ROOT / REAL
    generator = torch.Generator().manual_seed(0)
    tensors = {}
    for layer in REAL_LAYERS:
        q, k, v = torch.randn((3, 1, 512, 12, 32), generator=generator)
        q, k = 3.0 * q + 2.0, 3.0 * k
        k[:, 7] += 2.0
        x = torch.randn((1, 512, 384), generator=generator)
        x[..., 5] += 8.0
        weights = {f"w{name}": torch.randn((384, 384), generator=generator) * 384**-0.5 for name in "qkvo"}
        tensors |= {f"{layer}.{name}": one for name, one in {"q": q, "k": k, "v": v, "x": x, **weights}.items()}
    path: Path = tmp_path / "real.safetensors"
    save_file(tensors, path)
    return path


def test_right_rows_are_accepted_on_real_inputs(real, monkeypatch, capsys, count):
    found = judged_here(0, lambda _, case: case.variant.startswith("real"), monkeypatch, real)
    rows = assert_all_accepted(((0, *one) for one in found), [0], capsys, count)
    assert rows == set(ROWS)


@pytest.mark.mpi
@pytest.mark.parametrize("n_seeds", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_right_ring_of_2_ranks_is_accepted_over_seeds(n_seeds, capsys, count):
    assert_all_accepted(judged_by_2_ranks(range(n_seeds)), range(n_seeds), capsys, count)
