"""The rooms of the project: who may import whom, and what an import may cost."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("attn", "bench", "stages")
FILES = sorted(path for package in PACKAGES for path in (ROOT / package).rglob("*.py"))

# What each room may import of ours, besides itself; the first prefix that fits a module counts.
MAY_IMPORT = {
    "attn.impl": ("attn.impl", "attn.kernels", "attn.ring", "attn.contract"),
    "attn.kernels": ("attn.kernels", "attn.contract"),
    "attn.ring.merge": ("attn.kernels", "attn.contract"),  # on CUDA it is a kernel; kernels know nothing of rings
    "attn.ring": ("attn.ring", "attn.contract"),
    "attn.reference": ("attn.contract",),
    "attn.registry": ("attn.contract",),
    "attn": (),
    "bench": ("bench", "attn"),
    "stages": ("bench", "attn"),
}


# Files that are Triton: whoever needs them imports them where it needs them.
FLASH = "attn.kernels.flash"
IN_TRITON = [
    f"{FLASH}.{name}" for name in ("host", "tiles", "forward", "delta", "dkdv", "dq", "decode", "reduce", "merge")
]


def module_name(path):
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(tree):
    """(line, full name) of every import, inside functions too; `from a import b` counts as a.b."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: a relative import hides from the closure"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def within(name, room):
    return name == room or name.startswith(f"{room}.")


def breaches(module, source):
    """Imports of ours that the module's room does not allow."""
    allowed = next(rooms for room, rooms in MAY_IMPORT.items() if within(module, room))
    return [
        f"{module}:{line} imports {name}"
        for line, name in imports(ast.parse(source))
        if name.split(".")[0] in PACKAGES and not any(within(name, room) for room in allowed)
    ]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_run_one_way(path):
    assert breaches(module_name(path), path.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("attn.contract", "from attn import registry"),
        ("attn.impl.new", "from bench import oracle"),
        ("attn.impl.new", "from attn import reference"),
        ("attn.kernels.new", "import attn.impl.sdpa"),
        ("attn.kernels.new", "from attn.ring import merge"),
        ("attn.ring.new", "from attn.kernels import block"),
        ("bench.new", "def f():\n    from stages import plan"),
        ("stages.new", "import stages.plan"),
    ],
)
def test_the_walk_sees_a_breach(module, line):
    assert len(breaches(module, line)) == 1


def test_every_room_of_the_rules_has_files():
    modules = [module_name(path) for path in FILES]
    assert [room for room in MAY_IMPORT if not any(within(module, room) for module in modules)] == []


def test_importing_attn_and_bench_loads_neither_triton_nor_mpi4py(tmp_path):
    """Stand-ins are put first on the path, so that an import succeeds (and shows) where they are not installed."""
    for name in ("triton", "mpi4py"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").write_text("__version__ = '0'\n", encoding="utf-8")
    modules = [module_name(path) for path in FILES if module_name(path) not in IN_TRITON]
    modules = [module for module in modules if not within(module, "stages")]
    program = (
        "import importlib, sys\n"
        f"for name in {modules!r}:\n"
        "    importlib.import_module(name)\n"
        "    found = [x for x in ('triton', 'mpi4py') if x in sys.modules]\n"
        "    assert not found, f'{name} loads {found}'\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr


def test_who_only_lists_starts_or_shows_loads_no_torch():
    modules = ["bench.__main__", "bench.runner", "bench.checking", "bench.report"]
    modules += [f"stages.{name}" for name in ("bench", "check", "ceiling", "plan", "render")]
    program = f"import sys, attn.registry, {', '.join(modules)}; attn.registry.find(); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], cwd=ROOT, timeout=60, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_file_unpickles_anything(path):
    tree = ast.parse(path.read_text(encoding="utf-8"))
    pickles = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "torch.load", "numpy.load"}
    named = [name for _, name in imports(tree) if name in pickles or name.split(".")[0] in pickles]
    loaders = {("torch", "load"), ("np", "load"), ("numpy", "load")}
    called = [
        f"{node.value.id}.{node.attr}"
        for node in ast.walk(tree)
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)
        if (node.value.id, node.attr) in loaders
    ]
    assert named + called == []


@pytest.mark.parametrize("path", sorted((ROOT / "stages").glob("*.py")), ids=lambda path: path.stem)
def test_a_stage_script_has_at_most_60_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 60


def test_every_stage_of_the_graph_is_a_script_of_stages():
    graphs = [(ROOT / name).read_text(encoding="utf-8") for name in ("dvc.yaml", "build/dvc.yaml")]
    commands = [line for graph in graphs for line in graph.splitlines() if " cmd: " in line]
    scripts = {line.split("python -m stages.")[1].split()[0] for line in commands}
    assert scripts == {path.stem for path in (ROOT / "stages").glob("*.py")} - {"__init__"}
