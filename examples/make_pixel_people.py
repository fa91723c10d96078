"""Draws examples/pixel-people: thirty captioned portraits of one style, and four deliberate flaws for curation to find.

Run: python examples/make_pixel_people.py [FOLDER]   (needs dicebear-core, dicebear-styles and resvg-py from PyPI)

The pictures are the style "Pixel Art" by DiceBear, which is in the public domain (CC0 1.0). Every attribute is chosen here, so the
captions are exact. The same package versions give the same bytes.
"""
from __future__ import annotations

import io
import json
import random
import shutil
import sys
from collections.abc import Iterable
from importlib.resources import files
from itertools import cycle, islice
from pathlib import Path

import resvg_py
from dicebear import Avatar, Style
from PIL import Image

SIDE = 256
PEOPLE = 30
HAIR = {
    "black": "#1c1a1e", "brown": "#6b3e1e", "blonde": "#e8c25a", "red": "#b8321f", "gray": "#8d8f96",
    "purple": "#7a3fb0", "blue": "#2f6fd0", "green": "#3f9a4a", "pink": "#ef7fb4", "white": "#eeeae4",
}
CLOTHES = {
    "red": "#d1343a", "blue": "#2f6fd0", "green": "#3f9a4a", "yellow": "#f2c230", "purple": "#7a3fb0",
    "orange": "#ee8430", "pink": "#ef7fb4", "white": "#f4f2ee", "black": "#26242a", "gray": "#85888f",
}
GROUND = {
    "blue": "#8fc1f2", "green": "#a4d99a", "yellow": "#f7dd7c", "pink": "#f7b6d0", "purple": "#c3a6e8",
    "orange": "#f8b878", "red": "#e8746c", "white": "#f6f4f0", "gray": "#b9bdc5", "teal": "#62c2bc",
}
SKIN = {"light": "#f6d7b8", "tan": "#e0ac7c", "brown": "#a86c42", "dark": "#6e4429"}
CUTS = {"long": ("long12", "long13", "long07", "long20"), "short": ("short01", "short06", "short14", "short15", "short17")}
GLASSES = ("light05", "light06", "light07")
MOUTHS = {"smiling": ("happy12", "happy09"), "sad": ("sad01",), "": ("happy02", "sad04")}


def deal(choices: Iterable[str], n: int, rng: random.Random) -> list[str]:
    """n names in random order, each as often as the others (give or take one)."""
    names = list(islice(cycle(choices), n))
    rng.shuffle(names)
    return names


def take(names: list[str], but: set[str]) -> str:
    """Removes and returns the first name that is not one of `but`."""
    return names.pop(next(i for i, name in enumerate(names) if name not in but))


def people(rng: random.Random) -> list[dict[str, str]]:
    """The attributes of every person: evenly spread, and hair, clothes and background in three different colours."""
    choices = {"hair": HAIR, "skin": SKIN, "cut": CUTS, "mouth": MOUTHS, "glasses": ("", "glasses")}
    columns = {name: deal(values, PEOPLE, rng) for name, values in choices.items()}
    clothes, grounds = deal(CLOTHES, PEOPLE * 2, rng), deal(GROUND, PEOPLE * 2, rng)
    out = []
    for i in range(PEOPLE):
        one = {name: column[i] for name, column in columns.items()}
        one["clothes"] = take(clothes, {one["hair"]})
        one["ground"] = take(grounds, {one["hair"], one["clothes"]})
        out.append(one)
    return out


def caption(one: dict[str, str]) -> str:
    """One English sentence with every attribute that can be seen."""
    who = " ".join(word for word in ("a", one["mouth"], "person with", one["cut"], one["hair"], "hair") if word)
    glasses = ", glasses" if one["glasses"] else ""
    return f"{who}{glasses} and {one['skin']} skin, {one['clothes']} shirt, {one['ground']} background"


def draw(style: Style, one: dict[str, str], rng: random.Random) -> bytes:
    """The portrait as PNG bytes, SIDE x SIDE."""
    options = {
        "seed": "safelight", "backgroundColor": [GROUND[one["ground"]]], "hairVariant": rng.choice(CUTS[one["cut"]]),
        "hairColor": [HAIR[one["hair"]]], "skinColor": [SKIN[one["skin"]]], "clothingColor": [CLOTHES[one["clothes"]]],
        "clothesVariant": rng.choice(("variant01", "variant03", "variant08", "variant12")), "eyesVariant": "variant01",
        "eyesColor": ["#3a3a44"], "mouthVariant": rng.choice(MOUTHS[one["mouth"]]), "mouthColor": ["#c0504a"],
        "glassesProbability": 100 if one["glasses"] else 0, "glassesVariant": rng.choice(GLASSES), "glassesColor": ["#26242a"],
        "beardProbability": 0, "hatProbability": 0, "accessoriesProbability": 0,
    }
    raw = bytes(resvg_py.svg_to_bytes(svg_string=str(Avatar(style, options)), width=SIDE, height=SIDE, skip_system_fonts=True))
    out = io.BytesIO()
    Image.open(io.BytesIO(raw)).convert("RGB").quantize(64, dither=Image.Dither.NONE).save(out, "PNG", optimize=True)
    return out.getvalue()


def flaws(folder: Path) -> None:
    """Four files that should not be trained on; README.md says which."""
    shutil.copyfile(folder / "person-04.png", folder / "person-04-copy.png")
    Image.open(folder / "person-11.png").convert("RGB").resize((240, 240), Image.Resampling.LANCZOS).save(
        folder / "person-11-small.jpg", quality=70)
    Image.open(folder / "person-17.png").convert("RGB").resize((48, 48), Image.Resampling.NEAREST).save(folder / "thumbnail.png")
    buffer = io.BytesIO()
    Image.open(folder / "person-23.png").convert("RGB").save(buffer, "JPEG", quality=90)
    (folder / "broken-download.jpg").write_bytes(buffer.getvalue()[: len(buffer.getvalue()) * 2 // 5])
    for name, of in (("person-04-copy", 4), ("person-11-small", 11), ("thumbnail", 17), ("broken-download", 23)):
        shutil.copyfile(folder / f"person-{of:02d}.txt", folder / f"{name}.txt")


def main(folder: Path) -> None:
    """Write every picture and caption into the folder; files of the same name are replaced."""
    folder.mkdir(parents=True, exist_ok=True)
    style = Style(json.loads((files("dicebear_styles") / "pixel-art.json").read_text("utf-8")))
    rng = random.Random(20)
    for i, one in enumerate(people(rng), start=1):
        (folder / f"person-{i:02d}.png").write_bytes(draw(style, one, rng))
        (folder / f"person-{i:02d}.txt").write_text(caption(one) + "\n", "utf-8")
    flaws(folder)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent / "pixel-people")
