"""What test_transports.py starts on several ranks: `mpiexec -n N python -m mpi4py -m tests.transports_on_ranks`.

Every operation of every transport against what it must give, over many passes in which ranks dawdle at random: a
result that is overwritten while somebody still reads it, or read before it was written, is a wrong number.
"""

import random
import sys
import time

import torch
import torch.distributed as dist
from mpi4py import MPI
from torch import Tensor
from torch._C._distributed_c10d import TCPStore

from attn.ring.communicator import Communicator
from attn.ring.transport import Transport, connect

PASSES = 12


def value(rank: int, shape: tuple[int, ...], dtype: torch.dtype, passed: int) -> Tensor:
    """What a rank has in a pass: small whole numbers, exact in every dtype, other ones in every pass and place."""
    numbers = torch.arange(torch.Size(shape).numel()) * 7 + rank * 3 + passed * 5
    return (numbers % 61).reshape(shape).to(dtype)


def check(transport: Transport, dtype: torch.dtype, seed: int) -> Communicator:
    """All operations, the ranks out of step."""
    rank, n = transport.rank, transport.world_size
    comm = Communicator(rank, n, 1, transport, [0] * n)
    dawdle = random.Random(seed * 1000 + rank)
    kept: list[tuple[Tensor, Tensor]] = []

    def step(found: Tensor, due: Tensor, what: str) -> None:
        if dawdle.random() < 0.3:
            time.sleep(dawdle.random() * 3e-3)
        assert found.shape == due.shape, (transport.name, what, found.shape, due.shape)
        assert torch.equal(found, due), (transport.name, n, what)

    for passed in range(PASSES):
        shape = (2, 3 + passed, 2 * n, 5)
        every = [value(one, shape, dtype, passed) for one in range(n)]
        comm.begin()
        here = comm.pack(every[rank], every[rank] + 1)
        grown = comm.message(here.shape, here)  # what travels and is added to, as gradients are
        grown.copy_(here)
        for hop in range(1, n):
            coming = comm.rotate(here)
            step(here[1], every[(rank - hop + 1) % n] + 1, "read while it is on its way")
            here, grown = coming.wait(), comm.rotate(grown).wait()
            source = (rank - hop) % n
            step(here[0], every[source], "rotate")
            grown += 1
            step(grown[1], every[source] + 1 + hop, "rotate what is added to")
        gathered = comm.all_gather(every[rank], 1)
        step(gathered, torch.cat(every, 1), "all_gather")
        parts = torch.cat([one.chunk(n, 2)[rank] for one in every], 1)
        step(comm.all_to_all(every[rank], 2, 1), parts, "all_to_all")
        step(comm.reduce_scatter(every[rank].float(), 2), sum(every).float().chunk(n, 2)[rank], "reduce_scatter")
        step(comm.all_reduce(every[rank].float()), sum(every).float(), "sum")
        step(comm.all_reduce(every[rank], "max"), torch.stack(every).amax(0), "max")
        step(gathered, torch.cat(every, 1), "all_gather, read later")
        kept = [*kept, (comm.keep(gathered), torch.cat(every, 1))]
        if n % 2 == 0:
            inner, outer = comm.grid(2)
            pair, apart = rank // 2 * 2, range(rank % 2, n, 2)
            of_pair = inner.all_gather(every[rank], 0)
            step(of_pair, torch.cat(every[pair : pair + 2]), "a pair's all_gather")
            kept = [*kept, (comm.keep(of_pair), torch.cat(every[pair : pair + 2]))]
            step(outer.all_reduce(every[rank].float()), sum(every[one].float() for one in apart), "across pairs")
    for found, due in kept:
        step(found, due, "kept")
    for passed in range(10 * PASSES):  # where nothing else keeps the ranks together
        comm.begin()
        coming = comm.rotate(comm.pack(value(rank, (64,), dtype, passed)))
        found = coming.wait()
        if dawdle.random() < 0.1:
            time.sleep(3e-3)
        step(found[0], value((rank - 1) % n, (64,), dtype, passed), "rotate, read later")
    return comm


def outgrown(comm: Communicator, transport: Transport) -> None:
    """Memory that a pass has used up is still the transport's: it is counted, and what is kept of it stays."""
    kept = []
    for passed in range(2):
        comm.begin()
        like = value(comm.rank, (64,), torch.float32, passed)
        before = transport.memory_bytes()
        gathered = comm.all_gather(like, 0)
        small = transport.memory_bytes() - before
        comm.message((2 << 20,), like)
        assert transport.name != "shm" or transport.memory_bytes() - before == small + (8 << 20), (before, small)
        due = torch.cat([value(one, (64,), torch.float32, passed) for one in range(comm.world_size)])
        kept.append((comm.keep(gathered), due))
    for _ in range(2):
        comm.begin()
    assert all(torch.equal(found, due) for found, due in kept)


def main(silent: str = "") -> None:
    """All transports of the CPU; rank 0 prints what each counted. `silent`: on that one rank 1 says no word."""
    world = MPI.COMM_WORLD
    store = TCPStore("127.0.0.1", 0, world.size, is_master=True, wait_for_workers=False) if not world.rank else None
    port = world.bcast(store.port if store else 0)
    store = store or TCPStore("127.0.0.1", port, world.size, is_master=False)
    dist.init_process_group("gloo", store=store, rank=world.rank, world_size=world.size)
    for name in [silent] if silent else ("shm", "mpi", "gloo"):
        transport = connect(name, world, [0] * world.size, 2 if silent else 60)
        if silent:
            alone(transport)
        for seed, dtype in enumerate((torch.float32, torch.bfloat16)):
            comm = check(transport, dtype, seed)
        outgrown(comm, transport)
        if world.rank == 0:
            print(f"{name} payload_bytes {comm.payload_bytes} messages {comm.messages}", flush=True)
        transport.close()
    world.Barrier()
    dist.destroy_process_group()


def alone(transport: Transport) -> None:
    """Rank 1 sends nothing: rank 0 must say whom it has waited for, within its time."""
    transport.begin()
    if transport.rank == 1:
        time.sleep(60)
    transport.rotate(torch.ones(4)).wait()


if __name__ == "__main__":
    torch.set_num_threads(1)
    main(*sys.argv[1:])
