"""What rows of other libraries share: a package that is missing, or a GPU that is another, is Unsupported in words."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

from attn.contract import Mask, Unsupported


@contextmanager
def wanted(how: str) -> Iterator[None]:
    """Around the import of a package. `how`: what installs it.

    Raises:
        Unsupported: it is not installed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        raise Unsupported(f"needs the package {error.name}, which is not installed: {how}") from error


def refuse_capability(q: Tensor, majors: Sequence[int], who: str) -> None:
    """Where a library has kernels for some GPUs only, by the major number of their compute capability.

    Raises:
        Unsupported: the device of q is none of those.
    """
    major, minor = torch.cuda.get_device_capability(q.device)
    if major not in majors:
        allowed = ", ".join(f"{one}.x" for one in majors)
        raise Unsupported(f"compute capability {major}.{minor}, {who} has kernels for {allowed}")


def refuse_head_dim(q: Tensor, sizes: Sequence[int], who: str) -> None:
    """Where a library has kernels for some sizes only: a few, or a range of multiples.

    Raises:
        Unsupported: head_dim is none of them.
    """
    if q.shape[-1] not in sizes:
        words = ", ".join(map(str, sizes))
        if isinstance(sizes, range):
            words = f"multiples of {sizes.step} up to {sizes[-1]}" if sizes.step > 1 else f"{sizes[0]} to {sizes[-1]}"
        raise Unsupported(f"head_dim {q.shape[-1]}, {who} has {words}")


def refuse_scale(softmax_scale: float, mask: Mask, who: str) -> None:
    """Where a library hides keys by -inf before it scales, as FlashAttention's softmax.h does.

    Raises:
        Unsupported: softmax_scale is 0 under a causal mask.
    """
    if softmax_scale == 0 and mask.kind == "causal":
        raise Unsupported(f"softmax_scale 0 under a causal mask: {who} computes -inf x 0 = NaN")


def side_by_side(*tensors: Tensor) -> list[Tensor]:
    """Copies where head_dim does not lie together, which kernels of others take for granted."""
    return [x if x.stride(-1) == 1 else x.contiguous() for x in tensors]
