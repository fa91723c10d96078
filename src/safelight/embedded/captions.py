"""Captions from attributes, in English and Chinese: wording and order vary, and any attribute may go unsaid; what is said is true."""
from __future__ import annotations

from random import Random

from safelight.embedded import vocabulary as v

Attributes = dict[str, str]


def caption(a: Attributes, rng: Random, *, language: str = "en", full: bool = False) -> str:
    """One caption of the attributes `a` in `language` (en or zh). `full` says every attribute, in the plainest wording."""
    i = 0 if language == "en" else 1
    if a["kind"] == "person":
        return (_person_en if i == 0 else _person_zh)(a, rng, full)
    if a["kind"] == "scene":
        return _scene(a, rng, i, full)
    return _object(a, rng, i, full)


def _says(rng: Random, full: bool, share: float = 0.85) -> bool:
    return full or rng.random() < share


def _ground(a: Attributes, rng: Random, i: int, full: bool) -> str:
    if "background" in a:
        word = v.BACKGROUNDS[a["background"]][i]
        if i == 1:
            return f"{word}背景"
        return f"{word} background" if full or rng.random() < 0.7 else f"on {_article(word)} {word} background"
    scene, time = v.SCENES[a["scene"]][i], v.TIMES[a["time"]][i]
    timed = _says(rng, full, 0.85)
    if i == 0:
        return f"{scene} {time} in the background" if timed else f"{scene} in the background"
    return f"背景是{time}的{scene}" if timed else f"背景是{scene}"


def _subject(a: Attributes, rng: Random, i: int, full: bool) -> str:
    return v.SUBJECTS[a["subject"] if full or rng.random() < 0.8 else "person"][i]


def _hair(a: Attributes, rng: Random, i: int, full: bool) -> str:
    style, colour = a["hair style"], a["hair colour"]
    if style in {"bald", "beanie"}:
        return v.HAIR_STYLES[style][i]
    says_style, says_colour = _says(rng, full, 0.8), _says(rng, full, 0.9)
    word = v.HAIR_COLOURS[colour][i]
    if not says_colour:
        return v.HAIR_STYLES[style][i]
    if not says_style:
        return f"{word} hair" if i == 0 else f"{word}头发"
    phrase = v.HAIR_STYLES[style][i]
    if i == 1:
        return word + phrase
    first, _, rest = phrase.partition(" ")
    if first == "a":
        return f"a {word} {rest}"
    return f"{first} {word} {rest}" if rest else f"{word} {phrase}"


def _person_en(a: Attributes, rng: Random, full: bool) -> str:
    has: list[str] = []
    tail: list[str] = []
    if _says(rng, full, 0.92):
        has.append(_hair(a, rng, 0, full))
    if a["glasses"] != "none" and _says(rng, full, 0.9):
        has.append(v.GLASSES[a["glasses"]][0])
    if a["beard"] != "none" and _says(rng, full, 0.9):
        colour = "" if full or a["hair style"] not in {"bald", "beanie"} else v.HAIR_COLOURS[a["hair colour"]][0] + " "
        article, _, word = v.BEARDS[a["beard"]][0].partition(" ")
        has.append(f"{article} {colour}{word}")
    if a["eyes"] != "open" and _says(rng, full, 0.85):
        (has if a["eyes"] == "closed" else tail).append(v.EYES[a["eyes"]][0])
    if _says(rng, full, 0.6):
        has.append(v.SKINS[a["skin"]][0])
    clothes = f"{v.CLOTHES_COLOURS[a['clothes colour']][0]} {v.CLOTHES[a['clothes']][0]}"
    if _says(rng, full, 0.8):
        tail.append(f"wearing {_article(clothes)} {clothes}" if rng.random() < 0.4 else clothes)
    who = _subject(a, rng, 0, full)
    face = v.EXPRESSIONS[a["expression"]][0] if _says(rng, full, 0.88) else ""
    if face and rng.random() < 0.35:
        tail.append(face)
        face = ""
    shot = "close-up of " if a["frame"] == "close-up" and _says(rng, full, 0.8) else "portrait of " if rng.random() < 0.3 else ""
    who = f"{'' if shot and rng.random() < 0.3 else 'a '}{face + ' ' if face else ''}{who}"
    if not full:
        rng.shuffle(has)
        rng.shuffle(tail)
    if _says(rng, full, 0.9):
        tail.append(_ground(a, rng, 0, full))
    text = shot + who + (" with " + _listed(has) if has else "")
    return ", ".join([text, *tail])


def _article(word: str) -> str:
    return "an" if word[0] in "aeiou" else "a"


def _listed(parts: list[str]) -> str:
    return parts[0] if len(parts) == 1 else ", ".join(parts[:-1]) + " and " + parts[-1]


def _head_zh(a: Attributes, rng: Random, full: bool) -> str:
    who = _subject(a, rng, 1, full)
    head = f"一个{who}"
    if _says(rng, full, 0.92):
        hair = ("戴" if a["hair style"] == "beanie" else "") + _hair(a, rng, 1, full)
        head = f"一个{hair}的{who}" if rng.random() < 0.75 else f"{who},{hair}"
    return head + "的特写" if a["frame"] == "close-up" and _says(rng, full, 0.8) else head


def _person_zh(a: Attributes, rng: Random, full: bool) -> str:
    head, parts = _head_zh(a, rng, full), []
    if a["glasses"] != "none" and _says(rng, full, 0.9):
        parts.append(v.GLASSES[a["glasses"]][1])
    if a["beard"] != "none" and _says(rng, full, 0.9):
        parts.append(v.BEARDS[a["beard"]][1])
    if a["eyes"] != "open" and _says(rng, full, 0.85):
        parts.append(v.EYES[a["eyes"]][1])
    if _says(rng, full, 0.88):
        parts.append(v.EXPRESSIONS[a["expression"]][1])
    if _says(rng, full, 0.6):
        parts.append(v.SKINS[a["skin"]][1])
    if _says(rng, full, 0.8):
        parts.append(("穿" if rng.random() < 0.5 else "") + v.CLOTHES_COLOURS[a["clothes colour"]][1] + v.CLOTHES[a["clothes"]][1])
    if not full:
        rng.shuffle(parts)
    if _says(rng, full, 0.9):
        parts.append(_ground(a, rng, 1, full))
    return (", " if rng.random() < 0.2 else ",").join([head, *parts])


def _scene(a: Attributes, rng: Random, i: int, full: bool) -> str:
    scene, time = v.SCENES[a["scene"]][i], v.TIMES[a["time"]][i]
    if not _says(rng, full, 0.9):
        return scene
    return f"{scene} {time}" if i == 0 else f"{time}的{scene}"


def _object(a: Attributes, rng: Random, i: int, full: bool) -> str:
    name = v.OBJECTS[a["object"]][i]
    if i == 1 and rng.random() < 0.3:
        name = "一个" + name
    return f"{name}, {_ground(a, rng, i, full)}" if _says(rng, full, 0.75) else name
