"""What /openapi.json says of each route beyond its address: the query, the body, the answer, and what can go wrong.

The routes read their requests themselves, strictly and with limits of their own, so it stands here and not in their signatures. Tests make
requests from it, hold every answer against it, and fail when a route is missing.
"""
from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

ANY: Schema = {}
OBJECT: Schema = {"type": "object"}
TEXT: Schema = {"type": "string"}
WHOLE: Schema = {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}
COUNT: Schema = {**WHOLE, "minimum": 0}
NUMBER: Schema = {"type": "number"}
YES: Schema = {"type": "boolean"}
FILE: Schema = {"type": "string", "contentMediaType": "application/octet-stream"}


def of(kind: Schema) -> Schema:
    """A list."""
    return {"type": "array", "items": kind}


def one(*words: str) -> Schema:
    """One of some words."""
    return {"type": "string", "enum": list(words)}


def table(*needed: str, **fields: Schema) -> Schema:
    """An object that has the needed ones, all where none is named (`""`: none is), and may have others."""
    must = [n for n in needed if n] if needed else list(fields)
    return {"type": "object", "properties": fields, **({"required": must} if must else {})}


@dataclass(frozen=True)
class Told:
    """One route: the schemas of its query by name, of its body (JSON, a form with files, or bytes), of its answer (None: there is none; or
    media types), and the statuses it refuses with beside those that every route may have."""

    gives: Schema | Sequence[str] | None = None
    fails: Sequence[int] = ()
    body: Schema | None = None
    form: Schema | None = None
    raw: bool = False
    query: Mapping[str, Schema] = field(default_factory=dict)
    status: int = 200


TYPES = one("input", "output", "temp")
NODE = table("class_type", class_type=TEXT, inputs=OBJECT, _meta=OBJECT)
ITEM = {"type": "array", "minItems": 5, "maxItems": 5, "description": "number, id, prompt, extra_data, outputs"}
ENTRY = table(prompt=ITEM, outputs=OBJECT, status=table(status_str=TEXT, completed=YES, messages=of(of(ANY))), meta=OBJECT)
JOB = table("id", "status", "create_time", id=TEXT, status=TEXT, priority=NUMBER, create_time=WHOLE, outputs_count=COUNT,
            preview_output=OBJECT, execution_error=OBJECT, workflow=OBJECT, outputs=OBJECT)
SAVED = table(name=TEXT, subfolder=TEXT, type=TYPES)
TRUE = one("true", "false")
KEEPING = {"overwrite": TRUE, "full_info": TRUE}
KEPT = {"anyOf": [TEXT, table(path=TEXT, size=COUNT, modified=WHOLE, created=WHOLE)]}
NAMES = of(TEXT)
UPLOAD = table("image", image=FILE, type=TYPES, subfolder=TEXT, overwrite=TEXT)
DELETE = table("", clear=YES, delete=NAMES)
MODEL = table(id=TEXT, object=one("model"), created=WHOLE, owned_by=TEXT)
ASKED = {"prompt": TEXT, "model": TEXT, "n": {**WHOLE, "minimum": 1, "maximum": 10}, "size": TEXT, "seed": WHOLE, "steps": COUNT,
         "num_inference_steps": COUNT, "guidance_scale": NUMBER, "negative_prompt": TEXT, "response_format": one("url", "b64_json")}
DRAWN = table(created=WHOLE, data=of(table("", url=TEXT, b64_json=TEXT)))
PICTURE = {"type": "string", "contentEncoding": "base64"}
A1111 = {"prompt": TEXT, "negative_prompt": TEXT, "seed": WHOLE, "steps": COUNT, "cfg_scale": NUMBER, "width": COUNT, "height": COUNT,
         "batch_size": COUNT, "n_iter": COUNT, "sampler_name": TEXT, "scheduler": TEXT, "override_settings": OBJECT}
PICTURES = table(images=of(PICTURE), parameters=OBJECT, info=TEXT)

ROUTES: Mapping[str, Told] = {
    "GET /prompt": Told(table(exec_info=table(queue_remaining=COUNT))),
    "POST /prompt": Told(
        table(prompt_id=TEXT, number=NUMBER, node_errors=OBJECT), (409,), query={"clientId": TEXT}, body=table(
            "prompt", prompt={**OBJECT, "additionalProperties": NODE}, prompt_id={**TEXT, "minLength": 1, "maxLength": 200}, client_id=TEXT,
            number={"type": ["number", "null"]}, front=YES, extra_data={"type": ["object", "null"]},
            partial_execution_targets={**NAMES, "type": ["array", "null"]})),
    "POST /workflow/convert": Told(OBJECT, body=table("", workflow=OBJECT, nodes=of(OBJECT), links=of(ANY))),
    "GET /queue": Told(table(queue_running=of(ITEM), queue_pending=of(ITEM))),
    "POST /queue": Told(body=table("", clear=YES, delete=NAMES, pause=YES, move=table("id", id=TEXT, before=ANY))),
    "GET /history": Told({**OBJECT, "additionalProperties": ENTRY}, (400,), query={"max_items": WHOLE, "offset": WHOLE}),
    "POST /history": Told(body=DELETE),
    "GET /history/{id}": Told({**OBJECT, "additionalProperties": ENTRY}),
    "POST /interrupt": Told(body=table("", prompt_id=TEXT)),
    "POST /free": Told(body=table("", unload_models=YES, free_memory=YES)),
    "GET /object_info/{name}": Told(OBJECT),
    "GET /models/{kind}": Told(NAMES, (404,)),
    "GET /experiment/models": Told(of(table(name=TEXT, folders=NAMES))),
    "GET /experiment/models/{kind}": Told(of(table(name=TEXT, pathIndex=COUNT, modified=NUMBER, created=NUMBER, size=COUNT)), (400,)),
    "GET /view_metadata/{kind}": Told(OBJECT, (404,), query={"filename": TEXT}),
    "GET /system_stats": Told(table(system=OBJECT, devices=of(OBJECT))),
    **{f"GET /{name}": Told(NAMES) for name in ("embeddings", "extensions", "models")},
    **{f"GET /{name}": Told(OBJECT) for name in (
        "features", "users", "i18n", "workflow_templates", "global_subgraphs", "node_replacements", "object_info", "settings",
        "internal/folder_paths", "internal/logs/raw", "sdapi/v1/options")},
    "GET /view": Told(
        ("image/*", "application/octet-stream"), (400, 404),
        query={"filename": TEXT, "type": TYPES, "subfolder": TEXT, "preview": TEXT, "channel": one("rgba", "rgb", "a")}),
    "POST /upload/image": Told(SAVED, (409,), form=UPLOAD),
    "POST /upload/mask": Told(SAVED, (404, 409), form=table("image", "original_ref", **UPLOAD["properties"], original_ref=TEXT)),
    "GET /userdata": Told(
        of(ANY), (400, 404), query={"dir": TEXT} | dict.fromkeys(("recurse", "full_info", "split"), TRUE)),
    "GET /v2/userdata": Told(of(table(name=TEXT, type=one("file", "directory"), path=TEXT)), query={"path": TEXT}),
    "GET /userdata/{file}": Told(("application/json", "application/octet-stream"), (404,)),
    "POST /userdata/{file}": Told(KEPT, (409,), raw=True, query=KEEPING),
    "POST /userdata/{file}/move/{dest}": Told(KEPT, (404, 409), query=KEEPING),
    "DELETE /userdata/{file}": Told(None, (404, 409), status=204),
    "POST /users": Told(OBJECT, (400,)),
    "POST /settings": Told(body=OBJECT),
    "GET /settings/{name}": Told(ANY),
    "POST /settings/{name}": Told(body=ANY),
    "GET /internal/files/{kind}": Told(NAMES, (400,)),
    "PATCH /internal/logs/subscribe": Told(),
    "GET /api/jobs": Told(
        table(jobs=of(JOB), pagination=table(offset=COUNT, limit=COUNT, total=COUNT, has_more=YES)), (400,), query={
            "status": TEXT, "q": TEXT, "since": NUMBER, "until": NUMBER, "limit": {**COUNT, "minimum": 1}, "offset": COUNT,
            "sort_by": one("created_at", "execution_duration", "created", "ended", "duration", "queue"), "sort_order": one("asc", "desc")}),
    "GET /api/jobs/{id}": Told(JOB, (404,)),
    "POST /api/jobs/cancel": Told(table(cancelled=YES), body=table(job_ids={**NAMES, "minItems": 1, "maxItems": 1000})),
    "POST /api/jobs/{id}/cancel": Told(table(cancelled=YES)),
    "GET /api/safelight/queue": Told(table(paused=YES, remaining=COUNT, workers=of(OBJECT), progress=OBJECT)),
    "GET /v1/models": Told(table(object=one("list"), data=of(MODEL))),
    "GET /v1/models/{name}": Told(MODEL, (400,)),
    "POST /v1/images/generations": Told(DRAWN, body=table("prompt", **ASKED)),
    "POST /v1/images/edits": Told(DRAWN, form=table("image", "prompt", **ASKED, image=FILE, mask=FILE, strength=NUMBER)),
    "POST /sdapi/v1/txt2img": Told(PICTURES, body=table("", **A1111)),
    "POST /sdapi/v1/img2img": Told(
        PICTURES, body=table("init_images", **A1111, init_images={**of(PICTURE), "minItems": 1}, mask=ANY, denoising_strength=NUMBER)),
    "POST /sdapi/v1/interrupt": Told(OBJECT),
    "POST /sdapi/v1/png-info": Told(table(info=TEXT, items=OBJECT, parameters=OBJECT), body=table(image=PICTURE)),
    "POST /sdapi/v1/options": Told(OBJECT, body=table("", sd_model_checkpoint=TEXT)),
    "GET /sdapi/v1/progress": Told(table(progress=NUMBER, eta_relative=NUMBER, state=OBJECT, current_image=ANY)),
    "GET /sdapi/v1/sd-models": Told(of(table(title=TEXT, model_name=TEXT, filename=TEXT))),
    "GET /sdapi/v1/samplers": Told(of(table(name=TEXT, aliases=NAMES, options=OBJECT))),
    "GET /sdapi/v1/schedulers": Told(of(table(name=TEXT, label=TEXT))),
    "GET /sdapi/v1/loras": Told(of(table(name=TEXT, alias=TEXT, path=TEXT))),
}

PLAIN = table(error=TEXT)
WORDS: Mapping[str, Schema] = {
    "/v1/": table(error=table("message", "type", message=TEXT, type=TEXT)), "/sdapi/": table(error=TEXT, detail=TEXT, errors=TEXT),
    "/prompt": table(error=table(type=TEXT, message=TEXT, details=TEXT, extra_info=OBJECT), node_errors=OBJECT),
}
"""How each kind of client is told what went wrong, by the beginning of the path."""
WHY = {400: "the request is not sound; the answer says why", 401: "the token is missing or wrong", 403: "a foreign page, or a name outside",
       404: "there is none", 409: "there is one already, or something else is in its place", 413: "too large",
       503: "too much at once; try again", 507: "no room on the disk or in the queue; nothing was changed"}


def describe(document: dict[str, Any]) -> None:
    """Complete the document that was made from the routes."""
    document.setdefault("components", {})["securitySchemes"] = {"token": {"type": "http", "scheme": "bearer"}}
    document["components"].pop("schemas", None)
    document["security"] = [{}, {"token": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if told := ROUTES.get(f"{method.upper()} {path}"):
                operation |= _operation(told, path, method, operation.get("parameters", []))


def _operation(told: Told, path: str, method: str, known: Sequence[Any]) -> dict[str, Any]:
    words = next((w for start, w in WORDS.items() if path.startswith(start)), PLAIN)
    more = [(404, "{" in path), (400, told.body is not None or told.form is not None), (507, method != "get")]
    fails = sorted({401, 403, 413, 503, *told.fails, *(status for status, can in more if can)})
    kinds = told.gives if isinstance(told.gives, tuple) else ()
    gives: Mapping[str, Any] = {kind: {"schema": FILE} for kind in kinds} or {"application/json": {"schema": told.gives}}
    said = {"description": "what was asked for", **({} if told.gives is None else {"content": gives})}
    made: dict[str, Any] = {"responses": {str(told.status): said, **{str(s): _refusal(s, words) for s in fails}}}
    made["parameters"] = [*known, *({"name": n, "in": "query", "required": False, "schema": s} for n, s in told.query.items())]
    bodies = {"application/json": told.body, "multipart/form-data": told.form, "application/octet-stream": FILE if told.raw else None}
    if content := {kind: {"schema": schema} for kind, schema in bodies.items() if schema is not None}:
        made["requestBody"] = {"required": bool((told.body or told.form or {}).get("required")), "content": content}
    return made


def _refusal(status: int, words: Schema) -> Schema:
    shape = {"anyOf": [PLAIN, words]} if status in (401, 403, 413) else words
    return {"description": WHY[status], "content": {"application/json": {"schema": shape}}}
