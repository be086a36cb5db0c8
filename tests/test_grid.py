"""bench.grid: params.yaml, and the one line that each fault in it gets."""

import dataclasses
import re
from pathlib import Path

import pytest
import yaml
from made import PARAMS

from attn import registry
from attn.contract import Workload
from bench import grid


@pytest.fixture
def faults(tmp_path):
    """The faults of the shipped params.yaml after some changes, `{"a.b.c": value}`; each is checked to be one line."""

    def change_and_load(changes):
        raw = yaml.safe_load(PARAMS.read_text(encoding="utf-8"))
        for where, value in changes.items():
            *parents, last = where.split(".")
            node = raw
            for parent in parents:
                node = node[parent]
            node[last] = value
        return faults_of(tmp_path, yaml.safe_dump(raw))

    return change_and_load


def faults_of(folder, text):
    path = folder / "params.yaml"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(grid.InvalidParams) as caught:
        grid.load(path)
    for fault in caught.value.faults:
        assert fault.startswith(f"{path}: ")
        assert "\n" not in fault
    assert str(caught.value) == "\n".join(caught.value.faults)
    return [fault.removeprefix(f"{path}: ") for fault in caught.value.faults]


KEYS = "seq_len, kv_seq_len, batch, n_heads, n_kv_heads, head_dim, dtype, mask, pass, world_size, exclude"

ONE_FAULT = {
    "unknown key at the top": ({"colour": 1}, "colour: unknown key, allowed: machine, device, threads, .*launch"),
    "unknown key of a grid": ({"grids.seed.seqlen": [1]}, f"grids.seed.seqlen: unknown key, allowed: {KEYS}"),
    "unknown key of the protocol": ({"protocol.sample": 1}, "protocol.sample: unknown key, allowed: seed, .*samples.*"),
    "unknown key of a family": (
        {"families.core.grid": {"seed": True}}, "families.core.grid: unknown key, allowed: implementations, grids"),
    "unknown family": ({"families.cores": {}}, "families.cores: unknown key, allowed: core, module, ring"),
    "unknown key of an exclusion": (
        {"grids.seed.exclude": {"x": {"cpu": 1}}}, r"grids.seed.exclude.x.cpu: unknown key, allowed: .*rows"),
    "unknown implementation": (
        {"families.core.implementations.improvd": True},
        r"families.core.implementations.improvd: no file attn/impl/improvd.py, did you mean improved\?"),
    "implementation like no other": (
        {"families.core.implementations.zzz": True},
        "families.core.implementations.zzz: no file .*allowed: .*sdpa.*"),
    "implementation of another family": (
        {"families.core.implementations": {"multihead_torch": True},
         "families.module.implementations": {"multihead_standard": True}},
        r"families.core.implementations.multihead_torch: its KIND is module, allowed: core"),
    "unknown grid": (
        {"families.core.grids": {"sead": True}}, r"families.core.grids.sead: no such grid, did you mean seed\?"),
    "unknown reference": (
        {"reference.core": "sdpaa"}, "reference.core = sdpaa: must be one of families.core.impl.*, allowed: .*sdpa.*"),
    "reference of another kind": (
        {"reference.core": "multihead_torch"}, "reference.core = multihead_torch: must be one of .*, allowed: .*"),
    "negative size": (
        {"grids.seed.n_heads": [8, -8]}, r"grids.seed.n_heads\[1\] = -8, allowed: a whole number above 0"),
    "no ranks": ({"grids.ring.world_size": [0]}, r"grids.ring.world_size\[0\] = 0, allowed: a whole number above 0"),
    "a size with a fraction": (
        {"grids.seed.seq_len": [512.5]}, r"grids.seed.seq_len\[0\] = 512.5, allowed: a whole number"),
    "no truth value": ({"protocol.keep_memory": 1}, "protocol.keep_memory = 1, allowed: true or false"),
    "a size in words": ({"grids.seed.seq_len": "512"}, r"grids.seed.seq_len\[0\] = '512', allowed: a whole number"),
    "a truth value for a size": (
        {"grids.seed.batch": [True]}, r"grids.seed.batch\[0\] = True, allowed: a whole number"),
    "keys that no row of the grid takes": (
        {"grids.ring.kv_seq_len": [2048], "families.ring.implementations": {"ring_zigzag": True}},
        "grids.ring.kv_seq_len = 2048: no row of this grid takes two lengths, allowed: as seq_len"),
    "keys that a module does not have": (
        {"grids.seed.kv_seq_len": [512, 1024]},
        "grids.seed.kv_seq_len = 1024: a module has one length, allowed: as seq_len"),
    "no keys": ({"grids.seed.kv_seq_len": [0]}, r"grids.seed.kv_seq_len\[0\] = 0, allowed: a whole number above 0"),
    "no sizes": ({"grids.seed.seq_len": []}, r"grids.seed.seq_len = \[\], allowed: at least one entry"),
    "a grid that is nothing": ({"grids.seed": None}, "grids.seed = None, allowed: a mapping"),
    "a grid without seq_len": ({"grids.seed": {"n_heads": [8]}}, "grids.seed.seq_len is missing"),
    "no grids": ({"families.core.grids": {}}, r"families.core.grids = \{\}, allowed: at least one entry"),
    "heads that do not divide": (
        {"grids.scaling.n_kv_heads": [3]}, "grids.scaling.n_kv_heads = 3: n_heads 8 is not a multiple of it"),
    "unknown dtype": (
        {"grids.seed.dtype": "float64"}, r"grids.seed.dtype\[0\] = 'float64', allowed: float32, bfloat16 or float16"),
    "unknown mask": ({"grids.seed.mask": ["causl"]}, r"grids.seed.mask\[0\] = 'causl', allowed: full or causal"),
    "unknown pass": (
        {"grids.seed.pass": ["backward"]}, r"grids.seed.pass\[0\] = 'backward', allowed: forward or forward_backward"),
    "unknown device": ({"device": "tpu"}, "device = 'tpu', allowed: auto, cpu or cuda"),
    "a machine that is no folder": (
        {"machine": "../local"}, r"machine = '\.\./local', allowed: letters, digits, _ and -"),
    "a size given twice": (
        {"grids.seed.seq_len": [512, 512]}, r"grids.seed.seq_len = \[512, 512\]: 512 is given twice, allowed: once"),
    "rows in a list": (
        {"families.core.implementations": ["sdpa", "standard"]},
        r"families.core.implementations = .*, allowed: a mapping, `NAME: true` each"),
    "a row that is switched off": (
        {"families.core.implementations.standard": False},
        r"families.core.implementations.standard = False, allowed: true; or no such line"),
    "a row's name that can be no file": (
        {"families.core.implementations.a b": True},
        r"families.core.implementations.a b = 'a b', allowed: letters, digits, _ and -"),
    "exclusions in a list": (
        {"grids.seed.exclude": [{"seq_len": 512}]}, r"grids.seed.exclude = .*, allowed: a mapping"),
    "a reason that dvc would print too wide": (
        {"grids.seed.exclude": {"w" * 25: {"n_heads": 8}}}, f"grids.seed.exclude.{'w' * 25}: .*24 characters at most"),
    "a reason with a dot, which divides keys": (
        {"grids.seed.exclude": {"e.g. so": {"n_heads": 8}}}, "grids.seed.exclude.e.g. so: a reason, allowed: words .*"),
    "a grid with the name of a table": (
        {"grids.overhead": {"seq_len": [512]}}, "grids.overhead: a table has that name, allowed: another"),
    "groups that no ring divides into": (
        {"launch.ulysses_size": 3}, r"launch.ulysses_size = 3: divides no world_size \(1, 2\), allowed: 0, 1, 2"),
    "fewer samples than the least": (
        {"protocol.samples": 4}, "protocol.min_samples must be at most protocol.samples"),
    "a grid that leaves everything out": (
        {"grids.seed.exclude": {"why not": {}}}, "grids.seed.exclude: leaves no cell out of 2"),
    "an exclusion of a row that is not there": (
        {"grids.seed.exclude": {"why not": {"rows": {"sdpaa": True}}}},
        r"grids.seed.exclude.why not: covers no cell of the grid"),
    "an exclusion without a reason": (
        {"grids.seed.exclude": {" ": {"n_heads": 8}}}, "grids.seed.exclude. : a reason, allowed: words .*"),
}  # fmt: skip


@pytest.mark.parametrize(
    ("changes", "fault"),
    list(ONE_FAULT.values()),
    ids=ONE_FAULT,
)
def test_a_fault_is_one_line_with_key_value_and_what_is_allowed(faults, changes, fault):
    found = faults(changes)
    assert len(found) == 1, found
    assert re.fullmatch(fault, found[0]), found[0]


def test_several_faults_are_told_at_once(faults):
    found = faults({"grids.seed.n_heads": [-1, 0], "device": "tpu", "colour": 1})
    assert len(found) == 4
    later = faults({"families.core.grids.sead": True, "families.ring.grids.rink": True, "reference.core": "nobody"})
    assert len(later) == 3


def test_a_dtype_that_no_row_of_the_grid_has_is_a_fault(faults, monkeypatch):
    known = {name: dataclasses.replace(row, dtypes=("float32",)) for name, row in registry.find().items()}
    monkeypatch.setattr(registry, "find", lambda: known)
    assert [fault for fault in faults({}) if "float16" in fault and "bfloat16" not in fault] == [
        "grids.dtypes.dtype = float16: no row of this grid has it, allowed: float32"
    ]


def test_a_broken_row_is_no_fault_of_params_yaml(monkeypatch):
    known = registry.find()
    known["standard"] = registry.Implementation("standard", known["standard"].path, fault="broken file standard.py")
    monkeypatch.setattr(registry, "find", lambda: known)
    assert "standard" in grid.load(PARAMS).implementations()


TEXTS = {
    "empty file": ("", "must be a mapping of keys to values"),
    "a list": ("- 1\n", "must be a mapping of keys to values"),
    "not YAML": ("a: [1\nb: }", "not valid YAML: .*"),
    "a tab": ("a:\n\t- 1", "not valid YAML: .*"),
    "a Python object": ("a: !!python/object/apply:os.getcwd []", "not valid YAML: .*"),
    "a key twice": ("grids: {}\ngrids: {}\n", "not valid YAML: line 2: the key grids is given twice"),
    "a key twice, deep": ("grids:\n  seed: {seq_len: 1, seq_len: 2}\n", ".* line 2: the key seq_len is given twice"),
}


@pytest.mark.parametrize(("text", "fault"), list(TEXTS.values()), ids=TEXTS)
def test_a_file_that_is_no_params_is_one_fault(tmp_path, text, fault):
    found = faults_of(tmp_path, text)
    assert len(found) == 1
    assert re.fullmatch(fault, found[0]), found[0]


def test_a_key_that_is_a_list_is_a_fault(tmp_path):
    assert len(faults_of(tmp_path, "? [a, b]\n: 1\n")) == 1


def test_a_file_of_bytes_is_a_fault(tmp_path):
    path = tmp_path / "params.yaml"
    path.write_bytes(b"machine: \xff\xfe\n")
    with pytest.raises(grid.InvalidParams, match=r"params\.yaml: "):
        grid.load(path)


def test_a_missing_file_is_one_fault_that_says_what_to_do(tmp_path):
    path = tmp_path / "params.yaml"
    with pytest.raises(grid.InvalidParams) as caught:
        grid.load(path)
    assert caught.value.faults == [f"{path}: no such file; run this in the root of the repository"]


def test_the_seed_grid_is_the_two_shapes_of_the_seed_table_in_all_three_families():
    params = grid.load(PARAMS)
    lines = (Path(__file__).parent / "seed-table.txt").read_text(encoding="utf-8").splitlines()
    cells = [[cell.strip() for cell in line.split("|")[1:-1]] for line in lines if line.startswith("|")]
    shapes = {(int(row[1]), int(row[2]), int(row[3])) for row in cells[1:]}
    wanted = {Workload(b, s, h, h, 64, "float32", "full", "forward") for b, s, h in shapes}
    assert len(wanted) == 2
    for family in grid.FAMILIES:
        assert "seed" in params.family(family).grids
        name = next(iter(params.family(family).implementations))
        found = grid.cells(params, family, name, "seed")
        assert {cell.workload for cell in found} == wanted
        assert [cell.world_size for cell in found] == [1, 1]
    assert {row[0] for row in cells[1:]} <= set(params.implementations())


def test_keys_are_as_many_as_queries_where_a_grid_does_not_say():
    params = grid.load(PARAMS)
    assert [w.kv_seq_len for w in params.grids["decode"].workloads()] == [4096, 32768]
    assert {w.seq_len for w in params.grids["decode"].workloads()} == {1}
    assert all(w.kv_seq_len == w.seq_len for w in params.grids["scaling"].workloads())


def test_a_grid_is_the_product_of_its_axes():
    params = grid.load(PARAMS)
    assert len(params.grids["scaling"].workloads()) == 8
    assert len(grid.cells(params, "ring", "ring_v2_collective", "decode")) == 6
    assert len({cell.key for cell in grid.cells(params, "ring", "ring_v2_collective", "decode")}) == 6
    assert len(grid.cells(params, "core", "sdpa", "ring")) == 2


def test_an_exclusion_covers_a_workload_only_where_every_field_agrees():
    dtypes = grid.load(PARAMS).grids["dtypes"]
    left_out = [w for w in dtypes.workloads() if dtypes.why_excluded(w, "cpu", "sdpa")]
    assert [(w.dtype, w.seq_len) for w in left_out] == [("float16", 2048)]
    assert [w for w in dtypes.workloads() if dtypes.why_excluded(w, "cuda", "sdpa")] == []


def test_an_exclusion_may_be_of_some_rows_only():
    seed = grid.load(PARAMS).grids["seed"]
    (workload, _) = seed.workloads()
    assert "one rank sends nothing" in seed.why_excluded(workload, "cpu", "ring_zigzag")
    assert seed.why_excluded(workload, "cpu", "ring_v2_collective") is None


@pytest.mark.parametrize("name", ["local", "H100-x1", "a_b", "0"])
def test_a_name_that_can_be_a_folder_is_valid(name):
    assert grid.valid_name(name)


@pytest.mark.parametrize("name", ["", "-a", "_a", "a/b", "..", "a b", "ä", pytest.param("a\n")])
def test_a_name_that_can_be_no_folder_is_not_valid(name):
    assert not grid.valid_name(name)
