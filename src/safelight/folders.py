"""Model folders as users have them: which folders there are, what lies in them by name, and where a name leads. No torch.

The kinds and the names are ComfyUI's; the folders of AUTOMATIC1111 and the Hugging Face cache are read as well. $SAFELIGHT_MODELS lists
roots (folders with `checkpoints/`, `loras/`, ... in them, or extra_model_paths.yaml files); without it `models/` and
`extra_model_paths.yaml` are looked for in the working directory and in Safelight's own folder. No name leads out of its folder, by `..` or
by a link; links out are followed where the yaml's section says `follow_links: true` or $SAFELIGHT_FOLLOW_LINKS is set.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any

import yaml

from safelight.index import home

WEIGHTS = (".safetensors", ".sft", ".ckpt", ".pt", ".pth", ".bin")

KINDS: dict[str, tuple[str, ...]] = {
    "checkpoints": ("checkpoints", "Stable-diffusion"),
    "diffusion_models": ("diffusion_models", "unet"),
    "vae": ("vae", "VAE"),
    "text_encoders": ("text_encoders", "clip"),
    "loras": ("loras", "Lora", "LyCORIS"),
    "embeddings": ("embeddings",),
    "controlnet": ("controlnet", "ControlNet", "t2i_adapter"),
    "upscale_models": ("upscale_models", "ESRGAN", "RealESRGAN", "SwinIR"),
    "clip_vision": ("clip_vision",),
    "hypernetworks": ("hypernetworks",),
    "gligen": ("gligen",),
    "configs": ("configs",),
    "style_models": ("style_models",),
    "vae_approx": ("vae_approx", "VAE-approx"),
    "diffusers": ("diffusers",),
    "ipadapter": ("ipadapter",),
    "LLM": ("LLM",),
}
"""Kind -> the names its folder has below a root, in ComfyUI and in AUTOMATIC1111."""

OLD = {"unet": "diffusion_models", "clip": "text_encoders"}
WHOLE = {"diffusers": "model_index.json", "LLM": "config.json"}
"""Kinds that have folders as entries, and the file that makes a folder one."""
SUFFIXES = {"diffusers": (), "configs": (".yaml",)}  # of files that are entries, where those are not WEIGHTS

FOLDER = ("model_index.json", "config.json")
"""What a folder has that may be named in place of a file: a whole model, or one part of it."""

OWN = Path(__file__).parent / "embedded" / "models"
"""What comes with the package, and is looked at last."""

DRIVE = re.compile(r"^[A-Za-z]:")


@dataclass(frozen=True)
class Place:
    """A folder with models of one kind; `links`: whether links out of it are followed."""

    path: Path
    links: bool = False

    def holds(self, found: Path) -> bool:
        """Whether what lies there is inside, links and all."""
        return self.links or found.resolve().is_relative_to(self.path.resolve())


@dataclass(frozen=True)
class Folders:
    """All model folders, by kind, first come first served."""

    places: Mapping[str, tuple[Place, ...]]

    def of(self, kind: str) -> tuple[Place, ...]:
        """The folders of a kind; older names of kinds are known. ValueError for a kind that is none."""
        kind = OLD.get(kind, kind)
        if kind not in self.places and kind not in KINDS:
            raise ValueError(f"models: no kind {kind!r}; expected one of {', '.join(sorted({*KINDS, *self.places}))}")
        return self.places.get(kind, ())

    def names(self, kind: str) -> list[str]:
        """What there is, sorted, as names with forward slashes below the kind's folders."""
        return sorted({name for name, _ in self.walk(kind)})

    def walk(self, kind: str) -> Iterator[tuple[str, os.DirEntry[str]]]:
        """Names and what lies there, folder by folder; of one name the first counts."""
        for place in self.of(kind):
            yield from _walk(place, WHOLE.get(kind, ""), suffixes=SUFFIXES.get(kind, WEIGHTS))

    def find(self, kind: str, name: str) -> Path:
        """Where a name lies: as it is listed, or without its suffix, or the last part of it alone when that is the only one.

        ValueError when there is none, several, or when the name leads out of the folder.
        """
        wanted = inside(name, f"models: {kind}")
        candidates = ((p, p.path / (wanted + suffix)) for suffix in ("", *WEIGHTS) for p in self.of(kind))
        place, found = next(((p, f) for p, f in candidates if f.is_file() or any((f / mark).is_file() for mark in FOLDER)), (None, None))
        if place is None or found is None:
            return self._by_last_part(kind, wanted)
        if not place.holds(found):
            raise ValueError(f"models: {kind} {name!r} is a link out of {place.path}; $SAFELIGHT_FOLLOW_LINKS=1 follows such links")
        return found

    def first(self, kinds: Sequence[str], name: str) -> Path:
        """The same in several kinds, first come first served. ValueError saying where it was looked for."""
        told = []
        for kind in kinds:
            try:
                return self.find(kind, name)
            except ValueError as e:
                told.append(str(e).removeprefix("models: "))
        raise ValueError(f"models: {'; '.join(told)}")

    def _by_last_part(self, kind: str, wanted: str) -> Path:
        known = {name: Path(entry.path) for name, entry in reversed(list(self.walk(kind)))}
        same = {name: path for name, path in known.items() if wanted in (Path(name).name, Path(name).stem)}
        if len(same) == 1:
            return next(iter(same.values()))
        if same:
            raise ValueError(f"models: {kind} {wanted!r} is not the only one: {', '.join(sorted(same))}; give the whole name")
        stems = {Path(name).stem: name for name in known}
        near = [stems[stem] for stem in get_close_matches(Path(wanted).stem, stems, 3)]
        where = ", ".join(str(p.path) for p in self.of(kind)) or "no folder; set SAFELIGHT_MODELS"
        raise ValueError(f"models: no {kind} {wanted!r} in {where}" + (f"; near are {', '.join(near)}" if near else ""))


def inside(name: str, what: str) -> str:
    """The name with forward slashes. ValueError when it is empty or no path below a folder."""
    plain = name.replace("\\", "/")
    if not plain or plain.startswith("/") or DRIVE.match(plain) or "\0" in plain or ".." in plain.split("/"):
        raise ValueError(f"{what}: {name!r} is no name below a models folder")
    return plain


def _walk(place: Place, mark: str, *, suffixes: tuple[str, ...]) -> Iterator[tuple[str, os.DirEntry[str]]]:
    """What lies below a place: files with one of the `suffixes`, and folders that hold the file `mark` if there is one."""
    todo, seen = [(str(place.path), "")], {place.path.resolve()}
    while todo:
        folder, prefix = todo.pop()
        for entry in _entries(place, folder):
            name = prefix + entry.name
            folder_here = entry.is_dir()
            if _is_entry(entry, folder_here, mark, suffixes):
                yield name, entry
            elif folder_here and not _again(entry, seen):
                todo.append((entry.path, f"{name}/"))


def _is_entry(entry: os.DirEntry[str], is_folder: bool, mark: str, suffixes: tuple[str, ...]) -> bool:
    if is_folder:
        return bool(mark) and os.path.isfile(os.path.join(entry.path, mark))
    return entry.name.lower().endswith(suffixes) and entry.is_file()


def _entries(place: Place, folder: str) -> list[os.DirEntry[str]]:
    """What a folder has that may be shown; nothing when it is gone or closed."""
    try:
        return [e for e in os.scandir(folder) if e.name[0] != "." and (not e.is_symlink() or place.holds(Path(e.path)))]
    except (FileNotFoundError, NotADirectoryError, PermissionError):
        return []


def _again(entry: os.DirEntry[str], seen: set[Path]) -> bool:
    """Whether a link leads to a folder that was walked already; a link back up would never end."""
    if not entry.is_symlink():
        return False
    real = Path(entry.path).resolve()
    again = real in seen
    seen.add(real)
    return again


def current() -> Folders:
    """The folders that the environment names now, and the package's own."""
    given = os.environ.get("SAFELIGHT_MODELS")
    if given:
        return roots(*(Path(p).expanduser() for p in given.split(os.pathsep) if p), OWN)
    around = [base / name for base in (Path.cwd(), home()) for name in ("extra_model_paths.yaml", "models")]
    return roots(*(p for p in around if p.exists()), OWN)


def roots(*paths: Path) -> Folders:
    """The folders of these roots. ValueError when one is not there, or a yaml file says something else."""
    links = os.environ.get("SAFELIGHT_FOLLOW_LINKS", "").lower() in ("1", "true", "yes", "on")
    found: dict[str, list[Place]] = {}
    for path in paths:
        if path.suffix.lower() in (".yaml", ".yml"):
            _add_yaml(found, path, links)
        elif path.is_dir():
            _add_root(found, path, links)
        else:
            raise ValueError(f"models: there is no folder {path}; SAFELIGHT_MODELS takes folders and extra_model_paths.yaml files")
    return Folders({kind: tuple(dict.fromkeys(places)) for kind, places in found.items()})


def _add_root(found: dict[str, list[Place]], root: Path, links: bool) -> None:
    """A models folder, or the folder of a program that has one in it."""
    for base in (root, root / "models"):
        there = {entry.name for entry in os.scandir(base) if entry.is_dir()} if base.is_dir() else set()
        for kind, names in KINDS.items():
            found.setdefault(kind, []).extend(Place(base / name, links) for name in names if name in there)


def _add_yaml(found: dict[str, list[Place]], path: Path, links: bool) -> None:
    """ComfyUI's extra_model_paths.yaml: sections with `base_path`, `is_default`, and kinds with one folder a line."""
    try:
        sections = yaml.safe_load(path.read_text("utf-8")) or {}
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as e:
        raise ValueError(f"models: {path} cannot be read: {e}") from e
    if not isinstance(sections, dict) or not all(isinstance(s, dict | None) for s in sections.values()):
        raise ValueError(f"models: {path} is no table of sections; expected `name:` and below it `base_path:`, `checkpoints:`, ...")
    for section in sections.values():
        _add_section(found, dict(section or {}), path.absolute().parent, links)


def _add_section(found: dict[str, list[Place]], section: dict[str, Any], beside: Path, links: bool) -> None:
    base = beside / os.path.expandvars(os.path.expanduser(str(section.pop("base_path", "") or "")))
    first = bool(section.pop("is_default", False))
    links = bool(section.pop("follow_links", False)) or links
    for kind, told in section.items():
        if told is None or kind == "custom_nodes":
            continue
        lines = told if isinstance(told, list) else str(told).splitlines()
        places = [Place(base / os.path.expanduser(str(line).strip()), links) for line in lines if str(line).strip()]
        have = found.setdefault(OLD.get(kind, kind), [])
        have[:] = [*places, *have] if first else [*have, *places]


def place(op: str, kind: str, path: Path, *, whole: bool = True) -> Path:
    """Where an op finds what its user names: here, or by its name in the models folders. Without `whole` only a file counts here.

    ValueError, naming the op, when there is none.
    """
    here = Path(path).expanduser()
    if here.is_file() or (whole and here.exists()):
        return here
    try:
        return current().find(kind, str(path))
    except ValueError as e:
        raise ValueError(f"{op}: there is no file {path}, and {str(e).removeprefix('models: ')}") from e


def shown(source: Path) -> str:
    """What people call a model there: its file without the suffix, its folder, or owner/name of the Hugging Face cache."""
    if source.parent.name == "snapshots" and source.parents[1].name.startswith("models--"):
        return source.parents[1].name.removeprefix("models--").replace("--", "/")
    return source.stem if source.suffix.lower() in WEIGHTS else source.name


# The Hugging Face cache: models--owner--name/refs/main names the commit, snapshots/<commit>/ has links into blobs/.


def hub() -> Path:
    """The Hugging Face cache's folder, by its own variables."""
    own = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE")
    return Path(own or Path(os.environ.get("HF_HOME") or "~/.cache/huggingface") / "hub").expanduser()


def hub_names() -> list[str]:
    """`hf:owner/name` of every model that lies in the cache as a diffusers folder."""
    found = (p.parents[2].name for p in hub().glob("models--*/snapshots/*/model_index.json"))
    return sorted({"hf:" + name.removeprefix("models--").replace("--", "/") for name in found})


def hub_snapshot(name: str) -> Path:
    """The folder of `owner/name` or `owner/name@revision` in the cache. ValueError when it was never downloaded."""
    repo, _, revision = name.removeprefix("hf:").partition("@")
    if not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", repo) or ".." in name or not re.fullmatch(r"[\w./-]*", revision):
        raise ValueError(f"models: {name!r} is no name on Hugging Face; expected hf:owner/name or hf:owner/name@revision")
    folder = hub() / f"models--{repo.replace('/', '--')}"
    ref = folder / "refs" / (revision or "main")
    commit = ref.read_text("utf-8").strip() if ref.is_file() else revision
    found = folder / "snapshots" / commit
    if not re.fullmatch(r"\w[\w-]*", commit) or not found.is_dir():
        raise ValueError(f"models: {repo}{'@' + revision if revision else ''} is not in {hub()}; `safelight pull hf:{repo}` fetches it")
    return found
