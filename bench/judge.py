"""Right or wrong: every tensor that an implementation returned, against truth and budget, row by row."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from bench.oracle import Solved


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison. `over_budget` is the worst error as a multiple of its budget."""

    right: bool
    reason: str | None
    max_abs_error: dict[str, float]
    over_budget: dict[str, float]


def judge(results: dict[str, Tensor], solved: Solved, dtype: str) -> Verdict:
    """Compare what came back with what should have.

    `results` may lack `lse`, and `out_with_lse` that comes with it; anything else that the truth has must
    be there, of its shape, and of the
    dtype of the row (lse: float32).
    """
    errors, ratios, reasons = {}, {}, []
    due = {name: name for name in solved.truth} | {"out_with_lse": "out"}
    for name, tensor in due.items():
        truth, got = solved.truth[tensor], results.get(name)
        if got is None:
            if name in solved.truth and name != "lse":
                reasons.append(f"{name} was not returned")
            continue
        wanted = torch.float32 if name == "lse" else getattr(torch, dtype)
        if got.shape != truth.shape or got.dtype != wanted:
            reasons.append(f"{name} is {_words(got.shape, got.dtype)}, not {_words(truth.shape, wanted)}")
            continue
        got = got.double().cpu()
        reason = _not_finite(name, got, truth)
        if reason is None:
            errors[name], ratios[name], reason = _compare(name, got, truth, solved.budget[tensor])
        if reason:
            reasons.append(reason)
    return Verdict(not reasons, "; ".join(reasons) or None, errors, ratios)


def _not_finite(name: str, got: Tensor, truth: Tensor) -> str | None:
    finite = torch.isfinite(got)
    bad = (finite != torch.isfinite(truth)) | (~finite & (got != truth))  # lse is -inf where no key is seen
    if not bool(bad.any()):
        return None
    first = tuple(torch.nonzero(bad)[0].tolist())
    words = f"{name} has {int(bad.sum())} values that are not finite, or should not be"
    return f"{words}: {float(got[first]):g} at {first}, not {float(truth[first]):g}"


def _compare(name: str, got: Tensor, truth: Tensor, budget: Tensor) -> tuple[float, float, str | None]:
    error = torch.where(got == truth, 0.0, (got - truth).abs())
    ratio = error.amax(-1) / budget
    worst = float(ratio.max())
    if worst <= 1.0:
        return float(error.max()), worst, None
    row = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
    reason = (
        f"{name} is off by {float(error[row].max()):.2e} at row {row}, {worst:.3g} times the budget of "
        f"{float(budget[row]):.2e} ({int((ratio > 1).sum())} of {ratio.numel()} rows over)"
    )
    return float(error.max()), worst, reason


def _words(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'a scalar'} {str(dtype).removeprefix('torch.')}"
