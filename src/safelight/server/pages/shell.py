"""What every page stands in: templates, the two languages, the policy that keeps a page to this server, the files beside it."""
from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import cache
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from fastapi import APIRouter, Request
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from starlette.responses import FileResponse, HTMLResponse, RedirectResponse, Response

from safelight.server.editor import frontend
from safelight.server.pages.words import CHINESE

router = APIRouter()

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:; connect-src 'self'; font-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)
LANGUAGES = {"en": "English", "zh": "中文"}
COOKIE = "safelight-language"
PAGES = (
    ("/", "Generate"), ("/studio/datasets", "Datasets"), ("/studio/train", "Train"), ("/studio/gallery", "Gallery"),
    ("/studio/models", "Models"), ("/studio/queue", "Queue"),
)
"""Where the pages are, in the order of the bar."""

STATIC = Path(str(files("safelight.server") / "pages" / "static"))


@cache
def environment() -> Environment:
    """The templates; whatever is put into one is escaped."""
    from safelight.reporting.html import duration, size  # here, so that the server starts without Pillow

    made = Environment(
        loader=PackageLoader("safelight.server.pages"), autoescape=select_autoescape(default=True), undefined=StrictUndefined,
        trim_blocks=True, lstrip_blocks=True,
    )
    made.filters["picture"] = picture_url
    made.filters["ago"] = duration
    made.filters["size"] = size
    made.filters["place"] = lambda told: "/".join(x for x in (told.get("subfolder"), told["filename"]) if x)
    made.tests["match"] = lambda text, end: str(text).endswith(end)
    return made


def picture_url(told: Mapping[str, str], *, whole: bool = False) -> str:
    """Where a result's picture is shown, made anew for looking at, or (`whole`) where its file is."""
    query = {"filename": told["filename"], "subfolder": told.get("subfolder", ""), "type": told.get("type", "output")}
    return "/view?" + urlencode(query if whole else {**query, "preview": "webp;88"}, quote_via=quote)


def start(request: Request) -> int:
    """Where a list goes on: `from` in the address."""
    told = request.query_params.get("from", "0")
    return int(told) if told.isdecimal() else 0


def language(request: Request) -> str:
    """As chosen, else the first that the browser asks for and there is."""
    chosen = request.cookies.get(COOKIE, "")
    if chosen in LANGUAGES:
        return chosen
    asked = (part.split(";")[0].strip().lower()[:2] for part in request.headers.get("accept-language", "").split(","))
    return next((a for a in asked if a in LANGUAGES), "en")


def translator(code: str) -> Callable[[str], str]:
    """English words to the language's; English where there are none."""
    return (lambda text: text) if code == "en" else (lambda text: CHINESE.get(text, text))


def render(request: Request, template: str, status: int = 200, **told: Any) -> HTMLResponse:
    """A page or a piece of one."""
    code = language(request)
    names = {"_": translator(code), "lang": code, "languages": LANGUAGES, "pages": PAGES, "here": request.url.path,
             "editor": frontend() is not None}
    text = environment().get_template(template).render(**names, **told)
    kept = "no-store" if template.startswith("_") else "no-cache"
    return HTMLResponse(text, status, headers={"Content-Security-Policy": POLICY, "Cache-Control": kept})


@router.get("/studio/static/{name:path}")
async def static(name: str) -> Response:
    """The pages' own scripts and styles."""
    found = (STATIC / name).resolve()
    if not found.is_relative_to(STATIC.resolve()) or not found.is_file():
        return Response(status_code=404)
    return FileResponse(found, headers={"Cache-Control": "no-cache"})


@router.post("/studio/language/{code}")
async def choose(request: Request, code: str) -> Response:
    """Keep the choice and go back."""
    back = request.headers.get("referer", "/")
    where = "/" + back.split("/", 3)[3] if back.count("/") >= 3 else "/"
    answer = RedirectResponse(where.replace("\\", "/").replace("//", "/"), 303)
    if code in LANGUAGES:
        answer.set_cookie(COOKIE, code, max_age=365 * 86400, samesite="strict", httponly=True)
    return answer
