"""Every timed call is judged: on inputs that it has never seen, by what it left, both outside the clock."""

from __future__ import annotations

import random
from dataclasses import replace

import torch

from bench import solved
from bench.calls import CoreCall, not_plain
from bench.flips import Flips
from bench.judge import Verdict, judge
from bench.solved import Solved, Tensors
from bench.team import Team


class WrongResult(Exception):
    """What a timed call left is not right."""

    def __init__(self, verdict: Verdict) -> None:
        super().__init__(verdict.reason)
        self.verdict = verdict


class Watch:
    """Goes around the calls of a sample. All ranks of a team must go through the same ones.

    Inputs are, call by call, a random image (bench.flips) of one of two problems: the cell's own, and its mirror
    image, whose scores are others. The first result of each is judged against truth and budget; later ones must be
    the same bits, but for their signs, or are judged too.
    """

    def __init__(self, call: CoreCall, problem: Solved, team: Team, seed: int) -> None:
        self.call, self._team = call, team
        kind = call.implementation.kind
        self._problems = (problem, solved.mirrored(kind, problem, call.workload.mask))
        self._inputs = [call.held_inputs(one.inputs) for one in self._problems]
        self._known: list[Tensors | None] = [None, None]
        self._flips, self._random = Flips(kind, call.workload, seed, call.device), random.Random(seed)
        self._which, self._signs = 0, self._flips.draw()

    def new_sample(self) -> None:
        """Of a module, other weights: too much to change before every call."""
        self._flips.redraw_weights()
        self.call.reload(self._flips.weights)

    def before(self) -> None:
        """Other inputs into the same buffers, past torch's count of changes; then all ranks line up."""
        self._which, self._signs = self._random.randrange(2), self._flips.draw()
        for name, x in self._inputs[self._which].items():
            torch.mul(x, self._signs[name], out=self.call.buffers[name].data)
        self._team.line_up()

    def after(self) -> None:
        """Compare with what is known.

        Raises:
            WrongResult: on every rank, where any has a wrong part.
        """
        found = self.call.computed()
        odd = not_plain(found)
        found = {name: x.detach() * self._signs[name] for name, x in found.items()}
        known = self._known[self._which] or {}
        same = not odd and found.keys() == known.keys() and all(torch.equal(x, known[n]) for n, x in found.items())
        everywhere = self._team.gather([float(same)])
        if self._team.agree(float(all(of_rank[0] for of_rank in everywhere))):
            return
        self._judge(odd)
        self._known[self._which] = found

    def _judge(self, odd: list[str]) -> None:
        results = {name: x * self._signs[name].cpu() for name, x in self.call.results(with_lse=False).items()}
        problem, team = self._problems[self._which], self._team
        verdict = judge(results, problem, self.call.workload.dtype, self.call.held) if team.rank == 0 else None
        if verdict and odd:
            verdict = replace(verdict, right=False, reason="; ".join(odd))
        right = bool(team.agree(float(verdict is None or verdict.right)))
        if not right:
            raise WrongResult(verdict or Verdict(False, None))
