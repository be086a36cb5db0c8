"""An implementation and its inputs, made into something that can be called, timed and judged.

One class a kind. All hold their inputs in buffers of their own, so that a second draw of inputs can be
put into the very same buffers: an implementation that keeps outputs by address is caught.
"""

from __future__ import annotations

import threading
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from attn import registry
from attn.contract import Mask, Unsupported, Workload
from attn.registry import Implementation
from attn.ring import layouts
from attn.ring.communicator import Communicator
from bench import idle
from bench.solved import Tensors


class CoreCall:
    """q, k, v -> out, and with `pass: forward_backward` also dq, dk, dv."""

    leaves: tuple[str, ...] = ("q", "k", "v")

    def __init__(self, implementation: Implementation, workload: Workload, given: Tensors, device: str = "cpu") -> None:
        self.implementation, self.workload, self.device = implementation, workload, device
        self.module: ModuleType = registry.load(implementation)
        self.entry = registry.entry_point(implementation, self.module)
        self.mask = Mask(workload.mask)
        self.buffers: Tensors = {name: self._held(name, x).to(device, copy=True) for name, x in given.items()}
        self.settings = torch_settings()
        for name in self.leaves:
            self.buffers[name].requires_grad_(workload.backward)
        self.out: Tensor | None = None
        self.returned: Tensors = {}
        self._threads = threading.enumerate()

    def __call__(self) -> None:
        """One pass; what it leaves is read with `results`."""
        self.out = None
        if not self.workload.backward:
            with torch.no_grad():
                self.out = self._forward()
            return
        for leaf in self.buffers.values():
            leaf.grad = None
        self.out = self._forward()
        self.out.backward(self.buffers["dout"])

    def results(self, *, with_lse: bool = True) -> Tensors:
        """What the last call computed, on the CPU, whole (not sharded); copied at once, as its caller would read it.

        Of a row that gives it, also lse, of a call of its own.
        """
        self.returned = {name: x.detach().to("cpu", copy=True) for name, x in self.computed().items()}
        more = self._with_lse() if with_lse else {}
        return self._whole(self.returned) | {name: x.detach().to("cpu", copy=True) for name, x in more.items()}

    def without_gradients(self) -> Tensors:
        """`out` of a call that is not asked for gradients, which may take another way to it; nothing where none is."""
        if not self.workload.backward:
            return {}
        with torch.no_grad():
            out = self._forward().to("cpu", copy=True)
        whole = self._whole({"out": out})
        return {"out_without_gradients": whole["out"]} if whole else {}

    def still_at_work(self) -> list[str]:
        """What has changed since `results` copied it, and threads that the call left running."""
        busy = [f"{ms:.0f} ms of work in 20 ms in which nobody called"] if (ms := idle.busy_ms()) else []
        now = self.computed()
        changed = [f"{n} changed" for n, x in self.returned.items() if not identical(x, now[n].detach().cpu())]
        return changed + [f"thread {one.name}" for one in threading.enumerate() if one not in self._threads] + busy

    @property
    def held(self) -> list[Tensor]:
        """Of a ring, the tokens of each rank."""
        return []

    def refill(self, given: Tensors) -> None:
        """Put other values into the same buffers, past torch's count of changes: nothing but the values tells."""
        for name, x in self.held_inputs(given).items():
            held = self.buffers[name].data
            once = tuple(slice(None if stride else 1) for stride in held.stride())  # what is expanded is there once
            held[once].copy_(x[once])

    def held_inputs(self, given: Tensors) -> Tensors:
        """What the buffers take of given inputs, on the device."""
        return {name: self._held(name, given[name]).to(self.device) for name in self.buffers}

    def reload(self, signs: Tensors) -> None:
        """Weights with other signs, where there are weights."""

    def changed_inputs(self, given: Tensors) -> list[str]:
        """Names of the inputs that are not, bit for bit, what they were."""
        return [n for n, x in self.buffers.items() if not identical(x.detach().cpu(), self._held(n, given[n]))]

    def forget(self) -> None:
        """Drop the last result, so that it does not count as memory in use."""
        self.out = None
        for leaf in self.buffers.values():
            leaf.grad = None

    def input_bytes(self) -> int:
        """Bytes of the buffers."""
        return sum(x.nbytes for x in self.buffers.values())

    def _forward(self) -> Tensor:
        b = self.buffers
        return self.entry(b["q"], b["k"], b["v"], softmax_scale=self.workload.softmax_scale, mask=self.mask)  # type: ignore[no-any-return]

    def computed(self) -> Tensors:
        """What the last call computed, as it returned it."""
        assert self.out is not None
        gradients = self._gradients() if self.workload.backward else {}
        return {"out": self.out} | {name: grad for name, grad in gradients.items() if grad is not None}

    def _gradients(self) -> dict[str, Tensor | None]:
        return {f"d{name}": self.buffers[name].grad for name in self.leaves}

    def _with_lse(self) -> Tensors:
        """Of a row that gives it, lse, and the out that came with it."""
        with_lse = getattr(self.module, "attention_with_lse", None)
        if with_lse is None:
            return {}
        b = {name: x.detach() for name, x in self.buffers.items()}
        try:
            out, lse = with_lse(b["q"], b["k"], b["v"], softmax_scale=self.workload.softmax_scale, mask=self.mask)
        except Unsupported:
            return {}
        return {"lse": lse, "out_with_lse": out}

    def _held(self, _: str, x: Tensor) -> Tensor:
        return x

    def _whole(self, found: Tensors) -> Tensors:
        return found


class ModuleCall(CoreCall):
    """x -> out, projections included; gradients of x and of the four weights."""

    leaves = ("x",)

    def __init__(self, implementation: Implementation, workload: Workload, given: Tensors, device: str = "cpu") -> None:
        super().__init__(implementation, workload, given, device)
        w = workload
        self.attention = self.entry(w.embed_dim, w.n_heads, w.n_kv_heads)
        self.attention.to(device=device, dtype=given["x"].dtype)
        self.attention.train(w.backward)
        self._weights = {name: self.buffers.pop(name) for name in ("wq", "wk", "wv", "wo")}
        self._weight_gradients: dict[str, Tensor | None] = {}
        self.reload({})

    def __call__(self) -> None:
        """One pass, weight gradients as their reader gets them included."""
        self._weight_gradients = {}
        self.attention.zero_grad(set_to_none=True)
        super().__call__()
        if self.workload.backward:
            self._weight_gradients = dict(zip(("dwq", "dwk", "dwv", "dwo"), self.attention.gradients(), strict=True))

    def refill(self, given: Tensors) -> None:
        """Also the weights, as they were given at first."""
        super().refill(given)
        self.reload({})

    def reload(self, signs: Tensors) -> None:
        """The weights that were given, with these signs."""
        self.attention.load(*(x * signs[name] if signs else x for name, x in self._weights.items()))

    def input_bytes(self) -> int:
        """Inputs and weights."""
        return super().input_bytes() + sum(int(p.nbytes) for p in self.attention.parameters())

    def forget(self) -> None:
        """Weight gradients too."""
        super().forget()
        self._weight_gradients = {}
        self.attention.zero_grad(set_to_none=True)

    def _forward(self) -> Tensor:
        return self.attention(self.buffers["x"], mask=self.mask)  # type: ignore[no-any-return]

    def _gradients(self) -> dict[str, Tensor | None]:
        return {"dx": self.buffers["x"].grad, **self._weight_gradients}

    def _with_lse(self) -> Tensors:
        return {}


class RingCall(CoreCall):
    """Local shards in, local out; `team` puts the whole together on rank 0."""

    def __init__(
        self, implementation: Implementation, workload: Workload, given: Tensors, device: str, team: Any
    ) -> None:
        self.team = team
        self.comm = Communicator(
            team.rank, team.world_size, workload.kv_seq_len, team.transport, team.node_of_rank, team.ulysses_size
        )
        super().__init__(implementation, workload, given, device)

    def _forward(self) -> Tensor:
        b = self.buffers
        return self.entry(  # type: ignore[no-any-return]
            b["q"], b["k"], b["v"], softmax_scale=self.workload.softmax_scale, mask=self.mask, comm=self.comm
        )

    def _held(self, name: str, x: Tensor) -> Tensor:
        layout = layouts.of_tensor(self.implementation.layout, name)
        return layouts.shard(x, layout, self.team.rank, self.team.world_size)

    @property
    def held(self) -> list[Tensor]:
        """The tokens of each rank, padding left out; nothing where all have the same."""
        n, layout = self.team.world_size, self.implementation.layout
        return (
            []
            if layout == "replicated_q"
            else [layouts.tokens(self.workload.seq_len, layout, rank, n) for rank in range(n)]
        )

    def _whole(self, found: Tensors) -> Tensors:
        """On rank 0, of what every rank returned in its shape and dtype."""
        due = {"out": self.buffers["q"], **{f"d{leaf}": self.buffers[leaf] for leaf in self.leaves}}
        fits = [n in found and (found[n].shape, found[n].dtype) == (x.shape, x.dtype) for n, x in due.items()]
        everywhere = [all(of_ranks) for of_ranks in zip(*self.team.gather([float(x) for x in fits]), strict=True)]
        agreed = int(self.team.agree(float(sum(1 << i for i, fits in enumerate(everywhere) if fits))))
        whole = {}
        for i, name in enumerate(due):
            if agreed >> i & 1:
                mine = found[name]
                shards = self.team.gather_tensor(mine)
                whole[name] = (
                    layouts.unshard(shards, self.implementation.layout, self.workload.seq_len) if shards else mine
                )
        return whole

    def _with_lse(self) -> Tensors:
        return {}


def make(implementation: Implementation, workload: Workload, given: Tensors, device: str, team: Any = None) -> CoreCall:
    """The call for an implementation of any kind.

    Raises:
        Unsupported: by declaration, or by the implementation itself.
    """
    reason = implementation.why_not(workload, device)
    if reason:
        raise Unsupported(reason)
    if implementation.kind == "ring":
        return RingCall(implementation, workload, given, device, team)
    kind = ModuleCall if implementation.kind == "module" else CoreCall
    return kind(implementation, workload, given, device)


def not_plain(found: Tensors) -> list[str]:
    """What is not a tensor but something that may compute itself only when it is read."""
    return [f"{n} is a {type(x).__name__}, not a torch.Tensor" for n, x in found.items() if type(x) is not Tensor]


def torch_settings() -> dict[str, Any]:
    """Settings of torch that hold for the whole process, and so for whoever is measured after a call."""
    backends = torch.backends
    return {
        "threads": torch.get_num_threads(),
        "default dtype": torch.get_default_dtype(),
        "float32 matmul precision": torch.get_float32_matmul_precision(),
        "gradients": torch.is_grad_enabled(),
        "mkldnn": torch._C._get_mkldnn_enabled(),
        "cudnn": backends.cudnn.enabled,
        "flash attention": backends.cuda.flash_sdp_enabled(),
        "efficient attention": backends.cuda.mem_efficient_sdp_enabled(),
        "plain attention": backends.cuda.math_sdp_enabled(),
        "denormal numbers": bool(torch.tensor(1e-310, dtype=torch.float64) * 0.5),
    }


def identical(one: Tensor, other: Tensor) -> bool:
    """Bit for bit, so that NaN is NaN."""
    return torch.equal(_bytes(one), _bytes(other))


def _bytes(x: Tensor) -> Tensor:
    return x.as_subclass(Tensor).contiguous().flatten().view(torch.uint8)
