"""The command `models`: what there is to draw with and to put on it."""
from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from safelight.folders import Folders


@click.command("models")
@click.argument("kind", required=False)
@click.option("--json", "as_json", is_flag=True, help="Names, places, sizes and families as JSON.")
@click.option("--hash", "hashed", is_flag=True, help="The sha256 of every file too; an unchanged file is read once.")
def models_command(kind: str | None, *, as_json: bool, hashed: bool) -> None:
    """List the models folders; with a kind (checkpoints, loras, vae, ...), what lies in them."""
    from safelight import folders

    found = folders.current()
    if kind is None and not as_json:
        _overview(found)
        return
    rows = {k: _rows(found, k, hashed) for k in ([kind] if kind else [k for k in found.places if found.places[k]])}
    if as_json:
        click.echo(json.dumps(rows, indent=1, ensure_ascii=False))
        return
    for row in rows[kind or ""]:
        told = row["family"] or row["kind"].replace("_", " ") or row["problem"] or "unknown"
        click.echo(f"{_size(row['size']):>9}  {told:<14} {row['name']}" + (f"  {row['sha256']}" if "sha256" in row else ""))


def _overview(found: Folders) -> None:
    from safelight import folders

    for kind, places in found.places.items():
        if places:
            click.echo(f"{kind}: {len(found.names(kind))} in " + ", ".join(str(p.path) for p in places))
    cached = folders.hub_names()
    if cached:
        click.echo("Hugging Face cache: " + ", ".join(cached))
    if not any(found.places.values()) and not cached:
        click.echo("no models folder; set SAFELIGHT_MODELS to one, or to an extra_model_paths.yaml")


def _rows(found: Folders, kind: str, hashed: bool) -> list[dict[str, Any]]:
    from safelight import index
    from safelight.families.listing import listed

    rows: list[dict[str, Any]] = []
    for row in listed(found, kind):
        more = {"sha256": index.sha256(row.path)} if hashed and row.path.is_file() else {}
        told = {"family": row.family, "kind": row.kind, "problem": row.problem}
        rows.append({"name": row.name, "path": row.at, "size": row.size, **told, **more})
    return rows


def _size(n: int) -> str:
    return next((f"{n / 2**p:.1f} {u}" for p, u in ((30, "GB"), (20, "MB"), (10, "kB")) if n >= 2**p), f"{n} B")
