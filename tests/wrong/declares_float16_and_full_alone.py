"""Softmax without its maximum, and heads of a group in the wrong order, in a row of float16 and full masks alone.

Who declares little was judged on too few cases for either to show.
"""

from torch import Tensor

from attn.contract import Mask

KIND = "core"
DEVICES = ("cpu",)
DTYPES = ("float16",)
MASKS = ("full",)
BACKWARD = False
REASON = r"out has \d+ values that are not finite|out is off"
WRONG_IN = r"-kv0|huge-row"
RIGHT_IN = r"_h02_s\d+_d064_float16_full_forward$"


def attention(q: Tensor, k: Tensor, v: Tensor, *, softmax_scale: float, mask: Mask) -> Tensor:
    group = q.shape[2] // k.shape[2]
    q, k, v = (x.float().transpose(1, 2) for x in (q, k.repeat(1, 1, group, 1), v.repeat(1, 1, group, 1)))
    weights = (q @ k.mT * softmax_scale).exp()
    return (weights @ v / weights.sum(-1, keepdim=True)).half().transpose(1, 2)
