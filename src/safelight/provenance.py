"""What an adapter was trained on, as one hash, and whether given pictures and captions are those.

The hash is the root of RFC 6962's Merkle tree over the sorted leaves (sha256 of the picture's file, caption in use): the same pictures give
the same root in any order. No torch.
"""
from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from safelight import embed
from safelight.values import Dataset, canonical

ROOT, DATA, CONFIG, CODE = (f"safelight.{name}" for name in ("data_root", "data", "config_sha256", "code"))
TENSORS = "modelspec.hash_sha256"
WORDS = {ROOT: "pictures and captions", CONFIG: "settings", TENSORS: "tensors", CODE: "made by"}
SHOWN = 3


def root(pairs: Iterable[Sequence[str]]) -> str:
    """64 hex digits of (picture's sha256 in hex, caption) pairs."""
    level = sorted(hashlib.sha256(b"\0" + bytes.fromhex(sha) + caption.encode()).digest() for sha, caption in pairs)
    while len(level) > 1:
        twos = [level[i : i + 2] for i in range(0, len(level), 2)]
        level = [hashlib.sha256(b"\1" + b"".join(two)).digest() if len(two) == 2 else two[0] for two in twos]
    return (level[0] if level else hashlib.sha256().digest()).hex()


def notes(data: Dataset, plan: Any) -> dict[str, str]:
    """What a file says of what it was made from: the root, the dataset's key, the hash of the settings, our version."""
    from importlib.metadata import version

    config, pairs = hashlib.sha256(canonical(plan).encode()).hexdigest(), ((r.picture.sha256, r.caption) for r in data)
    return {ROOT: root(pairs), DATA: data.key, CONFIG: config, CODE: f"safelight {version('safelight')}"}


def chain(file: Path) -> list[str]:
    """What a file says of its own making, in lines; nothing for one that says nothing."""
    told = embed.safetensors_texts(file) if file.suffix == ".safetensors" else {}
    return [f"{words}: {told[key]}" for key, words in WORDS.items() if ROOT in told and key in told]


def problems(file: Path, data: Dataset) -> list[str]:
    """Why a file was not made from these pictures and captions, or was changed since; nothing when all is as it says.

    ValueError when the file says nothing of its pictures.
    """
    told = embed.safetensors_texts(file)
    if ROOT not in told:
        raise ValueError(f"verify: {file} does not say what it was trained on; expected a file that Safelight trained")
    found = [] if told.get(TENSORS, "").removeprefix("0x") == tensors(file) else [f"its tensors are not those that were saved ({TENSORS})"]
    now = {(r.picture.sha256, r.caption): r.name for r in data}
    if root((r.picture.sha256, r.caption) for r in data) == told[ROOT]:
        return found
    listed = json.loads(told.get(embed.LINEAGE, "{}")).get("pictures", {}).get(told.get(DATA, ""), [])
    if root((sha, caption) for sha, _, caption in listed) != told[ROOT]:
        return [*found, "these are not its pictures and captions, and its own list of them was changed or left out: another root"]
    was = {(sha, caption): name for sha, name, caption in listed}
    before, after = ({sha for sha, _ in some} for some in (was, now))
    kinds = {
        "have another caption": [name for (sha, caption), name in now.items() if sha in before and (sha, caption) not in was],
        "were trained on and are not here": [name for (sha, _), name in was.items() if sha not in after],
        "are here and were not trained on": [name for (sha, _), name in now.items() if sha not in before],
    }
    found += [f"{len(names)} pictures {words}: {', '.join(names[:SHOWN])}" for words, names in kinds.items() if names]
    return found or ["the same pictures and captions, but not as often"]


def tensors(file: Path) -> str:
    """sha256 of what follows the header, the tensors' bytes, in hex."""
    with open(file, "rb") as f:
        f.seek(8 + int.from_bytes(f.read(8), "little"))
        return hashlib.file_digest(f, "sha256").hexdigest()
