"""bench.closure: words re-run nothing, code re-runs what depends on it and nothing else."""

import shutil
from pathlib import Path

import pytest

from bench import closure

ROW, NEIGHBOUR = "attn/impl/improved.py", "attn/impl/standard.py"


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """A copy of the packages, its fingerprints, and how to change a file of it."""
    root = tmp_path.resolve()
    for package in closure.PACKAGES:
        shutil.copytree(closure.ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__"))
    monkeypatch.setattr(closure, "ROOT", root)
    yield Tree(root)
    forget()


def forget():
    closure._imports.cache_clear()
    closure._digest.cache_clear()


class Tree:
    def __init__(self, root: Path):
        self.root = root

    def fingerprint(self, *files):
        forget()
        return closure.fingerprint(*(self.root / file for file in files))

    def append(self, file, text):
        path = self.root / file
        path.write_text(path.read_text(encoding="utf-8") + text, encoding="utf-8")

    def replace(self, file, old, new):
        path = self.root / file
        text = path.read_text(encoding="utf-8")
        assert text.count(old) >= 1
        path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_copy_elsewhere_has_the_same_fingerprint(tree, monkeypatch):
    copied = tree.fingerprint(ROW)
    monkeypatch.undo()
    forget()
    assert closure.fingerprint(closure.ROOT / ROW) == copied


def test_comments_docstrings_and_blank_lines_change_nothing(tree):
    before = tree.fingerprint(ROW)
    tree.append(ROW, "\n\n# a comment\n")
    tree.replace(ROW, '"""Shapes as in `attn.contract`; returns out, as q."""', '"""Other words."""  # and these')
    tree.replace("attn/contract.py", '"""Which keys a query may see.', '"""Words.')
    assert tree.fingerprint(ROW) == before


def test_a_docstring_taken_away_changes_nothing(tree):
    before = tree.fingerprint(ROW)
    tree.replace(ROW, '    """Shapes as in `attn.contract`; returns out, as q."""\n', "")
    assert tree.fingerprint(ROW) == before


@pytest.mark.parametrize(
    ("old", "new"), [("[0]", "[1]"), ("BACKWARD = True", "BACKWARD = False"), ("forward only", "no")]
)
def test_code_changes_it(tree, old, new):
    before = tree.fingerprint(ROW)
    tree.replace(ROW, old, new)
    assert tree.fingerprint(ROW) != before


@pytest.mark.parametrize(
    "file", ["attn/impl/sdpa.py", "attn/kernels/query_blocks.py", "attn/contract.py", "attn/impl/__init__.py"]
)
def test_a_file_that_it_imports_however_deep_changes_it(tree, file):
    before = tree.fingerprint("attn/impl/multihead_improved.py")
    tree.append(file, "\nextra = 1\n")
    assert tree.fingerprint("attn/impl/multihead_improved.py") != before


def test_an_import_inside_a_function_counts(tree):
    tree.append(ROW, "\ndef late():\n    from attn import registry\n")
    before = tree.fingerprint(ROW)
    tree.append("attn/registry.py", "\nextra = 1\n")
    assert tree.fingerprint(ROW) != before


def test_a_relative_import_counts(tree):
    tree.append(ROW, "\nfrom . import standard\n")
    before = tree.fingerprint(ROW)
    tree.append(NEIGHBOUR, "\nextra = 1\n")
    assert tree.fingerprint(ROW) != before


@pytest.mark.parametrize("file", [NEIGHBOUR, "attn/registry.py", "bench/tables.py", "stages/plan.py"])
def test_a_file_that_it_does_not_import_changes_nothing(tree, file):
    before = tree.fingerprint(ROW)
    tree.append(file, "\nextra = 1\n")
    assert tree.fingerprint(ROW) == before


def test_words_of_the_tables_re_run_no_measurement_and_no_check(tree):
    measured = ("stages/bench.py", "bench/measure.py", "bench/ring_worker.py")
    checked = ("stages/check.py", "bench/check.py", "bench/ring_worker.py")
    before = tree.fingerprint(*measured), tree.fingerprint(*checked)
    for file in ("bench/tables.py", "bench/report.py", "bench/docs.py", "bench/__main__.py"):
        tree.append(file, "\nextra = 1\n")
    assert (tree.fingerprint(*measured), tree.fingerprint(*checked)) == before


def test_files_of_one_content_under_two_names_differ(tree):
    (tree.root / "one.py").write_text("x = 1\n", encoding="utf-8")
    (tree.root / "two.py").write_text("x = 1\n", encoding="utf-8")
    assert tree.fingerprint("one.py") != tree.fingerprint("two.py")


def test_imports_that_go_in_a_circle_end(tree):
    tree.append("attn/contract.py", "\nimport attn.impl.improved\n")
    assert len(tree.fingerprint(ROW)) == 16


def test_a_file_that_is_not_python_is_hashed_as_text(tree):
    found = set()
    for content in (b"one: [  # words", b"one: [  # other words", b"\xff\xfe ["):
        (tree.root / "kernel.cu").write_bytes(content)
        found.add(tree.fingerprint("kernel.cu"))
    assert len(found) == 3


def test_a_broken_python_file_has_a_fingerprint_that_its_text_changes(tree):
    tree.append(ROW, "\ndef broken(:  # one\n")
    before = tree.fingerprint(ROW)
    tree.replace(ROW, "# one", "# two")
    assert tree.fingerprint(ROW) != before
