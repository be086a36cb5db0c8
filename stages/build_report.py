"""Stage `report` of build/dvc.yaml: the figures of all configurations, and which can be chosen."""

from bench import build, guard
from bench.files import write_json


def main() -> None:
    """What cannot be chosen is said here, and stops only `python -m bench build`."""
    guard.die_with_dvc()
    found = build.report()
    write_json(build.REPORT, found)
    ours = found["configurations"]
    print(f"{len(ours)} configurations, {sum(entry['verdict'] == 'passed' for entry in ours)} can be chosen")


if __name__ == "__main__":
    main()
