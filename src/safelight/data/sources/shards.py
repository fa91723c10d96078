"""Pictures inside larger files on a server, read as they come: parquet, WebDataset tar, zip. Nothing but the pictures is kept."""
from __future__ import annotations

import dataclasses
import io
import re
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Generator, Iterable, Mapping
from contextlib import closing
from http.client import HTTPResponse
from itertools import groupby
from pathlib import PurePosixPath
from typing import Any

from safelight.data.folder import PICTURES
from safelight.data.metadata import decoded, parquet
from safelight.data.request import Fetch
from safelight.data.sources import Asked, Item, safe
from safelight.data.sources.urls import Record, described, parsed, pointed
from safelight.pulling.http import BROKEN, Http, Refused, patiently

LONGEST_TEXT = 2**20  # bytes of a caption or a record beside a picture
BATCH = 32  # rows of a parquet file that are in memory at a time
TEXTS = (".txt", ".caption", ".json")
DAMAGED = (tarfile.TarError, zipfile.BadZipFile, zlib.error, EOFError, RuntimeError)
Found = Generator[Item, None, int]


class Remote(io.RawIOBase):
    """A file on a server, read from any place; a connection that breaks is taken up where it was."""

    def __init__(self, http: Http, url: str, size: int) -> None:
        self.http, self.url, self.size = http, url, size
        self._at = 0
        self._answer: HTTPResponse | None = None

    def readable(self) -> bool:
        """Yes."""
        return True

    def seekable(self) -> bool:
        """Yes."""
        return True

    def tell(self) -> int:
        """Bytes from the start."""
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        """Go to a place; the connection is made anew when it is another one."""
        at = offset + {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self.size}[whence]
        if at != self._at:
            self._drop()
            self._at = at
        return at

    def readinto(self, buffer: Any) -> int:
        """As io.RawIOBase; OSError as `patiently`."""
        if self._at >= self.size:
            return 0
        piece = patiently(self.url, lambda: self._piece(len(buffer)))
        buffer[:len(piece)] = piece
        self._at += len(piece)
        return len(piece)

    def _piece(self, most: int) -> bytes:
        try:
            if piece := self._open().read1(most):
                return piece
        except BROKEN:
            self._drop()
            raise
        self._drop()
        raise ConnectionError(f"the connection ended early, at byte {self._at} of {self.size}")

    def _open(self) -> HTTPResponse:
        if self._answer is None:
            self._answer = self.http.open(self.url, start=self._at)
            if self._at and self._answer.status != 206:
                raise Refused(f"{self.url}: the server cannot begin at byte {self._at}")
        return self._answer

    def _drop(self) -> None:
        if self._answer is not None:
            self._answer.close()
            self._answer = None

    def close(self) -> None:
        """Let go of the connection."""
        self._drop()
        super().close()


def items(name: str, asked: Asked, known: Mapping[str, str], remote: Callable[[], Remote]) -> Generator[Item, None, int]:
    """The pictures of one shard, `FILE@HASH`, in order; how many. A shard that was read to its end is not opened again."""
    count = asked.finished(name)
    if count is not None and all(asked.had(f"{name} {i}") for i in range(count)):
        yield from (Item(f"{name} {i}") for i in range(count))
        return count
    read = next(r for suffix, r in READERS.items() if name.partition("@")[0].lower().endswith(suffix))
    with closing(remote()) as raw, io.BufferedReader(raw, 2**18) as file:
        try:
            count = yield from read(file, name, asked, known)
        except DAMAGED as e:
            raise ValueError(f"collect: {name.partition('@')[0]} is damaged or locked: {e}") from e
    asked.finish(name, count)
    return count


def is_shard(name: str) -> bool:
    """Whether a file is one of the kinds that are read here."""
    return name.lower().endswith(tuple(READERS))


def arrow() -> Any:
    """pyarrow.parquet. ValueError saying how to get it."""
    return parquet("collect: reading parquet")


def _parquet(file: Any, name: str, asked: Asked, known: Mapping[str, str]) -> Found:
    table = arrow().ParquetFile(file)
    picture = _picture_column(table.schema_arrow, asked.pick.picture, name)
    number = 0
    for group in range(table.num_row_groups):
        rows = table.metadata.row_group(group).num_rows
        keys = [f"{name} {number + i}" for i in range(rows)]
        number += rows
        if all(map(asked.had, keys)):
            yield from map(Item, keys)
            continue
        batches = table.iter_batches(BATCH, row_groups=[group])
        for key, row in zip(keys, (row for batch in batches for row in batch.to_pylist()), strict=True):
            yield _of_row(key, row, picture, asked, known)
    return number


def _picture_column(schema: Any, wanted: str, name: str) -> str:
    """The column with pictures: a struct with `bytes`, bytes, or addresses. ValueError naming the columns."""
    if wanted and wanted not in schema.names:
        raise ValueError(f"collect: {name} has no column {wanted!r}; it has {', '.join(schema.names)}")
    kinds = {column: str(schema.field(column).type) for column in ([wanted] if wanted else schema.names)}
    for pattern in (r"struct<.*bytes: .*", "(large_)?binary"):
        found = [c for c, kind in kinds.items() if re.fullmatch(pattern, kind)]
        if found:
            return next((c for c in found if c in ("image", "jpg", "png", "picture", "img")), found[0])
    return wanted  # addresses, if anything; each row is looked at


def _of_row(key: str, row: Record, picture: str, asked: Asked, known: Mapping[str, str]) -> Item:
    held = row.get(picture)
    data = held.get("bytes") if isinstance(held, dict) else held if isinstance(held, bytes) else None
    record = {k.lower(): v for k, v in row.items() if k != picture or isinstance(v, str)}
    url = next(iter(pointed(record, asked.pick)), "") if data is None else ""
    shard, _, number = key.rpartition(" ")
    item = Item(key, f"{safe(_stem(shard))}/{int(number):06}", url, data if data is not None or url else b"")
    return _from_hub(described(item, record, asked.pick, known["source"]), known)


def _tar(file: Any, name: str, asked: Asked, known: Mapping[str, str]) -> Found:
    with tarfile.open(fileobj=file, mode="r|*") as tar:
        members = ((m.name, m.size, lambda m=m: _content(tar, m)) for m in tar if m.isfile())
        return (yield from _samples(members, name, asked, known))


def _content(tar: tarfile.TarFile, member: tarfile.TarInfo) -> bytes:
    file = tar.extractfile(member)
    assert file is not None
    return file.read()


def _zip(file: Any, name: str, asked: Asked, known: Mapping[str, str]) -> Found:
    with zipfile.ZipFile(file) as archive:
        infos = sorted((i for i in archive.infolist() if not i.is_dir()), key=lambda i: _key(i.filename))
        members = ((i.filename, i.file_size, lambda i=i: archive.read(i)) for i in infos)
        return (yield from _samples(members, name, asked, known))


def _samples(members: Iterable[tuple[str, int, Callable[[], bytes]]], name: str, asked: Asked, known: Mapping[str, str]) -> Found:
    """Files that share all before the first dot of their name are one sample, as WebDataset has it: a picture and what is said of it."""
    number = 0
    for path, files in groupby(members, key=lambda m: _key(m[0])):
        item, record = None, dict[str, Any]()
        for inside, size, read in files:
            suffix = PurePosixPath(inside).suffix.lower()
            if suffix in PICTURES and item is None:
                item = _picture(Item(f"{name} {number}", safe(f"{_stem(name)}/{path}")), size, read, asked.fetch)
            elif suffix in TEXTS and size <= LONGEST_TEXT:
                record |= _record(suffix, read())
        if item is not None:
            yield _from_hub(described(item, record, asked.pick, known["source"]), known)
            number += 1
    return number


def _picture(item: Item, size: int, read: Callable[[], bytes], limits: Fetch) -> Item:
    if why := limits.refused(size):
        return dataclasses.replace(item, lost=f"not fetched: {why}")
    try:
        return dataclasses.replace(item, data=read())
    except (zipfile.BadZipFile, zlib.error) as e:
        return dataclasses.replace(item, lost=f"unreadable: {e}")


def _record(suffix: str, content: bytes) -> Record:
    return parsed(decoded(content)) if suffix == ".json" else {"text": decoded(content)}


def _from_hub(item: Item, known: Mapping[str, str]) -> Item:
    """The row's own origin where it tells one, the dataset's elsewhere."""
    return dataclasses.replace(item, origin={k: v or known[k] for k, v in item.origin.items()})


def _key(path: str) -> str:
    folder, _, base = path.rpartition("/")
    return f"{folder}/{base.partition('.')[0]}" if folder else base.partition(".")[0]


def _stem(shard: str) -> str:
    return shard.partition("@")[0].rpartition("/")[2].partition(".")[0]


READERS: Mapping[str, Callable[[Any, str, Asked, Mapping[str, str]], Found]] = {
    ".parquet": _parquet, ".tar": _tar, ".tar.gz": _tar, ".tgz": _tar, ".zip": _zip,
}
