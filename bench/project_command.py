"""`python -m bench project`: what the model of rings says of a cluster that is not here. Never a measurement."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable
from dataclasses import asdict
from typing import TYPE_CHECKING, Any, get_args

from tabulate import tabulate

from attn.contract import Dtype, MaskKind, Workload
from bench import machine, tables
from bench.commands import BadInput
from bench.grid import Params
from bench.lock import device_lock

if TYPE_CHECKING:
    from bench.project import Cluster

HELP = """\
Projected, not measured: the forward pass of each schedule on nodes of equally many ranks, from the rate of the fused
block (calibrated here in a few seconds as a function of its size, unless --tflops gives one) and of the links. The
formulas and their sources: bench/project.py; how far they are right: docs/rings.md."""
_MOST_RANKS = 2048


def arguments(sub: argparse.ArgumentParser) -> None:
    """Its options."""
    sub.add_argument("--nodes", type=_count, required=True, help="how many")
    sub.add_argument("--per-node", type=_count, required=True, help="ranks on each")
    sub.add_argument("--link", type=_positive, required=True, help="between nodes, bytes/s one way of each: 50e9")
    sub.add_argument("--latency", type=_positive, default=1e-5, help="of a message between nodes, s; default 1e-5")
    sub.add_argument("--node-link", type=_positive, default=3e11, help="inside a node, bytes/s a rank; default 3e11")
    sub.add_argument("--node-latency", type=_positive, default=3e-6, help="inside a node, s; default 3e-6")
    sub.add_argument("--tflops", type=_positive, help="rate of the fused block on one rank, instead of calibrating")
    sub.add_argument("--seq-len", type=_count, required=True, help="tokens of the whole sequence")
    for name, default in (("batch", 1), ("n-heads", 8), ("n-kv-heads", 0), ("head-dim", 64)):
        sub.add_argument(f"--{name}", type=_count, default=default, help=f"default {default or 'as --n-heads'}")
    sub.add_argument("--dtype", choices=get_args(Dtype), default="float32", help="default float32")
    sub.add_argument("--mask", choices=get_args(MaskKind), default="causal", help="default causal")


def run(params: Params, asked: argparse.Namespace) -> int:
    """Exit 0."""
    from bench import project

    ranks = asked.nodes * asked.per_node
    if ranks > _MOST_RANKS:
        raise BadInput(f"--nodes x --per-node = {ranks} ranks, allowed: up to {_MOST_RANKS}")
    try:
        w = Workload(
            asked.batch, asked.seq_len, asked.n_heads, asked.n_kv_heads or asked.n_heads, asked.head_dim,
            asked.dtype, asked.mask, "forward",
        )  # fmt: skip
    except ValueError as error:
        raise BadInput(str(error)) from None
    rates = {"block_tflops": {1: asked.tflops}} if asked.tflops else _calibrate(w, machine.identity(params))
    cluster = project.Cluster(
        asked.nodes, asked.per_node, project.Link(asked.link, asked.latency),
        project.Link(asked.node_link, asked.node_latency), **rates,
    )  # fmt: skip
    found = project.all_of(w, cluster)
    source = "given" if asked.tflops else f"calibrated here, {machine.identity(params)['threads']} threads a rank"
    if asked.json:
        shown = {name: one if isinstance(one, str) else asdict(one) for name, one in found.items()}
        inputs = {"workload": w.as_dict(), "cluster": asdict(cluster), "block_rate": source}
        print(json.dumps({"kind": "projected", "inputs": inputs, "schedules": shown}, indent=1))
    else:
        print(_text(w, cluster, found, source))
    return 0


def _text(w: Workload, cluster: Cluster, found: dict[str, Any], source: str) -> str:
    rows, reasons = [], []
    for name, one in found.items():
        if isinstance(one, str):
            reasons.append(f"{tables.CROSS} {name}: {one}")
            continue
        times = [tables.short(1e3 * x) for x in (one.seconds, one.compute_s, one.seconds - one.compute_s)]
        rows.append([name, *times, f"{one.payload_bytes / 2**20:.1f}", f"{w.batch * w.seq_len / one.seconds:.0f}"])
    headers = ["projected", "time ms", "compute ms", "exposed ms", "sent MiB", "tok/s"]
    rates = ", ".join(f"{side}: {rate:.3g}" for side, rate in cluster.block_tflops.items())
    between, inside = cluster.between, cluster.inside
    return "\n".join([
        tabulate(rows, headers, tablefmt="simple", disable_numparse=True, colalign=("left", *["right"] * 5)), "",
        f"Projected, not measured: {w.key}, {cluster.nodes} nodes x {cluster.per_node} ranks.",
        f"Between nodes {between.bytes_per_s:g} bytes/s, {between.latency_s:g} s; "
        f"inside {inside.bytes_per_s:g} bytes/s, {inside.latency_s:g} s.",
        f"TFLOP/s of the fused block by its side ({source}): {rates}. Formulas: bench/project.py.", *reasons,
    ])  # fmt: skip


def _calibrate(w: Workload, identity: dict[str, Any]) -> dict[str, Any]:
    """Of one rank: all threads of this machine, or its device."""
    import torch

    from bench import calibration
    from bench.device import open_device

    torch.set_num_threads(identity["threads"])
    with device_lock(identity["device"]):
        return calibration.here(w, open_device(identity["device"]))


def _positive(text: str) -> float:
    return _number(text, float, "a number above 0")


def _count(text: str) -> int:
    return int(_number(text, int, "a whole number above 0"))


def _number(text: str, kind: Callable[[str], float], allowed: str) -> float:
    try:
        value = kind(text)
    except ValueError:
        value = 0
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"{text}, allowed: {allowed}")
    return value
