"""params.yaml -> validated cells, or one line a fault: file, key, value, what is allowed."""

from __future__ import annotations

import copy
import difflib
import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attn import registry
from attn.contract import DTYPES, Dtype, MaskKind, Pass, Workload

Family = Literal["core", "module", "ring"]
FAMILIES: tuple[Family, ...] = ("core", "module", "ring")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"

Positive = Annotated[int, Field(strict=True, gt=0)]
Count = Annotated[int, Field(strict=True, ge=0)]
Name = Annotated[str, Field(strict=True, pattern=NAME)]


class InvalidParams(Exception):
    """params.yaml is wrong; `faults` has one line each."""

    def __init__(self, faults: list[str]) -> None:
        super().__init__("\n".join(faults))
        self.faults = faults


def _listed(value: Any) -> Any:
    return [value] if not isinstance(value, list) and value is not None else value


_AXIS = (BeforeValidator(_listed), Field(min_length=1))
Sizes = Annotated[list[Positive], *_AXIS]
Dtypes = Annotated[list[Dtype], *_AXIS]
Masks = Annotated[list[MaskKind], *_AXIS]
Passes = Annotated[list[Pass], *_AXIS]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Exclusion(_Strict):
    """Cells that a grid leaves out, with the reason that stands in their place in the table."""

    reason: Annotated[str, Field(min_length=1)]
    device: Literal["cpu", "cuda"] | None = None
    dtype: Dtype | None = None
    mask: MaskKind | None = None
    seq_len: Positive | None = None
    n_heads: Positive | None = None
    head_dim: Positive | None = None

    def covers(self, workload: Workload, device: str) -> bool:
        """Whether every field that is given agrees."""
        asked = self.model_dump(exclude={"reason", "device"}, exclude_none=True)
        agrees = all(getattr(workload, field) == value for field, value in asked.items())
        return agrees and self.device in (None, device)


class Grid(_Strict):
    """The product of its axes, less what it excludes."""

    seq_len: Sizes
    batch: Sizes = [1]
    n_heads: Sizes = [8]
    n_kv_heads: Sizes | None = None
    head_dim: Sizes = [64]
    dtype: Dtypes = ["float32"]
    mask: Masks = ["full"]
    pass_: Passes = Field(default=["forward"], alias="pass")
    world_size: Sizes = [1]
    exclude: list[Exclusion] = []

    def workloads(self) -> list[Workload]:
        """Every shape of the grid, excluded ones too, in the order of its axes."""
        product = itertools.product(
            self.batch, self.n_heads, self.n_kv_heads or [0], self.head_dim, self.dtype, self.mask, self.pass_
        )
        return [
            Workload(b, s, h, g or h, d, dtype, mask, pass_)
            for b, h, g, d, dtype, mask, pass_ in product
            for s in self.seq_len
        ]

    def why_excluded(self, workload: Workload, device: str) -> str | None:
        """The reason of the first exclusion that covers a workload."""
        return next((e.reason for e in self.exclude if e.covers(workload, device)), None)


class FamilyParams(_Strict):
    """Which implementations run on which grids."""

    implementations: Annotated[list[Name], Field(min_length=1)]
    grids: Annotated[list[Name], Field(min_length=1)]


class Families(_Strict):
    """The three kinds of rows, which are never compared with each other."""

    core: FamilyParams
    module: FamilyParams
    ring: FamilyParams


class Reference(_Strict):
    """The yardstick of a family; rings are paired with that of core, in one process on all cores."""

    core: Name
    module: Name


class Protocol(_Strict):
    """How a cell is measured; see docs/how-we-measure.md."""

    seed: Count
    processes: Positive
    samples: Positive
    min_samples: Positive
    sample_ms: Positive
    warmup_ms: Count
    warmup_calls: Positive
    budget_s: Positive
    deadline_s: Positive
    memory_limit_gib: Count


class Params(_Strict):
    """All of params.yaml."""

    machine: Name
    device: Literal["auto", "cpu", "cuda"]
    threads: Count
    reference: Reference
    families: Families
    grids: Annotated[dict[Name, Grid], Field(min_length=1)]
    protocol: Protocol

    def family(self, family: str) -> FamilyParams:
        """The family's implementations and grids."""
        return getattr(self.families, family)  # type: ignore[no-any-return]

    def reference_of(self, family: str) -> str:
        """The yardstick's name."""
        return self.reference.module if family == "module" else self.reference.core

    def implementations(self) -> list[str]:
        """Every row of every family, in order."""
        return [name for family in FAMILIES for name in self.family(family).implementations]

    def family_of(self, implementation: str) -> Family:
        """The family that lists an implementation.

        Raises:
            KeyError: none does.
        """
        for family in FAMILIES:
            if implementation in self.family(family).implementations:
                return family
        raise KeyError(implementation)


@dataclass(frozen=True)
class Cell:
    """One implementation on one workload and number of ranks: one line of a table."""

    family: str
    implementation: str
    grid: str
    workload: Workload
    world_size: int = 1

    @property
    def key(self) -> str:
        """A name for files and messages."""
        ranks = f"_n{self.world_size}" if self.family == "ring" else ""
        return f"{self.implementation}-{self.grid}-{self.workload.key}{ranks}"


def cells(params: Params, family: str, implementation: str, grid: str) -> list[Cell]:
    """The cells of one bench stage."""
    chosen = params.grids[grid]
    ranks = chosen.world_size if family == "ring" else [1]
    return [Cell(family, implementation, grid, w, n) for n in ranks for w in chosen.workloads()]


def load(path: Path = Path("params.yaml")) -> Params:
    """Read and validate.

    Raises:
        InvalidParams: with every fault that was found.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), Loader=_NoDuplicates)  # noqa: S506  # a safe loader, see below
    except FileNotFoundError:
        raise InvalidParams([f"{path}: no such file; run this in the root of the repository"]) from None
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidParams([f"{path}: cannot be read as UTF-8 text: {error}"]) from None
    except yaml.YAMLError as error:
        raise InvalidParams([f"{path}: not valid YAML: {' '.join(str(error).split())}"]) from None
    if not isinstance(raw, dict):
        raise InvalidParams([f"{path}: must be a mapping of keys to values"])
    params, faults = _validated(raw)
    if faults or params is None:
        raise InvalidParams([f"{path}: {fault}" for fault in faults])
    return params


def _validated(raw: Any) -> tuple[Params | None, list[str]]:
    """The values by themselves first; then, without those that are wrong, how they fit together."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        faults = [_fault(item) for item in error.errors()]
        places = [item["loc"] for item in error.errors()]
        if any(len(place) < 3 and place[0] == "grids" for place in places):
            return None, faults  # without a grid, all who name it would seem wrong
        try:
            rest = Params.model_validate(_without(raw, places))
        except ValidationError:
            return None, faults
        return None, faults + _disagreements(rest)
    return params, _disagreements(params)


def _without(raw: Any, places: list[tuple[Any, ...]]) -> Any:
    rest = copy.deepcopy(raw)
    whole = [place[:4] if "exclude" in place else place for place in places]
    for *parents, last in reversed(list(dict.fromkeys(whole))):  # from the end: an index stays what it was
        found = rest
        for part in parents:
            found = found.get(part) if isinstance(found, dict) else found[part] if isinstance(found, list) else None
        if isinstance(found, list):
            found[last : last + 1] = []
        elif isinstance(found, dict):
            found.pop(last, None)
    return rest


class _NoDuplicates(yaml.SafeLoader):
    """A safe loader that refuses a key given twice, where YAML would silently keep the last."""


def _mapping(loader: yaml.SafeLoader, node: yaml.MappingNode) -> dict[Any, Any]:
    seen: set[Any] = set()
    for key, _ in node.value:
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.YAMLError(f"line {key.start_mark.line + 1}: a key must be a word")
        if key.value in seen:
            raise yaml.YAMLError(f"line {key.start_mark.line + 1}: the key {key.value} is given twice")
        seen.add(key.value)
    return loader.construct_mapping(node, deep=True)


_NoDuplicates.add_constructor(yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, _mapping)

_ALLOWED = {
    "greater_than": "a whole number above 0",
    "greater_than_equal": "a whole number, 0 or more",
    "int_type": "a whole number",
    "string_type": "a text",
    "too_short": "at least one entry",
    "string_pattern_mismatch": "letters, digits, _ and -",
    "list_type": "a list",
    "model_type": "a mapping",
    "model_attributes_type": "a mapping",
    "dict_type": "a mapping",
}


def _fault(error: Any) -> str:
    """`grids.seed.n_heads[1] = -8, allowed: a whole number above 0`."""
    where = ""
    for part in error["loc"]:
        if isinstance(part, int):
            where += f"[{part}]"
        elif part != "[key]":
            where += f".{part}" if where else str(part)
    value = error["input"]
    kind = error["type"]
    if kind == "missing":
        return f"{where} is missing"
    if kind == "extra_forbidden":
        return f"{where}: unknown key, allowed: {', '.join(_siblings(error['loc']))}"
    allowed = _ALLOWED.get(kind) or error.get("ctx", {}).get("expected", error["msg"]).replace("'", "")
    return f"{where} = {value!r}, allowed: {allowed}"


def _siblings(loc: tuple[Any, ...]) -> list[str]:
    """The keys that are allowed beside the last part of a location."""
    model: Any = Params
    for part in loc[:-1]:
        if not (isinstance(model, type) and issubclass(model, BaseModel)):
            break
        field = model.model_fields.get(str(part))
        annotation: Any = field.annotation if field else model
        inner = [a for a in getattr(annotation, "__args__", ()) if isinstance(a, type) and issubclass(a, BaseModel)]
        model = inner[0] if inner else annotation
    fields = getattr(model, "model_fields", {})
    return [field.alias or name for name, field in fields.items()]


def _disagreements(params: Params) -> list[str]:
    known = registry.find()
    listed = params.implementations()
    return [
        *_duplicates(params),
        *(fault for family in FAMILIES for fault in _family_faults(params, family, known)),
        *(
            f"families: {name} is listed in two families, allowed: one"
            for name in dict.fromkeys(n for n in listed if listed.count(n) > 1)
            if sum(name in params.family(f).implementations for f in FAMILIES) > 1
        ),
        *_reference_faults(params, known),
        *(fault for name in params.grids for fault in _grid_faults(params, name, known)),
        *(
            ["protocol.min_samples must be at most protocol.samples"]
            if params.protocol.min_samples > params.protocol.samples
            else []
        ),
    ]


def _duplicates(params: Params) -> list[str]:
    lists: dict[str, list[Any]] = {}
    for family in FAMILIES:
        for key, values in params.family(family).model_dump().items():
            lists[f"families.{family}.{key}"] = values
    for name, grid in params.grids.items():
        for key, values in grid.model_dump(by_alias=True).items():
            if isinstance(values, list) and key != "exclude":
                lists[f"grids.{name}.{key}"] = values
    return [
        f"{where} = {values}: {value} is given twice, allowed: once"
        for where, values in lists.items()
        for value in dict.fromkeys(v for v in values if values.count(v) > 1)
    ]


def _family_faults(params: Params, family: Family, known: dict[str, registry.Implementation]) -> list[str]:
    faults = []
    for i, name in enumerate(params.family(family).implementations):
        where = f"families.{family}.implementations[{i}] = {name}"
        if name not in known:
            faults.append(f"{where}: no file attn/impl/{name}.py{_hint(name, list(known))}")
        elif not known[name].fault and known[name].kind != family:
            faults.append(f"{where}: its KIND is {known[name].kind}, allowed: {family}")
    for i, name in enumerate(params.family(family).grids):
        if name not in params.grids:
            where = f"families.{family}.grids[{i}] = {name}"
            faults.append(f"{where}: no such grid{_hint(name, list(params.grids))}")
    return faults


def _reference_faults(params: Params, known: dict[str, registry.Implementation]) -> list[str]:
    return [
        f"reference.{family} = {name}: not a row of that kind, allowed: "
        + ", ".join(sorted(n for n, one in known.items() if one.kind == family))
        for family, name in (("core", params.reference.core), ("module", params.reference.module))
        if name not in known or (not known[name].fault and known[name].kind != family)
    ]


def _grid_faults(params: Params, name: str, known: dict[str, registry.Implementation]) -> list[str]:
    grid, faults = params.grids[name], []
    for heads, kv_heads in itertools.product(grid.n_heads, grid.n_kv_heads or []):
        if heads % kv_heads:
            faults.append(f"grids.{name}.n_kv_heads = {kv_heads}: n_heads {heads} is not a multiple of it")
    users = [
        known[row]
        for family in FAMILIES
        if name in params.family(family).grids
        for row in params.family(family).implementations
        if row in known and not known[row].fault
    ]
    if users:
        for dtype in grid.dtype:
            if not any(dtype in row.dtypes for row in users):
                offered = [d for d in DTYPES if any(d in row.dtypes for row in users)]
                faults.append(
                    f"grids.{name}.dtype = {dtype}: no row of this grid has it, allowed: {', '.join(offered)}"
                )
    device = params.device if params.device != "auto" else "cpu"
    if not faults and all(grid.why_excluded(w, device) for w in grid.workloads()):
        faults.append(f"grids.{name}.exclude: leaves no cell out of {len(grid.workloads())}")
    return faults


def _hint(name: str, allowed: list[str]) -> str:
    close = difflib.get_close_matches(name, allowed, n=1)
    return f", did you mean {close[0]}?" if close else f", allowed: {', '.join(allowed)}"


def valid_name(name: str) -> bool:
    """Whether a name can be a folder of results and a key of params.yaml."""
    return re.fullmatch(NAME, name) is not None
