"""`pull`: models by name from Hugging Face or ModelScope."""
from __future__ import annotations

from pathlib import Path

import click

from safelight.cli.show import follow, tell


@click.command("pull")
@click.argument("names", nargs=-1)
@click.option("--to", type=click.Path(path_type=Path, file_okay=False), metavar="DIR",
              help="Put the files here. Default: the Hugging Face cache; from ModelScope the models folder.")
@click.option("--revision", metavar="REV", help="Branch, tag or commit. Default: the newest.")
@click.option("--only", multiple=True, metavar="PATTERN", help="Take the files that fit, as in 'unet/*', and no others; may be repeated.")
@click.option("--dry-run", is_flag=True, help="Only say what would be fetched.")
@click.option("--events", type=click.Choice(["jsonl"]), help="Print every event as a line of JSON.")
def pull_command(
    names: tuple[str, ...], *, to: Path | None, revision: str | None, only: tuple[str, ...], dry_run: bool, events: str | None,
) -> int:
    """Fetch models: kolors, sdxl, ..., hf:owner/name or ms:owner/name; without a name, list the short ones.

    Takes the files that are needed: one set of safetensors (fp16 where there is one), configurations and vocabularies. Every file is
    checked by its hash. Stopped and started again, it goes on where it was.
    """
    from safelight.events import Result
    from safelight.pulling import KNOWN, plan, pull

    if not names:
        for name, known in KNOWN.items():
            click.echo(f"{name:<18} hf:{known.hf}" + (f"  ms:{known.ms}" if known.ms else ""))
        return 0
    if to is not None and len(names) > 1:
        raise click.UsageError("--to takes the files of one model; pull them one by one")
    for name in names:
        planned = plan(name, to=to, revision=revision, only=only)
        if dry_run:
            click.echo("\n".join(f"{f.size / 2**20:10.1f} MB  {f.name}" for f in planned.files))
            click.echo(f"{planned.size / 2**20:10.1f} MB  of {planned.wanted.hub}:{planned.wanted.id}")
            continue
        done = follow(pull(planned), events)
        if events is not None:
            tell(Result(type="Folder", files=tuple(str(f) for f in done.files)))
        else:
            click.echo(str(done.folder))
            click.echo(f"{len(done.files)} files, {planned.size / 2**20:.1f} MB, {done.fetched / 2**20:.1f} MB of them fetched now")
    return 0
