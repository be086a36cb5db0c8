"""A machine's results as files: seed.txt, one table a grid, plots, metrics.json, report.md."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from attn.contract import Workload
from bench import check_tables, faults, machine, overhead_tables, records, ring_tables, spread_tables, stage_log, tables
from bench.files import read_json, write_json, write_text
from bench.grid import FAMILIES, Params, cells
from bench.records import Record
from bench.stage_log import Ran

_HOW_TO_READ = """\
Every row was judged against float64 attention before it was timed and after; a row without a figure says why.
Compare rows of one table only: each table is one family (core: q, k, v -> out; module: with projections;
ring: shards over ranks). `error (of budget)` names the worst tensor, its largest error, and its worst share of
the error budget; above 1 would be wrong. `on real inputs`: the row's worst of the same kind on q, k, v that a
trained transformer computed with (data/real); normals flatter.
Budgets: docs/how-we-judge.md; timing: docs/how-we-measure.md."""


def load(params: Params, results: Path) -> list[Record]:
    """Every record that params.yaml asks for, in its order, explained by the check reports.

    Raises:
        FileNotFoundError: nothing was measured at all, or the machine is not known.
    """
    found = []
    for _, grid, name in _asked(params):
        path = records.bench_path(results, name, grid)
        if path.exists():
            found += records.read(path)
    if not found:
        raise FileNotFoundError(f"{results}: nothing measured yet; run `make bench`")
    for name in ("machine.json", "ceiling.json"):
        if not (results / name).exists():
            raise FileNotFoundError(f"{results}: no {name}; run `make bench` to finish")
    return tables.explained(found, checked(params, results))


def missing(params: Params, results: Path) -> list[str]:
    """What params.yaml asks for and no record tells of, one line each."""
    lines = []
    for family, grid, name in _asked(params):
        path = records.bench_path(results, name, grid)
        known = {_cell(record) for record in records.read(path)} if path.exists() else set()
        wanted = {(cell.workload.key, cell.world_size) for cell in cells(params, family, name, grid)}
        lines += [f"{name} {grid}: no record of {key}, {ranks} ranks" for key, ranks in sorted(wanted - known)]
    return lines


def stale(results: Path) -> list[str]:
    """Records that are newer than the report."""
    written = (results / "report.md").stat().st_mtime if (results / "report.md").exists() else 0.0
    return [
        f"{path} is newer than the report; where `make bench` finds nothing to do, `dvc repro -fs render@local`"
        for path in sorted(results.glob("*/*.json"))
        if path.stat().st_mtime > written
    ]


def _cell(record: Record) -> tuple[str, int]:
    return Workload.from_dict(record.workload).key, record.world_size


def render(params: Params, results: Path) -> None:
    """Write everything that people read."""
    found, identity = load(params, results), read_json(results / "machine.json")
    ceiling = read_json(results / "ceiling.json")
    references = (params.reference.core, params.reference.module)
    reports = checked(params, results)
    texts = dict(_tables(found, ceiling, reports)) | _check_texts(list(reports.values()))
    texts |= _over_all(found, reports, [])  # what DVC ran is of this clone, not of the records
    seed = tables.seed_table([r for r in found if r.grid == "seed"], identity["device"], references)
    write_text(results / "seed.txt", seed)
    for name, text in texts.items():
        write_text(results / "tables" / f"{name}.txt", text)
    write_json(results / "plots.json", tables.plot_rows(found))
    pictures = _plots(found, ceiling, results / "tables")
    write_json(results / "metrics.json", tables.metrics(found))
    write_text(results / "report.md", _report(identity, ceiling, seed, texts, pictures))


def table(params: Params, results: Path, name: str | None, *, details: bool = False) -> str:
    """What `python -m bench table` prints: the seed table as it was, any other grid with all its columns.

    Or one of `faults.TABLES`, over all grids: in this clone, with what DVC ran in it.

    Raises:
        FileNotFoundError: nothing measured yet.
    """
    found = [r for r in load(params, results) if name in (None, r.grid, *faults.TABLES)]
    if not found:
        raise FileNotFoundError(f"{results}: nothing measured yet for grid {name}; run `make bench`")
    reports = checked(params, results)
    if name in faults.TABLES:
        ran = stage_log.read() if results.name == params.machine else []
        return _over_all(found, reports, ran)[name]
    if name == "seed" and not details:
        references = (params.reference.core, params.reference.module)
        return tables.seed_table(found, read_json(results / "machine.json")["device"], references)
    texts = _tables(found, read_json(results / "ceiling.json"), reports)
    return "\n".join(f"{title}\n\n{text}" for title, text in texts)


def _over_all(found: list[Record], reports: dict[str, check_tables.Report], ran: list[Ran]) -> dict[str, str]:
    """The tables that are not of one grid."""
    return {
        "spread": spread_tables.text(found),
        "overhead": overhead_tables.text(found, list(reports.values()), ran),
    }


def checked(params: Params, results: Path) -> dict[str, check_tables.Report]:
    """The check reports that are there, by row."""
    paths = {name: records.check_path(results, name) for name in params.implementations()}
    return {name: read_json(path) for name, path in paths.items() if path.exists()}


def _check_texts(reports: list[check_tables.Report]) -> dict[str, str]:
    sizes = check_tables.world_sizes(reports)
    return {"checks": check_tables.checks(reports)} | ({"ring-error-against-ranks": sizes} if sizes else {})


def _asked(params: Params) -> Iterator[tuple[str, str, str]]:
    for family in FAMILIES:
        chosen = params.family(family)
        yield from ((family, grid, name) for grid in chosen.grids for name in chosen.implementations)


def _tables(
    found: list[Record], ceiling: dict[str, Any], reports: dict[str, check_tables.Report]
) -> Iterator[tuple[str, str]]:
    for family, grid in dict.fromkeys((record.family, record.grid) for record in found):
        chosen = [r for r in found if (r.family, r.grid) == (family, grid)]
        yield f"{family}-{grid}", ring_tables.text(chosen, ceiling, reports)


def _plots(found: list[Record], ceiling: dict[str, Any], folder: Path) -> list[str]:
    """Of tables over several lengths TFLOP/s against seq_len, the ceiling dashed; of rings their loss budgets."""
    made = []
    for family, grid in dict.fromkeys((record.family, record.grid) for record in found):
        chosen = [r for r in found if (r.family, r.grid) == (family, grid) and r.figures]
        if len({r.workload["seq_len"] for r in chosen}) > 1:
            path = folder / f"{family}-{grid}.png"
            _plot(chosen, ceiling, path, f"{family}, grid {grid}")
            made.append(path.name)
        losses = folder / f"{family}-{grid}-loss.png"
        if ring_tables.plot(chosen, losses, f"Where the time goes: {family}, grid {grid}"):
            made.append(losses.name)
    return made


def _plot(found: list[Record], ceiling: dict[str, Any], path: Path, title: str) -> None:
    from matplotlib.figure import Figure

    panels = list(dict.fromkeys((r.workload["dtype"], r.workload["mask"], r.workload["pass"]) for r in found))
    names = list(dict.fromkeys(_line_name(r) for r in found))
    wide = max(4.6 * len(panels), 7.0)  # inches: title and legend need as much
    figure = Figure(figsize=(wide, 3.8), layout="constrained")
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=True)[0]
    for axis, panel in zip(axes, panels, strict=True):
        here = [r for r in found if (r.workload["dtype"], r.workload["mask"], r.workload["pass"]) == panel]
        for number, name in enumerate(names):
            line = sorted((r for r in here if _line_name(r) == name), key=lambda r: r.workload["seq_len"])
            if line:
                _draw(axis, line, name, f"C{number}")
        axis.axhline(tables.peak_tflops(ceiling, panel[0]), color="grey", linestyle="--", label="ceiling")
        axis.set(title=", ".join(panel), xlabel="seq_len (tokens)", xscale="log", ylim=(0, None))
        lengths = sorted({r.workload["seq_len"] for r in found})
        axis.set_xticks(lengths, [str(n) for n in lengths])
        axis.minorticks_off()
        axis.grid(alpha=0.3)
    axes[0].set_ylabel("TFLOP/s (causal: half the pairs)")
    figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=8)
    figure.suptitle(f"{title}\nthe machine moved between rows: curves do not compare" if tables.moved(found) else title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, metadata={"Software": None})


def _draw(axis: Any, line: list[Record], name: str, colour: str) -> None:
    figures = [r.figures for r in line if r.figures]
    rates = [f.tflops for f in figures]
    low = [f.tflops * (1 - f.time_ms.value / f.time_ms.high) for f in figures]
    high = [f.tflops * (f.time_ms.value / f.time_ms.low - 1) for f in figures]
    lengths = [r.workload["seq_len"] for r in line]
    axis.errorbar(lengths, rates, yerr=[low, high], label=name, color=colour, marker="o", capsize=3)


def _line_name(record: Record) -> str:
    ranks = f", {record.world_size} ranks" if record.family == "ring" else ""
    return f"{record.implementation}{ranks}{' (oversubscribed)' if record.oversubscribed else ''}"


def _report(
    identity: dict[str, Any], ceiling: dict[str, Any], seed: str, texts: dict[str, str], pictures: list[str]
) -> str:
    rates = ", ".join(
        f"{d} {one['tflops']:.3g} TFLOP/s (n = {one['n']})" for d, one in ceiling["matrix_product"].items()
    )
    parts = [
        f"# Attention on {identity['cpu_model'] if identity['device'] == 'cpu' else identity['gpu_model']}",
        f"Machine: {machine.in_words(identity)}.",
        f"Ceiling, measured: {rates}; copy {ceiling['copy_gb_per_s']} GB/s.",
        _HOW_TO_READ,
        "## The seed table",
        f"```\n{seed}```",
    ]
    for name, text in texts.items():
        parts.append(f"## {name}")
        if f"{name}.png" in pictures:
            parts.append(f"![TFLOP/s against seq_len, {name}](tables/{name}.png)")
        if f"{name}-loss.png" in pictures:
            parts.append(f"![Loss budgets, {name}](tables/{name}-loss.png)")
        parts.append(f"```\n{text}```")
    return "\n\n".join(parts) + "\n"
