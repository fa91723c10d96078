"""The one place for weights: `lease` loads a model, chooses device and dtype, applies its patches, and puts everything back.

A base model has one lender at a time. Whoever wants it with the same patches shares the lease (that is what lets one forward pass
serve many requests); whoever wants it otherwise is told who holds it. Models that nobody holds stay warm, the latest few of them; those
that differ in some parts have the others in common, unless both are held. Where a device is too small for a model, its networks take turns.
"""
from __future__ import annotations

import gc
import logging
import threading
from collections import OrderedDict
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field

import torch
from diffusers.utils import logging as diffusers_logging
from transformers.utils import logging as transformers_logging

from safelight import families, patches
from safelight.computing import chosen
from safelight.families import Family, memory
from safelight.families.sharing import Shared, by_turns, crowded, size
from safelight.families.sources import open_model
from safelight.patches import preserved
from safelight.values import Model, digest

log = logging.getLogger(__name__)

for _library in (diffusers_logging, transformers_logging):
    _library.disable_progress_bar()  # progress is ours to show, as events

KEEP_WARM = 3
"""How many models that nobody holds stay loaded."""

DENOISERS = ("unet", "transformer")
"""The networks that `compile` is for: those that run at every step."""

NATIVE_BF16 = ("amx_bf16", "avx512_bf16", "bf16", "sve_bf16")


def choose_device() -> torch.device:
    """CUDA, else Apple's, else the CPU."""
    if torch.cuda.is_available():
        return torch.device("cuda", torch.cuda.current_device())
    return torch.device("mps") if torch.backends.mps.is_available() else torch.device("cpu")


def choose_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively, else float32.

    On a CPU with AVX512-BF16 a 3x3 convolution of 192 channels takes 11 ms in bfloat16 and 23 ms in float32; with AMX a product is
    six times as fast; without either, bfloat16 is emulated and slower than float32.
    """
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float16
    if device.type == "cpu":
        able = torch.cpu.get_capabilities()
        return torch.bfloat16 if any(able.get(name) for name in NATIVE_BF16) else torch.float32
    return torch.float32


class Lent(RuntimeError):
    """The base model is in use with other patches, or for training; it is free when its holders, `by` whom, have finished."""

    def __init__(self, message: str, by: str = "") -> None:
        super().__init__(message)
        self.by = by


@dataclass
class _Loan:
    """A loaded base model; `holders` is empty while it is only warm."""

    family: Family
    patched: str = ""
    train: bool = False
    holders: list[str] = field(default_factory=list)
    changes: ExitStack = field(default_factory=ExitStack)


_Base = tuple[str, str, str, torch.dtype]
_lock = threading.RLock()
_loans: OrderedDict[_Base, _Loan] = OrderedDict()


@contextmanager
def lease(
    model: Model, *, device: torch.device | str | None = None, dtype: torch.dtype | None = None, train: bool = False, holder: str = ""
) -> Iterator[Family]:
    """The model, loaded and patched, for as long as the `with` lasts; afterwards its module trees are what they were.

    Device and dtype: as given here, else as `computing` says, else chosen. The denoiser is compiled when that says so.
    `train` asks for the networks in the form whose backward pass is fast, alone. `holder` is who to name when another lease conflicts.
    Lent when the base is lent with other patches or for training; ValueError when its files changed since `model` was made.
    """
    said = chosen()
    place = torch.device(device or said.device or choose_device())
    number: torch.dtype = dtype or (getattr(torch, said.dtype) if said.dtype else choose_dtype(place))
    base = (model.family, model.fingerprint, str(place), number)
    loan = _take(base, model, train, holder or threading.current_thread().name)
    try:
        yield loan.family
    finally:
        _give_back(loan, holder or threading.current_thread().name)


def release() -> None:
    """Forget the warm models that nobody holds."""
    with _lock:
        for base in [b for b, loan in _loans.items() if not loan.holders]:
            del _loans[base]
        gc.collect()


def warm() -> list[str]:
    """Fingerprints of the loaded models, oldest use first."""
    with _lock:
        return [base[1] for base in _loans]


def _take(base: _Base, model: Model, train: bool, holder: str) -> _Loan:
    backend = "" if train else chosen().compile
    wanted = digest("patches", backend, *[p.key for p in model.patches])
    with _lock:
        loan = _loans.get(base)
        if loan and loan.holders:
            _refuse_conflict(loan, model, wanted, train)
        else:
            held = _networks(other for other in _loans.values() if other.holders)
            if loan is None or _networks([loan]) & held:
                loan = _Loan(_load(base, model, held))
            loan.changes, loan.patched, loan.train = _changed(loan.family, model, train, backend), wanted, train
            _loans[base] = loan
        loan.holders.append(holder)
        _loans.move_to_end(base)
        _forget_oldest()
        return loan


def _refuse_conflict(loan: _Loan, model: Model, wanted: str, train: bool) -> None:
    if loan.patched == wanted and not (loan.train or train):
        return
    use = "for training" if loan.train else "with other patches" if loan.patched != wanted else "and cannot be trained meanwhile"
    by = f"{', '.join(loan.holders)} {use}"
    raise Lent(f"lease: {model.source} is held by {by}; finish or close that first", by)


def _networks(loans: Iterable[_Loan]) -> set[int]:
    """The ids of their networks."""
    return {id(network) for loan in loans for network in loan.family.trainable().values()}


def _load(base: _Base, model: Model, held: set[int]) -> Family:
    """On an accelerator that is too small for it, without the models that nobody holds, or by turns."""
    name, _, device, dtype = base
    parts, place = open_model(model), torch.device(device)
    if parts.fingerprint() != model.fingerprint:
        raise ValueError(f"lease: {model.source} is no longer what the model value was made from; call model({model.source!r}) again")
    log.info("loading %s on %s in %s", model.source, device, dtype)

    def made(alone: bool, aside: bool) -> Family:
        if alone:
            release()
        family = families.find(name)(Shared(parts, held, aside=aside), device=place, dtype=dtype)
        networks = family.trainable().values()
        if aside:
            by_turns(networks, place)
        elif place.type != "cpu" and crowded(map(size, networks), memory.free(place)):
            raise torch.OutOfMemoryError(f"lease: {model.source} leaves too little of {place} for working")
        return family

    ways = [memory.Way("with the others on the device", 0, (False, False))]
    if place.type != "cpu":
        ways += [memory.Way("without the others", 0, (True, False)), memory.Way("network by network, in turns", 0, (True, True))]
    return memory.sparing(made, ways, free=None, what=model.source)


def _changed(family: Family, model: Model, train: bool, backend: str) -> ExitStack:
    patches.told(family)  # what an earlier lease left unread
    with ExitStack() as stack:
        stack.enter_context(preserved(family.trainable()))
        if train:
            family.for_training()
        for p in model.patches:
            stack.enter_context(patches.find(p.kind)(family, p))
        for name, network in family.trainable().items():
            if backend and name in DENOISERS:
                network.compile(backend=backend)
        return stack.pop_all()


def _give_back(loan: _Loan, holder: str) -> None:
    with _lock:
        loan.holders.remove(holder)
        if not loan.holders:
            loan.changes.close()
        _forget_oldest()


def _forget_oldest() -> None:
    idle = [base for base, loan in _loans.items() if not loan.holders]
    for base in idle[: max(len(idle) - KEEP_WARM, 0)]:
        del _loans[base]
