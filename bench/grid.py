"""params.yaml -> validated cells, or one line a fault: file, key, value, what is allowed."""

from __future__ import annotations

import itertools
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from attn.contract import Dtype, MaskKind, Pass, Workload
from bench import faults

Family = Literal["core", "module", "ring"]
FAMILIES: tuple[Family, ...] = ("core", "module", "ring")
NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]*$"
HOST = r"^[A-Za-z0-9][A-Za-z0-9.-]*$"
REASON = r"^[A-Za-z0-9 ,:;()_-]*[A-Za-z0-9)]$"
INTERFACE = r"^([A-Za-z0-9][A-Za-z0-9_.-]{0,14})?$"

Positive = Annotated[int, Field(strict=True, gt=0, le=1 << 24)]
Count = Annotated[int, Field(strict=True, ge=0, le=1 << 24)]
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


# A set that DVC shows entry by entry: of a list, `dvc params diff` prints all of both sides in one line.
Chosen = Annotated[dict[Name, Literal[True]], Field(min_length=1)]
Reason = Annotated[str, Field(strict=True, pattern=REASON, max_length=24)]


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, populate_by_name=True)


class Exclusion(_Strict):
    """Cells that a grid leaves out; rows: of these only."""

    device: Literal["cpu", "cuda"] | None = None
    dtype: Dtype | None = None
    mask: MaskKind | None = None
    seq_len: Positive | None = None
    kv_seq_len: Positive | None = None
    n_heads: Positive | None = None
    head_dim: Positive | None = None
    rows: Chosen | None = None

    def covers(self, workload: Workload, device: str, implementation: str) -> bool:
        """Whether every field that is given agrees."""
        asked = self.model_dump(exclude={"device", "rows"}, exclude_none=True)
        agrees = all(getattr(workload, field) == value for field, value in asked.items())
        return agrees and self.device in (None, device) and implementation in (self.rows or [implementation])


class Grid(_Strict):
    """The product of its axes, less what it excludes, by the reason that stands in its place in the table."""

    seq_len: Sizes
    kv_seq_len: Sizes | None = None
    batch: Sizes = [1]
    n_heads: Sizes = [8]
    n_kv_heads: Sizes | None = None
    head_dim: Sizes = [64]
    dtype: Dtypes = ["float32"]
    mask: Masks = ["full"]
    pass_: Passes = Field(default=["forward"], alias="pass")
    world_size: Sizes = [1]
    exclude: dict[Reason, Exclusion] = {}

    def workloads(self) -> list[Workload]:
        """Every shape of the grid, excluded ones too, in the order of its axes."""
        product = itertools.product(
            self.batch, self.n_heads, self.n_kv_heads or [0], self.head_dim, self.dtype, self.mask, self.pass_
        )
        return [
            Workload(b, s, h, g or h, d, dtype, mask, pass_, kv_seq_len=t)
            for b, h, g, d, dtype, mask, pass_ in product
            for s, t in itertools.product(self.seq_len, self.kv_seq_len or [0])
        ]

    def why_excluded(self, workload: Workload, device: str, implementation: str) -> str | None:
        """The reason of the first exclusion that covers a workload of a row."""
        found = (reason for reason, one in self.exclude.items() if one.covers(workload, device, implementation))
        return next(found, None)


class FamilyParams(_Strict):
    """Which implementations run on which grids, in their order."""

    implementations: Chosen
    grids: Chosen


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
    budget_s: Annotated[float, Field(gt=0, le=3600)]
    deadline_s: Annotated[int, Field(strict=True, gt=0, le=86400)]
    memory_limit_gib: Count
    keep_memory: Annotated[bool, Field(strict=True)] = True


class Launch(_Strict):
    """Where ranks run and what carries their messages.

    hosts: names, in the order in which ranks are dealt to them; none: this machine, or the allocation of a scheduler.
    interface: of the network between hosts; "": found from their names. ulysses_size: ranks that ring_usp groups for
    its all-to-all; 0: it chooses.
    """

    hosts: list[Annotated[str, Field(strict=True, pattern=HOST)]] = []
    transport: Literal["auto", "nccl", "gloo", "mpi", "shm"] = "auto"
    interface: Annotated[str, Field(strict=True, pattern=INTERFACE)] = ""
    ulysses_size: Count = 0


class Params(_Strict):
    """All of params.yaml."""

    machine: Name
    device: Literal["auto", "cpu", "cuda"]
    threads: Annotated[int, Field(strict=True, ge=0, le=4096)]
    reference: Reference
    families: Families
    grids: Annotated[dict[Name, Grid], Field(min_length=1)]
    protocol: Protocol
    launch: Launch = Launch()

    def family(self, family: str) -> FamilyParams:
        """The family's implementations and grids."""
        return getattr(self.families, family)  # type: ignore[no-any-return]

    def reference_of(self, family: str) -> str:
        """The yardstick's name."""
        return self.reference.module if family == "module" else self.reference.core

    def implementations(self) -> list[str]:
        """Every row of every family, in order."""
        return [name for family in FAMILIES for name in self.family(family).implementations]


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
    params, found = _validated(raw)
    if found or params is None:
        raise InvalidParams([f"{path}: {fault}" for fault in found])
    return params


def _validated(raw: Any) -> tuple[Params | None, list[str]]:
    """The values by themselves first; then, without those that are wrong, how they fit together."""
    try:
        params = Params.model_validate(raw)
    except ValidationError as error:
        found = [faults.in_words(item, Params) for item in error.errors()]
        places = [item["loc"] for item in error.errors()]
        if any(len(place) < 3 and place[0] == "grids" for place in places):
            return None, found  # without a grid, all who name it would seem wrong
        try:
            rest = Params.model_validate(faults.without(raw, places))
        except ValidationError:
            return None, found
        return None, found + faults.disagreements(rest)
    return params, faults.disagreements(params)


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


def valid_name(name: str) -> bool:
    """Whether a name can be a folder of results and a key of params.yaml."""
    return re.fullmatch(NAME, name) is not None
