"""A model of rings: the time of each schedule from the rate of the fused block and of the links. Forward only.

    rotation (v1_p2p, zigzag, striped)  every hop starts when its shard is there and its link is free, and every block
                                        when its shard is there and the one before is done; the last rank to finish
    collective                          (N - 1) hops of the slowest link, then all blocks of the slowest rank
    ulysses                             two all-to-alls (the node's link takes what its ranks send elsewhere), one block
    usp, groups of one node             all-to-alls inside nodes; a rotation across, a node's ranks sharing its link

A hop takes latency + bytes / rate. Bytes: attn/ring/formulas.py; blocks: attn/ring/layouts.py. Sources: Liu et al. 2023
(arXiv 2310.01889), Jacobs et al. 2023 (arXiv 2309.14509), Fang and Zhao 2024 (arXiv 2405.07719). Merging and packing
are taken to cost nothing.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from attn.contract import Mask, Unsupported, Workload
from attn.ring import formulas, heads, layouts

Times = NDArray[np.float64]
LAYOUTS = {"ring_v1_p2p": "contiguous", "ring_zigzag": "zigzag", "ring_striped": "striped"}
SCHEDULES = (*LAYOUTS, "ring_v2_collective", "ring_ulysses", "ring_usp")


@dataclass(frozen=True)
class Link:
    """Bytes a second one way, and seconds before the first byte."""

    bytes_per_s: float
    latency_s: float

    def seconds(self, sent_bytes: float) -> float:
        """Of one message."""
        return self.latency_s + sent_bytes / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Nodes of equally many ranks; between nodes one link each, inside a node one a rank.

    block_tflops: of the fused block on one rank, by the side of a square block in tokens.
    """

    nodes: int
    per_node: int
    between: Link
    inside: Link
    block_tflops: dict[int, float]

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node

    def block_s(self, w: Workload, n_heads: float, queries: int, keys: int, *, causal: bool) -> float:
        """Seconds of one block; its rate is that of a square of as many pairs, between sizes by logarithms."""
        pairs = w.batch * n_heads * queries * keys / (2 if causal else 1)
        sides = sorted(self.block_tflops)
        rates = np.log([self.block_tflops[side] for side in sides])
        rate = math.exp(np.interp(math.log(math.sqrt(max(1, queries * keys))), np.log(sides), rates))
        return 4 * pairs * w.head_dim / (rate * 1e12)


@dataclass(frozen=True)
class Projected:
    """Seconds of one forward pass, and what of it the slowest rank computes; bytes that a rank sends."""

    seconds: float
    compute_s: float
    payload_bytes: int


def project(schedule: str, w: Workload, cluster: Cluster) -> Projected:
    """One schedule.

    Raises:
        Unsupported: it cannot serve this workload on so many ranks; the message says why.
        ValueError: a schedule that is not modelled.
    """
    n = cluster.world_size
    size = cluster.per_node if schedule == "ring_usp" else 1
    sent = formulas.due(schedule, w, n, size).payload_bytes
    if schedule == "ring_ulysses":
        compute = _whole_block(w, cluster, n)
        return Projected(_all_to_alls(sent, n, cluster) + compute, compute, sent)
    if schedule == "ring_usp":
        return _two_dimensions(w, cluster, sent)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule}, allowed: {', '.join(SCHEDULES)}")
    blocks = _blocks(w, cluster, LAYOUTS.get(schedule, "contiguous"), n, w.n_heads)
    compute, hops = float(blocks.sum(1).max()), _hops(sent / max(1, n - 1), n, cluster)
    if schedule == "ring_v2_collective":
        return Projected((n - 1) * float(hops.max()) + compute, compute, sent)
    return Projected(_rotated(blocks, hops), compute, sent)


def _two_dimensions(w: Workload, cluster: Cluster, sent: int) -> Projected:
    """Groups of one node: heads are shared out inside, k and v rotate across, all ranks of a node at once."""
    size, groups = cluster.per_node, cluster.nodes
    inside = formulas.due("ring_usp", w, cluster.world_size, size).payload_bytes
    there = replace(w, n_kv_heads=w.n_kv_heads * heads.kv_repeats(w.n_heads, w.n_kv_heads, size))
    rotated = formulas.due("ring_v1_p2p", there, cluster.world_size).payload_bytes / max(1, cluster.world_size - 1)
    inside -= round((groups - 1) * rotated)
    blocks = _blocks(w, cluster, "contiguous", groups, w.n_heads / size)
    hops = np.full(groups, cluster.between.seconds(rotated * size))
    exchanged = 2 * (size - 1) * cluster.inside.latency_s + max(0, inside) / cluster.inside.bytes_per_s
    compute = float(blocks.sum(1).max())
    return Projected(exchanged + _rotated(blocks, hops), compute, sent)


def _blocks(w: Workload, cluster: Cluster, layout: str, ranks: int, n_heads: float) -> Times:
    """[rank, step]: seconds of the block that a rank computes in a step."""
    local, mask = layouts.local_seq_len(w.seq_len, ranks), Mask(w.mask)
    lengths = layouts.lengths(w.seq_len, layout, ranks, local)
    known: dict[tuple[int, int, bool], float] = {}
    found = np.zeros((ranks, ranks))
    for rank in range(ranks):
        for step in range(ranks):
            seen = layouts.seen(mask, layout, lengths, local, rank, (rank - step) % ranks)
            if seen:
                shape = (_length(seen.queries), _length(seen.keys), seen.causal)
                if shape not in known:
                    known[shape] = cluster.block_s(w, n_heads, shape[0], shape[1], causal=shape[2])
                found[rank, step] = known[shape]
    return found


def _rotated(blocks: Times, hops: Times) -> float:
    """When the last rank has finished its last block."""
    ranks = len(blocks)
    arrived, free, done = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    for step in range(ranks):
        start = np.maximum(arrived, done)
        if step < ranks - 1:
            free = np.maximum(start, free) + hops
            arrived = np.roll(free, 1)
        done = start + blocks[:, step]
    return float(done.max())


def _hops(sent_bytes: float, ranks: int, cluster: Cluster) -> Times:
    """Of each rank to the next: the last one of a node sends to another node."""
    last = np.arange(ranks) % cluster.per_node == cluster.per_node - 1
    crosses = last & (cluster.nodes > 1)
    return np.where(crosses, cluster.between.seconds(sent_bytes), cluster.inside.seconds(sent_bytes))


def _all_to_alls(sent: int, ranks: int, cluster: Cluster) -> float:
    """Both: what goes to other nodes shares the node's link; the slower of the two ways decides."""
    if ranks == 1:
        return 0.0
    elsewhere = (ranks - cluster.per_node) / (ranks - 1)
    across = sent * elsewhere * cluster.per_node / cluster.between.bytes_per_s
    inside = sent * (1 - elsewhere) / cluster.inside.bytes_per_s
    latency = cluster.between.latency_s if cluster.nodes > 1 else cluster.inside.latency_s
    return max(across, inside) + 2 * latency * (ranks - 1)


def _whole_block(w: Workload, cluster: Cluster, ranks: int) -> float:
    return cluster.block_s(w, w.n_heads / ranks, w.seq_len, w.seq_len, causal=w.mask == "causal")


def _length(part: slice) -> int:
    return int(part.stop - part.start)


def all_of(w: Workload, cluster: Cluster) -> dict[str, Projected | str]:
    """Every schedule, or why it cannot."""

    def one(schedule: str) -> Projected | str:
        try:
            return project(schedule, w, cluster)
        except Unsupported as error:
            return str(error)

    return {schedule: one(schedule) for schedule in SCHEDULES}


def calibrated(block: Callable[[int], float], sides: tuple[int, ...], n_heads: int, head_dim: int) -> dict[int, float]:
    """TFLOP/s by side, from the seconds of a square block of that side."""
    return {side: 4 * side * side * n_heads * head_dim / block(side) / 1e12 for side in sides}
