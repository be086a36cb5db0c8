"""Stage `cases@KIND`: inputs, float64 results and error budgets of the named cases, into data/oracle/cases/KIND/."""

import sys

from bench import grid, guard, mend, truths


def main(kind: str) -> None:
    """Solved once; every check of that kind reads them."""
    guard.die_with_dvc()
    mend.keep()
    truths.write_cases(grid.load(), kind)


if __name__ == "__main__":
    main(*sys.argv[1:])
