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


def numbered(path: Path, first: int = 1) -> list[tuple[int, bytes]]:
    """(number, line) of every line that is not empty."""
    return [(i, line) for i, line in enumerate(path.read_bytes().splitlines(keepends=True), first) if line.strip()]


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


FORMATS_HEADER = """
np: 1
export_path: '{root}/{name}/result.{suffix}'
process: [text_length_filter: {min_len: 1}]
"""
FORMATS = {
    "gz": ("jsonl", "dataset_path: '{root}/a.jsonl.gz'"),
    "csv": ("jsonl", "dataset_path: '{root}/a.csv'"),
    "tsv": ("jsonl", "dataset_path: '{root}/a.tsv'"),
    "parquet": ("jsonl", "dataset_path: '{root}/a.parquet'"),
    "tree": ("jsonl", "dataset_path: '{root}/folder'"),
    "two": ("jsonl", "dataset_path: '0.5 {root}/a.jsonl 0.5 {root}/b.jsonl'"),
    "mixed": ("jsonl", """dataset:
  max_sample_num: 45
  configs:
    - {type: local, path: '{root}/a.jsonl', weight: 0.3}
    - {type: local, path: '{root}/b.jsonl', weight: 0.6}"""),
    "as_json": ("json", "dataset_path: '{root}/a.jsonl'"),
    "as_parquet": ("parquet", "dataset_path: '{root}/a.jsonl'"),
    "shards": ("jsonl", "dataset_path: '{root}/a.jsonl'\nexport_shard_size: 2500"),
}
"""Other kinds of input and output: the suffix of the result, and the keys that differ."""


def write_formats(folder: Path) -> None:
    """The same rows as .jsonl, .jsonl.gz, .parquet, and in a folder; flat ones as .csv and .tsv; others as b.jsonl."""
    import csv
    import gzip

    told: list[dict[str, Any]] = [
        {"text": SAID[i % len(SAID)].replace("\u0007", "") or "empty", "n": i, "share": i / 8, "flag": i % 2 == 0, "tags": ["a", f"b{i}"],
         "meta": {"k": i, "s": None if i % 3 else "x/y"}} for i in range(30)]
    told[4]["text"] = None
    lines = "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in told)
    (folder / "folder" / "below").mkdir(parents=True)
    for place in ("a.jsonl", "folder/below/a.jsonl"):
        (folder / place).write_text(lines, "utf-8")
    (folder / "folder" / "other.csv").write_text("text\nleft out\n", "utf-8")  # the kind that most files are of is read
    (folder / "folder" / "more.jsonl").write_text("", "utf-8")
    (folder / "a.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
    others = "".join(json.dumps({"text": f"other {i}", "n": i, "else": i / 4}) + "\n" for i in range(10))
    (folder / "b.jsonl").write_text(others, "utf-8")
    for name, delimiter in (("a.csv", ","), ("a.tsv", "\t")):
        with open(folder / name, "w", encoding="utf-8", newline="") as f:
            writer = csv.writer(f, delimiter=delimiter)
            writer.writerow(["text", "n", "some", "share", "flag", "mixed", "none"])
            for i, row in enumerate(told):
                text = (row["text"] or "").replace("\r", " ")
                writer.writerow([text, i, "" if i == 7 else i, i / 8, i % 2 == 0, i if i < 20 else f"x{i}", ""])
    try:
        import pyarrow.json
        import pyarrow.parquet
    except ModuleNotFoundError:
        return
    pyarrow.parquet.write_table(pyarrow.json.read_json(folder / "a.jsonl"), folder / "a.parquet")


SIMHASH = {
    "simhash": "process: [document_simhash_deduplicator: {tokenization: character, window_size: 4}]",
    "simhash_space": "process: [document_simhash_deduplicator: {window_size: 2, hamming_distance: 5, ignore_pattern: '[0-9]'}]",
    "simhash_point": "process: [document_simhash_deduplicator: {tokenization: punctuation, window_size: 1, lowercase: false}]",
}


def write_alike(folder: Path) -> Path:
    """`alike.jsonl`: texts of forty words, each with copies that differ in some words; empty and short ones."""
    chance = random.Random(1)
    said = "a red fox sits in the snow looking at camera, wide angle. Soft light! long exposure; bowl ramen table steam 1 22 333"
    words = said.split()
    told = []
    for _ in range(25):
        base = [chance.choice(words) for _ in range(40)]
        for change in range(4):
            for _ in range(change):
                base[chance.randrange(len(base))] = chance.choice(words)
            told.append(" ".join(base))
    chance.shuffle(told)
    path = folder / "alike.jsonl"
    path.write_text("".join(json.dumps({"text": t}, ensure_ascii=False) + "\n" for t in [*told, "", "x", "", "二次元", "二次元"]), "utf-8")
    return path


SEEN = """
process:
  - image_face_count_filter: {min_face_count: 0, max_face_count: 5}
  - image_face_ratio_filter: {max_ratio: 0.9}
  - image_subplot_filter: {min_confidence: 0.5, hough_threshold: 60, min_line_length: 60}
"""


def write_seen(folder: Path) -> Path:
    """`seen.jsonl`: a face as a cascade knows it, two faces, a grid of lines, stripes, and nothing much."""
    import numpy as np
    from PIL import Image as Pil

    y, x = np.mgrid[:190, :160].astype(np.float64)
    face = np.full((190, 160), 90.0)
    spots = [(80, 95, 58, 80, 200.0), (54, 80, 14, 7, 60.0), (106, 80, 14, 7, 60.0), (54, 66, 18, 4, 80.0), (106, 66, 18, 4, 80.0),
             (80, 110, 8, 4, 140.0), (80, 133, 21, 5, 90.0)]
    for cx, cy, rx, ry, shade in spots:  # ellipses with soft edges
        inside = 1 / (1 + np.exp(8 * (np.hypot((x - cx) / rx, (y - cy) / ry) - 1)))
        face += (shade - face) * inside
    grid, stripes = np.full((200, 240), 230.0), np.full((200, 240), 230.0)
    grid[::40] = grid[1::40] = grid[:, ::40] = grid[:, 1::40] = 20
    stripes[::40] = stripes[1::40] = 20
    made = {"face": face, "two": np.hstack([face, face[:, ::-1]]), "grid": grid, "stripes": stripes, "flat": np.full((60, 90), 77.0)}
    for name, grey in made.items():
        Pil.fromarray(np.repeat(grey[..., None], 3, 2).round().astype(np.uint8)).save(folder / f"{name}.png")
    told = [*([f"{name}.png"] for name in made), ["face.png", "grid.png"], []]
    path = folder / "seen.jsonl"
    path.write_text("".join(json.dumps({"text": str(i), "image": t}) + "\n" for i, t in enumerate(told)), "utf-8")
    return path
