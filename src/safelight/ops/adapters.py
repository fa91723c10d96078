"""LoRAs made narrower, added up, or made of other things: each says how far it is from what was asked for."""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from safelight.events import Note, Progress
from safelight.op import Knob, Work, op
from safelight.values import Model, Patch

if TYPE_CHECKING:
    from torch import Tensor

    from safelight.patches.lora import Change
    from safelight.patches.lora.narrow import Written

RANK = Knob(1, 4096, help="ranks of a layer, at most")
KEEP = Knob(0.01, 1, help="how much of the squared singular values of each layer; fewer ranks where that is enough")


@op(group="model", version=1)
def resize_lora(lora: Patch, *, rank: Annotated[int | None, RANK] = None, keep: Annotated[float, KEEP] = 0.95) -> Work[Patch]:
    """Make a LoRA narrower: of each layer the largest singular values are kept, and the file is smaller.

    A change that is no plain LoRA goes through as_lora first.

    Args:
        rank: ranks of a layer, at most; nothing: as many as `keep` says
        keep: how much of the squared singular values is kept in each layer; 1: all that rank allows
    """
    from safelight.patches.lora.narrow import Width, merged

    path = lora.weights.path
    made = merged([(_changes(lora), 1.0, path)], Width(rank, keep))
    return (yield from _finished("resize_lora", made, str(lora.info.get("name") or Path(path).stem), _notes(path)))


@op(group="model", version=1)
def merge_loras(loras: Sequence[Patch], *, weights: Sequence[float] = (), rank: Annotated[int | None, RANK] = None) -> Work[Patch]:
    """Add LoRAs up into one file: at the sum of their ranks exactly, at fewer the nearest there is.

    Layers go by their names, so files of different programs go through as_lora first.

    Args:
        loras: two or more plain LoRAs
        weights: how much each counts; empty: as much as its strength
        rank: ranks of a layer, at most; nothing: the sum
    """
    from safelight.patches.lora.narrow import Width, merged

    if not loras or (weights and len(weights) != len(loras)):
        raise ValueError(f"merge_loras: {len(weights)} weights for {len(loras)} LoRAs; expected one for each, or none")
    counted = weights or [lora.strength for lora in loras]
    made = merged([(_changes(one), w, one.weights.path) for one, w in zip(loras, counted, strict=True)], Width(rank))
    name = " + ".join(str(one.info.get("name") or Path(one.weights.path).stem) for one in loras)
    return (yield from _finished("merge_loras", made, name, {}))


@op(group="model", version=1)
def as_lora(
    adapter: Patch, model: Model, *, rank: Annotated[int | None, RANK] = 32, keep: Annotated[float, KEEP] = 1.0
) -> Work[Patch]:
    """Make a plain LoRA of any adapter (LoHa, LoKr, DoRA, full differences, any program's names), in kohya's layout.

    Args:
        adapter: what to rewrite
        model: what it is for; a DoRA depends on its weights
        rank: ranks of a layer, at most; nothing: all there are
        keep: how much of the squared singular values is kept in each layer
    """
    import torch

    from safelight.patches.lora import PREFIXES, kohya_name, match
    from safelight.patches.lora.beside import effective
    from safelight.patches.lora.narrow import Width, Written, layer_delta
    from safelight.runtime import lease

    made, path = Written(), adapter.weights.path
    with lease(model, dtype=torch.float32, holder="as_lora") as family:
        several = "text_encoder_2" in {part for part in family.trainable() if part in PREFIXES}
        fits = [fit for some in match(family, _changes(adapter), path).values() for fit in some]
        for i, (place, change) in enumerate(fits, 1):
            name = kohya_name(place.part, place.path, several=several)
            layer_delta(made, name, change=change, layer=place.layer, weight=effective(place.layer)[0].detach(), width=Width(rank, keep))
            yield Progress(step=i, total=len(fits), what="layers")
    return (yield from _finished("as_lora", made, str(adapter.info.get("name") or Path(path).stem), _notes(path)))


@op(group="model", version=1)
def extract_lora(
    model: Model, tuned: Model, *, rank: Annotated[int | None, RANK] = 32, keep: Annotated[float, KEEP] = 1.0
) -> Work[Patch]:
    """Make a LoRA of the difference between two models: what makes one into the other, as far as its ranks reach.

    Args:
        model: what the LoRA is for
        tuned: the same model, trained further or with patches on it
        rank: ranks of a layer, at most; nothing: all there are
        keep: how much of the squared singular values is kept in each layer
    """
    from safelight.patches.lora.narrow import Width, Written

    made = Written()
    after, before = _weights(tuned), _weights(model)
    if {k: t.shape for k, (t, _) in after.items()} != {k: t.shape for k, (t, _) in before.items()}:
        raise ValueError(f"extract_lora: {tuned.source} and {model.source} have different layers; expected two models of one shape")
    for i, (key, (weight, name)) in enumerate(before.items(), 1):
        delta = after[key][0].double() - weight.double()
        if delta.any() and name:
            made.dense(name, delta, Width(rank, keep))
        elif delta.any():
            square = float(delta.square().sum())
            made.whole, made.lost = made.whole + square, made.lost + square
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


def _changes(lora: Patch) -> dict[str, Change]:
    from safelight.patches.lora import read

    if lora.kind != "lora":
        raise ValueError(f"{lora.kind}: expected a LoRA or another adapter that load_lora reads")
    alpha = lora.options.get("alpha")
    return read(lora.weights.path, alpha=None if alpha is None else float(alpha), config=lora.options.get("config"))


def _notes(path: str) -> dict[str, str]:
    """What a file says of itself that a narrower one may say too."""
    from safelight.patches.lora.file import CONFIG, opened

    return {k: v for k, v in opened(path).metadata.items() if k != CONFIG and not k.startswith(("ss_network_", "sshs_"))}


def _finished(name: str, made: Written, title: str, notes: Mapping[str, str]) -> Work[Patch]:
    from tempfile import TemporaryDirectory

    from safelight.store import current
    from safelight.train.lora_file import tensor_hash, write

    tensors, most = made.tensors(), max(made.ranks, default=0)
    own = {
        "ss_network_module": "networks.lora", "ss_network_dim": str(most), "ss_network_alpha": str(most),
        "sshs_model_hash": tensor_hash(tensors), "safelight.error": f"{made.error:.3e}",
    }
    with TemporaryDirectory() as folder:
        file = Path(folder) / "lora.safetensors"
        write(file, tensors, {**notes, **own})
        blob = current().blob(file)
    told: dict[str, Any] = {"name": title, "rank": most, "ranks": sorted(set(made.ranks)), "layers": len(made.ranks), "error": made.error}
    yield Note(text=f"{name}: {len(made.ranks)} layers of rank {most} at most; relative error {made.error:.2e}")
    return Patch("lora", blob, info=told)
