"""The corpus of wrong kernels, tests/wrong: each is rejected for its reason, where its mistake shows and only there."""

import ast
import re
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml
from conftest import ROOT

from attn import registry
from attn.contract import Workload
from bench import cases, launch, solved
from bench.cases import Case
from bench.check import check

FOLDER = ROOT / "tests" / "wrong"
SEED = 7
SHORT = 70  # of a row in tf32, whose budgets no other row shares
LONGEST, WIDEST = 200, 256  # seq_len and n_heads x head_dim of a case; larger ones show no more of these mistakes
RANKS = 3  # where (rank + step) % n and (rank - step) % n differ; the bench has no cases of its own for 3
LIMIT_S = 60

# Mistakes that must be there, each a file.
REQUIRED = {
    "attends_across_heads",
    "causal_off_by_one",
    "causal_aligned_top_left",
    "ring_source_sign_wrong",
    "lse_in_base_2",
    "merge_without_maximum",
    "ring_merge_without_maximum",
    "last_block_of_keys_dropped",
    "block_counted_twice",
    "scale_applied_twice",
    "scale_not_applied",
    "scale_from_head_dim",
    "float16_accumulation",
    "tf32_where_float32_is_declared",
    "bfloat16_products_where_tf32_is_declared",
    "rows_left_unwritten",
    "ring_stale_kv_in_backward",
    "dk_and_dv_swapped",
    "dq_without_scale",
    "gqa_heads_in_wrong_order",
    "q_scaled_in_place",
    "q_scaled_and_not_quite_restored",
    "cached_by_address",
    "still_at_work_after_return",
    "noise_of_1e_4",
    "noise_below_atol_1e_2",
    "ring_gradients_of_own_queries",
    "ring_of_own_shards_only",
    "empty_rows_get_mean_of_v",
    "lse_0_where_no_key_is_seen",
    "zero_padding_attended",
    "only_batch_1",
    "bfloat16_where_float32_is_declared",
    "random_order_of_keys",
    "nan_swallowed",
    "softmax_without_maximum",
    "strides_ignored",
    "module_wk_and_wv_swapped",
    "module_of_8_heads",
    "bfloat16_weights",
    "out_with_lse_differs",
}


@dataclass(frozen=True)
class Wrong:
    """A file of the corpus and what it says of its own mistake.

    reason: what the judge must say of the first case that fails, and of every usual one.
    wrong_in: what the name of every case that fails must match.
    right_in: what the names of some cases match, all of which must be right; None: not said.
    """

    row: registry.Implementation
    reason: str | None
    wrong_in: str
    right_in: str | None

    def departures(self, found: list[dict[str, Any]]) -> list[str]:
        """Where the cases are not what the file says; empty where it is rejected for its reason only."""
        wrong = [one for one in found if one["status"] == "incorrect"]
        departures = [f"{one['case']} {one['status']}" for one in found if one["status"] not in ("ok", "incorrect")]
        departures += [] if wrong else [f"accepted in all of {len(found)} cases"]
        for one in wrong:
            usual = one is wrong[0] or one["variant"] == "normal"  # what hurts may hurt another tensor first
            if usual and not re.search(self.reason or "no REASON", one["reason"]):
                departures.append(f"{one['case']}, another reason: {one['reason']}")
            if not re.search(self.wrong_in, one["case"]):
                departures.append(f"{one['case']}, where it should be right: {one['reason']}")
        if self.right_in is not None:
            ought = [one for one in found if re.search(self.right_in, one["case"])]
            departures += [] if ought else [f"no case is of RIGHT_IN {self.right_in}"]
            departures += [f"{one['case']} of RIGHT_IN: {one['reason']}" for one in ought if one["status"] != "ok"]
        return departures


def read(path: Path) -> Wrong:
    said = {}
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name in ("REASON", "WRONG_IN", "RIGHT_IN"):
                said[name] = ast.literal_eval(node.value)
    return Wrong(registry.read(path), said.get("REASON"), said.get("WRONG_IN", ""), said.get("RIGHT_IN"))


CORPUS = {path.stem: read(path) for path in sorted(FOLDER.glob("*.py"))}
ALONE = [name for name, wrong in CORPUS.items() if wrong.row.kind != "ring"]
RINGS = [name for name, wrong in CORPUS.items() if wrong.row.kind == "ring"]
TILES = [  # the lengths of a benchmark, at which some mistakes hide; and the heads of one
    Workload(1, length, n_heads, n_heads, 16, "float32", mask, pass_)
    for length, n_heads in ((64, 2), (64, 8), (128, 2))
    for mask in ("full", "causal")
    for pass_ in ("forward", "forward_backward")
]
RING_SHAPES = [
    *(
        Workload(1, length, 2, 2, 16, "float32", mask, "forward")
        for length in (1, 3, 127)
        for mask in ("full", "causal")
    ),
    Workload(2, 65, 4, 2, 40, "float32", "full", "forward"),
    Workload(2, 65, 4, 1, 40, "float32", "causal", "forward"),
    Workload(1, 65, 2, 2, 16, "float32", "causal", "forward", softmax_scale=20.0),  # an exponential overflows
]

pytestmark = pytest.mark.usefixtures("one_thread")


def job(row: registry.Implementation, world_size: int, workloads: list[Workload], truths: str = "") -> dict[str, Any]:
    asked = [workload.as_dict() for workload in workloads]
    where = {"implementation": str(row.path), "device": "cpu", "threads": 1, "seed": SEED, "truths": truths}
    return {**where, "world_size": world_size, "workloads": asked}


@cache
def judged_alone(name: str) -> list[dict[str, Any]]:
    """Every small case of a core row or a module, judged in this process."""
    every_case, solve = cases.all_cases, cases.solve

    def fewer(kind: str) -> list[Case]:
        return [
            case
            for case in every_case(kind)
            if _small(case, SHORT if CORPUS[name].row.precision == "tf32" else LONGEST)
        ]

    def remembered(case: Case, kind: str, seed: int, *_: Any) -> solved.Solved:
        key = (case, kind, seed)
        if key not in _truths:
            _truths[key] = solve(case, kind, seed)
        return _truths[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(cases, "all_cases", fewer)
        patch.setattr(cases, "solve", remembered)
        workloads = [w for w in TILES if w.backward == CORPUS[name].row.backward]
        return check(job(CORPUS[name].row, 1, workloads))["cases"]


_truths: dict[Any, solved.Solved] = {}


def _small(case: Case, longest: int) -> bool:
    w = case.workload
    small = max(w.seq_len, w.kv_seq_len) <= longest and w.embed_dim <= WIDEST
    return small and not case.variant.startswith("real")


@pytest.fixture(scope="module")
def judged_rings(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """Every ring on RING_SHAPES, in one launch of RANKS ranks."""
    folder = tmp_path_factory.mktemp("truths")
    workloads = [replace(w, pass_=pass_) for w in RING_SHAPES for pass_ in ("forward", "forward_backward")]
    for workload in workloads:
        case = Case(workload)
        solved.write(folder / f"{case.problem}.safetensors", cases.solve(case, "ring", SEED))
    jobs = [job(CORPUS[name].row, RANKS, workloads, str(folder)) for name in RINGS]
    return dict(zip(RINGS, launch.run("check", jobs, RANKS, deadline_s=LIMIT_S), strict=True))


@pytest.mark.parametrize("name", ALONE)
def test_a_wrong_kernel_is_rejected_for_its_reason_and_no_other(name: str) -> None:
    assert CORPUS[name].departures(judged_alone(name)) == []


@pytest.mark.mpi
@pytest.mark.parametrize("name", RINGS)
def test_a_wrong_ring_is_rejected_for_its_reason_and_no_other(name: str, judged_rings: Any) -> None:
    assert judged_rings[name]["status"] == "ok", judged_rings[name]
    assert CORPUS[name].departures(judged_rings[name]["cases"]) == []


@pytest.mark.mpi
def test_all_required_mistakes_are_there_and_none_is_accepted(judged_rings: Any, count: Any) -> None:
    assert REQUIRED - set(CORPUS) == set()
    found = {name: judged_alone(name) for name in ALONE} | {name: judged_rings[name]["cases"] for name in RINGS}
    rejected = [name for name in CORPUS if any(one["status"] == "incorrect" for one in found[name])]
    count(f"wrong kernels rejected {len(rejected)} of {len(CORPUS)}")
    assert set(CORPUS) - set(rejected) == set()
    assert len(rejected) >= 60


def test_nothing_wrong_is_a_row_of_the_table() -> None:
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    listed = {name for family in params["families"].values() for name in family["implementations"]}
    assert set(CORPUS) & (listed | set(registry.find())) == set()


@pytest.mark.parametrize("name", CORPUS)
def test_a_wrong_kernel_says_what_is_wrong_and_follows_the_contract_otherwise(name: str) -> None:
    wrong = CORPUS[name]
    assert wrong.row.fault is None
    assert wrong.reason
    lines = (ast.get_docstring(ast.parse(wrong.row.path.read_text(encoding="utf-8"))) or "").split("\n")
    assert lines[0].endswith(".")
    assert lines[2]
