"""What was trained, for others: `export-lora` in another program's layout, `push` with a model card to a hub, and `why --verify`."""
from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from safelight.cli.compute import compute
from safelight.cli.show import follow
from safelight.op import load_ops
from safelight.store import Missing, current
from safelight.values import Blob, Patch

if TYPE_CHECKING:
    from safelight.reporting.model_card import Card

FILE = click.argument("file", type=click.Path(path_type=Path, exists=True, dir_okay=False))


@click.command("export-lora")
@FILE
@click.option("--model", "name", default="mini", show_default=True, metavar="NAME", help="The model that it changes.")
@click.option("--layout", required=True, help="kohya, diffusers, comfyui, or diffsynth (a .ckpt without alpha).")
@click.option("--out", "-o", type=click.Path(path_type=Path), required=True, metavar="FILE")
@compute
def export_command(file: Path, *, name: str, layout: str, out: Path) -> None:
    """Write an adapter of any program in another layout."""
    import torch

    from safelight.recipes.portable import export
    from safelight.runtime import lease

    out.parent.mkdir(parents=True, exist_ok=True)
    with lease(load_ops()["model"](name), dtype=torch.float32, holder="export-lora") as family:
        keys = export(family, file, layout, out)
    click.echo(f"{out}: {len(keys)} tensors, such as {keys[0]}")


@click.command("push")
@click.argument("to", metavar="HUB:OWNER/NAME")
@FILE
@click.option("--base", default="", metavar="OWNER/NAME", help="The model's name on the hub. Default: where it was pulled from.")
@click.option("--licence", default="other", show_default=True, metavar="ID", help="The hub's identifier, such as apache-2.0.")
@click.option("--private/--public", default=True, show_default=True, help="For a repository that is not there yet.")
@click.option("--dry-run", type=click.Path(path_type=Path), metavar="DIR", help="Only write there what would be sent.")
def push_command(to: str, file: Path, *, base: str, licence: str, private: bool, dry_run: Path | None) -> None:
    """Send an adapter to hf:owner/name or ms:owner/name with its model card: README.md, sample pictures, the held-out curve.

    Tokens: HF_TOKEN (or `hf auth login`) and MODELSCOPE_API_TOKEN.
    """
    from safelight.pulling.push import push, target

    wanted, folder = target(to), dry_run or current().folder(f"push-{file.stem}")
    written = _card(file, base, licence).write(folder)
    click.echo("\n".join(str(path) for path in written) if dry_run else follow(push(wanted, folder, private=private), None))


def _card(file: Path, base: str, licence: str) -> Card:
    """What the file says, and what its training left in the store, where it is the one that trained it."""
    from safelight.embed import safetensors_texts
    from safelight.reporting.model_card import Card

    files = _trained(Blob.of(file).sha256).files
    record = json.loads(Path(files["record.json"].path).read_text(encoding="utf-8")) if "record.json" in files else {}
    drawn = [s for s in record.get("samples", []) if s["step"] == record.get("kept_step") and s["file"] in files]
    return Card(file, safetensors_texts(file), record, [(str(s["prompt"]), Path(files[s["file"]].path)) for s in drawn], base, licence)


def _trained(sha: str) -> Patch:
    """The patch of the store with this file's content, or one that knows nothing."""
    for record in current().records():
        if record.type == "Patch" and record.about.get("sha256") == sha:
            try:
                found = current().load(record)
            except Missing:
                continue
            assert isinstance(found, Patch)
            return found
    return Patch("lora", Blob("", sha))


def verify(file: Path, folder: str) -> int:
    """Say whether a file was trained on the pictures and captions of a folder or table; the exit status."""
    from safelight.provenance import chain, problems

    data = load_ops()["folder"](folder)
    wrong = problems(file, data)
    found = f"{len(data)} pictures and captions in {folder}: " + ("the very ones it was trained on" if not wrong else "not as it says")
    click.echo("\n".join([*chain(file), *(f"NOT AS IT SAYS: {line}" for line in wrong), found]))
    return 1 if wrong else 0
