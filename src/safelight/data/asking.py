"""What captioners can be asked for, in groups of knobs. Nothing heavy here: surfaces read these."""
from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from safelight.spec import Knob
from safelight.values import Knobs


@dataclass(frozen=True)
class Wording(Knobs):
    """For the captioners that need no network of their own: `template` and the embedded `tagger`."""

    template: Annotated[
        str, "for by=template; may name {caption} {name} {stem} {folder} {width} {height} and the columns of the table"] = "{caption}"
    language: Annotated[Literal["en", "zh"], "for by=tagger"] = "en"
    confidence: Annotated[float, Knob(0.0, 1.0, step=0.05, help="for by=tagger: attributes it is less sure of go unsaid")] = 0.5


@dataclass(frozen=True)
class Looking(Knobs):
    """For `blip` and `vlm`: which network looks, and how it writes. The names are those of sd-scripts' make_captions.py."""

    network: Annotated[str, "for blip, vlm, wd14: a folder, or a name in the Hugging Face cache; empty: the usual one of each"] = ""
    prompt: Annotated[str, "what the vlm is asked; for blip the words that the caption goes on from; empty: the usual"] = ""
    beam_search: Annotated[bool, "take the likeliest sentence; otherwise words are drawn from the likeliest (nucleus sampling)"] = False
    num_beams: Annotated[int, Knob(1, 64, help="sentences followed at once in a beam search; 1 is greedy")] = 1
    top_p: Annotated[float, Knob(0.01, 1.0, step=0.05, help="how much probability the words drawn from have together")] = 0.9
    max_length: Annotated[int, Knob(1, 2048, help="most tokens of a caption")] = 75
    min_length: Annotated[int, Knob(0, 2048, help="least tokens of a caption")] = 5
    batch_size: Annotated[int, Knob(1, 1024, help="pictures looked at together, by wd14 too")] = 1
    max_data_loader_n_workers: Annotated[int, Knob(0, 64, help="threads that decode pictures meanwhile; 0: none")] = 0
    caption_seed: Annotated[int, Knob(0, 2**31 - 1, help="of the words drawn")] = 42

    def __post_init__(self) -> None:
        if self.min_length > self.max_length:
            raise ValueError(f"caption: min_length: got {self.min_length}, expected max_length ({self.max_length}) or less")


@dataclass(frozen=True)
class Tagging(Knobs):
    """For `wd14`: which tags are said, and in what order. The names are those of sd-scripts' tag_images_by_wd14_tagger.py."""

    general_threshold: Annotated[float, Knob(0.0, 1.0, step=0.01, help="least probability of a general tag")] = 0.35
    character_threshold: Annotated[float, Knob(0.0, 1.0, step=0.01, help="least probability of a character's name")] = 0.85
    remove_underscore: Annotated[bool, "write blanks for underscores, but in faces such as ^_^"] = True
    character_tags_first: Annotated[bool, "names of characters before the general tags"] = True
    undesired_tags: Annotated[tuple[str, ...], "tags never said"] = ()
    always_first_tags: Annotated[tuple[str, ...], "tags that stand first where they are found, in this order"] = ()
    rating: Annotated[Literal["no", "first", "last"], "say the likeliest of general, sensitive, questionable and explicit"] = "no"


WORDING, LOOKING, TAGGING = Wording(), Looking(), Tagging()
"""As they are when nobody asks for anything else."""
