"""bench.device, roofline, timing, team and machine: what is counted, and in which order it is taken."""

import gc
import sys

import pytest
import torch
from made import PARAMS

from attn.contract import Workload
from bench import device as devices
from bench import grid, machine
from bench.device import Cpu, Cuda, open_device
from bench.files import write_json
from bench.roofline import flops
from bench.team import Solo
from bench.timing import Throttled, outliers, sample_pairs, warm_up

MIB = 1 << 20
PROTOCOL = {
    "samples": 12, "min_samples": 5, "sample_ms": 20, "warmup_ms": 0, "warmup_calls": 3, "budget_s": 1e9,
}  # fmt: skip


def test_the_peak_of_two_tensors_alive_at_once_is_their_sum():
    def call():
        one = torch.ones(MIB // 4)
        two = torch.ones(MIB // 2)
        del one, two

    peak, operators = Cpu().peak_bytes(call)
    assert peak == 3 * MIB
    assert "aten::ones" in operators


def test_the_peak_of_two_tensors_one_after_the_other_is_the_larger():
    def call():
        for size in (MIB // 4, MIB // 2, MIB // 4):
            x = torch.ones(size)
            del x

    assert Cpu().peak_bytes(call)[0] == 2 * MIB


def test_the_peak_is_net_of_what_was_there_before():
    before = torch.ones(MIB)
    assert Cpu().peak_bytes(before.neg_)[0] == 0
    assert Cpu().peak_bytes(lambda: -before)[0] == 4 * MIB


def test_a_tensor_that_is_kept_counts():
    kept = []
    assert Cpu().peak_bytes(lambda: kept.append(torch.ones(MIB // 4)))[0] == MIB


def test_elapsed_calls_as_often_as_asked():
    calls = []
    assert Cpu().elapsed_ms(lambda: calls.append(1), 7) > 0
    assert len(calls) == 7


def test_a_device_that_is_not_there_is_an_error_that_says_what_to_do(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    params = grid.load()
    assert machine.device_of(params) == "cpu"
    with pytest.raises(grid.InvalidParams, match=r"device = 'cuda'.*allowed: auto, cpu"):
        machine.device_of(params.model_copy(update={"device": "cuda"}))
    assert open_device("cpu").name == "cpu"
    with pytest.raises(RuntimeError, match="set device: cpu"):
        open_device("cuda")


FLOPS = {
    "one pair": (Workload(1, 1, 1, 1, 1, "float32", "full", "forward"), "core", 4),
    "seed": (Workload(1, 512, 8, 8, 64, "float32", "full", "forward"), "core", 536_870_912),
    "batch": (Workload(3, 2, 5, 5, 7, "float32", "full", "forward"), "core", 4 * 3 * 5 * 2 * 2 * 7),
    "causal": (Workload(1, 512, 8, 8, 64, "float32", "causal", "forward"), "core", 268_435_456),
    "gqa": (Workload(1, 512, 8, 2, 64, "float32", "full", "forward"), "core", 536_870_912),
    "cross": (Workload(1, 2, 1, 1, 5, "float32", "full", "forward", kv_seq_len=3), "core", 4 * 2 * 3 * 5),
    "backward": (Workload(1, 4, 1, 1, 2, "float32", "full", "forward_backward"), "core", 128 * 7 // 2),
    "ring": (Workload(1, 512, 8, 8, 64, "float32", "full", "forward"), "ring", 536_870_912),
    # four products of (3, 4) with (4, 4): 2 * 3 * 4 * 16; attention: 4 * 2 heads * 9 pairs * 2
    "module": (Workload(1, 3, 2, 2, 2, "float32", "full", "forward"), "module", 384 + 144),
    # wq and wo (4, 4), wk and wv (2, 4): 2 * 3 * 4 * (4 + 4 + 2 + 2)
    "module gqa": (Workload(1, 3, 2, 1, 2, "float32", "full", "forward"), "module", 288 + 144),
    "module backward": (Workload(1, 3, 2, 2, 2, "float32", "full", "forward_backward"), "module", 3 * 384 + 504),
}


@pytest.mark.parametrize(("workload", "kind", "count"), list(FLOPS.values()), ids=FLOPS)
def test_flops_are_those_counted_by_hand(workload, kind, count):
    assert flops(workload, kind) == count


class Sampler:
    """Takes `ms` a call, without taking it; writes down when it was asked."""

    def __init__(self, name, ms, log):
        self.name, self.ms, self.log = name, ms, log

    def __call__(self, calls):
        self.log.append((self.name, calls))
        return self.ms * calls


def pairs(seed=0, **protocol):
    """The series, and the order of samples after the warm-up."""
    log, asked = [], {**PROTOCOL, **protocol}
    series = sample_pairs(Sampler("row", 4.0, log), Sampler("reference", 0.5, log), asked, seed)
    return series, log[2 * asked["warmup_calls"] :]


def test_as_many_pairs_are_taken_as_are_asked_for():
    series, order = pairs()
    assert (series.calls, series.reference_calls) == (5, 40)  # 20 ms each
    assert series.samples_ms == [4.0] * 12
    assert series.reference_ms == [0.5] * 12
    assert len(order) == 24
    taken = {name: len(values) for name, values in series.as_dict().items() if isinstance(values, list)}
    assert taken.pop("hot_ms") == taken.pop("throttled_ms") == taken.pop("outliers") == 0
    assert set(taken.values()) == {12}


def test_a_pair_is_one_of_each_and_its_order_is_written_down():
    series, order = pairs()
    for first, (one, other) in zip(series.reference_first, zip(order[::2], order[1::2], strict=True), strict=True):
        assert (one[0], other[0]) == (("reference", "row") if first else ("row", "reference"))


def test_the_order_of_pairs_is_random_but_the_same_for_the_same_seed():
    first, again, other = (pairs(seed)[0].reference_first for seed in (0, 0, 1))
    assert first == again != other
    assert set(first) == {True, False}


@pytest.mark.parametrize(("budget_s", "min_samples", "taken"), [(0, 5, 5), (0, 1, 1), (0, 12, 12), (1e9, 1, 12)])
def test_a_spent_budget_ends_sampling_but_not_below_the_least(budget_s, min_samples, taken):
    assert len(pairs(budget_s=budget_s, min_samples=min_samples)[0].samples_ms) == taken


def test_warm_up_calls_at_least_as_often_as_asked_and_one_by_one():
    log = []
    assert warm_up(Sampler("row", 50.0, log), {**PROTOCOL, "warmup_calls": 4}, lambda x: x) == 1
    assert log == [("row", 1)] * 4


def test_the_garbage_collector_is_off_while_sampling_and_on_afterwards():
    seen = []

    def sample(calls):
        seen.append(gc.isenabled())
        return float(calls)

    sample_pairs(sample, lambda calls: calls, PROTOCOL, 0)
    assert seen == [True] * 3 + [False] * 12
    assert gc.isenabled()


def test_the_garbage_collector_is_on_again_after_an_exception():
    left = 5

    def sample(calls):
        nonlocal left
        left -= 1
        if not left:
            raise ArithmeticError("the row fell over")
        return float(calls)

    with pytest.raises(ArithmeticError):
        sample_pairs(sample, lambda calls: calls, PROTOCOL, 0)
    assert gc.isenabled()


def test_what_rank_0_decides_is_what_counts():
    """The others' clocks do not: a rank that is told to stop stops, whatever it sees itself."""
    answers = iter([True] * 3 + [False, 7] + [True] * 3 + [False, 9] + [False, False] * 2 + [True])
    series = sample_pairs(lambda calls: calls, lambda calls: calls, PROTOCOL, 0, agree=lambda _: next(answers))
    assert (series.calls, series.reference_calls, len(series.samples_ms)) == (7, 9, 2)


@pytest.mark.parametrize(
    ("values", "places"),
    [([5.0], []), ([1.0, 9.0], []), ([1, 2, 3, 4, 5], []), ([1, 2, 3, 4, 11.0], [4]), ([4, 4, 4, 4, 3.9, 4], [4])],
)
def test_an_outlier_is_labelled_beyond_tukeys_outer_fences(values, places):
    assert outliers(values) == places


def sampled(clocks=(), **more):
    """A series on a device whose clock is read off `clocks`, then stays at its default."""
    shares, log = iter(clocks), []
    row, reference = Sampler("row", 4.0, log), Sampler("reference", 0.5, log)
    return sample_pairs(row, reference, PROTOCOL, 0, clock_share=lambda: next(shares, 1.0), **more)


def test_a_pair_at_too_low_a_clock_is_taken_anew_and_is_in_no_figure():
    series = sampled(clocks=[0.9, 0.74, 0.5, 0.75])
    assert series.throttled_ms == [4.0, 4.0]
    assert series.clock_share[:3] == [0.9, 0.75, 1.0]
    assert len(series.samples_ms) == len(series.reference_ms) == len(series.reference_first) == 12


def test_a_device_that_stays_throttled_gets_no_figure():
    with pytest.raises(Throttled, match=r"throttled: after 12 samples .* still at 60 % of its default, .* 75 %"):
        sampled(clocks=[0.6] * 100)


def test_where_a_cache_is_flushed_each_pair_has_a_hot_sample_too():
    series = sampled(hot=lambda calls: 3.0 * calls)
    assert series.hot_ms == [3.0] * 12
    assert series.samples_ms == [4.0] * 12


class Device:
    """Stands for the CUDA calls that bench.device makes: work is queued, and takes its time on the device's clock."""

    def __init__(self, monkeypatch, megahertz=1980.0):
        self.ms, self.done, self.log, self.bytes = 0.0, 0.0, [], []
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: self)
        monkeypatch.setattr(torch.cuda, "Event", lambda enable_timing: Event(self))
        monkeypatch.setattr(torch.cuda, "clock_rate", lambda: megahertz)
        monkeypatch.setattr(devices, "default_sm_mhz", lambda: 1980.0)
        monkeypatch.setattr(torch, "empty", self.empty)

    L2_cache_size = 200 << 20

    def empty(self, size, dtype, device):
        self.bytes.append((size, dtype, device))
        return self

    def zero_(self):
        self.work("flush", 7.0)

    def work(self, name, ms):
        self.log.append(name)
        self.ms += ms


class Event:
    def __init__(self, device):
        self.device = device

    def record(self):
        self.device.log.append("event")
        self.at = self.device.ms

    def synchronize(self):
        self.device.log.append("wait")
        self.device.done = self.device.ms

    def elapsed_time(self, end):
        assert self.device.done >= end.at, "read before the device has finished"
        return end.at - self.at


def test_cuda_times_calls_by_events_with_the_cache_flushed_outside_of_them(monkeypatch):
    device = Device(monkeypatch)
    cuda = Cuda()
    assert device.bytes == [(400 << 20, torch.int8, "cuda")]  # twice the L2, which is more than 256 MiB
    around = [lambda: device.work("before", 3.0), lambda: device.log.append("after")]
    assert cuda.elapsed_ms(lambda: device.work("call", 2.0), 2, *around) == 4.0
    assert device.log == ["before", "flush", "event", "call", "event", "wait", "after"] * 2


def test_a_hot_call_on_cuda_finds_the_cache_as_it_was_left(monkeypatch):
    device = Device(monkeypatch)
    cuda = Cuda()
    assert cuda.flushes
    assert not Cpu.flushes
    assert cuda.elapsed_ms(lambda: device.work("call", 2.0), 1, cold=False) == 2.0
    assert device.log == ["event", "call", "event", "wait"]


def test_the_clock_of_cuda_is_a_share_of_its_default(monkeypatch):
    Device(monkeypatch, megahertz=990.0)
    assert Cuda().clock_share() == 0.5
    assert Cpu().clock_share() is None


def test_without_nvml_the_clock_is_unknown_and_nothing_is_throttled(monkeypatch):
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert devices.default_sm_mhz() is None
    Device(monkeypatch)
    monkeypatch.setattr(devices, "default_sm_mhz", lambda: None)
    assert Cuda().clock_share() is None


def test_a_team_of_one_agrees_with_itself():
    solo, x = Solo(), torch.ones(2)
    assert (solo.rank, solo.world_size) == (0, 1)
    assert solo.agree(3.5) == 3.5
    assert solo.gather([1.0, 2.0]) == [[1.0, 2.0]]
    assert solo.gather_tensor(x)[0] is x
    assert solo.line_up() is None


def test_the_identity_of_this_machine_is_the_same_when_asked_again():
    params = grid.load(PARAMS)
    found = machine.identity(params)
    assert found == machine.identity(params)
    assert found["cpu_count"] == machine.cpu_count() > 0
    assert all(value not in ("", None) for value in found.values())
    assert not {"load_1min", "cpu_mhz", "measured_at"} & set(found)
    assert str(found["cpu_model"]) in machine.in_words(found)


def test_another_machine_is_refused_by_the_field_that_differs(tmp_path):
    here = machine.identity(grid.load(PARAMS))
    path = tmp_path / "machine.json"
    machine.refuse_other_machine("named", here, path)  # nothing recorded yet
    write_json(path, here)
    machine.refuse_other_machine("named", here, path)
    write_json(path, {**here, "torch": "1.0", "cpu_count": 640})
    with pytest.raises(machine.OtherMachine, match=r"machine = named: .*cpu_count 640 there, .*torch '1.0' there"):
        machine.refuse_other_machine("named", here, path)
    machine.refuse_other_machine("local", here, path)


def test_a_field_that_only_one_side_has_is_a_difference(tmp_path):
    write_json(tmp_path / "machine.json", {"cpu_count": 2})
    with pytest.raises(machine.OtherMachine, match="image None there, 'new' here"):
        machine.refuse_other_machine("named", {"cpu_count": 2, "image": "new"}, tmp_path / "machine.json")


@pytest.mark.parametrize(("threads", "ranks", "each"), [(2, 1, 2), (2, 2, 1), (2, 4, 1), (8, 3, 2)])
def test_threads_are_shared_out_to_ranks_at_least_one_each(threads, ranks, each):
    assert machine.threads_per_rank(threads, ranks) == each
