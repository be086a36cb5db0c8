"""Fills in what README.md and docs/ show of the program's own output, so that it is never typed.

A part stands between `<!-- generated: NAME -->` and `<!-- end -->`; NAME is a table of a published machine
(`results/NAME/FILE.txt`), what a self-test there found (`results/NAME/selftest.jsonl`), the model of rings against
rings (`results/NAME/ring-model.json#model`, and `#crossover`), the build (`results/build.json#comparison`, `#chosen`,
`#left-out`), or `help`.
"""

from __future__ import annotations

import re
from pathlib import Path

from bench.files import write_text

_PART = re.compile(r"(<!-- generated: (?P<what>\S+) -->\n).*?(<!-- end -->)", re.DOTALL)


def fill(*, write: bool, root: Path = Path()) -> list[Path]:
    """The files whose generated parts were out of date; with `write`, they no longer are.

    Raises:
        FileNotFoundError: a part names a file that is not there; the message says which.
    """
    stale = []
    for path in [root / "README.md", root / "CONTRIBUTING.md", *sorted((root / "docs").glob("*.md"))]:
        text = path.read_text(encoding="utf-8") if path.exists() else ""
        filled = _PART.sub(lambda part: f"{part[1]}```text\n{_made(root, part['what'])}```\n{part[3]}", text)
        if filled != text:
            stale.append(path)
            if write:
                write_text(path, filled)
    return stale


def _made(root: Path, what: str) -> str:
    if what == "help":
        from bench.__main__ import parser

        return parser().format_help()
    name, _, part = what.partition("#")
    path = root / name
    if not path.exists():
        raise FileNotFoundError(f"the docs show {name}, which is not there")
    if path.suffix == ".jsonl":
        from bench import selftest_tables

        return selftest_tables.text(path)
    if name == "results/build.json":
        from bench import build_tables

        return build_tables.text(path, part)
    if part:
        from bench import model_tables

        return model_tables.text(path, part)
    return path.read_text(encoding="utf-8")
