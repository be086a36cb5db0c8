"""attn.registry: what a file says of itself, read without importing it."""

import dataclasses

import pytest

from attn import registry
from attn.contract import Unsupported, Workload

GOOD = '''"""A row of a test. More words."""
KIND = "core"
DEVICES, DTYPES = ("cpu",), ("float32", "bfloat16")
MASKS = ("full",)
BACKWARD = False
'''
ATTENTION = "def attention(q, k, v, *, softmax_scale, mask):\n    return q\n"
ROW = Workload(1, 8, 2, 2, 16, "float32", "full", "forward")


@pytest.fixture
def read(tmp_path):
    """Write a file and read its declarations."""

    def write_and_read(text, name="row"):
        path = tmp_path / f"{name}.py"
        path.write_text(text, encoding="utf-8")
        return registry.read(path)

    return write_and_read


def test_constants_are_read_from_a_file_that_would_raise_on_import(read):
    row = read(GOOD + "raise RuntimeError('imported')\n")
    assert row.fault is None
    assert (row.name, row.kind, row.devices, row.masks) == ("row", "core", ("cpu",), ("full",))
    assert (row.dtypes, row.backward) == (("float32", "bfloat16"), False)
    assert row.summary == "A row of a test. More words."
    with pytest.raises(RuntimeError, match="imported"):
        registry.load(row)


def test_optional_constants_have_their_defaults_and_are_read_where_given(read):
    plain, given = read(GOOD), read(GOOD + 'CROSS_LENGTH = True\nLAYOUT = "zigzag"\n')
    assert (plain.cross_length, plain.layout, plain.precision) == (False, "contiguous", "dtype")
    assert (given.cross_length, given.layout) == (True, "zigzag")
    assert read(GOOD.replace(', "bfloat16"', ",") + 'PRECISION = "tf32"\n').precision == "tf32"


@pytest.mark.parametrize(
    ("text", "fault"),
    [
        (GOOD + "def broken(:\n", "line 6: "),
        ("", "KIND, DEVICES, DTYPES, MASKS, BACKWARD missing"),
        (GOOD.replace("BACKWARD = False\n", ""), "BACKWARD missing"),
        (GOOD.replace('"core"', '"co" + str()'), "KIND is not a literal"),
        (GOOD.replace('"core"', '"cores"'), "KIND = 'cores', allowed: one of core, module, ring"),
        (GOOD.replace('"bfloat16"', '"float64"'), "allowed: a tuple of float32, bfloat16, float16"),
        (GOOD.replace('("full",)', '"full"'), "MASKS = 'full', allowed: a tuple of full, causal"),
        (GOOD.replace('("full",)', "()"), "MASKS = (), allowed: a tuple of full, causal"),
        (GOOD.replace("False", "0"), "BACKWARD = 0, allowed: True, False"),
        (GOOD + 'LAYOUT = "diagonal"\n', "LAYOUT = 'diagonal', allowed: one of contiguous, zigzag"),
        (GOOD + 'PRECISION = "tf64"\n', "PRECISION = 'tf64', allowed: one of dtype, tf32"),
        (
            GOOD + 'PRECISION = "tf32"\n',
            "PRECISION = 'tf32' with DTYPES = ('float32', 'bfloat16'), allowed: ('float32',)",
        ),
        (GOOD + 'CROSS_LENGTH = "yes"\n', "CROSS_LENGTH = 'yes', allowed: True, False"),
        (GOOD + "x = '\0'\n", "broken file row.py: "),
    ],
)
def test_a_broken_file_is_listed_with_a_fault_of_one_line(read, text, fault):
    row = read(text)
    assert row.fault is not None
    assert row.fault.startswith("broken file row.py: ")
    assert fault in row.fault
    assert "\n" not in row.fault
    assert row.why_not(ROW, "cpu") == row.fault
    with pytest.raises(Unsupported, match="broken file row"):
        registry.load(row)


def test_a_file_that_is_not_utf8_is_listed_with_a_fault(tmp_path):
    (tmp_path / "row.py").write_bytes(b'"""\xff\xfe"""')
    assert registry.find(tmp_path)["row"].fault.startswith("broken file row.py: ")


def test_find_lists_all_files_sorted_but_those_with_an_underscore(tmp_path):
    for name, text in {"b": GOOD, "a": "(", "_c": GOOD, "__init__": ""}.items():
        (tmp_path / f"{name}.py").write_text(text, encoding="utf-8")
    found = registry.find(tmp_path)
    assert list(found) == ["a", "b"]
    assert found["a"].fault is not None
    assert found["b"].fault is None


@pytest.mark.parametrize("line", ["import no_such_package.deep", "from no_such_package.deep import thing"])
def test_a_missing_third_party_package_is_unsupported_by_its_name(read, line):
    with pytest.raises(Unsupported, match=r"^needs the package no_such_package, which is not installed$"):
        registry.load(read(f"{GOOD}{line}\n"))


@pytest.mark.parametrize("line", ["import attn.no_such_module", "from bench.no_such_module import x"])
def test_a_missing_module_of_ours_is_a_bug(read, line):
    with pytest.raises(ModuleNotFoundError, match="no_such_module"):
        registry.load(read(f"{GOOD}{line}\n"))


def test_a_missing_name_in_an_installed_package_is_a_bug(read):
    with pytest.raises(ImportError, match="no_such_name"):
        registry.load(read(f"{GOOD}from json import no_such_name\n"))


def test_a_file_outside_is_loaded_and_its_entry_point_found(read):
    row = read(GOOD + ATTENTION, "outside")
    assert registry.entry_point(row, registry.load(row))("q", 0, 0, softmax_scale=1, mask=None) == "q"


def test_a_file_without_its_entry_point_is_unsupported(read):
    core, module = read(GOOD, "no_attention"), read(GOOD.replace('"core"', '"module"') + ATTENTION, "no_class")
    with pytest.raises(Unsupported, match="KIND core needs attention"):
        registry.entry_point(core, registry.load(core))
    with pytest.raises(Unsupported, match="KIND module needs Attention"):
        registry.entry_point(module, registry.load(module))


@pytest.mark.parametrize("name", list(registry.find()))
def test_every_row_of_ours_parses_loads_and_says_what_it_is(name):
    row = registry.find()[name]
    assert row.fault is None
    assert row.summary.endswith(".")
    assert callable(registry.entry_point(row, registry.load(row)))


def test_every_row_of_the_seed_table_is_there():
    seed = {"standard", "improved", "multihead_standard", "multihead_improved", "ring_v2_collective"}
    assert seed <= set(registry.find())


@pytest.mark.parametrize(
    ("changes", "device", "sentence"),
    [
        ({}, "cpu", None),
        ({}, "cuda", "device cuda is not among cpu"),
        ({"dtype": "float16"}, "cpu", "dtype float16 is not among float32, bfloat16"),
        ({"mask": "causal"}, "cpu", "mask causal is not among full"),
        ({"pass_": "forward_backward"}, "cpu", "forward only, no gradients"),
        ({"kv_seq_len": 9}, "cpu", "q and k of different length (8 and 9)"),
    ],
)
def test_why_not_says_in_one_sentence_what_was_not_declared(read, changes, device, sentence):
    assert read(GOOD).why_not(dataclasses.replace(ROW, **changes), device) == sentence
