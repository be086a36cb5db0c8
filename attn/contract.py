"""The vocabulary: what is asked of an implementation, and in which words.

Shapes, everywhere in this project:
    q, out        (batch, seq_len, n_heads, head_dim)
    k, v          (batch, kv_seq_len, n_kv_heads, head_dim)
    lse           (batch, n_heads, seq_len), float32, natural logarithm
    x             (batch, seq_len, embed_dim)         embed_dim = n_heads * head_dim
    wq, wo        (embed_dim, embed_dim)              y = x @ w.T, no bias
    wk, wv        (n_kv_heads * head_dim, embed_dim)

This module imports nothing but the standard library, so that a list of rows costs no torch.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

if TYPE_CHECKING:
    import torch

Kind = Literal["core", "module", "ring"]
DeviceName = Literal["cpu", "cuda"]
Dtype = Literal["float32", "bfloat16", "float16"]
Precision = Literal["dtype", "tf32"]
MaskKind = Literal["full", "causal"]
Pass = Literal["forward", "forward_backward"]
Layout = Literal["contiguous", "zigzag", "striped", "replicated_q"]

KINDS: tuple[str, ...] = get_args(Kind)
DEVICES: tuple[str, ...] = get_args(DeviceName)
DTYPES: tuple[str, ...] = get_args(Dtype)
PRECISIONS: tuple[str, ...] = get_args(Precision)
MASKS: tuple[str, ...] = get_args(MaskKind)
PASSES: tuple[str, ...] = get_args(Pass)
LAYOUTS: tuple[str, ...] = get_args(Layout)


class Unsupported(Exception):
    """An implementation cannot do what was asked; the message says why, with numbers."""

    def __str__(self) -> str:
        """One line, as it stands in a table."""
        return " ".join(super().__str__().split()) or "no reason was given"


@dataclass(frozen=True)
class Mask:
    """Which keys a query may see.

    `full`: all of them. `causal`: key j is seen by query i where j <= i + kv_seq_len - seq_len, that
    is aligned at the bottom right (the last query sees every key).
    """

    kind: MaskKind

    def allowed(
        self,
        seq_len: int,
        kv_seq_len: int,
        device: torch.device | str = "cpu",
        rows: torch.Tensor | None = None,
    ) -> torch.Tensor | None:
        """Boolean (seq_len, kv_seq_len), True where the query sees the key; None where all do.

        With `rows` (positions of queries, 1-d integers), only those lines.
        """
        if self.kind == "full":
            return None
        import torch

        queries = torch.arange(seq_len, device=device) if rows is None else rows.to(device)
        return torch.arange(kv_seq_len, device=device) <= queries[:, None] + (kv_seq_len - seq_len)


@dataclass(frozen=True)
class Workload:
    """One shape of attention: everything about a cell but who computes it and on how many ranks."""

    batch: int
    seq_len: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    dtype: Dtype
    mask: MaskKind
    pass_: Pass
    kv_seq_len: int = 0
    softmax_scale: float = -1.0

    def __post_init__(self) -> None:
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads {self.n_heads} is not a multiple of n_kv_heads {self.n_kv_heads}")
        if not self.kv_seq_len:
            object.__setattr__(self, "kv_seq_len", self.seq_len)
        if self.softmax_scale < 0:
            object.__setattr__(self, "softmax_scale", self.head_dim**-0.5)

    @property
    def embed_dim(self) -> int:
        """Width of a module's input, n_heads * head_dim."""
        return self.n_heads * self.head_dim

    @property
    def backward(self) -> bool:
        """Whether gradients are computed too."""
        return self.pass_ == "forward_backward"

    @property
    def key(self) -> str:
        """A name for files: the same for equal workloads, sorted by size."""
        kv_heads = f"-kv{self.n_kv_heads:02d}" if self.n_kv_heads != self.n_heads else ""
        kv_len = f"-kvs{self.kv_seq_len:06d}" if self.kv_seq_len != self.seq_len else ""
        scale = f"-scale{self.softmax_scale:g}" if self.softmax_scale != self.head_dim**-0.5 else ""
        return (
            f"b{self.batch:02d}_h{self.n_heads:02d}{kv_heads}_s{self.seq_len:06d}{kv_len}_d{self.head_dim:03d}"
            f"{scale}_{self.dtype}_{self.mask}_{self.pass_}"
        )

    def as_dict(self) -> dict[str, Any]:
        """The fields under the names of params.yaml (`pass`, not `pass_`)."""
        fields = asdict(self)
        fields["pass"] = fields.pop("pass_")
        return fields

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> Workload:
        """The inverse of `as_dict`."""
        fields = dict(fields)
        fields["pass_"] = fields.pop("pass")
        return cls(**fields)
