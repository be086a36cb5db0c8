"""attn.kernels.flash: the source that a GPU runs, by Triton's interpreter on the CPU, judged as rows are."""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from attn import registry
from attn.contract import Mask, Unsupported
from attn.kernels.flash import configs
from attn.kernels.flash.configs import Config
from bench import cases, checking, grid

ROOT = Path(__file__).parent.parent
ROW = registry.IMPL_DIR / "triton_flash.py"
SHARDS = 4
# Odd lengths first; of what hurts, of shapes and of places in memory one each. The rest is slow.
FAST = (
    r"_s0000(31|65)_d064_(float32|bfloat16)_causal_forward_backward$|_s0000(01|63)_d064_float32_full_forward_backward$"
    r"|_s000063_d064_float16_full_forward_backward$|_s000127_d040_float32|kv01_s000127.*bfloat16|kvs000065_d064_float32"
    r"|float32.*(huge-row|nan-v|nan-k-last|strided)$|scale0_bfloat16|s000001-kvs.*bfloat16|s000003-kvs.*float32"
)


def interpreted(*arguments):
    """What a function of tests/interpreted.py says, a line each; it must succeed."""
    done = subprocess.run(
        [sys.executable, "tests/interpreted.py", *map(str, arguments)],
        cwd=ROOT, capture_output=True, text=True, timeout=3600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


def assert_right(found):
    assert found
    wrong = [f"{one['case']}: {one['status']}: {one['reason']}" for one in found if one["status"] != "ok"]
    assert wrong == []
    backward = [one for one in found if one["pass"] == "forward_backward"]
    assert all({"out", "lse", "dq", "dk", "dv"} <= set(one["over_budget"]) for one in backward)


def names():
    row = registry.read(ROW)
    return [case.name for case in cases.cases(row) if not case.variant.startswith("real")]


def test_cases_that_hurt_are_right_in_the_interpreter():
    found = interpreted("judged", FAST)
    assert [one["case"] for one in found] == [name for name in names() if re.search(FAST, name)]
    assert {one["dtype"] for one in found} == {"float32", "bfloat16", "float16"}
    assert_right(found)


@pytest.mark.slow
@pytest.mark.parametrize("shard", range(SHARDS))
def test_all_other_cases_are_right_in_the_interpreter(shard):
    rest = f"^(?!.*({FAST}))"
    found = interpreted("judged", rest, shard, SHARDS)
    assert [one["case"] for one in found] == [name for name in names() if re.search(rest, name)][shard::SHARDS]
    assert_right(found)


def test_a_tile_that_is_never_written_is_found():
    found = interpreted("unwritten", "b01_h02_s000097_d064_float32_full_forward_backward$")
    assert [one["status"] for one in found] == ["incorrect"]


@pytest.mark.parametrize(
    "what", ["descriptors", "strides", "blocks", "tiles", "merged", "extremes", "parts", "tf32", "refusals"]
)
def test_what_no_case_of_the_judge_reaches(what):
    assert interpreted(what) == []


def test_on_a_cpu_the_row_says_that_it_needs_cuda():
    identity = {"device": "cpu", "threads": 1}
    report = checking.check(ROW, grid.load(ROOT / "params.yaml"), identity)
    assert (report["status"], report["reason"]) == ("unsupported", "device cpu is not among cuda")


def test_called_on_a_cpu_without_the_interpreter_it_is_unsupported():
    q = torch.zeros(1, 2, 1, 16)
    with pytest.raises(Unsupported, match="device cpu, the kernels run on cuda"):
        registry.load(registry.read(ROW)).attention(q, q, q, softmax_scale=1.0, mask=Mask("full"))


@pytest.mark.parametrize(
    "config", [Config(128, 64, 8, 3), Config(64, 32, 4, 1, tma=True), Config(16, 64, 4, 2, True, True)]
)
def test_a_configuration_is_its_name(config):
    assert Config.parse(config.name) == config


def test_a_name_that_is_none_is_refused_in_words():
    with pytest.raises(ValueError, match="configuration 'm64', allowed: names as in m128n64w8s3-tma"):
        Config.parse("m64")


@pytest.mark.parametrize(
    ("capability", "arch"),
    [("8.0", 80), ("8.6", 120), ("8.9", 120), ("9.0", 90), ("10.0", 100), ("10.3", 100), ("12.0", 120), ("12.1", 120)],
)
def test_a_device_gets_the_configurations_of_an_architecture_that_it_can_run(capability, arch):
    major, minor = capability.split(".")
    assert configs.architecture((int(major), int(minor))) == arch


def test_a_device_that_is_too_old_is_unsupported():
    with pytest.raises(Unsupported, match=r"compute capability 7\.5, the kernels need 8\.0 or newer"):
        configs.architecture((7, 5))


def test_a_head_dim_that_is_too_large_is_unsupported():
    assert [configs.padded(size) for size in (1, 16, 40, 64, 80, 256)] == [32, 32, 64, 64, 128, 256]
    with pytest.raises(Unsupported, match="head_dim 257, the kernels have 1 to 256"):
        configs.padded(257)


def test_the_tf32_row_is_float32_in_memory_and_chooses_among_its_own_configurations():
    row = registry.find()["triton_flash_tf32"]
    assert (row.fault, row.dtypes, row.precision) == (None, ("float32",), "tf32")
    keys = [configs.key(kernel, 90, "tf32", 64) for kernel in ("forward", "dq", "dkdv", "decode")]
    assert all(configs.passed()[key] for key in keys)
