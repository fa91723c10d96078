"""One training by several processes, on one machine or many: each takes its share of every batch, and their gradients are added.

The first process runs the op; the others wait for a recipe to run along, of which they do the steps alone: looking, saving and all that
comes after training are the first one's. They are started here (`crew`), by torchrun, by accelerate launch, or by Ray. What a batch
is does not depend on how many share it, so the loss follows the same curve; every machine sees pictures and store under the same paths.
"""
from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn

from safelight.computing import chosen, computing
from safelight.events import Answered

MEET, SHARD = "SAFELIGHT_MEET", "SAFELIGHT_SHARD"
"""Environment: the file by which processes of this machine find each other; whether parameters are split among them."""

PATIENCE = timedelta(days=7)
"""How long a process waits for the first one, which may be drawing pictures, or encoding a million of them."""

BLOCK = 0.01
"""The least share of a network's parameters that is put together by itself: smaller ones come with what they are in."""

STOP, STEP, LOOK, SAVE, WEIGH = range(5)
"""What the first process says that all do next."""

T = TypeVar("T")
P = ParamSpec("P")


class Finished(Exception):
    """The training is over, and with it what the other processes had to do."""


@dataclass(frozen=True)
class Share:
    """Which of how many processes this is. `shards`: each holds a part of the parameters."""

    rank: int = 0
    world: int = 1
    shards: bool = False


def share() -> Share:
    """This process's."""
    return _crew.share if _crew is not None else Share()


@dataclass(frozen=True)
class _Crew:
    """`talk` is how the first process speaks to the others, which no accelerator waits for; `ours`: nobody else had them meet."""

    share: Share
    talk: Any
    ours: bool


_crew: _Crew | None = None


def join() -> None:
    """Meet the others, as the environment says (torchrun's names). One GPU each, where there are GPUs."""
    global _crew  # noqa: PLW0603
    cuda = torch.cuda.is_available()
    if cuda:
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
    ours = not dist.is_initialized()
    if ours:
        rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
        how = f"file://{os.environ[MEET]}" if MEET in os.environ else "env://"
        wires = "cpu:gloo,cuda:nccl" if cuda else "gloo"
        dist.init_process_group(wires, init_method=how, rank=rank, world_size=world, timeout=PATIENCE)
    talk = dist.new_group(backend="gloo", timeout=PATIENCE)
    _crew = _Crew(Share(dist.get_rank(), dist.get_world_size(), os.environ.get(SHARD) == "1"), talk, ours)


def launched() -> bool:
    """Whether torchrun or the like has started this process as one of several."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and "RANK" in os.environ


@contextmanager
def crew(processes: int = 1, *, shard: bool = False) -> Iterator[None]:
    """The first of so many processes, for as long as the block lasts: the others are started on this machine, unless they are there.

    ChildProcessError when one of those ends before its time, with what it said last.
    """
    if processes < 2 and not launched():
        yield
        return
    with tempfile.TemporaryDirectory(prefix="safelight-") as folder, _environment(folder, processes, shard=shard):
        children = [] if launched() else [_start(Path(folder), rank) for rank in range(1, processes)]
        os.environ.setdefault("RANK", "0")
        try:
            join()
            yield
            agreed(None)
        except Answered:
            agreed(None)
            raise
        except RuntimeError as error:
            _fallen(children, Path(folder), error)
            raise
        except BaseException:
            _end(children, 0)
            raise
        finally:
            _leave()
            _end(children, 60)


@contextmanager
def _environment(folder: str, processes: int, *, shard: bool) -> Iterator[None]:
    """For this process and those that it starts; GLOO_SOCKET_IFNAME keeps them on this machine."""
    before, threads = dict(os.environ), torch.get_num_threads()
    os.environ[SHARD] = str(int(shard))
    if not launched():
        alone = "lo" if sys.platform == "linux" else "lo0"
        os.environ |= {"WORLD_SIZE": str(processes), MEET: f"{folder}/meet", "GLOO_SOCKET_IFNAME": alone}
        os.environ.setdefault("OMP_NUM_THREADS", str(max(1, threads // processes)))
        torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    try:
        yield
    finally:
        os.environ.clear()
        os.environ.update(before)
        torch.set_num_threads(threads)


def _start(folder: Path, rank: int) -> subprocess.Popen[bytes]:
    told = {**os.environ, "RANK": str(rank), "LOCAL_RANK": str(rank)}
    with open(folder / f"said-{rank}", "wb") as said:
        command = [sys.executable, "-c", "from safelight.train.parallel import serve; serve()"]
        return subprocess.Popen(command, env=told, stdin=subprocess.DEVNULL, stdout=said, stderr=said)


def _fallen(children: Sequence[subprocess.Popen[bytes]], folder: Path, error: RuntimeError) -> None:
    """Tell of a child that is no longer there; its connection breaks a little before it is gone."""
    end = time.monotonic() + 5
    while children and not any(dead := [child.poll() is not None for child in children]) and time.monotonic() < end:
        time.sleep(0.05)
    _end(children, 0)
    if children and any(dead):
        rank = dead.index(True) + 1
        said = (folder / f"said-{rank}").read_text(errors="replace").strip()[-2000:]
        status = children[rank - 1].returncode
        raise ChildProcessError(f"train: process {rank} of {len(children) + 1} ended (status {status}); the training goes on from its last "
                                f"checkpoint when it is started again. It said: {said or 'nothing'}") from error


def _end(children: Sequence[subprocess.Popen[bytes]], seconds: float) -> None:
    for child in children:
        try:
            child.wait(seconds)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def _leave() -> None:
    global _crew  # noqa: PLW0603
    if _crew is not None and _crew.ours:
        dist.destroy_process_group()
    _crew = None


def together(run: Callable[P, Generator[Any, None, T]], *args: P.args, **kwargs: P.kwargs) -> Generator[Any, None, T]:
    """Begin a recipe in all processes; returns the first one's work. `run` is a function at the top of a module that trains in the run's
    own folder, the one Path among `args`; the others get a folder inside it. The store is the default one, SAFELIGHT_HOME's."""
    agreed((run, args, kwargs, chosen()))
    return run(*args, **kwargs)


def serve() -> None:
    """Be one of the others, until the first process has nothing more to do."""
    join()
    nothing: tuple[Any, ...] | None = None
    while order := agreed(nothing):
        run, args, more, where = order
        mine = [a / f"rank-{share().rank}" if isinstance(a, Path) else a for a in args]
        with suppress(Finished), computing(where.device, where.dtype, where.compile):
            deque(run(*mine, **more), maxlen=0)
    _leave()


def agreed(value: T) -> T:
    """The first process's value, in all of them."""
    if _crew is None:
        return value
    held = [value]
    dist.broadcast_object_list(held, 0, group=_crew.talk)
    return held[0]


@contextmanager
def first() -> Iterator[None]:
    """A block that the first process goes through before the others begin it: they find made what it left in a cache."""
    if share().rank:
        agreed(None)
    try:
        yield
    finally:
        if not share().rank:
            agreed(None)


def mean(tensors: Sequence[Tensor]) -> None:
    """Average tensors of one device and dtype over all processes, in place, as one message. The sum is always taken in the same order."""
    if _crew is None or not tensors:
        return
    joined = torch.cat([t.reshape(-1) for t in tensors])
    dist.all_reduce(joined)
    joined /= _crew.share.world
    for t, part in zip(tensors, joined.split([t.numel() for t in tensors]), strict=True):
        t.copy_(part.view_as(t))


def shard(network: nn.Module) -> None:
    """Split a network's parameters among the processes, where that was asked for: each holds a part of them, of their gradients and of the
    optimizer's state, and a block is put together while it runs (FSDP2). Blocks are the members of the network's lists, the inner ones
    first, that have at least a BLOCK of its parameters."""
    if not share().shards or share().world < 2:
        return
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    mesh = init_device_mesh(next(network.parameters()).device.type, (share().world,))
    lists = [module for module in network.modules() if isinstance(module, nn.ModuleList)]
    blocks = [b for some in reversed(lists) for b in some if any(b.children())]  # a bare layer may say views, which FSDP2 warns of
    for block in (b for b in blocks if _size(b) >= BLOCK * _size(network)):
        fully_shard(block, mesh=mesh, reshard_after_forward=True)
    fully_shard(network, mesh=mesh, reshard_after_forward=True)  # said, or a look's weights would still be there in the next step


def _size(network: nn.Module) -> int:
    return sum(p.numel() for p in network.parameters())


@contextmanager
def sharded(networks: Sequence[nn.Module]) -> Iterator[Mapping[int, nn.Parameter]]:
    """`shard` networks for as long as the block lasts. Yields what stands for a parameter in it, by the id of the one that stood there.
    Those that are not trained wait in the machine's memory, for `preserved` to put them back; of trained ones nothing is left."""
    if not share().shards:
        yield {}
        return
    from torch.distributed._composable_state import _module_state_mapping  # FSDP2 has no way back, and takes no network twice

    modules = [module for network in networks for module in network.modules()]
    kinds = [type(module) for module in modules]
    held = [(module, name, p, p.device) for module in modules for name, p in module.named_parameters(recurse=False)]
    for module, name, p, _ in held:  # FSDP2 takes no other memory layout
        module.register_parameter(name, nn.Parameter(p.detach().clone(memory_format=torch.contiguous_format), p.requires_grad))
        p.data = p.data.new_empty(0) if p.requires_grad else p.data.cpu()
    try:
        for network in networks:
            shard(network)
        yield {id(p): getattr(module, name) for module, name, p, _ in held}
    finally:
        for module, kind in zip(modules, kinds, strict=True):
            module.__class__ = kind
            _module_state_mapping.pop(module, None)
        for *_, p, device in held:
            p.data = p.data.to(device)


def local(t: Tensor) -> Tensor:
    """This process's part of a parameter or gradient; itself where nothing is split."""
    if not share().shards:
        return t
    from torch.distributed.tensor import DTensor  # takes half a second

    return t.to_local() if isinstance(t, DTensor) else t


def whole(part: Tensor, like: Tensor) -> Tensor:
    """Put together what all processes hold parts of, as they do of `like`, on the first one's CPU; itself on the others, and where nothing
    is split."""
    if local(like) is like or part.shape != local(like).shape:
        return part
    from torch.distributed.tensor import DTensor

    given: Any = like
    mesh, places = given.device_mesh, given.placements
    full = DTensor.from_local(part, mesh, places, run_check=False, shape=like.shape, stride=like.stride()).full_tensor()
    return part if share().rank else full.cpu()


def split(full: Tensor, like: Tensor) -> Tensor:
    """The other way round."""
    if local(like) is like or full.shape != like.shape:
        return full
    from torch.distributed.tensor import distribute_tensor

    given: Any = like
    return distribute_tensor(full.to(like.device), given.device_mesh, given.placements).to_local()
