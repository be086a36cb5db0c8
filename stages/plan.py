"""Stage `plan`: which code every result depends on, as hashes that other stages name in dvc.yaml."""

from pathlib import Path

from attn import registry
from bench import closure, grid, guard, stage_log
from bench.files import read_json, write_json

STAGES = {
    "oracle": ["stages/oracle.py", "bench/oracle.py"],
    "capture": ["stages/capture.py"],
    "cases": ["stages/cases.py", "bench/cases.py"],
    "ceiling": ["stages/ceiling.py", "bench/roofline.py"],
    "check": ["stages/check.py", "bench/check.py", "bench/ring_worker.py"],
    "bench": ["stages/bench.py", "bench/measure.py", "bench/ring_worker.py"],
    "render": ["stages/render.py"],
}


def main() -> None:
    """An implementation's closure includes that of the row it is paired with."""
    stage_log.note()
    guard.die_with_dvc()
    params = grid.load()
    packages = read_json(Path("results") / params.machine / "packages.json")
    closures = {}
    for name, implementation in registry.find().items():
        reference = params.reference.module if implementation.kind == "module" else params.reference.core
        closures[name] = closure.fingerprint(
            implementation.path, registry.IMPL_DIR / f"{reference}.py", packages=packages
        )
    harness = {name: closure.fingerprint(*map(Path, files)) for name, files in STAGES.items()}
    write_json(Path("results/plan.json"), {"closure": closures, "harness": harness})


if __name__ == "__main__":
    main()
