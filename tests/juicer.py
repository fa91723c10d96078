"""Rows and pictures for what is compared with Data-Juicer, the same on every machine. `tools/dj_golden.py` runs Data-Juicer on them."""
from __future__ import annotations

import json
import random
import struct
import zlib
from pathlib import Path
from typing import Any

SIZES = [(64, 64), (200, 96), (96, 200), (300, 90), (48, 300), (128, 128), (160, 120), (333, 111), (111, 333), (256, 64), (90, 91),
         (40, 40)]
SAID = [
    "a red fox sits in the snow, looking at the camera", "二次元", "一个紫色短发的女孩，微笑着站在樱花树下。她看着镜头。", "", "short",
    "write to jane.doe+photos@example.co.uk or see https://example.com/a?b=1 for the full series of prints",
    "server 192.168.12.254 said hello to 2001:0db8:85a3:0000:0000:8a2e:0370:7334 and went away",
    "the same words the same words the same words the same words the same words the same words",
    "● one ► two ★ three ★ four   five\tsix seven eight nine ten",
    "“Quoted” — text，with full width（punctuation）！ and … dots",
    "/* copyright 2020 somebody */ a bowl of ramen on a wooden table, steam rising, soft light",
    "# comment\n// another\n\na photograph of a lighthouse at dusk, long exposure, wide angle lens",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa", "1234 5678 !!!! ???? #### $$$$ %%%% ^^^^ &&&&",
    "It rains. It rains. It pours. It rains. The old man is snoring. It pours.",
    "一只猫。一只猫。一只狗。一只猫。今天天气很好！今天天气很好！",
    "see www.example.org/page href=nothing and a_very_long_word_that_never_ends_because_nobody_put_a_space_into_it_at_all here",
    "line one is here\nline two is a good deal longer than line one\n\nline four", "\u3000 wide\u00a0spaces\u2003everywhere \u200bzero ",
    "Ünïcödé wörds ärë fïne, emoji too 😀 🦊 ❤ and ½ of it",
    "\"escaped\" \\ back/slash \u2028 separator \u0007 bell \u007f delete",
    "  leading and trailing blanks   ",
    "<p>Some <b>bold</b> &amp; plain</p><ol><li>one</li><li>two</li></ol>", "A FOX A FOX a fox A FOX A FOX a fox A FOX",
]


def _png(size: tuple[int, int], shade: int, orientation: int = 1) -> bytes:
    """Grey, stored without compression, eXIf behind the pixels."""
    width, height = size
    rows = b"".join(b"\0" + bytes((shade + 7 * x * y // (x + y + 1)) % 256 for x in range(width)) for y in range(height))
    blocks = [rows[i:i + 65535] for i in range(0, len(rows), 65535)]
    stored = b"".join(struct.pack("<BHH", i == len(blocks) - 1, len(b), len(b) ^ 0xFFFF) + b for i, b in enumerate(blocks))
    data = b"\x78\x01" + stored + struct.pack(">I", zlib.adler32(rows))
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)), (b"IDAT", data)]
    if orientation != 1:
        chunks.append((b"eXIf", exif(orientation)))
    chunks.append((b"IEND", b""))
    body = b"".join(struct.pack(">I", len(d)) + k + d + struct.pack(">I", zlib.crc32(k + d)) for k, d in chunks)
    return b"\x89PNG\r\n\x1a\n" + body


def exif(orientation: int) -> bytes:
    """A TIFF block with nothing but the orientation."""
    return b"II*\0" + struct.pack("<IH", 8, 1) + struct.pack("<HHIHH", 0x0112, 3, 1, orientation, 0) + struct.pack("<I", 0)


def _jpeg(size: tuple[int, int], shade: int, orientation: int) -> bytes:
    import io

    from PIL import Image as Pil

    out = io.BytesIO()
    extra = {"exif": b"Exif\0\0" + exif(orientation)} if orientation != 1 else {}
    ramp = Pil.linear_gradient("L").resize(size).point(lambda v: (v + shade) % 256)
    Pil.merge("RGB", (ramp, ramp, ramp.point(lambda v: 255 - v))).save(out, "JPEG", quality=80, **extra)
    return out.getvalue()


def write_pictures(folder: Path, count: int = 60) -> list[str]:
    """JPEGs and PNGs of all orientations, one JPEG in nine without its end; names below the folder."""
    names = []
    for i in range(count):
        size, orientation = SIZES[i % len(SIZES)], i % 8 + 1 if i % 3 else 1
        png = i % 5 == 4
        data = _png(size, 11 * i, orientation) if png else _jpeg(size, 11 * i, orientation)
        if not png:
            cut = (data.index(b"\xff\xda") + len(data)) // 2 if i % 9 == 8 else len(data)
            data = data[:cut].ljust(30000 + 100 * i, b"\0")  # the length must not depend on the encoder's version
        name = f"pictures/{i:03d}{'.png' if png else '.jpg'}"
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(data)
        names.append(name)
    return names


def rows(names: list[str], folder: Path, count: int = 160) -> list[dict[str, Any]]:
    """Captions of many kinds, none to three pictures, some columns that not every row has."""
    chance = random.Random(4)
    out = []
    for i in range(count):
        taken = [names[chance.randrange(len(names))] for _ in range(chance.choice([0, 1, 1, 1, 1, 2, 3]))]
        if i % 7 == 3:
            taken = [str(folder / name) for name in taken]
        row: dict[str, Any] = {"text": None if i == 50 else SAID[i % len(SAID)] + (f" number {i}" if i % 4 == 1 else ""), "image": taken,
                               "score": round(chance.uniform(0, 10), 3), "source": chance.choice(["unsplash", "pexels", "own"])}
        if i % 3:
            row["meta"] = {"likes": i % 13, "by": None if i % 5 else f"用户{i}", "share": i / 7}
        out.append(row)
    return out


def write(folder: Path) -> Path:
    """The pictures and `data.jsonl`; its path."""
    listed = rows(write_pictures(folder), folder)
    path = folder / "data.jsonl"
    path.write_text("".join(json.dumps(r, ensure_ascii=i % 2 == 0) + "\n" for i, r in enumerate(listed)), "utf-8")
    return path


HEADER = """
project_name: golden
dataset_path: '{root}/data.jsonl'
np: 2
text_keys: 'text'
image_key: 'image'
image_special_token: '<__dj__image>'
export_path: '{root}/{name}/result.jsonl'
"""

RECIPES = {
    "mission": """
process:
  - image_shape_filter:
      min_width: 90
      min_height: 90
      any_or_all: any
  - image_aspect_ratio_filter:
      min_ratio: 0.333
      max_ratio: 3.0
      any_or_all: any
""",
    "ranges": """
process:
  - image_shape_filter: {min_width: 64, max_width: 300, min_closed_interval: false, max_closed_interval: false, any_or_all: all}
  - image_aspect_ratio_filter: {min_ratio: 0.9, max_ratio: 1.1, reversed_range: true, any_or_all: all}
  - image_size_filter: {min_size: '30kb', max_size: '1MB', any_or_all: any}
""",
    "filters": """
process:
  - text_length_filter: {min_len: 5}
  - words_num_filter: {min_num: 1, max_num: 40}
  - alphanumeric_filter: {min_ratio: 0.1}
  - special_characters_filter: {max_ratio: 0.6}
  - character_repetition_filter: {rep_len: 5, max_ratio: 0.6}
  - word_repetition_filter: {rep_len: 2, max_ratio: 0.8}
  - average_line_length_filter: {min_len: 5, max_len: 200}
  - maximum_line_length_filter: {max_len: 200}
  - specified_field_filter: {field_key: source, target_value: [unsplash, own]}
  - specified_numeric_field_filter: {field_key: score, min_value: 0.5, max_value: 9.5}
  - image_shape_filter: {min_width: 50}
  - image_aspect_ratio_filter: {min_ratio: 0.25, max_ratio: 3.5, any_or_all: all}
  - image_size_filter: {max_size: '1MB'}
""",
    "mappers": """
process:
  - clean_copyright_mapper:
  - clean_email_mapper: {repl: '<mail>'}
  - clean_links_mapper:
  - clean_ip_mapper:
  - punctuation_normalization_mapper:
  - whitespace_normalization_mapper:
  - remove_specific_chars_mapper:
  - remove_repeat_sentences_mapper:
  - remove_long_words_mapper: {max_len: 40}
  - remove_words_with_incorrect_substrings_mapper:
  - replace_content_mapper: {pattern: 'r"(\\bfox\\b)"', repl: 'FOX'}
  - clean_html_mapper:
  - text_length_filter: {min_len: 1}
  - image_shape_filter: {min_width: 50}
  - document_deduplicator: {lowercase: true, ignore_non_character: true}
""",
    "dedup": """
keep_stats_in_res_ds: true
process:
  - image_deduplicator: {consider_text: false}
  - image_aspect_ratio_filter:
""",
    "minhash": """
process:
  - document_minhash_deduplicator: {tokenization: character, num_permutations: 64}
""",
    "top": """
process:
  - text_length_filter: {min_len: 0}
  - topk_specified_field_selector: {field_key: '__dj__stats__.text_len', topk: 100}
  - image_shape_filter:
  - range_specified_field_selector: {field_key: score, lower_percentile: 0.1, upper_percentile: 0.9}
  - topk_specified_field_selector: {field_key: '__dj__stats__.image_width', top_ratio: 0.5, reverse: false}
""",
    "select": """
process:
  - random_selector: {select_ratio: 0.8}
  - frequency_specified_field_selector: {field_key: source, topk: 2}
  - tags_specified_field_selector: {field_key: source, target_tags: [unsplash, pexels]}
""",
}
"""Recipes whose output is compared byte for byte."""
