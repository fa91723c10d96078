"""A list of addresses: .txt (one a line, a caption behind a tab), .csv, .tsv, .jsonl or .parquet; or one address itself."""
from __future__ import annotations

import csv
import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

from safelight.data.metadata import TEXT_COLUMNS, plain
from safelight.data.request import Pick
from safelight.data.sources import Asked, Item, origin, source
from safelight.events import Event, Note
from safelight.values import Caption

ADDRESSES = ("url", "image_url", "img_url", "uri", "image", "images", "file_name", "path")
TEXTS = (*TEXT_COLUMNS, "alt", "title", "description")
LICENCES = ("licence", "license")
AUTHORS = ("author", "creator", "photographer", "artist", "credit")
PAGES = ("page", "page_url", "source_url", "foreign_landing_url")
ALPHABET = "%/:=&?~#+!$,;'@()*[]"
LOOK = 20  # records that are looked at to tell a list of addresses from a table of files
Record = Mapping[str, Any]


@source("urls")
def addresses(asked: Asked) -> Generator[Item | Event, None, None]:
    """Every address in the list, with the caption, licence, author and hash that its row says."""
    path = Path(asked.source)
    records = iter([{"url": asked.source}]) if _is_address(asked.source) else _records(path)
    times: Counter[str] = Counter()
    wrong = number = 0
    for record in records:
        found = pointed(record, asked.pick)
        wrong += not found
        for url in found:
            times[url] += 1
            key = url if times[url] == 1 else f"{url} {times[url]}"
            yield described(Item(key, f"{number:08}", url), record, asked.pick, asked.source)
            number += 1
    if wrong:
        yield Note(text=f"collect: {wrong} lines of {path.name} hold no address", level="warning")


def names_addresses(path: Path) -> bool:
    """Whether a table names addresses and not files: a .txt, a .tsv or a .parquet is taken for it, a .csv or .jsonl is looked into."""
    if path.suffix.lower() not in (".csv", ".jsonl"):
        return path.suffix.lower() in READERS
    return any(pointed(record, Pick()) for record in itertools.islice(_records(path), LOOK))


def pointed(record: Record, pick: Pick) -> list[str]:
    """The addresses in a row: of the column that was picked, of one with a usual name, or of the first that holds any."""
    columns = [pick.picture.lower()] if pick.picture else [*ADDRESSES, *record]
    for column in columns:
        given = record.get(column)
        found = [_written(u) for u in (given if isinstance(given, list) else [given]) if isinstance(u, str) and _is_address(u)]
        if found:
            return found
    return []


def described(item: Item, record: Record, pick: Pick, where: str) -> Item:
    """The item with what its row says: caption, licence, author, page and hash; other plain columns stay with it."""
    text = said(record, (pick.text.lower(),) if pick.text else TEXTS)
    known = {"licence": said(record, LICENCES), "author": said(record, AUTHORS), "page": said(record, PAGES)}
    used = {pick.text.lower(), pick.picture.lower(), *ADDRESSES, *TEXTS, *LICENCES, *AUTHORS, *PAGES}
    extra = {k: v for k, v in record.items() if k not in used and isinstance(v, str | int | float | bool) and v != "" and v == v}
    announced = next((f"{kind}:{record[kind]}" for kind in ("sha256", "md5") if record.get(kind)), "")
    facts = origin(source=where, url=item.url, attribution=said(record, ("attribution",)), **known)
    captions = (Caption("source", text),) if text else ()
    return dataclasses.replace(item, captions=captions, origin=facts, extra=extra, hash=item.hash or announced)


def said(record: Record, columns: Iterable[str]) -> str:
    """The first of the columns that says something, on one line."""
    found = next((record[c] for c in columns if record.get(c)), "")
    return plain(str(next(iter(found), "") if isinstance(found, list) else found))


def _is_address(text: str) -> bool:
    return text.strip().lower().startswith(("http://", "https://"))


def _written(url: str) -> str:
    """An address in ASCII, as it goes over the line."""
    try:
        parts = urlsplit(url.strip())
        host = re.sub(r"[^@:]*[^\x00-\x7f][^@:]*", lambda name: name[0].encode("idna").decode(), parts.netloc)
        return urlunsplit((parts.scheme.lower(), host, *(quote(p, safe=ALPHABET) for p in parts[2:4]), ""))
    except ValueError:
        return url.strip()


def _records(path: Path) -> Iterator[Record]:
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise ValueError(f"collect: {path.name} is no list of addresses; expected one of {', '.join(READERS)}")
    try:
        yield from reader(path)
    except UnicodeDecodeError as e:
        raise ValueError(f"collect: {path} is not UTF-8 ({e.reason}); save it as UTF-8") from e
    except csv.Error as e:
        raise ValueError(f"collect: {path} is no table that can be read: {e}") from e


def parsed(text: str) -> Record:
    """A JSON object, its keys in small letters; nothing of anything else. Halves of characters become question marks."""
    try:
        row = json.loads(json.dumps(json.loads(text), ensure_ascii=False).encode("utf-8", "replace"))
    except (ValueError, RecursionError):
        return {}
    return {k.lower(): v for k, v in row.items()} if isinstance(row, dict) else {}


def _lines(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig") as lines:
        for line in lines:
            url, _, text = line.strip().partition("\t")
            if url and not url.startswith("#"):
                yield {"url": url, "text": text}


def _table(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig", newline="") as lines:
        for row in csv.DictReader(lines, delimiter="\t" if path.suffix.lower() == ".tsv" else ","):
            yield {k.strip().lower(): v for k, v in row.items() if isinstance(k, str) and v is not None}


def _objects(path: Path) -> Iterator[Record]:
    with open(path, encoding="utf-8-sig") as lines:
        yield from map(parsed, filter(str.strip, lines))


def _columns(path: Path) -> Iterator[Record]:
    from safelight.data.sources.shards import arrow

    with arrow().ParquetFile(path) as file:
        plainly = [f.name for f in file.schema_arrow if not re.search("binary|struct", str(f.type))]  # addresses and texts, not pictures
        for batch in file.iter_batches(1024, columns=plainly):
            yield from ({k.lower(): v for k, v in row.items()} for row in batch.to_pylist())


READERS = {".txt": _lines, ".csv": _table, ".tsv": _table, ".jsonl": _objects, ".parquet": _columns}
