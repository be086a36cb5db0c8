"""Right or wrong: every tensor that an implementation returned, against truth and budget, row by row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from bench import calls
from bench.solved import Solved, Tensors, at_tokens, by_head

if TYPE_CHECKING:
    from bench.team import Team


_ORDER = ("out", "lse", "dq", "dk", "dv", "dx", "dwq", "dwk", "dwv", "dwo")  # of reasons


@dataclass(frozen=True)
class Verdict:
    """The outcome of one comparison. `over_budget` is the worst error as a multiple of its budget.

    ranks: of a ring, `over_budget` of each rank's part. leaked: NaN where it was forgiven. sampled: what was judged,
    where not everything was.
    """

    right: bool
    reason: str | None
    max_abs_error: dict[str, float] = field(default_factory=dict)
    over_budget: dict[str, float] = field(default_factory=dict)
    ranks: list[dict[str, float]] = field(default_factory=list)
    leaked: bool = False
    sampled: str | None = None


def judge(results: Tensors, solved: Solved, dtype: str, held: Sequence[Tensor] = ()) -> Verdict:
    """Compare what came back with what should have.

    `results` may lack `lse`, and may have the `out` that comes with it, or that is computed without gradients, under
    names of their own; all else that the truth has must be there, of its shape and of the dtype of the row (lse:
    float32). With `held` (the tokens of each rank of a ring) the part of each rank is judged by itself.
    """
    if len(held) > 1:
        parts = [_one(_part(results, tokens), solved.of_tokens(tokens), dtype, " whole") for tokens in held]
        verdict = _together(parts)
        if verdict.right:  # of heads only the whole can tell
            whole = _one(results, solved, dtype)
            verdict = replace(verdict, right=whole.right, reason=whole.reason, over_budget=whole.over_budget)
    else:
        verdict = _one(results, solved, dtype)
    if solved.rows is None:
        return verdict
    return replace(verdict, sampled=f"{len(solved.rows)} of {solved.queries} queries")


def _one(results: Tensors, solved: Solved, dtype: str, how: str = "") -> Verdict:
    errors, ratios, reasons, leaked = {}, {}, [], False
    due = {name: name for name in sorted(solved.truth, key=_ORDER.index)}
    due |= {"out_with_lse": "out", "out_without_gradients": "out"}
    for name, tensor in due.items():
        truth, got = solved.truth[tensor], results.get(name)
        if got is None:
            if name in solved.truth and name != "lse":
                reasons.append(f"{name} was not returned{how}")
            continue
        wanted, shape = torch.float32 if name == "lse" else getattr(torch, dtype), solved.whole_shape(tensor)
        if got.shape != shape or got.dtype != wanted:
            reasons.append(f"{name} is {_words(got.shape, got.dtype)}, not {_words(shape, wanted)}")
            continue
        got = solved.judged_part(tensor, got).double().cpu()
        if solved.may_leak is not None and tensor == "out":
            leak = solved.may_leak & got.isnan() & ~truth.isnan()
            got, leaked = torch.where(leak, truth, got), leaked or bool(leak.any())
        reason = _not_finite(name, got, truth)
        if reason is None and truth.numel():
            error = torch.where((got == truth) | truth.isnan(), 0.0, (got - truth).abs())
            errors[name], budget = float(error.max()), solved.budget[tensor]
            ratios[name], reason = _over_rows(name, error if name == "lse" else error.amax(-1), budget)
            if tensor in solved.rms:
                share, on_the_whole = _over_heads(name, error / budget[..., None], float(solved.rms[tensor]))
                ratios[name], reason = max(ratios[name], share), reason or on_the_whole
        if reason:
            reasons.append(reason)
    return Verdict(not reasons, "; ".join(reasons) or None, errors, ratios, leaked=leaked)


def judge_call(call: calls.CoreCall, solved: Solved, team: Team, results: Tensors | None = None) -> Verdict:
    """Of a call that has just returned; on rank 0, which has the whole result. Every rank learns whether it is right.

    Wrong too is a call that changed its inputs, or whose result changes after it returned. `results`: those of the
    call, where they are at hand.
    """
    results = call.results() if results is None else results
    verdict = judge(results, solved, call.workload.dtype, call.held) if team.rank == 0 else Verdict(True, None)
    now = calls.torch_settings()
    faults = {
        "its inputs ({}) were changed by the call": call.changed_inputs(solved.inputs),
        "{}": calls.not_plain(call.computed()),
        "still at work after it returned: {}": call.still_at_work(),
        "it changed torch's settings: {}": [
            f"{n} from {x} to {now[n]}" for n, x in call.settings.items() if now[n] != x
        ],
    }
    reasons = anywhere(faults, team)
    if reasons:
        verdict = replace(verdict, right=False, reason="; ".join(filter(None, (*reasons, verdict.reason))))
    right = bool(team.agree(float(verdict.right)))
    return verdict if team.rank == 0 else Verdict(right, None)


def anywhere(faults: dict[str, list[str]], team: Team) -> list[str]:
    """On rank 0: each sentence, filled with the names that this rank has found, or with the first rank that has any."""
    ranks = team.gather([float(bool(names)) for names in faults.values()])
    reasons = []
    for (sentence, names), found in zip(faults.items(), zip(*ranks, strict=True), strict=False):
        if any(found):
            reasons.append(sentence.format(", ".join(names) or f"of rank {found.index(1.0)}"))
    return reasons


def _part(results: Tensors, tokens: Tensor) -> Tensors:
    """What one rank holds; a shape that is wrong as a whole is left for the judge to name."""
    return {name: at_tokens(name, x, tokens) for name, x in results.items()}


def _together(verdicts: list[Verdict]) -> Verdict:
    """One verdict for all ranks; the errors are the worst, the reasons say whose they are."""

    def worst(figures: list[dict[str, float]]) -> dict[str, float]:
        return {
            name: max(one.get(name, 0.0) for one in figures) for name in sorted({n for one in figures for n in one})
        }

    reasons = [f"rank {rank}: {one.reason}" for rank, one in enumerate(verdicts) if one.reason]
    return Verdict(
        right=not reasons,
        reason="; ".join(reasons) or None,
        max_abs_error=worst([one.max_abs_error for one in verdicts]),
        over_budget=worst([one.over_budget for one in verdicts]),
        ranks=[one.over_budget for one in verdicts],
        leaked=any(one.leaked for one in verdicts),
    )


def _not_finite(name: str, got: Tensor, truth: Tensor) -> str | None:
    """Where one is not finite, the other must be the same: -inf for -inf (lse where no key is seen), NaN for NaN."""
    same = (got == truth) | (got.isnan() & truth.isnan())
    bad = ~(torch.isfinite(got) & torch.isfinite(truth)) & ~same
    if not bool(bad.any()):
        return None
    first = tuple(torch.nonzero(bad)[0].tolist())
    words = f"{name} has {int(bad.sum())} values that are not finite, or should not be"
    return f"{words}: {float(got[first]):g} at {first}, not {float(truth[first]):g}"


def _over_rows(name: str, error: Tensor, budget: Tensor) -> tuple[float, str | None]:
    """The largest share that an error has of its row's budget, and a reason where it is more than all."""
    ratio = error / budget
    worst = float(ratio.max())
    if worst <= 1.0:
        return worst, None
    row = tuple(int(i) for i in torch.unravel_index(ratio.argmax(), ratio.shape))
    return worst, (
        f"{name} is off by {float(error[row]):.2e} at row {row}, {worst:.3g} times the budget of "
        f"{float(budget[row]):.2e} ({int((ratio > 1).sum())} of {ratio.numel()} rows over)"
    )


def _over_heads(name: str, ratio: Tensor, allowed: float) -> tuple[float, str | None]:
    """The same of the root mean square of a head; ratio: every error as a share of its row's budget."""
    heads = by_head(ratio) / allowed
    worst = float(heads.max())
    if worst <= 1.0:
        return worst, None
    where = f" in head {int(heads.argmax())}" if heads.ndim else ""
    return worst, f"{name} is off on the whole{where}: {worst:.3g} times what the root mean square of its errors may be"


def _words(shape: torch.Size, dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape)) or 'a scalar'} {str(dtype).removeprefix('torch.')}"
