"""A folder to Hugging Face or ModelScope. Tokens come from the environment (HF_TOKEN or `hf auth login`, MODELSCOPE_API_TOKEN), go to the
hub alone and into no message.

Hugging Face is huggingface_hub's own upload. ModelScope is what its public client does over HTTP: the repository is made, the hub is asked
which large files it lacks, these are put where it says, and one commit names all files; small texts travel inside the commit.
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

LARGE, TEXTS = 2**20, (".md", ".json", ".yaml", ".txt")
"""ModelScope wants what is no text, or has more bytes, apart from the commit."""

PUBLIC, PRIVATE = 5, 1
"""What ModelScope calls them."""


def target(name: str) -> Wanted:
    """`hf:owner/name` or `ms:owner/name`. ValueError for anything else."""
    hub, _, id = name.partition(":")
    if hub not in ("hf", "ms") or not ID.fullmatch(id):
        raise ValueError(f"push: to {name!r}: expected hf:owner/name or ms:owner/name")
    return Wanted(hub, id)


def push(to: Wanted, folder: Path, *, private: bool = True) -> Work[str]:
    """Upload every file below the folder, hidden ones not, in one commit; the page's address. What the hub has is not sent again.

    ValueError when the hub refuses (no token, a wrong one, no right to write there), OSError when the connection breaks too often: nothing
    is half there then, since the commit comes last.
    """
    names = [p.relative_to(folder) for p in sorted(folder.rglob("*")) if p.is_file()]
    files = {name.as_posix(): folder / name for name in names if not any(part.startswith(".") for part in name.parts)}
    if not files:
        raise ValueError(f"push: there is no file in {folder}")
    yield Note(text=f"push: {len(files)} files, {sum(p.stat().st_size for p in files.values()) / 2**20:.1f} MB to {to.hub}:{to.id}")
    if to.hub == "hf":
        yield Progress(what="upload")
        return _hugging_face(to.id, folder, list(files), private)
    return (yield from _model_scope(ModelScope(to.id, "master"), files, PRIVATE if private else PUBLIC))


def _hugging_face(id: str, folder: Path, names: list[str], private: bool) -> str:
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError, LocalTokenNotFoundError

    hub = HfApi(endpoint=hf_endpoint(), library_name="safelight")
    try:
        hub.create_repo(id, private=private, exist_ok=True)
        hub.upload_folder(repo_id=id, folder_path=folder, commit_message="Upload by Safelight", allow_patterns=names)
    except LocalTokenNotFoundError as e:
        raise ValueError("push: Hugging Face wants a token that may write; set HF_TOKEN or run `hf auth login`") from e
    except HfHubHTTPError as e:
        raise _denied(f"hf:{id}", Refused(str(e).partition("\n")[0], e.response.status_code), "HF_TOKEN") from e
    except (httpx2.TransportError, RuntimeError) as e:  # RuntimeError is what uploads of single files raise
        raise OSError(f"push hf:{id}: the connection broke ({e}); nothing was committed, push again") from e
    return f"{hf_endpoint()}/{id}"


def _model_scope(hub: ModelScope, files: Mapping[str, Path], visibility: int) -> Work[str]:
    if "Authorization" not in hub.http.headers:
        raise ValueError("push: ModelScope wants a token; set MODELSCOPE_API_TOKEN (modelscope.cn, account, access tokens)")
    repository = f"/repos/models/{hub.id}"
    apart = {name: hashlib.sha256(p.read_bytes()).hexdigest() for name, p in files.items()
             if p.suffix not in TEXTS or p.stat().st_size > LARGE}
    wanted = [{"oid": sha, "size": files[name].stat().st_size} for name, sha in apart.items()]
    try:
        _made(hub, visibility)
        told = _send(hub, f"{repository}/info/lfs/objects/batch", {"operation": "upload", "objects": wanted}).get("objects", [])
        places = {str(o["oid"]): str(o["actions"]["upload"]["href"]) for o in told if o.get("actions", {}).get("upload")}
        for i, (name, sha) in enumerate(apart.items()):
            yield Progress(step=i, total=len(apart), what=f"upload {name}", unit="file")
            if sha in places:
                _held(hub.http.send(places[sha], files[name], method="PUT", headers=_login(hub, places[sha])))
        actions = [_action(name, p, apart.get(name, "")) for name, p in files.items()]
        _send(hub, f"{repository}/commit/{hub.revision}", {"commit_message": "Upload by Safelight", "actions": actions})
    except Refused as e:
        raise _denied(f"ms:{hub.id}", e, "MODELSCOPE_API_TOKEN") from e
    except OSError as e:
        raise OSError(f"push ms:{hub.id}: {e}; nothing was committed, push again") from e
    return f"{hub.http.endpoint}/models/{hub.id}"


def _made(hub: ModelScope, visibility: int) -> None:
    """Make the repository when it is not there."""
    try:
        hub.http.json(f"{hub.http.endpoint}/api/v1/models/{hub.id}")
    except Refused as e:
        if e.status != 404:
            raise
        owner, _, name = hub.id.partition("/")
        _send(hub, "/models", {"Path": owner, "Name": name, "ChineseName": name, "Visibility": visibility, "License": ""})


def _send(hub: ModelScope, path: str, body: Mapping[str, Any]) -> Mapping[str, Any]:
    return _held(hub.http.send(f"{hub.http.endpoint}/api/v1{path}", json.dumps(body).encode()))


def _login(hub: ModelScope, url: str) -> dict[str, str]:
    """The login for where the hub wants a file put, when that is a host of its own domain; signed addresses elsewhere need none."""
    home, there = ((urlsplit(u).hostname or "").removeprefix("www.") for u in (hub.http.endpoint, url))
    ours = url.startswith("https:") and there.endswith(f".{home}")
    return {"Content-Type": "application/octet-stream"} | ({k: v for k, v in hub.http.headers.items() if k != "User-Agent"} if ours else {})


def _action(name: str, path: Path, sha: str) -> dict[str, Any]:
    content = "" if sha else base64.b64encode(path.read_bytes()).decode()
    told = {"type": "lfs", "encoding": ""} if sha else {"type": "normal", "encoding": "base64"}
    return {"action": "create", "path": name, "size": path.stat().st_size, "sha256": sha, "content": content, **told}


def _held(answer: Any) -> Mapping[str, Any]:
    """What an answer of ModelScope holds. Refused when it says that it did nothing."""
    said = answer if isinstance(answer, dict) else {}
    if said.get("Code", 200) != 200:  # what storage elsewhere answers has none
        raise Refused(f"it answers {str(said.get('Message'))[:200]!r}", int(said.get("Code") or 0))
    return said["Data"] if isinstance(said.get("Data"), dict) else {}


def _denied(name: str, why: Refused, variable: str) -> ValueError:
    told = {401: f"the token in {variable} is missing, wrong or expired", 403: f"the token in {variable} may not write there"}
    return ValueError(f"push {name}: the hub refuses: {told.get(why.status, str(why))}; nothing was committed")
