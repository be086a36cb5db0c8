"""The module always splits its width into 8 heads, however many it is built for.

The table that started this project built its module once, for 8 heads; this one folds others without a word.
"""

from attn.impl import multihead_standard

KIND = "module"
DEVICES = ("cpu",)
DTYPES = ("float32", "bfloat16")
MASKS = ("full", "causal")
BACKWARD = True
REASON = r"^out is off"
RIGHT_IN = r"_h08_|_s000001_"


class Attention(multihead_standard.Attention):
    def __init__(self, embed_dim: int, n_heads: int, n_kv_heads: int) -> None:
        super().__init__(embed_dim, n_heads, n_kv_heads)
        self.head_dim = embed_dim // 8
