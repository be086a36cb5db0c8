"""All that differs between cpu and cuda: clock, memory, cache flush, synchronisation, name.

Kept short, to be read line by line.
"""

from __future__ import annotations

import ctypes
import time
from collections.abc import Callable
from typing import Any

import torch

from bench import machine

Do = Callable[[], object]


def _nothing() -> None:
    pass


class Cpu:
    """The processor: a call has finished when it returns."""

    name = "cpu"
    flushes = False  # whether cold and hot are two figures

    def elapsed_ms(
        self, call: Do, calls: int, before: Do = _nothing, after: Do = _nothing, *, cold: bool = True
    ) -> float:
        """Wall milliseconds of `calls` calls, without what is done before and after each of them.

        cold: with the L2 cache overwritten before each, where the device does that.
        """
        elapsed = 0
        for _ in range(calls):
            before()
            start = time.perf_counter_ns()
            call()
            elapsed += time.perf_counter_ns() - start
            after()
        return elapsed / 1e6

    def peak_bytes(self, call: Do) -> tuple[int, list[str]]:
        """Peak allocation of one call above what was there before it, and the operators that ran.

        From the allocator's own events (torch.autograd.profiler), in a call that nobody times.
        """
        with torch.autograd.profiler.profile(profile_memory=True, acc_events=True) as profile:
            call()
        events = profile.kineto_results.events() if profile.kineto_results else []
        current = peak = 0
        for event in sorted((e for e in events if e.name() == "[memory]"), key=lambda e: e.start_ns()):
            current += event.nbytes()
            peak = max(peak, current)
        return peak, [e.name() for e in events]

    def clock_share(self) -> float | None:
        """The clock at this moment as a share of its default; None where the device does not tell."""
        return None

    def mark(self) -> Any:
        """This moment, for `between_ms`; the device does not wait."""
        return time.perf_counter_ns()

    def between_ms(self, start: Any, end: Any) -> float:
        """Milliseconds between two marks."""
        return float(end - start) / 1e6

    def synchronize(self) -> None:
        """Nothing: a call has finished when it returns."""


class Cuda(Cpu):
    """One NVIDIA device: work is queued, so it is timed by events and waited for."""

    name = "cuda"
    flushes = True

    def __init__(self) -> None:
        l2_bytes = torch.cuda.get_device_properties(0).L2_cache_size
        self._flush = torch.empty(max(256 << 20, 2 * l2_bytes), dtype=torch.int8, device="cuda")
        self._default_mhz = default_sm_mhz()

    def elapsed_ms(
        self, call: Do, calls: int, before: Do = _nothing, after: Do = _nothing, *, cold: bool = True
    ) -> float:
        """Device milliseconds of `calls` calls, by events on the current stream, cold ones with the L2 overwritten.

        While that is done the host is ahead, so that what it takes to launch a call is not in its time. A hot call
        has in the cache what the call before it and its own inputs, just written, have left there.
        """
        elapsed = 0.0
        for _ in range(calls):
            before()
            start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
            if cold:
                self._flush.zero_()
            start.record()
            call()
            end.record()
            end.synchronize()
            elapsed += float(start.elapsed_time(end))
            after()
        return elapsed

    def peak_bytes(self, call: Do) -> tuple[int, list[str]]:
        """As for the CPU, from the caching allocator."""
        self.synchronize()
        before = torch.cuda.memory_allocated()
        torch.cuda.reset_peak_memory_stats()
        with torch.autograd.profiler.profile(acc_events=True) as profile:
            call()
        self.synchronize()
        events = profile.kineto_results.events() if profile.kineto_results else []
        return torch.cuda.max_memory_allocated() - before, [e.name() for e in events]

    def clock_share(self) -> float | None:
        """The clock of the SMs, which a device that is hot or short of power lowers."""
        return torch.cuda.clock_rate() / self._default_mhz if self._default_mhz else None

    def mark(self) -> Any:
        """An event on the current stream."""
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def between_ms(self, start: Any, end: Any) -> float:
        """Waits for the later one."""
        end.synchronize()
        return float(start.elapsed_time(end))

    def synchronize(self) -> None:
        """Wait for everything that was queued."""
        torch.cuda.synchronize()


def default_sm_mhz() -> float | None:
    """The clock that the SMs run at by default; None without NVML, or where the driver does not tell."""
    try:
        import pynvml
    except ModuleNotFoundError:
        return None
    try:
        pynvml.nvmlInit()
        device = pynvml.nvmlDeviceGetHandleByUUID(f"GPU-{torch.cuda.get_device_properties(0).uuid}")
        return float(pynvml.nvmlDeviceGetDefaultApplicationsClock(device, pynvml.NVML_CLOCK_SM))
    except pynvml.NVMLError:
        return None


_KEEP = ((-1, -1), (-4, 0), (-8, 1))  # M_TRIM_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX of malloc.h


def keep_freed_memory() -> None:
    """From now on this process hands nothing back to the kernel that it frees, where glibc is in use.

    Left to itself, the C library does or does not, by the luck of where there is room in its heap and what lies on top,
    and a call that gets its memory anew takes page faults: the same row came out up to three times as slow, alike in
    every sample of a process. All threads take from one heap: one of their own could not hold a large block. What it
    costs: until holes have found their users, in the first few calls, a process may take up to three times the memory
    of a call.
    """
    if machine.can_keep_memory():
        for option, value in _KEEP:
            ctypes.CDLL(None).mallopt(option, value)


def open_device(name: str, *, keep_memory: bool = True) -> Cpu:
    """The device of that name, to time calls on. keep_memory: see `keep_freed_memory`.

    Raises:
        RuntimeError: cuda is asked for where torch sees no device.
    """
    if keep_memory:
        keep_freed_memory()
    if name == "cpu":
        return Cpu()
    if not torch.cuda.is_available():
        raise RuntimeError("device cuda: this torch sees no CUDA device; set device: cpu in params.yaml")
    return Cuda()
