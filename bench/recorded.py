"""Records and check reports of one machine at one revision, refused in one sentence where they cannot be."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attn.contract import Workload
from bench.records import Record
from bench.revision import CannotCompare, Revision

T = TypeVar("T")
Milliseconds = Annotated[float, Field(gt=0, allow_inf_nan=False)]
_SCHEMAS = get_args(Record.model_fields["schema_version"].annotation)


class Cell(BaseModel):
    """Which cell a record is of; `workload` is its key."""

    model_config = ConfigDict(extra="forbid", frozen=True)
    implementation: str
    family: str
    grid: str
    workload: str
    world_size: int


class Case(BaseModel):
    """What is compared of a case of a check."""

    case: str
    status: str
    reason: str | None = None
    over_budget: dict[str, float] = {}


class Report(BaseModel):
    """What is compared of a check."""

    implementation: str
    status: str
    reason: str | None
    cases: list[Case]

    @property
    def verdict(self) -> Case:
        """The whole of it, as a case."""
        return Case(case=self.implementation, status=self.status, reason=self.reason)

    @property
    def by_name(self) -> dict[str, Case]:
        """Its cases."""
        return {case.case: case for case in self.cases}


@dataclass(frozen=True)
class Measured:
    """A record with its samples by process, and their ratios to the yardstick where it was compared."""

    record: Record
    times: list[list[float]]
    ratios: list[list[float]] | None


@dataclass(frozen=True)
class Side:
    """All that is recorded of a machine at a revision."""

    revision: Revision
    machine: str
    identity: dict[str, Any]
    cells: dict[Cell, Measured]
    reports: dict[str, Report]


def load(revision: Revision, results: Path) -> Side:
    """Everything that a machine's folder holds at a revision.

    Raises:
        CannotCompare: nothing is recorded there, or a file is not what we wrote.
    """
    folder = results.as_posix()
    paths = revision.paths(folder)
    benches = [path for path in paths if re.fullmatch(r"bench/[^/.][^/]*\.json", path.removeprefix(f"{folder}/"))]
    checks = [path for path in paths if re.fullmatch(r"check/[^/.]+\.json", path.removeprefix(f"{folder}/"))]
    if not benches:
        others = {path.split("/")[1] for path in revision.paths(results.parent.as_posix()) if path.count("/") > 1}
        machines = ", ".join(sorted(others - {results.name})) or "none"
        raise CannotCompare(
            f"{revision.name} has no measurements in {folder}: commit the results of that revision, "
            f"or name another --machine, there: {machines}"
        )
    cells = [one for path in benches for one in _parsed(revision, path, _cells)]
    reports = [_parsed(revision, path, Report.model_validate) for path in checks]
    return Side(
        revision,
        results.name,
        _parsed(revision, f"{folder}/machine.json", _identity),
        dict(cells),
        {report.implementation: report for report in reports},
    )


class _Series(BaseModel):
    samples_ms: Annotated[list[Milliseconds], Field(min_length=1)]
    reference_ms: list[float] = []


class _Process(BaseModel):
    series: _Series


def _parsed(revision: Revision, path: str, parse: Callable[[Any], T]) -> T:
    text = revision.read(path)
    if text is None:
        raise CannotCompare(f"{revision.name} has no {path}: commit the results of that revision")
    try:
        return parse(json.loads(text))
    except ValidationError as error:
        first = error.errors()[0]
        fault = f"{'.'.join(map(str, first['loc'])) or error.title}: {first['msg']}"
    except (ValueError, TypeError, KeyError, ZeroDivisionError) as error:
        fault = f"{type(error).__name__}: {error}"
    raise CannotCompare(f"{revision.name}:{path} cannot be read ({' '.join(fault.split())[:200]})")


def _identity(found: Any) -> dict[str, Any]:
    if not isinstance(found, dict):
        raise TypeError("not a mapping of fields to values")
    return found


def _cells(found: Any) -> list[tuple[Cell, Measured]]:
    if not isinstance(found, list):
        raise TypeError("not a list of records")
    for item in found:
        version = item.get("schema_version") if isinstance(item, dict) else _SCHEMAS[-1]
        if version not in _SCHEMAS:
            known = " and ".join(map(str, _SCHEMAS))
            raise ValueError(f"schema_version {version}, this program reads {known}; use that of the revision")
    measured = [_measured(Record.model_validate(item)) for item in found]
    return [(_cell(one.record), one) for one in measured]


def _cell(record: Record) -> Cell:
    return Cell(
        implementation=record.implementation,
        family=record.family,
        grid=record.grid,
        workload=Workload.from_dict(record.workload).key,
        world_size=record.world_size,
    )


def _measured(record: Record) -> Measured:
    if record.figures is None:
        return Measured(record, [], None)
    series = [_Process.model_validate(process).series for process in record.processes]
    ratios = None
    if record.figures.relative_time:
        ratios = [
            [mine / theirs for mine, theirs in zip(one.samples_ms, one.reference_ms, strict=True)] for one in series
        ]
    return Measured(record, [one.samples_ms for one in series], ratios)
