"""A difference of two revisions -> what people read: a line a cell, then what came, went, failed, or grew."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from tabulate import tabulate

from bench.diff import Change, Difference, Growth, StatusChange, Told
from bench.recorded import Cell

COLUMNS = 100
_SHOWN = 5  # of many of one kind; --json has all
_HEADERS = ["implementation", "grid", "shape", "base\nms", "head\nms", "of", "change\n%, [95 %]", "verdict"]
_ALIGN = ("left", "left", "left", "right", "right", "left", "right", "left")
_LETTERS = {"batch": "b", "seq_len": "s", "n_heads": "h", "n_kv_heads": "kv", "head_dim": "d"}
_AXES = (*_LETTERS, "dtype", "mask", "pass")
_PASSES = {"forward": "forward", "forward_backward": "fwd+bwd"}


def text(found: Difference) -> str:
    """All of it, at most 100 columns wide for names and shapes as the default ones."""
    lines = [*_head("base", found.base), *_head("head", found.head), f"machine: {found.machine}", ""]
    if found.changes:
        lines += [_table(found.changes), "", *_notes(found)]
    if found.not_measured_anew:
        lines += _wrapped(f"{len(found.not_measured_anew)} cells were not measured anew: the same record at both.")
    if not found.changes and not found.not_measured_anew:
        lines += _wrapped("No cell has figures at both: nothing could be compared.")
    lines += _came_and_went(found)
    single = [one for one in found.statuses if one.where.startswith("case ")]
    whole = [one for one in found.statuses if one not in single]
    lines += _section("Statuses that changed:", _statuses(whole))
    lines += _section("Statuses of checked cases that changed:", _shortened(_statuses(single)))
    lines += _section(
        "Errors, as shares of their budgets, that grew by more than half:", _shortened(_errors(found.errors))
    )
    return "\n".join(lines) + "\n"


def _head(which: str, told: Told) -> list[str]:
    commit = f" ({told.commit[:7]})" if told.commit else ""
    return _wrapped(f"{which}: {told.revision}{commit}, last measured {told.measured_at or 'never'}")


def _table(changes: list[Change]) -> str:
    axes = {grid: _varying([one for one in changes if one.cell.grid == grid]) for grid in _grids(changes)}
    rows = [
        [
            one.cell.implementation,
            one.cell.grid,
            _shape(one, axes[one.cell.grid]),
            _ms(one.base_ms),
            _ms(one.head_ms),
            one.by,
            f"{_percent(one.change_percent)} [{_percent(one.low_percent)}, {_percent(one.high_percent)}]",
            one.verdict,
        ]
        for one in changes
    ]
    return tabulate(rows, _HEADERS, tablefmt="simple", colalign=_ALIGN, disable_numparse=True)


def _grids(changes: list[Change]) -> Iterable[str]:
    return dict.fromkeys(one.cell.grid for one in changes)


def _varying(changes: list[Change]) -> list[str]:
    """Axes that take several values in a grid; n_kv_heads only where it is not simply n_heads."""
    grouped = any(one.workload["n_kv_heads"] != one.workload["n_heads"] for one in changes)
    axes = [axis for axis in _AXES if len({one.workload[axis] for one in changes}) > 1]
    return [axis for axis in axes if axis != "n_kv_heads" or grouped]


def _shape(one: Change, axes: list[str]) -> str:
    values: dict[str, Any] = one.workload | {"pass": _PASSES[one.workload["pass"]]}
    words = [f"{_LETTERS.get(axis, '')}{values[axis]}" for axis in axes]
    if one.cell.family == "ring":
        words.append(f"n{one.cell.world_size}{'*' if one.oversubscribed else ''}")
    return " ".join(words)


def _notes(found: Difference) -> list[str]:
    notes = [
        "shape: what varies in its grid; s seq_len, h n_heads, n ranks (*: more than cores), fwd+bwd forward_backward.",
        "change: of head against base, its 95 % interval bootstrapped over the processes of both. slower, faster: "
        "wholly beyond 1 %; same: around 0 and within 3 %; machine: it moved though the row's code is the same.",
        "of ratio: the time relative to its yardstick, taken in turns with it in the same process, so that what "
        "slows both alike does not count (the ms beside it are plain times).",
    ]
    reasons: dict[str, list[Cell]] = {}
    for one in found.changes:
        if one.why_time:
            reasons.setdefault(one.why_time, []).append(one.cell)
    notes += [f"of time, {reason}: {'; '.join(_counted(cells))}." for reason, cells in reasons.items()]
    notes += [f"{side}: {line}" for side, told in (("base", found.base), ("head", found.head)) for line in told.noise]
    notes.append(
        "Two recorded runs are two moments of a machine, and a row may slow otherwise than its yardstick: for a "
        "decision use `python -m bench duel`, which takes turns between two revisions."
    )
    return [line for note in notes for line in _wrapped(note)]


def _came_and_went(found: Difference) -> list[str]:
    lines = _section("Cells that appeared:", _counted(found.appeared))
    lines += _section("Cells that went:", _counted(found.went))
    if found.appeared and found.went:
        lines += _wrapped("A row under another name is another row: nothing of it was compared.")
    return lines


def _counted(cells: list[Cell]) -> list[str]:
    """A line a row: how many cells on which grids."""
    rows: dict[str, dict[str, int]] = {}
    for cell in cells:
        grids = rows.setdefault(cell.implementation, {})
        grids[cell.grid] = grids.get(cell.grid, 0) + 1
    return [f"{row}: {', '.join(f'{grid} ({n})' for grid, n in grids.items())}" for row, grids in rows.items()]


def _statuses(changed: list[StatusChange]) -> list[str]:
    """What changed alike is one line, with the first place; reasons are never cut."""
    alike: dict[tuple[str, ...], list[StatusChange]] = {}
    for one in changed:
        was, now = _with_reason(one.was, one.was_reason), _with_reason(one.now, one.now_reason)
        alike.setdefault((one.implementation, was, now), []).append(one)
    return [
        f"{name} {ones[0].where}{f' and {len(ones) - 1} more' if len(ones) > 1 else ''}: was {was}; is {now}"
        for (name, was, now), ones in alike.items()
    ]


def _with_reason(status: str, reason: str | None) -> str:
    return f"{status} ({reason})" if reason else status


def _errors(grown: list[Growth]) -> list[str]:
    return [f"{one.implementation} {one.where}: {one.tensor} {one.base:.2g} -> {one.head:.2g}" for one in grown]


def _section(title: str, items: list[str]) -> list[str]:
    if not items:
        return []
    return ["", title, *(line for item in items for line in _wrapped(f"- {item}"))]


def _shortened(items: list[str]) -> list[str]:
    more = [f"and {len(items) - _SHOWN} more, see --json"] if len(items) > _SHOWN else []
    return items[:_SHOWN] + more


def _ms(value: float) -> str:
    return f"{value:.3g}" if value < 999.5 else f"{value:.0f}"


def _percent(value: float) -> str:
    return f"{round(value, 1) + 0.0:+.1f}" if abs(value) < 9.95 else f"{value:+.0f}"  # + 0.0: no -0.0


def _wrapped(line: str) -> list[str]:
    return textwrap.wrap(line, COLUMNS, subsequent_indent="  ", break_on_hyphens=False)
