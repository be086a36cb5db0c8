"""Transports on ranks that really start: the same results, the same counts, no memory mixed up."""

import re
import subprocess
import sys

import pytest
import torch
from conftest import ROOT

from attn.ring import transport
from attn.ring.communicator import Communicator
from bench import placement

pytestmark = pytest.mark.mpi


def on_ranks(world_size: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    mpiexec = placement.find_mpiexec()
    assert mpiexec is not None
    ranks = [sys.executable, "-m", "mpi4py", "-m", "tests.transports_on_ranks", *arguments]
    return subprocess.run(
        [mpiexec, "-n", str(world_size), *ranks], cwd=ROOT, text=True, timeout=150, check=False,
        stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


@pytest.mark.parametrize("world_size", [2, 3, pytest.param(4, marks=pytest.mark.slow)])
def test_every_transport_gives_the_same_and_counts_the_same(world_size):
    done = on_ranks(world_size)
    assert done.returncode == 0, done.stdout
    counts = re.findall(r"^(\w+) payload_bytes (\d+) messages (\d+)$", done.stdout, re.MULTILINE)
    assert [name for name, *_ in counts] == ["shm", "mpi", "gloo"]
    assert len({tuple(count) for _, *count in counts}) == 1, counts
    assert int(counts[0][1]) > 0


@pytest.mark.parametrize("name", ["shm", "mpi"])
def test_a_rank_that_waits_in_vain_says_for_whom(name):
    done = on_ranks(2, name)
    assert done.returncode != 0
    assert re.search(r"TimeoutError: rank 0 waiting for (rank 1|the others): .* within 2 s", done.stdout)


def test_a_ring_of_one_sends_nothing_and_has_nobody_to_rotate_with():
    comm, x = Communicator(0, 1, 8), torch.arange(8.0).view(1, 8)
    comm.begin()
    assert torch.equal(comm.pack(x, x + 1), torch.stack((x, x + 1)))
    for found in (comm.all_gather(x, 1), comm.reduce_scatter(x, 1), comm.all_to_all(x, 1, 0), comm.all_reduce(x)):
        assert torch.equal(found, x)
    assert (comm.payload_bytes, comm.messages) == (0, 0)
    with pytest.raises(ValueError, match="a ring of one rank has nobody to rotate with"):
        comm.rotate(x)


@pytest.mark.parametrize(
    ("asked", "device", "nodes", "found"),
    [
        ("auto", "cpu", [0, 0], "shm"),
        ("auto", "cpu", [0, 1], "gloo"),
        ("auto", "cuda", [0, 0], "nccl"),
        ("mpi", "cpu", [0, 1], "mpi"),
        ("gloo", "cpu", [0, 0], "gloo"),
    ],
)
def test_auto_is_the_fastest_that_serves(asked, device, nodes, found):
    assert transport.resolve(asked, device, nodes) == found


@pytest.mark.parametrize(
    ("asked", "device", "nodes", "words"),
    [
        ("tcp", "cpu", [0, 0], "launch.transport = 'tcp', allowed: auto, nccl, gloo, mpi, shm"),
        ("nccl", "cpu", [0, 0], "launch.transport = nccl on device cpu, allowed: auto, gloo, mpi, shm"),
        ("gloo", "cuda", [0, 0], "launch.transport = gloo on device cuda, allowed: auto, nccl"),
        ("shm", "cpu", [0, 1], "launch.transport = shm over 2 nodes, allowed: auto, gloo, mpi"),
    ],
)
def test_a_transport_that_cannot_serve_says_which_can(asked, device, nodes, words):
    with pytest.raises(ValueError, match=re.escape(words)):
        transport.resolve(asked, device, nodes)


def test_groups_must_divide_the_world():
    with pytest.raises(ValueError, match="a group of 4 ranks does not divide a world of 6"):
        Communicator(0, 6, 8).grid(4)
