"""A model of rings: the time of each schedule from the rates of a rank and of the links. Forward only.

    rotation (v1_p2p, zigzag, striped)  every hop starts when its shard is there and its link is free, and every block
                                        when its shard is there and the one before is done; the last rank to finish
    collective                          (N - 1) hops of the slowest link, then all blocks of the slowest rank
    ulysses                             two all-to-alls (the node's link takes what its ranks send elsewhere), one block
    usp, groups of one node             all-to-alls inside nodes; a rotation across, a node's ranks sharing its link

link        a message takes latency + (bytes - burst) / rate; burst: what a shaped link's bucket lets through
block       FLOPs / rate, by size, causal ones apart; heads of k and v that are shared are repeated first, a copy
copies      rotation: k and v packed. collective: packed, into and out of gloo's buffer, joined, 2 + 2 N of KV.
            ulysses: packed, dealt and joined, 3 of q, k and v there, 3 of out back. Those inside usp's nodes: none
merge       of every block after a rank's first
processor   what sending and receiving a byte takes of it, from the block that is computed meanwhile

Bytes: attn/ring/formulas.py; blocks: attn/ring/layouts.py; rates: bench/calibration.py, 0 where not calibrated.
Sources: Liu et al. 2023 (arXiv 2310.01889), Jacobs et al. 2023 (arXiv 2309.14509), Fang and Zhao 2024 (arXiv
2405.07719).
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from attn.contract import Mask, Unsupported, Workload
from attn.ring import formulas, heads, layouts

Times = NDArray[np.float64]
LAYOUTS = {"ring_v1_p2p": "contiguous", "ring_zigzag": "zigzag", "ring_striped": "striped"}
SCHEDULES = (*LAYOUTS, "ring_v2_collective", "ring_ulysses", "ring_usp")


@dataclass(frozen=True)
class Link:
    """Bytes a second one way, and seconds before the first byte.

    burst_bytes: of each message, what does not wait for the rate. processor_s_per_byte: of a rank that sends a byte
    and receives one.
    """

    bytes_per_s: float
    latency_s: float
    burst_bytes: float = 0.0
    processor_s_per_byte: float = 0.0

    def seconds(self, sent_bytes: float) -> float:
        """Of one message."""
        return self.latency_s + max(0.0, sent_bytes - self.burst_bytes) / self.bytes_per_s


@dataclass(frozen=True)
class Cluster:
    """Nodes of equally many ranks; between nodes one link each, inside a node one a rank.

    block_tflops, causal_tflops: of the fused block on one rank, by the side of a square block in tokens; no causal
    ones: as the others. copy_s_per_byte: into new memory. merge_s_per_byte: of float32 `out`.
    """

    nodes: int
    per_node: int
    between: Link
    inside: Link
    block_tflops: dict[int, float]
    causal_tflops: dict[int, float] = field(default_factory=dict)
    copy_s_per_byte: float = 0.0
    merge_s_per_byte: float = 0.0

    @property
    def world_size(self) -> int:
        """All ranks."""
        return self.nodes * self.per_node

    def block_s(self, w: Workload, n_heads: float, queries: int, keys: int, *, causal: bool) -> float:
        """Seconds of one block; its rate is that of a square of as many pairs, between sizes by logarithms."""
        pairs = w.batch * n_heads * queries * keys / (2 if causal else 1)
        known = self.causal_tflops if causal and self.causal_tflops else self.block_tflops
        sides = sorted(known)
        rates = np.log([known[side] for side in sides])
        rate = math.exp(np.interp(math.log(math.sqrt(max(1, queries * keys))), np.log(sides), rates))
        repeated = 2 * _bytes(w, keys, n_heads) if w.n_heads > w.n_kv_heads else 0
        return 4 * pairs * w.head_dim / (rate * 1e12) + repeated * self.copy_s_per_byte

    def merge_s(self, w: Workload, n_heads: float, queries: int) -> float:
        """Seconds to merge one block's `out`."""
        return self.merge_s_per_byte * 4 * w.batch * queries * n_heads * w.head_dim


@dataclass(frozen=True)
class Projected:
    """Seconds of one forward pass, what of it the slowest rank computes, copies and merges; bytes that a rank sends."""

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
    sent = formulas.due(schedule, w, n, cluster.per_node if schedule == "ring_usp" else 1).payload_bytes
    if schedule == "ring_ulysses":
        return _ulysses(w, cluster, sent)
    if schedule == "ring_usp":
        return _two_dimensions(w, cluster, sent)
    if schedule == "ring_v2_collective":
        return _collective(w, cluster, sent)
    if schedule not in SCHEDULES:
        raise ValueError(f"schedule {schedule}, allowed: {', '.join(SCHEDULES)}")
    blocks, hop = _blocks(w, cluster, LAYOUTS[schedule], n, w.n_heads), sent / max(1, n - 1)
    packed = _kv_bytes(w, n) * cluster.copy_s_per_byte
    seconds = packed + _rotated(blocks, *_hops(hop, n, cluster))
    return Projected(seconds, packed + float(blocks.sum(1).max()), sent)


def _collective(w: Workload, cluster: Cluster, sent: int) -> Projected:
    """Of each rank all queries it holds against all keys before its own, and its own."""
    n = cluster.world_size
    local, hops = layouts.local_seq_len(w.seq_len, n), _hops(sent / max(1, n - 1), n, cluster)[0]
    blocks = 0.0
    for rank, own in enumerate(layouts.lengths(w.seq_len, "contiguous", n, local)):
        if w.mask == "full":
            blocks = max(blocks, cluster.block_s(w, w.n_heads, own, w.seq_len, causal=False))
            continue
        mine = cluster.block_s(w, w.n_heads, own, own, causal=True)
        if rank:
            mine += cluster.block_s(w, w.n_heads, own, rank * local, causal=False) + cluster.merge_s(w, w.n_heads, own)
        blocks = max(blocks, mine)
    compute = blocks + (2 + 2 * n) * _kv_bytes(w, n) * cluster.copy_s_per_byte
    return Projected((n - 1) * float(hops.max()) + compute, compute, sent)


def _ulysses(w: Workload, cluster: Cluster, sent: int) -> Projected:
    """All tokens of a share of the heads, in one block, between two all-to-alls."""
    n = cluster.world_size
    local, kv_heads = layouts.local_seq_len(w.seq_len, n), w.n_kv_heads * heads.kv_repeats(w.n_heads, w.n_kv_heads, n)
    out = _bytes(w, local, w.n_heads)
    there = out + 2 * _bytes(w, local, kv_heads)
    compute = cluster.block_s(w, w.n_heads / n, w.seq_len, w.seq_len, causal=w.mask == "causal")
    compute += 3 * (there + out) * cluster.copy_s_per_byte
    exchanged = sum(_all_to_all(part * (n - 1) / n, n, cluster) for part in (there, out))
    return Projected(exchanged + compute, compute, sent)


def _two_dimensions(w: Workload, cluster: Cluster, sent: int) -> Projected:
    """Groups of one node: heads are shared out inside, k and v rotate across, all ranks of a node at once."""
    size, groups = cluster.per_node, cluster.nodes
    inside = formulas.due("ring_usp", w, cluster.world_size, size).payload_bytes
    there = replace(w, n_kv_heads=w.n_kv_heads * heads.kv_repeats(w.n_heads, w.n_kv_heads, size))
    rotated = formulas.due("ring_v1_p2p", there, cluster.world_size).payload_bytes / max(1, cluster.world_size - 1)
    inside -= round((groups - 1) * rotated)
    blocks = _blocks(w, cluster, "contiguous", groups, w.n_heads / size)
    hops = np.full(groups, cluster.between.seconds(rotated * size))
    busy = np.full(groups, rotated * cluster.between.processor_s_per_byte)
    packed = rotated * cluster.copy_s_per_byte
    exchanged = 2 * (size - 1) * cluster.inside.latency_s + max(0, inside) / cluster.inside.bytes_per_s
    compute = packed + float(blocks.sum(1).max())
    return Projected(exchanged + packed + _rotated(blocks, hops, busy), compute, sent)


def _blocks(w: Workload, cluster: Cluster, layout: str, ranks: int, n_heads: float) -> Times:
    """[rank, step]: seconds of the block that a rank computes in a step, and of merging it."""
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
                found[rank, step] = known[shape] + (cluster.merge_s(w, n_heads, shape[0]) if step else 0)
    return found


def _rotated(blocks: Times, hops: Times, busy: Times) -> float:
    """When the last rank has finished its last block. busy: processor seconds of a hop, taken from the block beside it.

    A block that is shorter than the hop gives up the hop's share of the processor as long as it lasts.
    """
    ranks = len(blocks)
    arrived, free, done = np.zeros(ranks), np.zeros(ranks), np.zeros(ranks)
    for step in range(ranks):
        start = np.maximum(arrived, done)
        done = start + blocks[:, step]
        if step < ranks - 1:
            free = np.maximum(start, free) + hops
            arrived = np.roll(free, 1)
            done += busy * np.minimum(1, blocks[:, step] / np.maximum(hops - busy, 1e-12))
    return float(done.max())


def _hops(sent_bytes: float, ranks: int, cluster: Cluster) -> tuple[Times, Times]:
    """Seconds, and processor seconds, of each rank's to the next: the last one of a node sends to another node."""
    last = np.arange(ranks) % cluster.per_node == cluster.per_node - 1
    crosses = last & (cluster.nodes > 1)
    between, inside = cluster.between, cluster.inside
    busy = np.where(crosses, between.processor_s_per_byte, inside.processor_s_per_byte) * sent_bytes
    return np.where(crosses, between.seconds(sent_bytes), inside.seconds(sent_bytes)), busy


def _all_to_all(sent: float, ranks: int, cluster: Cluster) -> float:
    """What goes to other nodes shares the node's link; the slower of the two ways decides."""
    if ranks == 1:
        return 0.0
    elsewhere = (ranks - cluster.per_node) / (ranks - 1)
    across, inside = sent * elsewhere * cluster.per_node, sent * (1 - elsewhere)
    slowest = max(
        link.seconds(part) - link.latency_s for link, part in ((cluster.between, across), (cluster.inside, inside))
    )
    return slowest + (ranks - 1) * (cluster.between if cluster.nodes > 1 else cluster.inside).latency_s


def _bytes(w: Workload, tokens: int, n_heads: float) -> float:
    return w.batch * tokens * n_heads * w.head_dim * formulas.ELEMENT_BYTES[w.dtype]


def _kv_bytes(w: Workload, ranks: int) -> float:
    """Of a rank's k and v."""
    return 2 * _bytes(w, layouts.local_seq_len(w.seq_len, ranks), w.n_kv_heads)


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
