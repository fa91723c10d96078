"""ComfyUI's routes for files: looking at pictures, uploads, what users keep, settings."""
from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Request
from starlette.datastructures import UploadFile
from starlette.responses import FileResponse, JSONResponse, Response

from safelight.disk import put
from safelight.server.answering import EMPTY, MISSING, body, studio, table
from safelight.server.files import Root, info, keep_upload, media
from safelight.server.pictures import opened
from safelight.server.reading import read

router = APIRouter(tags=["ComfyUI"])

FORMS = {"webp": "WEBP", "jpeg": "JPEG"}


@router.get("/view")
async def view(request: Request) -> Response:
    """A picture: the file itself as an attachment, or (`preview=webp;90`, `channel=rgb`) made anew to be looked at."""
    query, at = request.query_params, studio(request)
    name = query.get("filename", "")
    if not name:
        return MISSING
    path = at.shelves.picture(name, query.get("type") or "output", query.get("subfolder", ""))
    if not path.is_file():
        return MISSING
    channel, preview = query.get("channel") or "", query.get("preview")
    if preview or channel in ("rgb", "a"):
        form, _, quality = (preview or "").partition(";")
        shape = ("WEBP" if "a" in channel else FORMS.get(form, "WEBP")) if preview else "PNG"
        good = min(max(int(quality), 1), 100) if quality.isdecimal() else 90
        made = await at.small.get(path, form=shape, quality=good, channel=channel)
        return Response(made, media_type=f"image/{shape.lower()}", headers={"Content-Disposition": "inline"})
    return FileResponse(path, media_type=media(path), filename=path.name, headers={"Cache-Control": "no-cache"})


async def _form(request: Request) -> tuple[dict[str, str], str, bytes]:
    """The fields, the picture's name and its bytes."""
    async with request.form(max_files=2, max_fields=20) as form:
        fields = {k: v for k, v in form.items() if isinstance(v, str)}
        picture = form.get("image")
        if not isinstance(picture, UploadFile) or not picture.filename:
            raise ValueError("image: there is no file in the form")
        return fields, picture.filename, await picture.read()


async def _keep(request: Request, fields: dict[str, str], name: str, content: bytes) -> dict[str, Any]:
    root = studio(request).shelves.root(fields.get("type") or "input")
    more: dict[str, Any] = {"subfolder": fields.get("subfolder", ""), "overwrite": fields.get("overwrite") in ("true", "1")}
    place = await asyncio.to_thread(lambda: keep_upload(root, name, content, **more))
    inner = place.relative_to(root.path)
    return {"name": inner.name, "subfolder": inner.parent.as_posix().strip("."), "type": fields.get("type") or "input"}


@router.post("/upload/image")
async def upload(request: Request) -> dict[str, Any]:
    """Keep a picture, once it was decoded to its end."""
    fields, name, content = await _form(request)
    await opened("check", content)
    return await _keep(request, fields, name, content)


@router.post("/upload/mask")
async def upload_mask(request: Request) -> dict[str, Any]:
    """The picture `original_ref` with the transparency of the one that comes."""
    fields, name, content = await _form(request)
    ref = read(fields.get("original_ref", "null").encode())
    if not isinstance(ref, dict) or not all(isinstance(v, str) for v in ref.values()):
        raise ValueError("original_ref: expected an object with filename, subfolder and type")
    original = studio(request).shelves.picture(ref.get("filename", ""), ref.get("type") or "output", ref.get("subfolder", ""))
    _, made = await opened("mask", await asyncio.to_thread(original.read_bytes), content)
    return await _keep(request, {**fields, "overwrite": fields.get("overwrite", "1")}, name, made)


# What users keep.


def _own(request: Request) -> Root:
    return Root(studio(request).shelves.user.path / "data")


@router.get("/userdata")
async def list_userdata(request: Request) -> Response:
    """The files below `dir`."""
    query, root = request.query_params, _own(request)
    if not query.get("dir"):
        raise ValueError("dir: which folder is missing")
    base = root.find(query["dir"])
    if not base.is_dir():
        return MISSING
    deep = query.get("recurse", "").lower() == "true"
    found = sorted(p for p in (base.rglob("*") if deep else base.glob("*")) if p.is_file() and not p.is_symlink())
    names = [p.relative_to(base).as_posix() for p in found]
    if query.get("full_info", "").lower() == "true":
        return JSONResponse([info(p, base) for p in found])
    return JSONResponse([[n, *n.split("/")] for n in names] if query.get("split", "").lower() == "true" else names)


@router.get("/v2/userdata")
async def list_userdata_v2(request: Request) -> Response:
    """Files and folders below `path`."""
    root = _own(request)
    base = root.find(request.query_params["path"]) if request.query_params.get("path") else root.path
    if not base.is_dir():
        return JSONResponse([])
    found = sorted(p for p in base.iterdir() if not p.is_symlink())
    told = [{"name": p.name, "type": "directory" if p.is_dir() else "file", **info(p, root.path)} for p in found]
    return JSONResponse(told)


@router.get("/userdata/{file:path}")
async def get_userdata(request: Request, file: str) -> Response:
    """A kept file."""
    path = _own(request).find(file)
    if not path.is_file():
        return MISSING
    return FileResponse(path, media_type="application/json" if path.suffix == ".json" else "application/octet-stream", filename=path.name)


@router.post("/userdata/{file:path}/move/{dest:path}")
async def move_userdata(request: Request, file: str, dest: str) -> Response:
    """Give a kept file another name."""
    source = _own(request).find(file)
    return await _kept(request, dest, source.read_bytes(), source)


@router.post("/userdata/{file:path}")
async def post_userdata(request: Request, file: str) -> Response:
    """Keep a file."""
    return await _kept(request, file, await request.body())


@router.delete("/userdata/{file:path}", status_code=204)
async def delete_userdata(request: Request, file: str) -> None:
    """Remove a kept file."""
    _own(request).find(file).unlink()


async def _kept(request: Request, name: str, content: bytes, source: Path | None = None) -> Response:
    path = _own(request).find(name)
    if path.exists() and request.query_params.get("overwrite", "").lower() == "false":
        raise FileExistsError(f"{name} is there already")
    await asyncio.to_thread(put, path, content)
    if source is not None and source != path:
        source.unlink()
    told = info(path, _own(request).path)
    return JSONResponse(told if request.query_params.get("full_info", "").lower() == "true" else told["path"])


@router.post("/users")
async def add_user() -> Response:
    """There is one user."""
    return JSONResponse({"error": "this server has one user"}, 400)


def _settings(request: Request) -> tuple[Path, dict[str, Any]]:
    """Where they are, outside of what the routes for files reach; and the settings."""
    path = studio(request).shelves.user.path / "settings.json"
    return path, json.loads(path.read_bytes()) if path.is_file() else {}


@router.get("/settings")
async def get_settings(request: Request) -> dict[str, Any]:
    """The editor's settings."""
    return _settings(request)[1]


@router.get("/settings/{name}")
async def get_setting(request: Request, name: str) -> Response:
    """One of them, or null."""
    return JSONResponse(_settings(request)[1].get(name))


@router.post("/settings")
async def post_settings(request: Request) -> Response:
    """Change some."""
    return _changed(request, await table(request))


@router.post("/settings/{name}")
async def post_setting(request: Request, name: str) -> Response:
    """Change one."""
    return _changed(request, {name: await body(request)})


def _changed(request: Request, told: dict[str, Any]) -> Response:
    path, settings = _settings(request)
    content = json.dumps({**settings, **told}, ensure_ascii=False).encode()
    if len(content) > 2**22:
        raise ValueError("settings: 4 MB at most")
    put(path, content)
    return EMPTY
