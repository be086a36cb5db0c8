"""What each schedule must send: bytes and messages a rank hands to its communicator in one call, from its formula.

N ranks, KV = 2 b (s / N) h_kv d e bytes (one rank's k and v, s / N rounded up), R = h / h_kv, e bytes an element.

    ring, zigzag, striped, collective   (N - 1) KV              backward (N - 1) (1 + 4 / e) KV
    ulysses                             (R + 1) KV (N - 1) / N  the same
    usp, U ranks in each of G groups    (R + 1) KV (U - 1) / U + (G - 1) KV
                                                                all-to-all the same, and (G - 1) (1 + 4 / e) KV
    tree_decode                         2 (N - 1) / N of 4 b h s (d + 1) and of 4 b h s, s queries

Where U does not divide h_kv, KV and R of ulysses and usp are those of repeated heads. The ring part of usp sends
gradients G - 1 times where others do G times, 2 KV less at 2 bytes an element.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from attn.contract import Workload
from attn.ring import heads
from attn.ring.layouts import local_seq_len

ELEMENT_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}
_ROTATIONS = ("ring_v1_p2p", "ring_zigzag", "ring_striped")


@dataclass(frozen=True)
class Due:
    """Of one rank and one call, in the pass of its workload."""

    payload_bytes: int
    messages: int

    def __add__(self, other: Due) -> Due:
        return Due(self.payload_bytes + other.payload_bytes, self.messages + other.messages)


def due(schedule: str, w: Workload, world_size: int, ulysses_size: int = 1) -> Due:
    """What the row of this name sends. ulysses_size: ranks in a group of `ring_usp`.

    Raises:
        Unsupported: heads that cannot be shared out evenly.
        ValueError: a row without a formula, or groups that do not divide the world.
    """
    if schedule in _ROTATIONS:
        return _rotation(w, world_size, _kv_bytes(w, world_size, w.n_kv_heads))
    if schedule == "ring_v2_collective":
        hops, kv = world_size - 1, _kv_bytes(w, world_size, w.n_kv_heads)
        return Due(_rotation(w, world_size, kv).payload_bytes, hops * (3 if w.backward else 1))
    if schedule == "ring_ulysses":
        return _all_to_all(w, world_size, world_size)
    if schedule == "ring_usp":
        if world_size % ulysses_size:
            raise ValueError(f"groups of {ulysses_size} ranks do not divide a world of {world_size}")
        kv = _kv_bytes(w, world_size, _kv_heads(w, ulysses_size))
        return _all_to_all(w, world_size, ulysses_size) + _rotation(w, world_size // ulysses_size, kv)
    if schedule == "ring_tree_decode":
        rows = w.batch * w.n_heads * w.seq_len
        parts = [2 * 4 * rows * (world_size - 1) / world_size * numbers for numbers in (1, w.head_dim + 1)]
        return Due(sum(math.ceil(part) for part in parts), 2 * (world_size - 1))
    raise ValueError(f"{schedule} has no formula of what it sends")


def _kv_bytes(w: Workload, world_size: int, n_kv_heads: int) -> int:
    tokens = w.batch * local_seq_len(w.kv_seq_len, world_size)
    return 2 * tokens * n_kv_heads * w.head_dim * ELEMENT_BYTES[w.dtype]


def _kv_heads(w: Workload, ranks: int) -> int:
    return w.n_kv_heads * heads.kv_repeats(w.n_heads, w.n_kv_heads, ranks)


def _rotation(w: Workload, ranks: int, kv: int) -> Due:
    """K and v go round; backward again, with their float32 gradients."""
    gradients = kv * 4 // ELEMENT_BYTES[w.dtype] if w.backward else 0
    passes = 2 if w.backward else 1
    return Due((ranks - 1) * (kv * passes + gradients), (ranks - 1) * (3 if w.backward else 1))


def _all_to_all(w: Workload, world_size: int, ranks: int) -> Due:
    """q, k and v there and out back; backward dout there, and dq, dk and dv back."""
    kv_heads, passes = _kv_heads(w, ranks), 2 if w.backward else 1
    total = (w.n_heads // kv_heads + 1) * _kv_bytes(w, world_size, kv_heads)
    return Due(passes * total * (ranks - 1) // ranks, passes * 2 * (ranks - 1))
