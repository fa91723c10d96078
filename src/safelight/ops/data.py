"""Pictures and captions: from a folder to a dataset one can train on."""
from __future__ import annotations

from collections.abc import Iterable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

from safelight.data.asking import LOOKING, TAGGING, WORDING, Looking, Tagging, Wording
from safelight.op import Knob, OneOf, Work, op
from safelight.values import Blob, Dataset


def _stamp(given: Mapping[str, Any]) -> str:
    from safelight.data.folder import fingerprint

    return fingerprint(given["path"])


@op(group="data", version=2, loads=True, fingerprint=_stamp)
def folder(path: Path) -> Work[Dataset]:
    """Read a folder of pictures, or a table that names pictures, into a dataset.

    Every picture below the folder becomes a row, sorted by name. Captions come from `NAME.txt` or `NAME.caption` beside a picture, from
    `metadata.csv`, `.jsonl` or `.parquet` (UTF-8; columns file_name and text, or Data-Juicer's text and image), or from folder names such
    as `10_red fox`. Files that cannot be read stay as rows with the reason. Nothing is decoded: sizes come from headers, hashes from bytes.

    Args:
        path: a folder, or a .csv, .jsonl or .parquet table with paths beside it
    """
    from safelight.data.folder import read_folder

    return (yield from read_folder(Path(path)))


@op(group="data", version=4, exact=True)
def curate(
    data: Dataset, *,
    min_side: Annotated[int, Knob(1, 16384)] = 128,
    min_aspect: Annotated[float, Knob(0.0, 1.0, step=0.01)] = 0.333,
    max_aspect: Annotated[float, Knob(1.0, 100.0, step=0.1)] = 3.0,
    near_duplicates: Annotated[int, Knob(-1, 16)] = 6,
    min_contrast: Annotated[float, Knob(0.0, 0.5, step=0.01)] = 0.02,
    min_sharpness: Annotated[float, Knob(0.0, None, step=1.0)] = 0.0,
) -> Work[Dataset]:
    """Drop pictures that are not fit for training: too small, too narrow or wide, blank, blurred, broken, or there twice.

    A dropped row stays in the dataset with its reason and takes no part in what follows. Of duplicates the best is kept: most pixels, with
    a caption, least compressed. What is measured is kept by the picture's content: with other thresholds no picture is opened again.

    Args:
        min_side: the shorter side must have this many pixels
        min_aspect: least width over height
        max_aspect: greatest width over height
        near_duplicates: pictures whose 64-bit perceptual hashes differ in so many bits, and whose colours agree, count as the same; -1
            keeps all but byte-equal files
        min_contrast: standard deviation of the brightness in [0, 1]; lower is as good as blank
        min_sharpness: variance of the Laplacian; photographs below about 20 are blurred, flat drawings are low by nature; 0 keeps all
    """
    from safelight.data.curation import Rule
    from safelight.data.curation import curate as sort_out
    from safelight.data.juicer.known import contents
    from safelight.index import home

    rules = [
        Rule("min_side", "too small", low=min_side), Rule("aspect", "odd shape", low=min_aspect, high=max_aspect),
        Rule("contrast", "blank", low=min_contrast), Rule("sharpness", "blurred", low=min_sharpness),
    ]
    with contents(home() / "measures.sqlite", (r.picture.sha256 for r in data.rows)) as known:
        return (yield from sort_out(data, rules, distance=near_duplicates, known=known))


def _encoders(network: str) -> Path | None:
    from safelight.data.networks import find

    return find("drop_similar", network) if network else None


def _seers(given: Mapping[str, Any]) -> str:
    """The files of the encoders that compare, and whether faiss may search: among very many it finds a little less."""
    return _encoder_stamp(given["network"]) + ("faiss" if find_spec("faiss") else "")


def _encoder_stamp(network: str) -> str:
    from safelight.data.networks import content
    from safelight.scoring.clip import stamp

    place = _encoders(network)
    return stamp() if place is None else content(place)


@op(group="data", version=1, exact=True, fingerprint=_seers)
def drop_similar(
    data: Dataset, *,
    similarity: Annotated[float, Knob(0.0, 1.0, step=0.01)] = 0.95,
    network: str = "",
) -> Work[Dataset]:
    """Drop near duplicates by what is seen in them: other cuts, colours and retouched copies that a perceptual hash takes for new.

    Pictures are compared by CLIP embeddings, all with all (above 200,000 by faiss, where the extra is installed). Of those alike the best
    is kept, by the rule of `curate`; a dropped row stays with its reason. The clusters are in the rows' info. Embeddings are kept by the
    picture's content: another threshold opens no picture.

    Args:
        similarity: pictures with at least this cosine similarity count as the same; smaller, mirrored or recompressed copies reach
            0.98 and more by the embedded encoders
        network: a CLIP that `CLIPModel.save_pretrained` wrote, as a folder or by its name in the Hugging Face cache; empty: the embedded
            one, which knows drawn people and sees photographs coarsely
    """
    from safelight.data.juicer.known import contents
    from safelight.data.similar import drop_similar as thin_out
    from safelight.index import home

    stamp = _encoder_stamp(network)
    with contents(home() / "measures.sqlite", (r.picture.sha256 for r in data.rows)) as known:
        return (yield from thin_out(data, similarity, lambda: _towers(network), stamp=stamp, known=known))


def _table(given: Mapping[str, Any]) -> str:
    return Blob.of(Path(given["path"]).expanduser()).sha256


@op(group="data", version=1, exact=True, fingerprint=_table)
def choose_pictures(data: Dataset, *, path: Path) -> Work[Dataset]:
    """Leave out or take back the pictures that a table names: what somebody decided by hand, whatever `curate` says.

    Nothing is deleted: a picture that is left out stays in the dataset with its reason. One that cannot be read is not taken back.

    Args:
        path: a .csv, .jsonl or .parquet with the columns file_name and text, in UTF-8; the text `keep` takes a picture back, any other is
            the reason for which it is left out
    """
    from safelight.data.curation import chosen

    return (yield from chosen(data, Path(path).expanduser()))


def _captioners() -> Iterable[str]:
    from safelight.data.captioners import CAPTIONERS

    return sorted(CAPTIONERS)


def _eyes(given: Mapping[str, Any]) -> str:
    """The files of the network that looks, for those that look with one."""
    from safelight.data.networks import stamp
    from safelight.scoring.clip import stamp as embedded

    return embedded() if given["by"] == "tagger" else stamp(given["by"], given["looking"].network)


@op(group="data", version=2, exact=True, fingerprint=_eyes)
def caption(
    data: Dataset, *,
    by: Annotated[str, OneOf(_captioners)] = "file",
    trigger: str = "",
    place: Literal["end", "start"] = "end",
    wording: Wording = WORDING,
    looking: Looking = LOOKING,
    tagging: Tagging = TAGGING,
) -> Work[Dataset]:
    """Give every picture a caption: the one from its file, one made from a template, or one that a network sees.

    Captions are layers: a new one is put on top and is the one in use; the older ones stay, and `choose_caption` takes one of them.

    Args:
        by: `file` takes what a caption file, table or folder name says; `template` fills in the template; `tagger` looks with the embedded
            CLIP and says hair, glasses, clothes, background and so on in the words of the embedded model; `blip` writes a sentence, `vlm`
            asks a vision-language model, `wd14` says booru tags; these three look with `network`
        trigger: words added to every caption, by which the trained style is called later, as in `in ukiyo style`
        place: where the trigger goes
    """
    from safelight.data.captioners import Asked
    from safelight.data.captions import caption as add_layer

    asked = Asked(wording.template, wording.language, wording.confidence, _towers, _vocabulary, looking, tagging)
    return (yield from add_layer(data, by, asked, trigger=trigger, place=place))


def _towers(network: str = "") -> Any:
    from safelight.scoring.clip import ClipTowers

    return ClipTowers.load(_encoders(network))


def _vocabulary() -> Any:
    from safelight.embedded.vocabulary import ATTRIBUTES

    return ATTRIBUTES
