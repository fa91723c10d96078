"""The node editor: ComfyUI's own frontend, a program of its own below /editor/, kept to this server by its policy.

The package `comfyui-frontend-package` is under the GPL-3. It is never part of Safelight: whoever wants it installs it, and its files are
handed to the browser as they are. The page finds its server from its own address, so everything that it asks for is below /editor/ too.
"""
from __future__ import annotations

import base64
import hashlib
import re
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path

from fastapi import APIRouter, Request
from starlette.responses import FileResponse, JSONResponse, PlainTextResponse, RedirectResponse, Response
from starlette.types import ASGIApp, Receive, Scope, Send

from safelight.server.answering import studio
from safelight.server.shelving import get_settings, get_userdata

router = APIRouter(include_in_schema=False)

PACKAGE = "comfyui-frontend-package"
AT = "/editor"
ASKS = ("/api/", "/ws", "/internal/", "/view")
"""What the page asks its server for; all else below /editor/ is a file of the package."""
START = "/extensions/safelight/start.js"
OWN = tuple(f"{AT}/api/{name}" for name in ("settings", "extensions", "userdata/user.css", "userdata/comfy.templates.json"))
MISSING = f"The node editor is not installed. It is another program ({PACKAGE}, GPL-3): pip install 'safelight[comfy]', then start anew.\n"

POLICY = {
    "default-src": "'none'",
    "script-src": "'self' 'wasm-unsafe-eval'",  # its decoder of splats is WebAssembly
    "style-src": "'self' 'unsafe-inline'",  # Vue and PrimeVue write style elements and attributes
    "img-src": "'self' data: blob:",
    "media-src": "'self' blob:",
    "font-src": "'self' data:",
    "connect-src": "'self' data: blob:",  # 'self' is the socket's origin too
    "worker-src": "'self' blob:",  # timers and thumbnails
    "manifest-src": "'self'",
    "form-action": "'none'", "base-uri": "'none'", "frame-ancestors": "'none'",
}
"""What the page may have, and from where."""
SETTINGS = {
    "Comfy.Execution.PreviewMethod": "auto",
    "Comfy.Notification.ShowVersionUpdates": False,  # asks api.comfy.org
    "Comfy.Workflow.ShowMissingModelsWarning": False,  # asks huggingface.co for sizes
    "Comfy.Workflow.NamedValuesRestore": True,  # a file stays what it was when a node gets a setting more
    "Comfy.TutorialCompleted": True,  # opens a browser of templates, which are another package
}
"""Settings that hold until the user changes them: pictures on their way are shown, and other servers are not asked."""


@cache
def frontend() -> Path | None:
    """The folder of the installed package's files, if it is installed. The package's code is not run."""
    try:
        found = Path(str(distribution(PACKAGE).locate_file("comfyui_frontend_package/static")))
    except PackageNotFoundError:
        return None
    return found.resolve() if (found / "index.html").is_file() else None


@cache
def policy(page: Path) -> str:
    """The policy, with the hashes of the scripts that stand in the page itself."""
    inline = re.findall(r"<script(?![^>]*\bsrc=)[^>]*>(.*?)</script>", page.read_text("utf-8"), re.S)
    hashes = "".join(f" 'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline)
    return "; ".join(f"{name} {rule}{hashes if name == 'script-src' else ''}" for name, rule in POLICY.items())


class Below:
    """Lets the routes of the server be asked below /editor/ as well, where the page looks for them."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request or socket."""
        path = scope.get("path", "")
        if path.startswith(AT) and path.removeprefix(AT).startswith(ASKS) and (scope.get("method") != "GET" or path not in OWN):
            scope = {**scope, "path": path.removeprefix(AT)}
        await self.app(scope, receive, send)


@router.get(AT)
async def to_editor() -> Response:
    """The page's relative addresses need the slash."""
    return RedirectResponse(f"{AT}/", 308)


@router.get(f"{AT}/api/settings")
async def settings(request: Request) -> dict[str, object]:
    """What the user set, over what keeps the page from asking elsewhere."""
    return {**SETTINGS, **await get_settings(request)}


@router.get(f"{AT}/api/extensions")
async def extensions() -> list[str]:
    """Ours, which puts a graph for the embedded model in the place of the one that the page begins with."""
    return [START]


@router.get(AT + START)
async def start() -> Response:
    """It."""
    return FileResponse(str(files("safelight.server") / "pages" / "static" / "editor.js"), headers={"Cache-Control": "no-cache"})


@router.get(AT + "/api/userdata/{name}")
async def kept(request: Request, name: str) -> Response:
    """What the page asks for whether there is one or not: a user's style and templates."""
    found = await get_userdata(request, name)
    if found.status_code == 404:
        return Response("", media_type="text/css") if name == "user.css" else JSONResponse([])
    return found


@router.get("/assets/{name:path}")
async def asset(request: Request, name: str) -> Response:
    """Icons, which the page asks for without its folder."""
    return await file(request, f"assets/{name}")


@router.get(AT + "/{name:path}")
async def file(request: Request, name: str) -> Response:
    """A file of the package, with the policy that keeps the page to this server."""
    root = frontend()
    if root is None:
        return PlainTextResponse(MISSING, 404)
    if name == "user.css":
        return Response("", media_type="text/css")
    if not name:
        for folder in ("workflows", "subgraphs"):  # listed at once, and an error in the console when they are not there
            (studio(request).shelves.user.path / "data" / folder).mkdir(parents=True, exist_ok=True)
    found = (root / (name or "index.html")).resolve()
    if not found.is_relative_to(root) or not found.is_file():
        return Response(status_code=404)
    age = "max-age=31536000, immutable" if name.startswith("assets/") else "no-cache"
    return FileResponse(found, headers={"Content-Security-Policy": policy(root / "index.html"), "Cache-Control": age})
