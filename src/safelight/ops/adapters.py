"""LoRAs made narrower, added up, or made of other things: each says how far it is from what was asked for."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from safelight.events import Note, Progress
from safelight.op import Knob, Work, op
from safelight.values import Model, Patch

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.patches.lora import Change
    from safelight.patches.lora.narrow import Written

Rank = Annotated[int | None, Knob(1, 4096, help="ranks of a layer, at most; nothing: all there are")]
Keep = Annotated[float, Knob(0.01, 1, help="how much of each layer's squared singular values is kept; with less than 1, fewer ranks do")]


@op(group="model", version=1)
def resize_lora(lora: Patch, *, rank: Rank = None, keep: Keep = 0.95) -> Work[Patch]:
    """Make a LoRA narrower: of each layer the largest singular values are kept, and the file is smaller.

    A change that is no plain LoRA goes through as_lora first.
    """
    from safelight.patches.lora.narrow import Width, merged

    made = merged([(_changes(lora), 1.0, lora.weights.path)], Width(rank, keep))
    return (yield from _finished("resize_lora", made, _title(lora), _notes(lora)))


@op(group="model", version=1)
def merge_loras(loras: Sequence[Patch], *, weights: Sequence[float] = (), rank: Rank = None) -> Work[Patch]:
    """Add LoRAs up into one file: at the sum of their ranks exactly, at fewer the nearest there is.

    Layers go by their names, so files of different programs go through as_lora first.

    Args:
        weights: how much each counts; empty: as much as its strength
    """
    from safelight.patches.lora.narrow import Width, merged

    if not loras or (weights and len(weights) != len(loras)):
        raise ValueError(f"merge_loras: {len(weights)} weights for {len(loras)} LoRAs; expected one for each, or none")
    counted = weights or [lora.strength for lora in loras]
    made = merged([(_changes(one), w, one.weights.path) for one, w in zip(loras, counted, strict=True)], Width(rank))
    return (yield from _finished("merge_loras", made, " + ".join(map(_title, loras)), {}))


@op(group="model", version=1)
def as_lora(adapter: Patch, model: Model, *, rank: Rank = 32, keep: Keep = 1.0) -> Work[Patch]:
    """Make a plain LoRA of any adapter (LoHa, LoKr, DoRA, full differences, any program's names), in kohya's layout.

    Args:
        model: what it is for; what a DoRA does depends on the weights
    """
    import torch

    from safelight.patches.lora import PREFIXES, kohya_name, match
    from safelight.patches.lora.beside import effective
    from safelight.patches.lora.narrow import Width, Written
    from safelight.runtime import lease

    made = Written(Width(rank, keep))
    with lease(model, dtype=torch.float32, holder="as_lora") as family:
        several = "text_encoder_2" in {part for part in family.trainable() if part in PREFIXES}
        fits = [fit for some in match(family, _changes(adapter), adapter.weights.path).values() for fit in some]
        for i, (place, change) in enumerate(fits, 1):
            made.change(kohya_name(place.part, place.path, several=several), change, place.layer, effective(place.layer)[0].detach())
            yield Progress(step=i, total=len(fits), what="layers")
    return (yield from _finished("as_lora", made, _title(adapter), _notes(adapter)))


@op(group="model", version=1)
def extract_lora(model: Model, tuned: Model, *, rank: Rank = 32, keep: Keep = 1.0) -> Work[Patch]:
    """Make a LoRA of the difference between two models: what makes one into the other, as far as its ranks reach.

    Args:
        model: what the LoRA is for
        tuned: the same model, trained further or with patches on it
    """
    from safelight.patches.lora.narrow import Width, Written

    made, after, before = Written(Width(rank, keep)), _weights(tuned), _weights(model)
    if {k: t.shape for k, (t, _) in after.items()} != {k: t.shape for k, (t, _) in before.items()}:
        raise ValueError(f"extract_lora: {tuned.source} and {model.source} have different layers; expected two models of one shape")
    for i, (key, (weight, name)) in enumerate(before.items(), 1):
        delta = after[key][0].double() - weight.double()
        if delta.any() and name:
            made.dense(name, delta)
        made.lose(None if name else delta)
        yield Progress(step=i, total=len(before), what="layers")
    if not made.pairs:
        raise ValueError(f"extract_lora: no linear or convolution layer of {tuned.source} differs from {model.source}")
    return (yield from _finished("extract_lora", made, f"{Path(tuned.source).stem} less {Path(model.source).stem}", {}))


def _weights(model: Model) -> dict[str, tuple[Tensor, str]]:
    """All numbers of the networks a LoRA may change, and the kohya names of those it can; copies, since both may share a base."""
    import torch

    from safelight.patches.lora import PREFIXES, places
    from safelight.runtime import lease

    with lease(model, dtype=torch.float32, holder="extract_lora") as family:
        names = {f"{place.part}.{place.path}.weight": name for name, place in places(family).items()}
        networks = {part: net for part, net in family.trainable().items() if part in PREFIXES}
        found = ((f"{part}.{n}", p) for part, net in networks.items() for n, p in net.named_parameters())
        return {key: (p.detach().cpu().clone(), names.get(key, "")) for key, p in found}


def _title(lora: Patch) -> str:
    return str(lora.info.get("name") or Path(lora.weights.path).stem)


def _changes(lora: Patch) -> dict[str, Change]:
    from safelight.patches.lora import read

    if lora.kind != "lora":
        raise ValueError(f"{lora.kind}: expected a LoRA or another adapter that load_lora reads")
    alpha = lora.options.get("alpha")
    return read(lora.weights.path, alpha=None if alpha is None else float(alpha), config=lora.options.get("config"))


def _notes(lora: Patch) -> dict[str, str]:
    """What a file says of itself that a narrower one may say too."""
    from safelight.patches.lora.file import CONFIG, opened

    told = opened(lora.weights.path).metadata
    return {k: v for k, v in told.items() if k != CONFIG and not k.startswith(("ss_network_", "sshs_"))}


def _finished(name: str, made: Written, title: str, notes: Mapping[str, str]) -> Work[Patch]:
    from tempfile import TemporaryDirectory

    from safelight.store import current
    from safelight.train.lora_file import tensor_hash, write

    tensors, most = made.tensors(), max(made.ranks, default=0)
    own = {"ss_network_module": "networks.lora", "ss_network_dim": str(most), "ss_network_alpha": str(most)}
    with TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        write(file, tensors, {**notes, **own, "sshs_model_hash": tensor_hash(tensors), "safelight.error": f"{made.error:.3e}"})
        blob = current().blob(file)
    yield Note(text=f"{name}: {len(made.ranks)} layers of rank {most} at most; relative error {made.error:.2e}")
    told = {"name": title, "rank": most, "ranks": sorted(set(made.ranks)), "layers": len(made.ranks), "error": made.error}
    return Patch("lora", blob, info=told)
