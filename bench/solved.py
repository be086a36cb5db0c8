"""A problem with its answer: inputs, truth and error budgets of one workload, in memory and on disk."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor

Tensors = dict[str, Tensor]
FORWARD = ("out", "lse")  # what exists for the judged rows only; gradients are judged whole


@dataclass(frozen=True)
class Solved:
    """Inputs of a workload, with their truth (float64) and budgets (float64, one a row).

    rms: the largest root mean square that error / budget may have over one head of a tensor (`by_head`); not of `lse`,
    whose every number has its own budget.
    rows: positions of the queries (for a module: tokens) that truth knows `out` and `lse` of; None: of all.
    may_leak: boolean, as `out`, True where a NaN that should not be there is no error; None: nowhere.
    held: how many tokens this is about, where it is not about all of the inputs'.
    """

    inputs: Tensors
    truth: Tensors
    budget: Tensors
    rms: Tensors
    rows: Tensor | None = None
    may_leak: Tensor | None = None
    held: int | None = None

    def whole_shape(self, name: str) -> torch.Size:
        """Of a result with all its tokens, also where truth knows only some of them."""
        shape = list(self.truth[name].shape)
        if self.rows is not None and name in FORWARD:
            shape[2 if name == "lse" else 1] = self.queries
        return torch.Size(shape)

    @property
    def queries(self) -> int:
        """How many there are (for a module: tokens)."""
        return self.held if self.held is not None else self.inputs["q" if "q" in self.inputs else "x"].shape[1]

    def judged_part(self, name: str, x: Tensor) -> Tensor:
        """Of a whole result, what truth knows."""
        return x if self.rows is None or name not in FORWARD else at_tokens(name, x, self.rows)

    def of_tokens(self, tokens: Tensor) -> Solved:
        """The same problem as seen by who holds only some tokens (1-d positions).

        Without `rms`, which is of whole heads: some tokens have larger errors than others, for their budget.
        """
        kept, rows = tokens, None
        if self.rows is not None:
            kept = torch.isin(self.rows, tokens).nonzero().flatten()
            rows = torch.isin(tokens, self.rows).nonzero().flatten()

        def part(tensors: Tensors) -> Tensors:
            return {name: at_tokens(name, x, kept if name in FORWARD else tokens) for name, x in tensors.items()}

        leak = self.may_leak[:, tokens] if self.may_leak is not None else None
        changes = {"truth": part(self.truth), "budget": part(self.budget), "rms": {}}
        return replace(self, **changes, rows=rows, may_leak=leak, held=len(tokens))


def at_tokens(name: str, x: Tensor, tokens: Tensor) -> Tensor:
    """Some tokens of a tensor or its budget: dimension 1, of `lse` the last."""
    return x[..., tokens] if name == "lse" else x[:, tokens]


def by_head(ratio: Tensor) -> Tensor:
    """Root mean square over each head; over all there is of a module's tensors, which have no heads."""
    return ratio.square().mean([dim for dim in range(ratio.ndim) if (dim, ratio.ndim) != (2, 4)]).sqrt()


def write(path: Path, solved: Solved) -> None:
    """The file appears whole or not at all."""
    parts = {"inputs": solved.inputs, "truth": solved.truth, "budget": solved.budget, "rms": solved.rms}
    if solved.rows is not None:
        parts["rows"] = {"out": solved.rows}
    tensors = {f"{part}.{name}": x.contiguous() for part, found in parts.items() for name, x in found.items()}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(tensors, partial)
    partial.replace(path)


def read(path: Path) -> Solved:
    """What `write` stored."""
    parts: dict[str, Tensors] = {"inputs": {}, "truth": {}, "budget": {}, "rms": {}, "rows": {}}
    with safe_open(path, framework="pt") as file:
        for key in file.keys():  # noqa: SIM118  # no dict: it cannot be iterated
            part, _, name = key.partition(".")
            parts[part][name] = file.get_tensor(key)
    return Solved(parts["inputs"], parts["truth"], parts["budget"], parts["rms"], parts["rows"].get("out"))


def mirrored(kind: str, solved: Solved, mask: str) -> Solved:
    """Other inputs whose truth is known exactly, to be judged after timing: outputs kept from before are wrong.

    v -> -v and dout -> 2 dout make out -> -out, dv -> 2 dv, dq and dk -> -2 times, lse the same; for a module x -> -x
    and dout -> 2 dout make out -> -out, dx -> 2 dx, weight gradients -> -2 times. All factors are powers of two, so
    budgets keep their meaning. So that scores change too, sequences of a batch change places, heads move on (by a
    group where there are several kv heads), and the tokens of a module under a full mask.
    """
    factors = {"v": -1, "x": -1, "out": -1, "dout": 2, "dv": 2, "dx": 2, "dq": -2, "dk": -2}
    factors |= {f"dw{which}": -2 for which in "qkvo"}
    n_kv_heads = 1 if kind == "module" else solved.inputs["k"].shape[2]
    tokens = int(kind == "module" and mask == "full" and solved.rows is None)

    def image(name: str, x: Tensor, factor: int) -> Tensor:
        if name[0] == "w" or name.startswith("dw"):
            return x * factor
        x = (x * factor).roll(1, 0)
        if kind == "module":
            return x.roll(tokens, 1)
        heads_dim = 1 if name == "lse" else 2
        return x.roll(x.shape[heads_dim] // n_kv_heads if n_kv_heads > 1 else 1, heads_dim)

    def images(tensors: Tensors) -> Tensors:
        return {name: image(name, x, factors.get(name, 1)) for name, x in tensors.items()}

    budget = {name: image(name, x, abs(factors.get(name, 1))) for name, x in solved.budget.items()}
    return replace(solved, inputs=images(solved.inputs), truth=images(solved.truth), budget=budget)
