"""Right rows are accepted whatever the seed: a budget that is too small rejects one of them sooner or later."""

import pytest

from attn import registry
from bench import cases, launch
from bench.check import check

ROWS = {name: row for name, row in registry.find().items() if "cpu" in row.devices}
RING = registry.IMPL_DIR / "ring_v2_collective.py"
LEFT_OUT = ("nan", "real")  # where NaN is judged there is no budget; what was captured has no seed

pytestmark = pytest.mark.usefixtures("one_thread")


def job(path, seed, world_size=1):
    fields = {"implementation": str(path), "device": "cpu", "threads": 1, "seed": seed}
    return {**fields, "world_size": world_size, "workloads": [], "real": "nothing was captured"}


def longest(case):
    return max(case.workload.seq_len, case.workload.kv_seq_len)


def judged_here(seed, wanted, monkeypatch):
    """(row, case) of every row in this process, as the bench checks it; rows share what the oracle solves."""
    every_case, solve, kept = cases.cases, cases.solve, {}

    def solve_once(case, kind, *others):
        key = (kind == "module", case.problem)
        if key not in kept:
            kept[key] = solve(case, kind, *others)
        return kept[key]

    def some_cases(row):
        return [case for case in every_case(row) if not case.variant.startswith(LEFT_OUT) and wanted(seed, case)]

    with monkeypatch.context() as patch:
        patch.setattr(cases, "cases", some_cases)
        patch.setattr(cases, "solve", solve_once)
        for name, row in ROWS.items():
            for case in check(job(row.path, seed))["cases"]:
                yield name, case


def judged_by_2_ranks(seeds):
    """(seed, row, case) of the ring."""
    results = launch.run("check", [job(RING, seed, 2) for seed in seeds], 2, deadline_s=600)
    for seed, result in zip(seeds, results, strict=True):
        assert result["status"] == "ok", (seed, result)
        yield from ((seed, RING.stem, case) for case in result["cases"] if not case["variant"].startswith(LEFT_OUT))


def assert_all_accepted(found, seeds, capsys, count):
    """`found`: (seed, row, case). Says how many; returns the rows that were judged at all."""
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
    accepted = f"{judged - len(refused)} of {judged} over {len(seeds)} seeds"
    count(f"right ones accepted {accepted}, worst error {worst:.2f} of its budget")
    assert not refused, "\n".join(refused)
    return rows


def test_right_rows_are_accepted_over_20_seeds(monkeypatch, capsys, count):
    """Cases of up to 70 tokens."""
    seeds = range(20)
    found = (
        (seed, name, case)
        for seed in seeds
        for name, case in judged_here(seed, lambda _, case: longest(case) <= 70, monkeypatch)
    )
    rows = assert_all_accepted(found, seeds, capsys, count)
    assert {ROWS[name].kind for name in rows} == {"core", "module", "ring"}


@pytest.mark.slow
def test_right_rows_are_accepted_over_200_seeds(monkeypatch, capsys, count):
    """Cases of up to 130 tokens; those of more than 70 at every fourth seed each, to stay under 25 minutes."""

    def wanted(seed, case):
        return longest(case) <= 70 or (longest(case) <= 130 and sum(case.problem.encode()) % 4 == seed % 4)

    seeds = range(200)
    found = ((seed, name, case) for seed in seeds for name, case in judged_here(seed, wanted, monkeypatch))
    rows = assert_all_accepted(found, seeds, capsys, count)
    assert {ROWS[name].kind for name in rows} == {"core", "module", "ring"}


@pytest.mark.mpi
@pytest.mark.parametrize("n_seeds", [3, pytest.param(40, marks=pytest.mark.slow)])
def test_a_right_ring_of_2_ranks_is_accepted_over_seeds(n_seeds, capsys, count):
    assert_all_accepted(judged_by_2_ranks(range(n_seeds)), range(n_seeds), capsys, count)
