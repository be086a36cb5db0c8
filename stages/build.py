"""Stage `build@kernel` of build/dvc.yaml: compile every configuration of a kernel for GPUs that need not be here."""

import sys

from bench import build, guard


def main(kernel: str) -> None:
    """One that does not compile is a line of the table, not a failure of the stage."""
    guard.die_with_dvc()
    found = build.build(kernel)
    failed = sum(entry["status"] != "compiled" for entry in found)
    print(f"{kernel}: {len(found)} tried now, {failed} of them without success")


if __name__ == "__main__":
    main(*sys.argv[1:])
