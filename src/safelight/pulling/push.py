"""A folder to Hugging Face or ModelScope. Tokens come from the environment (HF_TOKEN or `hf auth login`, MODELSCOPE_API_TOKEN), go to the
hub alone and into no message.

Hugging Face is huggingface_hub's own upload. ModelScope is what its public client does over HTTP: the repository is made, the hub is asked
which large files it lacks, these are put where it says, and one commit names all files; small ones travel inside the commit.
"""
from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from safelight.events import Note, Progress
from safelight.pulling.http import Refused
from safelight.pulling.hubs import ModelScope, hf_endpoint
from safelight.pulling.names import ID, Wanted
from safelight.spec import Work

LARGE = 2**20
"""Bytes from which ModelScope wants a file apart from the commit; binary files go apart at any size."""

TEXTS = (".md", ".json", ".yaml", ".txt")
PUBLIC, PRIVATE = 5, 1
"""What ModelScope calls them."""


def target(name: str) -> Wanted:
    """`hf:owner/name` or `ms:owner/name`. ValueError for anything else."""
    hub, _, id = name.partition(":")
    if hub not in ("hf", "ms") or not ID.fullmatch(id):
        raise ValueError(f"push: to {name!r}: expected hf:owner/name or ms:owner/name")
    return Wanted(hub, id)


def push(to: Wanted, folder: Path, *, private: bool = True, message: str = "Upload by Safelight") -> Work[str]:
    """Upload every file below the folder, one commit; the page's address. What the hub already has is not sent again.

    ValueError when the hub refuses (no token, a wrong one, no right to write there), OSError when the connection breaks too often: nothing
    is half there then, since the commit comes last.
    """
    files = sorted(p for p in folder.rglob("*") if p.is_file() and not any(part.startswith(".") for part in p.relative_to(folder).parts))
    if not files:
        raise ValueError(f"push: there is no file in {folder}")
    yield Note(text=f"push: {len(files)} files, {sum(p.stat().st_size for p in files) / 2**20:.1f} MB to {to.hub}:{to.id}")
    yield Progress(what="upload")
    return _hugging_face(to.id, folder, files, private, message) if to.hub == "hf" else (
        yield from _model_scope(ModelScope(to.id, "master"), folder, files, private=private, message=message))


def _hugging_face(id: str, folder: Path, files: list[Path], private: bool, message: str) -> str:
    import httpx
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    endpoint = hf_endpoint()
    hub = HfApi(endpoint=endpoint, library_name="safelight")
    try:
        hub.create_repo(id, private=private, exist_ok=True)
        allowed = [p.relative_to(folder).as_posix() for p in files]
        hub.upload_folder(repo_id=id, folder_path=folder, commit_message=message, allow_patterns=allowed)
    except LocalTokenNotFoundError as e:
        raise ValueError("push: Hugging Face wants a token that may write; set HF_TOKEN or run `hf auth login`") from e
    except HfHubHTTPError as e:
        raise _denied(f"hf:{id}", e.response.status_code, "HF_TOKEN") from e
    except (httpx.TransportError, RuntimeError) as e:  # RuntimeError is what uploads through xet raise
        raise OSError(f"push hf:{id}: the connection broke ({e}); nothing was committed, push again") from e
    return f"{endpoint}/{id}"


def _model_scope(hub: ModelScope, folder: Path, files: list[Path], *, private: bool, message: str) -> Work[str]:
    http, at = hub.http, f"{hub.http.endpoint}/api/v1"
    if "Authorization" not in http.headers:
        raise ValueError("push: ModelScope wants a token; set MODELSCOPE_API_TOKEN (modelscope.cn, account, access tokens)")
    try:
        _made(hub, at, PRIVATE if private else PUBLIC)
        apart = {p: hashlib.sha256(p.read_bytes()).hexdigest() for p in files if p.suffix not in TEXTS or p.stat().st_size > LARGE}
        wanted = [{"oid": sha, "size": p.stat().st_size} for p, sha in apart.items()]
        asked = json.dumps({"operation": "upload", "objects": wanted}).encode()
        told = _data(http.send(f"{at}/repos/models/{hub.id}/info/lfs/objects/batch", asked))["objects"] if wanted else []
        places = {str(o["oid"]): str(o["actions"]["upload"]["href"]) for o in told if o.get("actions", {}).get("upload")}
        for i, (path, sha) in enumerate(apart.items()):
            yield Progress(step=i, total=len(apart), what=f"upload {path.name}", unit="file")
            if sha in places:
                _data(http.send(places[sha], path, method="PUT", headers=_login(hub, places[sha])))
        actions = [_action(p, p.relative_to(folder).as_posix(), apart.get(p, "")) for p in files]
        commit = json.dumps({"commit_message": message, "actions": actions}).encode()
        _data(http.send(f"{at}/repos/models/{hub.id}/commit/{hub.revision}", commit))
    except Refused as e:
        raise _denied(f"ms:{hub.id}", e.status, "MODELSCOPE_API_TOKEN", str(e)) from e
    except OSError as e:
        raise OSError(f"push ms:{hub.id}: {e}; nothing was committed, push again") from e
    return f"{http.endpoint}/models/{hub.id}"


def _made(hub: ModelScope, at: str, visibility: int) -> None:
    """Make the repository when it is not there."""
    try:
        hub.http.json(f"{at}/models/{hub.id}")
    except Refused as e:
        if e.status != 404:
            raise
        owner, _, name = hub.id.partition("/")
        body = {"Path": owner, "Name": name, "ChineseName": name, "Visibility": visibility, "License": "", "OriginalModelId": ""}
        _data(hub.http.send(f"{at}/models", json.dumps(body).encode()))


def _login(hub: ModelScope, url: str) -> dict[str, str]:
    """The login for where the hub wants a file put, when that is a host of its own domain; signed addresses elsewhere need none."""
    home, there = ((urlsplit(u).hostname or "").removeprefix("www.") for u in (hub.http.endpoint, url))
    ours = url.startswith("https:") and there.endswith(f".{home}")
    return {"Content-Type": "application/octet-stream"} | ({k: v for k, v in hub.http.headers.items() if k != "User-Agent"} if ours else {})


def _action(path: Path, name: str, sha: str) -> dict[str, Any]:
    content = "" if sha else base64.b64encode(path.read_bytes()).decode()
    told = {"type": "lfs", "encoding": ""} if sha else {"type": "normal", "encoding": "base64"}
    return {"action": "create", "path": name, "size": path.stat().st_size, "sha256": sha, "content": content, **told}


def _data(answer: Any) -> Mapping[str, Any]:
    """What an answer of ModelScope holds. Refused when it says that it did nothing."""
    if not isinstance(answer, dict) or answer.get("Code") != 200:
        said = answer if isinstance(answer, dict) else {}
        raise Refused(f"the hub answers {str(said.get('Message'))[:200]!r}", int(said.get("Code") or 0))
    held = answer.get("Data")
    return held if isinstance(held, dict) else {}


def _denied(name: str, status: int, variable: str, said: str = "") -> ValueError:
    why = {401: f"the token in {variable} is missing, wrong or expired", 403: f"the token in {variable} may not write there",
           404: "there is no such owner, or it is not yours"}.get(status, said or f"it answers {status}")
    return ValueError(f"push {name}: the hub refuses: {why}; nothing was committed")
