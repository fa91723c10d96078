"""A server on this machine that speaks the hubs' and other APIs, and breaks, lies and refuses when it is told to."""
from __future__ import annotations

import base64
import hashlib
import json
import random
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


def noise(size: int, seed: int) -> bytes:
    return random.Random(seed).randbytes(size)


@dataclass(frozen=True)
class Reply:
    """One answer: its bytes (or pieces without end), and what goes before them. `promised` is a length that is not kept."""

    data: bytes | Iterator[bytes] = b""
    code: int = 200
    headers: Mapping[str, str] = field(default_factory=dict)
    promised: int | None = None


class Hub(ThreadingHTTPServer):
    """Both hubs with one repository, `o/m`, and any other addresses.

    What a test wants otherwise it sets: `breaks` (bytes after which an answer ends, a list per file), `lies` (bytes sent instead), `status`
    per path prefix, `ranges` (whether they are honoured), `cdn` (where large files are redirected to), `replies` (answers by path, the last
    one again and again), `card` (what the repository says of itself), `hangs` (uploads that it hangs up on
    half-way). Uploads are for who has a token that ends in `_secret`; what came lies in `files`, `made`, `uploads` (by hash), `commits`.
    """

    daemon_threads = False  # closing the server waits for the answers that are under way

    def __init__(self, files: Mapping[str, bytes]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files = dict(files)
        self.replies: dict[str, list[Reply]] = {}
        self.card: dict[str, Any] = {}
        self.breaks: dict[str, list[int]] = {}
        self.lies: dict[str, bytes] = {}
        self.status: dict[str, int] = {}
        self.ranges, self.cdn = True, f"http://localhost:{self.server_port}"
        self.sent: Counter[str] = Counter()
        self.seen: list[tuple[str, str, dict[str, str]]] = []
        self.listed: list[dict[str, Any]] = []
        self.made: list[str] = []
        self.blobs: dict[str, bytes] = {}
        self.uploads: Counter[str] = Counter()
        self.hangs = self.commits = 0

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that hangs up is no news."""


class Handler(BaseHTTPRequestHandler):
    protocol_version, timeout = "HTTP/1.1", 5
    server: Hub

    def log_message(self, format: str, *args: Any) -> None:
        """Quiet."""

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        path, asked = unquote(parts.path), parse_qs(parts.query)
        self.server.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        refused = next((code for prefix, code in self.server.status.items() if path.startswith(prefix)), 0)
        if refused:
            return self.answer(b"{}", code=refused)
        replies = self.server.replies.get(path)
        if replies:
            return self.reply(replies.pop(0) if len(replies) > 1 else replies[0])
        resolve = re.fullmatch(r"(?:/datasets)?/o/m/resolve/[^/]+/(.+)", path)
        if re.match("/api/(models|datasets)/o/m/revision/", path):
            self.answer(json.dumps(self.hugging_face()).encode())
        elif path == "/api/v1/models/o/m/repo/files":
            rows = self.server.listed or [self.row(n) for n in self.server.files] + [{"Path": "unet", "Type": "tree", "Size": 0}]
            self.answer(json.dumps({"Code": 200, "Success": True, "Data": {"Files": rows}}).encode())
        elif path == "/api/v1/datasets/o/m" or (path == "/api/v1/models/o/m" and self.server.made):
            self.answer(json.dumps({"Code": 200, "Data": {"Id": 77, "License": str(self.server.card.get("license", ""))}}).encode())
        elif path == "/api/v1/datasets/77/repo/tree" and asked["Root"] == ["/"]:
            page, size = (int(asked[k][0]) for k in ("PageNumber", "PageSize"))
            rows = [{"Path": "train", "Type": "tree", "Size": 0}, *map(self.row, self.server.files)][(page - 1) * size : page * size]
            self.answer(json.dumps({"Code": 200, "Data": {"Files": rows}}).encode())
        elif path in ("/api/v1/models/o/m/repo", "/api/v1/datasets/o/m/repo") and asked["FilePath"][0] in self.server.files:
            self.content(asked["FilePath"][0])
        elif resolve and resolve[1] in self.server.files:
            self.resolve(resolve[1])
        elif path.startswith("/cdn/"):
            self.content(path.removeprefix("/cdn/"))
        else:
            self.answer(b"{}", code=404)

    def do_POST(self) -> None:
        path, length = urlsplit(self.path).path, int(self.headers["Content-Length"])
        put = self.command == "PUT"
        self.server.seen.append((self.command, self.path, {k.lower(): v for k, v in self.headers.items()}))
        if put and self.server.hangs:
            self.server.hangs -= 1
            self.rfile.read(length // 2)
            self.close_connection = True
            return self.connection.close()
        body = self.rfile.read(length)
        refused = next((code for prefix, code in self.server.status.items() if path.startswith(prefix)), 0)
        if not put and not self.headers.get("Authorization", "").endswith("_secret"):
            refused = 401
        if refused:
            return self.answer(b"{}", code=refused)
        said = self.put(path, body) if put else self.uploaded(path, body)
        self.answer(json.dumps({"Code": 200, "Message": "", "Data": said} if "/api/v1" in path else said).encode())

    do_PUT = do_POST

    def put(self, path: str, body: bytes) -> dict[str, Any]:
        self.server.blobs[sha256(body)] = body
        self.server.uploads[sha256(body)] += 1
        assert path.endswith(sha256(body))
        return {}

    def uploaded(self, path: str, body: bytes) -> dict[str, Any]:
        server, lines = self.server, [json.loads(line) for line in body.splitlines() if line]
        if path in ("/api/repos/create", "/api/v1/models"):
            server.made.append("/".join(str(v) for k, v in lines[0].items() if k in ("organization", "name", "Path", "Name")))
            server.made[-1] = "o/m" if "o" in server.made[-1].split("/") else server.made[-1]
            return {"url": f"{server.url}/o/m", "id": "o/m"}
        if path.endswith("/preupload/main"):
            names = [f["path"] for f in lines[0]["files"]]
            return {"files": [{"path": n, "uploadMode": "lfs" if large(n) else "regular", "shouldIgnore": False} for n in names]}
        if path.endswith("/objects/batch"):
            at = f"{server.url}{'/api/v1' if '/api/v1/' in path else ''}/put/"
            asked = lines[0]["objects"]
            lacks = {o["oid"]: {"actions": {"upload": {"href": at + o["oid"]}}} for o in asked if o["oid"] not in server.blobs}
            return {"transfer": "basic", "objects": [o | lacks.get(o["oid"], {}) for o in asked]}
        if "/commit/" not in path:
            return {}
        server.commits += 1
        for key, value in ((x["key"], x["value"]) for x in lines if "key" in x):
            if key != "header":
                server.files[value["path"]] = server.blobs[value["oid"]] if key == "lfsFile" else base64.b64decode(value["content"])
        for action in lines[0].get("actions", []):
            data = server.blobs[action["sha256"]] if action["type"] == "lfs" else base64.b64decode(action["content"])
            server.files[action["path"]] = data
        return {"commitUrl": f"{server.url}/o/m/commit/{COMMIT}", "commitOid": COMMIT, "oid": COMMIT}

    def hugging_face(self) -> dict[str, Any]:
        siblings = []
        for name, data in self.server.files.items():
            sibling: dict[str, Any] = {"rfilename": name, "size": len(data), "blobId": git(data)}
            if large(name):
                sibling["lfs"] = {"sha256": sha256(data), "size": len(data), "pointerSize": 130}
            siblings.append(sibling)
        told = {"id": "o/m", "sha": COMMIT, "siblings": self.server.listed or siblings}
        return told | ({"cardData": self.server.card} if self.server.card else {})

    def row(self, name: str) -> dict[str, Any]:
        data = self.server.files[name]
        return {"Name": Path(name).name, "Path": name, "Type": "blob", "Size": len(data), "Sha256": sha256(data), "Revision": COMMIT}

    def resolve(self, name: str) -> None:
        data, headers = self.server.files[name], {"X-Repo-Commit": COMMIT}
        if large(name):
            headers |= {"X-Linked-Etag": f'"{sha256(data)}"', "X-Linked-Size": str(len(data)), "Location": f"{self.server.cdn}/cdn/{name}"}
            return self.answer(b"", code=302, headers=headers)
        headers["ETag"] = f'"{git(data)}"'
        self.content(name, headers)

    def content(self, name: str, headers: dict[str, str] | None = None) -> None:
        data = self.server.lies.get(name, self.server.files[name])
        ranged = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        if ranged and self.server.ranges:
            start = int(ranged[1])
            more = {"Content-Range": f"bytes {start}-{len(data) - 1}/{len(data)}"}
            return self.answer(data[start:], code=206, headers=more | (headers or {}), name=name)
        self.answer(data, headers=headers, name=name)

    def reply(self, reply: Reply) -> None:
        if isinstance(reply.data, bytes):
            length = len(reply.data) if reply.promised is None else reply.promised
            self.close_connection = reply.promised is not None
            return self.answer(reply.data, code=reply.code, headers={**reply.headers, "Content-Length": str(length)})
        self.send_response(reply.code)
        for key, value in reply.headers.items():
            self.send_header(key, value)
        self.close_connection = True
        self.end_headers()
        for piece in reply.data:
            self.wfile.write(piece)

    def answer(self, data: bytes, *, code: int = 200, headers: dict[str, str] | None = None, name: str = "") -> None:
        self.send_response(code)
        for key, value in {"Content-Length": str(len(data)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        left = self.server.breaks.get(name)
        if left:
            data = data[: left.pop(0)]
            self.close_connection = True
        self.wfile.write(data)
        self.server.sent[name] += len(data)


def large(name: str) -> bool:
    return name.endswith((".safetensors", ".bin", ".onnx", ".png"))


def sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data, usedforsecurity=False).hexdigest()
