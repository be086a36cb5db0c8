"""Stage `cases@KIND`: inputs, float64 results and error budgets of the named cases, into data/oracle/cases/KIND/."""

import sys

from bench import grid, guard, kept, mend, stage_log, truths


def main(kind: str) -> int:
    """Solved once; every check of that kind reads them. Exit 1, in a sentence, where real inputs are damaged."""
    stage_log.note()
    guard.die_with_dvc()
    mend.keep()
    try:
        truths.write_cases(grid.load(), kind)
    except kept.Damaged as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
