"""Captions by looking: which phrase of a vocabulary fits a picture best, by a pair of text and image encoders. Offline, two languages.

A pair that was trained on whole captions judges whole captions best. So attributes are first chosen one by one, and then each is tried
again inside the sentence that the others make, the sentence closest to the picture winning.
"""
from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from safelight.data.captioners import Asked, Towers, Vocabulary, captioner
from safelight.events import Event, Progress
from safelight.pictures import floats, read, square
from safelight.values import Row

if TYPE_CHECKING:
    from numpy.typing import NDArray

LANGUAGES = ("en", "zh")
SUBJECT = {"en": "person", "zh": "人"}
KINDS: Mapping[str, tuple[str, ...]] = {  # what is worth asking about each kind of picture
    "person": ("hair colour", "hair style", "glasses", "expression", "beard", "skin", "clothes colour", "background"),
    "object": ("object", "background"),
    "scene": ("scene", "time"),
}
BATCH = 16


def sentence(found: Mapping[str, str], vocabulary: Vocabulary, language: str) -> str:
    """The attributes as one caption in `en` or `zh`; those that are absent, or valued `none`, go unsaid."""
    at = LANGUAGES.index(language)
    said = {a: vocabulary[a][v][at] for a, v in found.items() if v != "none"}
    if "object" in said or "scene" in said:
        return (", " if at == 0 else ",").join(said[a] for a in ("object", "scene", "time", "background") if a in said)
    return _person_en(said) if at == 0 else _person_zh(said)


def _person_en(said: Mapping[str, str]) -> str:
    hair = [said[a] for a in ("hair style", "hair colour") if a in said]
    if len(hair) == 2 and hair[0].endswith(" hair"):  # "long hair" and "blue hair" make "long blue hair"
        hair = [f"{hair[0].removesuffix(' hair')} {hair[1]}"]
    has = hair + [said[a] for a in ("glasses", "beard", "skin") if a in said]
    who = " ".join(["a", *([said["expression"]] if "expression" in said else []), SUBJECT["en"]])
    if has:
        who += " with " + (" and ".join([", ".join(has[:-1]), has[-1]]) if len(has) > 1 else has[0])
    return ", ".join([who, *(said[a] for a in ("clothes colour", "background") if a in said)])


def _person_zh(said: Mapping[str, str]) -> str:
    hair = [said[a] for a in ("hair colour", "hair style") if a in said]
    if len(hair) == 2 and hair[0].endswith("头发"):
        hair = [hair[0].removesuffix("头发") + hair[1]]
    who = f"一个{hair[0]}的{SUBJECT['zh']}" if hair else f"一个{SUBJECT['zh']}"
    rest = [said[a] for a in ("glasses", "beard", "expression", "skin", "clothes colour", "background") if a in said]
    return ",".join([who, *hair[1:], *rest])


def _chances(towers: Towers, texts: Sequence[str], picture: NDArray[np.float32]) -> NDArray[np.float64]:
    """Softmax over the texts of how well each fits the picture's (D,) embedding."""
    logits = towers.scale * (towers.text(texts) @ picture).astype(np.float64)
    grown = np.exp(logits - logits.max())
    return np.asarray(grown / grown.sum())


def describe(picture: NDArray[np.float32], towers: Towers, asked: Asked, vocabulary: Vocabulary) -> dict[str, str]:
    """Attribute -> value for one picture's (D,) embedding. Attributes whose best value has less than the asked confidence are left out,
    but for what it shows when that is no person."""
    asks = {kind: [a for a in attributes if a in vocabulary] for kind, attributes in KINDS.items()}
    first = {kind: _pass(attributes, {}, picture, towers, vocabulary)[0] for kind, attributes in asks.items()}
    kind = max(first, key=lambda k: float(towers.text([sentence(first[k], vocabulary, "en")])[0] @ picture))
    found, sure = _pass(asks[kind], first[kind], picture, towers, vocabulary)
    return {a: v for a, v in found.items() if sure[a] >= asked.confidence or a == kind}


def _pass(
    attributes: Sequence[str], before: Mapping[str, str], picture: NDArray[np.float32], towers: Towers, vocabulary: Vocabulary,
) -> tuple[dict[str, str], dict[str, float]]:
    """The best value of each attribute in turn, inside the sentence that the others make, and how sure it is."""
    found, sure = dict(before), {}
    for attribute in attributes:
        values = list(vocabulary[attribute])
        chances = _chances(towers, [sentence({**found, attribute: v}, vocabulary, "en") for v in values], picture)
        found[attribute], sure[attribute] = values[int(chances.argmax())], float(chances.max())
    return found, sure


@captioner("tagger")
def from_tagger(rows: Sequence[Row], asked: Asked) -> Generator[Event, None, list[str]]:
    """A sentence of the attributes that the encoders see. Yields Progress. Words outside the vocabulary are never used."""
    if asked.language not in LANGUAGES:
        raise ValueError(f"caption: language {asked.language!r}; the tagger speaks {' and '.join(LANGUAGES)}")
    if asked.towers is None or asked.vocabulary is None:
        raise ValueError("caption: by='tagger' needs a model to look with, and none was given")
    towers, vocabulary = asked.towers(), asked.vocabulary()
    texts: list[str] = []
    for start in range(0, len(rows), BATCH):
        yield Progress(step=start, total=len(rows), what="describing pictures", unit="picture")
        some = rows[start:start + BATCH]
        pixels = np.stack([floats(square(read(r.picture.path, least=towers.size), towers.size)) for r in some])
        for embedding in towers.image(pixels):
            texts.append(sentence(describe(embedding, towers, asked, vocabulary), vocabulary, asked.language))
    yield Progress(step=len(rows), total=len(rows), what="describing pictures", unit="picture")
    return texts
