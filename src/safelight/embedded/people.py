"""Illustrated people from exact attributes, drawn with DiceBear's `personas` style (Draftbit, CC BY 4.0); mouths are made larger."""
from __future__ import annotations

import json
from collections.abc import Collection
from functools import cache
from importlib.resources import files
from random import Random
from typing import Any

from safelight.embedded import vocabulary as v

_HAIR = {"long": ("long", "extraLong"), "bob": ("bobCut",), "bangs": ("bobBangs",), "pigtails": ("pigtails",), "bun": ("straightBun",),
         "curly": ("curly",), "afro": ("curlyHighTop",), "short": ("shortCombover",), "mohawk": ("mohawk",), "buzz": ("buzzcut",),
         "bald": ("bald",), "beanie": ("beanie",)}
_MOUTH = {"smiling": "smile", "laughing": "bigSmile", "sad": "frown", "surprised": "surprise"}
_BEARD = {"beard": "beardMustache", "mustache": "walrus", "goatee": "goatee"}
_CLOTHES = {"shirt": "rounded", "checkered": "checkered", "sweater": "squared"}
_FEMALE = {"long", "bob", "bangs", "pigtails", "bun"}
_NO_COLOUR = {"bald", "beanie"}
_MOUTH_PLACE = "translate(27 37.46)"
_MOUTH_GROWN = "translate(32 39.96) scale(1.45) translate(-5 -2.5)"  # the style's own is nine pixels wide at 128: a cell of the latents
MOUTH = (slice(10, 13), slice(6, 10))  # rows and columns of sixteen, in both frames
FRAMES = {"portrait": (6.0, 5.0, 52.0), "close-up": (11.0, 9.5, 42.0)}


def draw_attributes(rng: Random) -> dict[str, str]:
    """One person's attributes. Hair style, colours, glasses and expression are independent; beard and subject follow the hair style."""
    hair = rng.choice(list(v.HAIR_STYLES))
    female = hair in _FEMALE or (hair in {"curly", "afro"} and rng.random() < 0.5)
    beard = "none" if female or rng.random() < 0.7 else rng.choice(list(_BEARD))
    subject = rng.choice(("woman", "girl")) if female else "man" if beard != "none" else rng.choice(("man", "boy"))
    glasses = rng.choices(list(v.GLASSES), (0.55, 0.3, 0.15))[0]
    colour = "none" if hair in _NO_COLOUR and beard == "none" else rng.choice(list(v.HAIR_COLOURS))
    person = {
        "kind": "person", "subject": subject, "hair style": hair, "hair colour": colour,
        "glasses": glasses, "expression": rng.choice(list(v.EXPRESSIONS)), "beard": beard,
        "eyes": rng.choices(list(v.EYES), (0.84, 0.09, 0.07))[0] if glasses == "none" else "open",
        "clothes": rng.choices(list(v.CLOTHES), (0.6, 0.2, 0.2))[0], "clothes colour": rng.choice(list(v.CLOTHES_COLOURS)),
        "skin": rng.choice(list(v.SKINS)), "frame": rng.choices(list(FRAMES), (0.8, 0.2))[0],
    }
    return person | draw_background(rng, avoid={person["hair colour"], person["clothes colour"]})


def draw_background(rng: Random, avoid: Collection[str] = ()) -> dict[str, str]:
    """A plain named colour (72 %), never one of `avoid` (hair on its own colour cannot be seen), or a scene with a time of day."""
    if rng.random() < 0.72:
        return {"background": rng.choice([c for c in v.BACKGROUNDS if c not in avoid])}
    return {"scene": rng.choice(list(v.SCENES)), "time": rng.choices(list(v.TIMES), (0.5, 0.25, 0.25))[0]}


@cache
def _style() -> Any:
    from dicebear import Style

    return Style(json.loads((files("dicebear_styles") / "personas.json").read_text()))


def svg(person: dict[str, str], rng: Random) -> str:
    """The person alone on a transparent ground; `rng` picks what has no word (nose, which of two long cuts, a little shift)."""
    from dicebear import Avatar

    eyes = {"open": "open", "closed": "sleep", "winking": "wink"}[person["eyes"]] if person["glasses"] == "none" else person["glasses"]
    if person["expression"] == "laughing" and eyes == "open" and rng.random() < 0.5:
        eyes = "happy"
    colour = v.HAIR_HEX.get(person["hair colour"], v.HAIR_HEX["brown"])
    text = Avatar(_style(), {
        "seed": "safelight", "skinColor": [v.SKIN_HEX[person["skin"]]], "hairColor": [colour], "facialHairColor": [colour],
        "clothingColor": [v.CLOTHES_HEX[person["clothes colour"]]], "hairVariant": [rng.choice(_HAIR[person["hair style"]])],
        "eyesVariant": [eyes], "mouthVariant": [_MOUTH[person["expression"]]], "noseVariant": [rng.choice(("mediumRound", "smallRound"))],
        "clothesVariant": [_CLOTHES[person["clothes"]]], "facialHairVariant": [_BEARD.get(person["beard"], "goatee")],
        "facialHairProbability": 0 if person["beard"] == "none" else 100,
    }).to_string()
    x, y, side = FRAMES[person["frame"]]
    x, y, side = x + rng.uniform(-1.5, 1.5), y + rng.uniform(-0.8, 0.8), side * rng.uniform(0.97, 1.03)
    text = text.replace(_MOUTH_PLACE, _MOUTH_GROWN, 1)
    return text.replace('viewBox="0 0 64 64"', f'viewBox="{x:.2f} {y:.2f} {side:.2f} {side:.2f}"', 1)
