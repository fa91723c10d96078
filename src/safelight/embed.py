"""Texts inside picture files: PNG text chunks, EXIF and XMP of JPEG and WebP. Read back without decoding a pixel."""
from __future__ import annotations

import hashlib
import json
import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PNG = b"\x89PNG\r\n\x1a\n"
LONG = 8_192  # texts of ours above this are compressed; those that other tools read stay plain
PIECE = 900_000  # Pillow refuses to open a file with a compressed text of more than 1 MiB
SEGMENT = 60_000  # a JPEG segment holds at most 65,533 bytes
XMP_MARK = b"http://ns.adobe.com/xap/1.0/\0"
MORE_MARK = b"http://ns.adobe.com/xmp/extension/\0"
NAMESPACE = "urn:safelight:1"
USER_COMMENT, EXIF_IFD, MAKE, MODEL = 0x9286, 0x8769, 0x010F, 0x0110
OURS = "safelight"
LINEAGE = "safelight.lineage"
"""The key of our lineage in the metadata of a .safetensors file."""


def png_with_texts(data: bytes, texts: Mapping[str, str]) -> bytes:
    """The PNG with a text chunk for each entry after its header. Keywords are 1 to 79 Latin letters; texts any Unicode."""
    if not data.startswith(PNG):
        raise ValueError("not a PNG")
    end = 8 + 12 + int.from_bytes(data[8:12], "big")  # the header chunk
    chunks = [_text_chunk(key, piece) for key, value in texts.items() for piece in _pieces(key, value)]
    return data[:end] + b"".join(chunks) + data[end:]


def _pieces(key: str, text: str) -> Iterator[str]:
    if key != OURS or len(text) <= PIECE:
        yield text
        return
    for start in range(0, len(text), PIECE):
        yield text[start : start + PIECE]


def _text_chunk(key: str, text: str) -> bytes:
    word = key.encode("latin-1")
    if key == OURS and len(text) > LONG:
        return _chunk(b"iTXt", word + b"\0\1\0\0\0" + zlib.compress(text.encode(), 9))
    if text.isascii():
        return _chunk(b"tEXt", word + b"\0" + text.encode())
    return _chunk(b"iTXt", word + b"\0\0\0\0\0" + text.encode())


def _chunk(kind: bytes, body: bytes) -> bytes:
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png_texts(data: bytes) -> dict[str, str]:
    """All texts of a PNG by keyword; pieces of one text are joined. ValueError when the file is cut short."""
    out: dict[str, str] = {}
    at = 8
    while at + 8 <= len(data):
        size, kind = int.from_bytes(data[at : at + 4], "big"), data[at + 4 : at + 8]
        body = data[at + 8 : at + 8 + size]
        if len(body) < size:
            raise ValueError("the PNG is cut short")
        if kind in (b"tEXt", b"zTXt", b"iTXt"):
            key, text = _text(kind, body)
            out[key] = out.get(key, "") + text if key == OURS else text
        at += 12 + size
    return out


def _text(kind: bytes, body: bytes) -> tuple[str, str]:
    key, _, rest = body.partition(b"\0")
    if kind == b"tEXt":
        return key.decode("latin-1"), rest.decode("latin-1")
    if kind == b"zTXt":
        return key.decode("latin-1"), zlib.decompress(rest[1:]).decode("latin-1")
    packed, text = rest[0], rest[2:].split(b"\0", 2)[2]
    return key.decode("latin-1"), (zlib.decompress(text) if packed else text).decode("utf-8")


def save_options(texts: Mapping[str, str], *, jpeg: bool) -> dict[str, Any]:
    """What Pillow's `save` of a JPEG or WebP is told: `parameters` as the EXIF user comment, prompt and workflow where ComfyUI has them,
    and everything as XMP, continued in further segments when a JPEG's first cannot hold it."""
    xmp = _xmp({k: v for k, v in texts.items() if v})
    options: dict[str, Any] = {"exif": _exif(texts, SEGMENT if jpeg else 2**31)}
    if not jpeg or len(xmp) <= SEGMENT:
        return options | {"xmp": xmp}
    guid = hashlib.md5(xmp, usedforsecurity=False).hexdigest().upper()  # the XMP specification names MD5
    parts = [xmp[i : i + SEGMENT] for i in range(0, len(xmp), SEGMENT)]
    more = [MORE_MARK + guid.encode() + struct.pack(">II", len(xmp), i * SEGMENT) + part for i, part in enumerate(parts)]
    segments = b"".join(b"\xff\xe1" + struct.pack(">H", len(body) + 2) + body for body in more)
    pointer = _packet(f'<rdf:Description rdf:about="" xmlns:xmpNote="http://ns.adobe.com/xmp/note/" xmpNote:HasExtendedXMP="{guid}"/>')
    return options | {"xmp": pointer, "extra": segments}


def _exif(texts: Mapping[str, str], limit: int) -> bytes:
    from PIL import Image

    exif = Image.Exif()
    if texts.get("parameters"):
        exif.get_ifd(EXIF_IFD)[USER_COMMENT] = b"UNICODE\0" + texts["parameters"].encode("utf-16-be")
    small: bytes = exif.tobytes()
    for tag, key in ((MODEL, "prompt"), (MAKE, "workflow")):
        if texts.get(key):
            exif[tag] = f"{key}:{texts[key]}"
    full: bytes = exif.tobytes()
    return full if len(full) <= limit else small


def _xmp(texts: Mapping[str, str]) -> bytes:
    from xml.sax.saxutils import escape  # it brings the whole of HTTP with it

    fields = "".join(f"<sl:{k}>{escape(v)}</sl:{k}>" for k, v in texts.items())
    return _packet(f'<rdf:Description rdf:about="" xmlns:sl="{NAMESPACE}">{fields}</rdf:Description>')


def _packet(description: str) -> bytes:
    rdf = f'<rdf:RDF xmlns:rdf="http://www.w3.org/1999/02/22-rdf-syntax-ns#">{description}</rdf:RDF>'
    return f'<x:xmpmeta xmlns:x="adobe:ns:meta/">{rdf}</x:xmpmeta>'.encode()


def safetensors_texts(path: Path) -> dict[str, str]:
    """The metadata of a .safetensors file, from its header. ValueError when it is none."""
    with open(path, "rb") as f:
        size = int.from_bytes(f.read(8), "little")
        try:
            header = json.loads(f.read(size)) if size < 2**27 else {}
        except ValueError as e:
            raise ValueError(f"{path}: not a .safetensors file") from e
    return dict(header.get("__metadata__", {}))


def texts_of(path: Path) -> dict[str, str]:
    """The texts of a picture file: `parameters`, `prompt`, `workflow`, `safelight`, and in a PNG whatever else it has.

    ValueError when the file is no picture that Pillow knows, OSError when it cannot be read.
    """
    with open(path, "rb") as f:
        if f.read(8) == PNG:
            f.seek(0)
            return png_texts(f.read())
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(path) as picture:
            segments = [body for _, body in getattr(picture, "applist", ())]
            return _exif_texts(picture.getexif()) | _xmp_texts(picture.info.get("xmp", b""), segments)
    except UnidentifiedImageError as e:
        raise ValueError(f"{path}: not a picture") from e


def _exif_texts(exif: Any) -> dict[str, str]:
    out: dict[str, str] = {}
    comment = exif.get_ifd(EXIF_IFD).get(USER_COMMENT, b"")
    if isinstance(comment, bytes) and comment.startswith(b"UNICODE\0"):
        little = comment[8:9] != b"\0" and comment[9:10] == b"\0"  # other programs write either order
        out["parameters"] = comment[8:].decode("utf-16-le" if little else "utf-16-be")
    for tag in (MODEL, MAKE):
        key, _, text = str(exif.get(tag, "")).partition(":")
        if key in ("prompt", "workflow"):
            out[key] = text
    return out


def _xmp_texts(packet: bytes, segments: list[bytes]) -> dict[str, str]:
    from xml.sax.saxutils import unescape

    parts = sorted((s[len(MORE_MARK) + 36 :][:4], s[len(MORE_MARK) + 40 :]) for s in segments if s.startswith(MORE_MARK))
    text = (b"".join(part for _, part in parts) or packet).decode("utf-8", "replace")
    return {key: unescape(value) for key, value in re.findall(r"<sl:(\w+)>(.*?)</sl:\1>", text, re.DOTALL)} if NAMESPACE in text else {}
