"""What a duel concludes, from made-up pairs; which cells it measures; and that its worktrees are gone afterwards."""

import json
import shutil
import subprocess

import numpy as np
import pytest
from filelock import FileLock
from made import PARAMS

from bench import closure, duel, duel_cells, duel_command, duel_pairs, grid, worktrees
from bench.__main__ import main
from bench.duel import Outcome
from bench.duel_pairs import Pair
from bench.progress import Steps
from bench.stats import Estimate
from bench.worktrees import Side

IDENTITY = {"device": "cpu", "cpu_count": 2, "threads": 2, "gpu_count": 0}


def a_pair(value):
    return Pair(value, 1.0, float(np.exp(value)), [])


def decided(mean, deviation, seed=0, looks=(8, 12, 16)):
    rng = np.random.default_rng(seed)
    return duel.decided(lambda _: a_pair(rng.normal(mean, deviation)), looks, Steps("", 16, None))


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (1.01, 5.0, "slower"), (1.0, 5.0, "inconclusive"), (0.2, 5.0, "inconclusive"),
        (-5.0, -1.01, "faster"), (-5.0, -1.0, "inconclusive"),
        (-2.9, 2.9, "same"), (-3.0, 1.0, "inconclusive"), (-1.0, 3.0, "inconclusive"), (0.0, 2.0, "same"),
        (0.1, 2.0, "inconclusive"), (0.1, 0.9, "same"), (-0.9, -0.1, "same"), (-np.inf, np.inf, "inconclusive"),
    ],
)  # fmt: skip
def test_the_verdict_of_an_interval(low, high, verdict):
    assert duel.verdict_of(low, high) == verdict


def test_a_clear_difference_is_found_at_the_first_look():
    for mean, verdict in ((0.3, "slower"), (-0.3, "faster"), (0.0, "same")):
        found = decided(mean, 0.002)
        assert (found.verdict, len(found.pairs)) == (verdict, 8)
        assert found.change_percent.value == pytest.approx(duel.percent(mean), abs=1)
        assert found.sees_percent is None


def test_what_no_look_decides_says_what_it_could_have_seen():
    found = decided(0.0, 0.2)
    change = found.change_percent
    assert (found.verdict, len(found.pairs)) == ("inconclusive", 16)
    assert found.sees_percent == pytest.approx((change.high - change.low) / 2 + 1)


def test_looking_three_times_costs_no_more_false_alarms_than_promised(capsys):
    verdicts = [decided(0.0, 0.03, seed).verdict for seed in range(400)]
    false = sum(verdict in ("slower", "faster") for verdict in verdicts)
    assert false <= 0.05 * 400
    assert sum(decided(0.1, 0.03, seed).verdict == "slower" for seed in range(100)) >= 95


@pytest.mark.parametrize(
    ("budget_s", "pair_s", "n_cells", "looks"),
    [
        (45, 3.0, 1, (8, 12, 16)),
        (45, 30.0, 1, (8, 12, 16)),
        (1, 3.0, 1, (8, 12, 16)),
        (100, 3.0, 6, (8, 12, 16, 24, 32)),
        (1e9, 3.0, 1, duel.LOOKS),
        (45, 3.0, 7, (12, 16)),
        (45, 3.0, 10_000, (16,)),
    ],
)
def test_the_budget_adds_looks_and_takes_none_away(budget_s, pair_s, n_cells, looks):
    assert duel.looks_within(budget_s, pair_s, n_cells) == looks


def test_a_pair_is_the_median_of_its_blocks_ratios():
    wall = [("ABBA", [1.0, 2.0, 4.0, 1.0]), ("BAAB", [2.0, 1.0, 1.0, 2.0]), ("ABBA", [1.0, 50.0, 50.0, 1.0])]
    blocks = [(order, slices, [2.0 if letter == "A" else 3.0 for letter in order]) for order, slices in wall]
    found = duel_pairs.in_slices(blocks, "wall")
    assert found.value == pytest.approx(np.log(3.0))
    assert (found.base_ms, found.head_ms) == (1.0, 3.0)
    assert found.blocks == blocks
    assert duel_pairs.in_slices(blocks, "cpu").value == pytest.approx(np.log(1.5))


def outcome(verdict, cell="a", p=0.001, change=5.0):
    if verdict in ("skipped", "could not compare"):
        return Outcome(cell, verdict, "for a reason")
    sees = 2.5 if verdict == "inconclusive" else None
    estimate = Estimate(change, change - 1, change + 1)
    return Outcome(cell, verdict, base_ms=1.0, head_ms=1.05, change_percent=estimate, p=p, sees_percent=sees)


def test_a_finding_that_does_not_stand_among_many_becomes_inconclusive_and_says_so():
    many = [outcome("same", f"c{i}", p=1.0) for i in range(9)]
    weak, strong = outcome("slower", "weak", p=0.006), outcome("faster", "strong", p=0.0001)
    found = {one.cell: one for one in duel.corrected([*many, weak, strong, outcome("skipped", "s")])}
    assert found["strong"].verdict == "faster"
    assert found["weak"].verdict == "slower", "0.006 stands as the second of 11: 0.05 * 2 / 11"
    alone = {one.cell: one for one in duel.corrected([*many, weak])}["weak"]
    assert (alone.verdict, alone.sees_percent) == ("inconclusive", 2.0)
    assert alone.reason == "slower by itself, but p = 0.006 does not stand among 10 cells"


def sides(tmp_path, commits=("1" * 40, "")):
    """Two copies of attn, as a duel puts them up."""
    made = []
    for name, revision, commit in (("base", "main", commits[0]), ("head", "the work tree", commits[1])):
        root = (tmp_path / name).resolve()
        shutil.copytree(closure.ROOT / "attn", root / "attn", ignore=shutil.ignore_patterns("__pycache__"))
        made.append(Side(name, revision, commit, root, root))
    return made[0], made[1]


@pytest.mark.parametrize(
    ("verdicts", "code", "words"),
    [
        (["same", "faster"], 0, "the work tree is not slower than main (1111111): 1 faster, 1 same."),
        (["same", "slower"], 1, "the work tree is slower than main (1111111) in 1 of 2 cells: c1 by 5.0 %."),
        (["same", "inconclusive"], 2, "1 of 2 cells; a difference of 2.5 % would have been seen."),
        (["slower", "inconclusive"], 1, "in 1 of 2 cells"),
        (["slower", "could not compare"], 3, "Could not compare 1 of 2 cells; c1: for a reason."),
        (["same", "skipped"], 0, "1 same."),
        (["slower"] * 5, 1, "c0 by 5.0 %, c1 by 5.0 %, c2 by 5.0 % and 2 more."),
    ],
)
def test_the_conclusion_over_cells(verdicts, code, words, tmp_path):
    outcomes = [outcome(verdict, f"c{i}") for i, verdict in enumerate(verdicts)]
    found, sentence = duel_command.conclusion(outcomes, sides(tmp_path), duel_cells.Chosen())
    assert found == code
    assert words in sentence


def test_nothing_measured_is_no_difference_only_where_nothing_was_to_be_compared(tmp_path):
    both = sides(tmp_path)
    unchanged = duel_cells.Chosen(rows={"sdpa": "the same code on both sides"})
    assert duel_command.conclusion([], both, unchanged)[0] == 0
    skipped = duel_cells.Chosen(skipped={"ring-seed": "no mpiexec"})
    assert duel_command.conclusion([outcome("skipped")], both, skipped)[0] == 3


def chosen(both, pattern=None, clock="wall", identity=None):
    return duel_cells.choose(grid.load(PARAMS), identity or IDENTITY, both, pattern, clock)


def replace(side, name, old, new):
    path = side.root / "attn" / name
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")
    closure._imports.cache_clear()
    closure._digest.cache_clear()


def test_rows_whose_code_differs_are_measured_and_the_others_named(tmp_path):
    both = sides(tmp_path)
    replace(both[1], "impl/standard.py", '"""', '"""Other words. ')
    assert chosen(both).cells == []
    assert chosen(both).rows == dict.fromkeys(grid.load(PARAMS).implementations(), "the same code on both sides")
    replace(both[1], "kernels/query_blocks.py", "\ndef ", "\nX = 1\n\n\ndef ")
    found = chosen(both)
    measured = {cell.implementation for cell in found.cells}
    assert "improved" in measured
    assert "standard" not in measured
    assert measured | set(found.rows) == set(grid.load(PARAMS).implementations())


def test_what_counts_what_cells_need_and_repeat_is_skipped_with_its_reason(tmp_path):
    both = sides(tmp_path)
    reasons = set(chosen(both, ".", identity={**IDENTITY, "cpu_count": 1}).skipped.values())
    assert "2 ranks on 1 cores: oversubscribed" in reasons
    assert "left out in params.yaml: float16 is slow on CPUs" in reasons
    assert any(reason.startswith("the same as improved-") for reason in reasons)
    assert not any(cell.family == "ring" for cell in chosen(both, ".", clock="cpu").cells)
    replace(both[0], "impl/sdpa.py", 'MASKS = ("full", "causal")', 'MASKS = ("full",)')
    assert "base: mask causal is not among full" in set(chosen(both, "sdpa").skipped.values())


def test_a_row_on_one_side_is_named_and_a_broken_one_cannot_be_compared(tmp_path):
    both = sides(tmp_path)
    (both[0].root / "attn/impl/standard.py").unlink()
    (both[1].root / "attn/impl/sdpa.py").write_text("def (", encoding="utf-8")
    found = chosen(both)
    assert found.rows["standard"] == "only in the work tree"
    assert {key.split("-")[0] for key in found.broken} >= {"sdpa"}
    assert all("head (the work tree): broken file sdpa.py: line 1" in why for why in found.broken.values())


def test_one_revision_twice_is_measured_on_the_seed_grid(tmp_path):
    found = chosen(sides(tmp_path, commits=("1" * 40, "1" * 40)))
    assert {(cell.family, cell.grid) for cell in found.cells} == {("core", "seed")}
    assert len(found.cells) == 6


def test_cells_that_do_not_fit_into_memory_twice_are_told(monkeypatch):
    cells = grid.cells(grid.load(PARAMS), "core", "standard", "scaling")
    small, large = min(cells, key=duel_cells.needed_bytes), max(cells, key=duel_cells.needed_bytes)
    scores = 8 * 4096**2 * 4
    assert duel_cells.needed_bytes(large) > scores
    monkeypatch.setattr(duel_cells, "_available_bytes", lambda: 2 * duel_cells.needed_bytes(large) - 1)
    assert [duel_cells.fits_twice(one, IDENTITY) for one in (small, large)] == [True, False]


@pytest.fixture
def repo(tmp_path, monkeypatch):
    """A small repository with one row, as the root of the project; temporary files have a folder of their own."""
    root, temporary = tmp_path.resolve() / "repo", tmp_path / "tmp"
    for folder in (root / "attn/impl", root / "bench", temporary):
        folder.mkdir(parents=True)
    (root / "attn/impl/row.py").write_text("X = 1\n", encoding="utf-8")
    for name, value in {"NAME": "tests", "EMAIL": "tests@localhost"}.items():
        for role in ("AUTHOR", "COMMITTER"):
            monkeypatch.setenv(f"GIT_{role}_{name}", value)
    monkeypatch.setattr(closure, "ROOT", root)
    monkeypatch.setattr("tempfile.tempdir", str(temporary))
    git(root, "init", "-q", "-b", "main")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def git(root, *arguments):
    return subprocess.run(["git", "-C", root, *arguments], capture_output=True, text=True, check=True).stdout


def left(root):
    """Worktrees besides the main one, and temporary files."""
    listed = git(root, "worktree", "list", "--porcelain").split("\n\n")
    return [one for one in listed[1:] if one.strip()], [path.name for path in (root.parent / "tmp").iterdir()]


def row(side):
    return (side.overlay / "attn/impl/row.py").read_text(encoding="utf-8")


def test_both_sides_have_their_own_attn_and_the_current_bench_and_are_gone_afterwards(repo):
    (repo / "attn/impl/row.py").write_text("X = 2\n", encoding="utf-8")
    git(repo, "commit", "-q", "-am", "two")
    with worktrees.sides("main~1", "main") as (base, head):
        assert (row(base), row(head)) == ("X = 1\n", "X = 2\n")
        assert all((side.overlay / "bench").resolve() == repo / "bench" for side in (base, head))
        assert head.words == f"main ({git(repo, 'rev-parse', 'main')[:7]})"
        assert len(left(repo)[0]) == 2
    assert left(repo) == ([], [])


def test_the_work_tree_is_seen_as_it_is_when_the_duel_begins(repo):
    (repo / "attn/impl/row.py").write_text("X = 3\n", encoding="utf-8")
    (repo / "attn/impl/new.py").write_text("", encoding="utf-8")
    with worktrees.sides("main", None) as (base, head):
        (repo / "attn/impl/row.py").write_text("X = 4\n", encoding="utf-8")
        assert (row(base), row(head)) == ("X = 1\n", "X = 3\n")
        assert (head.overlay / "attn/impl/new.py").exists()
        assert (head.words, head.commit) == ("the work tree", "")
    assert left(repo) == ([], [])
    assert git(repo, "status", "--porcelain") == " M attn/impl/row.py\n?? attn/impl/new.py\n"


def test_an_exception_leaves_nothing(repo):
    with pytest.raises(RuntimeError), worktrees.sides("main", "main"):
        raise RuntimeError
    assert left(repo) == ([], [])


def test_hooks_of_the_repository_do_not_run(repo):
    hook = repo / ".git/hooks/post-checkout"
    hook.parent.mkdir(exist_ok=True)
    hook.write_text(f"#!/bin/sh\ntouch {repo.parent}/ran\n", encoding="utf-8")
    hook.chmod(0o755)
    with worktrees.sides("main", None):
        pass
    assert not (repo.parent / "ran").exists()


def test_what_a_killed_run_left_goes_and_what_a_running_one_holds_stays(repo):
    folders = {name: repo.parent / "tmp" / f"{worktrees.PREFIX}{name}" for name in ("dead", "vanished", "alive")}
    for folder in (*folders.values(), repo.parent / "mine"):
        git(repo, "worktree", "add", "--detach", str(folder / "base"), "main")
    shutil.rmtree(folders["vanished"])
    shutil.rmtree(repo.parent / "mine")  # of someone's own on a disk that is not there just now
    with FileLock(folders["alive"] / "alive"):
        worktrees.remove_leftovers()
        listed = git(repo, "worktree", "list")
    assert [name for name in (*folders, "mine") if f"{name}/base" in listed] == ["alive", "mine"]
    assert not folders["dead"].exists()
    worktrees.remove_leftovers()
    assert "alive" not in git(repo, "worktree", "list")


@pytest.mark.parametrize(
    ("revision", "words"), [("nothing", "no revision 'nothing' here"), ("-x", "no revision '-x' here")]
)
def test_a_revision_that_is_not_there_is_named(repo, revision, words):
    for base, head in ((revision, None), ("main", revision)):
        with pytest.raises(worktrees.NoSuchRevision, match=words), worktrees.sides(base, head):
            pass
    assert left(repo) == ([], [])


def test_a_revision_without_attn_is_named(repo):
    git(repo, "rm", "-rq", "attn")
    git(repo, "commit", "-q", "-m", "empty")
    with pytest.raises(worktrees.NoSuchRevision, match="main has no folder attn"), worktrees.sides("main~1", "main"):
        pass
    assert left(repo) == ([], [])


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["no-such-revision"], "could not compare: no revision 'no-such-revision' here"),
        (["main", "--cells", "("], "--cells (: not a regular expression"),
        (["main", "--cells", "nothing like it"], "--cells nothing like it: no cell of params.yaml matches"),
        (["main", "--budget", "0"], "--budget 0, allowed: seconds above 0"),
        (["main", "--budget", "nan"], "--budget nan, allowed: seconds above 0"),
    ],
)
def test_bad_input_exits_3_with_one_sentence(repo, tmp_path, monkeypatch, capsys, arguments, words):
    shutil.copy(PARAMS, tmp_path / "params.yaml")
    monkeypatch.chdir(tmp_path)
    assert main(["duel", *arguments]) == 3
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"python -m bench duel: {words}")
    assert err.count("\n") == 1


def test_invalid_params_exit_3_too(tmp_path, monkeypatch, capsys):
    (tmp_path / "params.yaml").write_text("machine: [", encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    assert main(["duel", "main"]) == 3
    assert capsys.readouterr().err.startswith("params.yaml: ")


@pytest.mark.parametrize("arguments", [[], ["a", "b", "c"], ["a", "--clock", "sundial"], ["a", "--budget", "much"]])
def test_a_command_line_that_is_wrong_exits_3_with_the_usage(arguments, capsys):
    with pytest.raises(SystemExit) as ended:
        main(["duel", *arguments])
    assert ended.value.code == 3
    assert "usage: python -m bench duel" in capsys.readouterr().err


def test_the_json_document_holds_everything(tmp_path):
    document = duel_command._document(IDENTITY, sides(tmp_path), [decided(0.3, 0.01)], "So it is.")
    (cell,) = json.loads(json.dumps(document, allow_nan=False))["cells"]
    assert len(cell["pairs"]) == 8
    assert document["base"] == {"revision": "main", "commit": "1" * 40}
    assert document["head"] == {"revision": "the work tree", "commit": None}
