"""What /openapi.json says of each route beyond its address: the query, the body, the answer, and what can go wrong.

The routes read their requests themselves, strictly and with limits of their own, so it stands here and not in their signatures. Tests make
requests from it, hold every answer against it, and fail when a route is missing.
"""
from __future__ import annotations

from collections.abc import Mapping
from http import HTTPStatus
from typing import Any

Schema = Mapping[str, Any]

KINDS: Mapping[str, Schema] = {
    "any": {}, "object": {"type": "object"}, "text": {"type": "string"}, "number": {"type": "number"}, "yes": {"type": "boolean"},
    "int": {"type": "integer", "minimum": -(2**63), "maximum": 2**64 - 1}, "count": {"type": "integer", "minimum": 0, "maximum": 2**64 - 1},
    "some": {"type": "integer", "minimum": 1, "maximum": 10}, "limit": {"type": "integer", "minimum": 1, "maximum": 2**63},
    "file": {"type": "string", "contentMediaType": "application/octet-stream"}, "base64": {"type": "string", "contentEncoding": "base64"},
    "item": {"type": "array", "minItems": 5, "maxItems": 5, "description": "number, id, prompt, extra_data, ids of the outputs"},
    "id": {"type": "string", "minLength": 1, "maxLength": 200},
    "ids": {"type": "array", "items": {"type": "string"}, "minItems": 1, "maxItems": 1000},
}
SHAPES: Mapping[str, str] = {
    "queued": "queue_remaining!:count", "node": "class_type!:text inputs:object _meta:object", "place": "id!:text before:text?",
    "ran": "status_str!:text completed!:yes messages!:any[]", "entry": "prompt!:item outputs!:object status!:ran meta!:object",
    "job": "id!:text status!:text create_time!:int priority:number outputs_count:count preview_output:object execution_error:object",
    "page": "offset!:count limit!:count total!:count has_more!:yes", "kept": "path!:text size!:count modified!:int created!:int",
    "there": "name!:text type!:file,directory path!:text", "weights": "name!:text pathIndex!:count modified!:number size!:count",
    "kinds": "name!:text folders!:text[]", "drawn": "url:text b64_json:text",
    "choice": "title!:text model_name!:text filename!:text", "label": "name!:text label!:text",
    "way": "name!:text aliases!:text[] options!:object",
    "model": "id!:text object!:model, created!:int owned_by!:text", "lora": "name!:text alias!:text path!:text",
    "wrong": "message!:text type!:text", "refused": "type!:text message!:text details!:text extra_info!:object",
}
"""Objects with a name, as fields: `name:kind`, `!` behind those that must be there, `[]` for lists, `{}` for any names, `?` for or null."""
OPENAI = ("prompt!:text model:text n:some size:text seed:int steps:count num_inference_steps:count guidance_scale:number "
          "negative_prompt:text ")
A1111 = ("prompt:text negative_prompt:text seed:int steps:count cfg_scale:number width:count height:count batch_size:count n_iter:count "
         "sampler_name:text scheduler:text override_settings:object ")
UPLOAD = "form image!:file type:input,output,temp subfolder:text overwrite:text "
KEEPING = "overwrite:true,false full_info:true,false"
SAVED = "name!:text subfolder!:text type!:text"
PICTURES = "images!:base64[] parameters!:object info!:text"
JOBS = ("status:text q:text since:number until:number limit:limit offset:count sort_order:asc,desc "
        "sort_by:created_at,execution_duration,created,ended,duration,queue")
PROMPT = "prompt!:node{} prompt_id:id client_id:text number:number? front:yes extra_data:object? partial_execution_targets:text[]?"
ROUTES: Mapping[str, str] = {
    **{f"GET /{name}": " | | object" for name in (
        "features", "users", "i18n", "workflow_templates", "global_subgraphs", "node_replacements", "object_info", "settings",
        "object_info/{name}", "internal/folder_paths", "internal/logs/raw", "sdapi/v1/options")},
    **{f"GET /{name}": " | | text[]" for name in ("embeddings", "extensions", "models", "models/{kind}")},
    "GET /prompt": " | | exec_info!:queued",
    "POST /prompt": f"clientId:text | {PROMPT} | prompt_id!:text number!:number node_errors!:object | 409",
    "POST /workflow/convert": " | workflow:object nodes:object[] links:any[] | object",
    "GET /queue": " | | queue_running!:item[] queue_pending!:item[]", "POST /queue": " | clear:yes delete:text[] pause:yes move:place",
    "GET /history": "max_items:int offset:int | | entry{}", "POST /history": " | clear:yes delete:text[]",
    "GET /history/{id}": " | | entry{}", "POST /interrupt": " | prompt_id:text", "POST /free": " | unload_models:yes free_memory:yes",
    "GET /experiment/models": " | | kinds[]", "GET /experiment/models/{kind}": " | | weights[] | 400",
    "GET /view_metadata/{kind}": "filename:text | | object", "GET /system_stats": " | | system!:object devices!:object[]",
    "GET /view": "filename:text type:input,output,temp subfolder:text preview:text channel:rgba,rgb,a | | file | 404",
    "POST /upload/image": f" | {UPLOAD} | {SAVED} | 409", "POST /upload/mask": f" | {UPLOAD} original_ref!:text | {SAVED} | 404 409",
    "GET /userdata": "dir:text recurse:true,false full_info:true,false split:true,false | | any[] | 404",
    "GET /v2/userdata": "path:text | | there[]", "GET /userdata/{file}": " | | file",
    "POST /userdata/{file}": f"{KEEPING} | raw | any | 409", "POST /userdata/{file}/move/{dest}": f"{KEEPING} | | any | 409",
    "DELETE /userdata/{file}": " | | | 204 409", "POST /users": " | | object | 400",
    "POST /settings": " | object", "GET /settings/{name}": " | | any", "POST /settings/{name}": " | any",
    "GET /internal/files/{kind}": " | | text[] | 400", "PATCH /internal/logs/subscribe": "",
    "GET /api/jobs": f"{JOBS} | | jobs!:job[] pagination!:page", "GET /api/jobs/{id}": " | | job",
    "POST /api/jobs/cancel": " | job_ids!:ids | cancelled!:yes", "POST /api/jobs/{id}/cancel": " | | cancelled!:yes",
    "GET /api/safelight/queue": " | | paused!:yes remaining!:count workers!:object[] progress!:object",
    "GET /v1/models": " | | object!:list, data!:model[]", "GET /v1/models/{name}": " | | model | 400",
    "POST /v1/images/generations": f" | {OPENAI} response_format:url,b64_json | created!:int data!:drawn[]",
    "POST /v1/images/edits": f" | form image!:file mask:file strength:number {OPENAI} | created!:int data!:drawn[]",
    "POST /sdapi/v1/txt2img": f" | {A1111} | {PICTURES}",
    "POST /sdapi/v1/img2img": f" | {A1111} init_images!:base64[] mask:base64? denoising_strength:number | {PICTURES}",
    "POST /sdapi/v1/interrupt": " | | object", "POST /sdapi/v1/png-info": " | image!:base64 | info!:text items!:object parameters!:object",
    "POST /sdapi/v1/options": " | sd_model_checkpoint:text | object",
    "GET /sdapi/v1/progress": " | | progress!:number eta_relative!:number state!:object current_image!:base64?",
    "GET /sdapi/v1/sd-models": " | | choice[]", "GET /sdapi/v1/samplers": " | | way[]", "GET /sdapi/v1/schedulers": " | | label[]",
    "GET /sdapi/v1/loras": " | | lora[]",
}
"""Of each route: its query, its body (JSON; `form`, `raw`), its answer, statuses beside those that many have."""
ERRORS = {"/v1/": "error!:wrong", "/sdapi/": "error!:text detail!:text", "/prompt": "error!:refused node_errors!:object",
          "/": "error!:text"}
"""How each kind of client is told what went wrong, by the beginning of the path."""


def shape(text: str) -> Schema:
    """A kind, or an object of fields, as a schema."""
    if ":" not in text:
        for end, made in (("[]", "array"), ("{}", "object"), ("?", "null")):
            if text.endswith(end):
                inner = shape(text.removesuffix(end))
                more = {"array": {"items": inner}, "object": {"additionalProperties": inner}}
                return {"anyOf": [inner, {"type": "null"}]} if end == "?" else {"type": made, **more[made]}
        words = [w for w in text.split(",") if w]
        return {"type": "string", "enum": words} if "," in text else KINDS[text] if text in KINDS else shape(SHAPES[text])
    fields = [f.partition(":") for f in text.split()]
    must = [name[:-1] for name, _, _ in fields if name.endswith("!")]
    return {"type": "object", "properties": {n.rstrip("!"): shape(kind) for n, _, kind in fields}, **({"required": must} if must else {})}


def describe(document: dict[str, Any]) -> dict[str, Any]:
    """Complete the document that was made from the routes."""
    document["components"] = {"securitySchemes": {"token": {"type": "http", "scheme": "bearer"}}}
    document["security"] = [{}, {"token": []}]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            if (told := ROUTES.get(f"{method.upper()} {path}")) is not None:
                operation |= _operation(told, path, method, [p for p in operation.get("parameters", ()) if p["in"] == "path"])
    return document


def _operation(told: str, path: str, method: str, known: list[Any]) -> dict[str, Any]:
    query, body, answer, more = ([part.strip() for part in told.split("|")] + [""] * 4)[:4]
    form, raw, given = body.startswith("form "), body == "raw", {int(s) for s in more.split()}
    good = 204 if 204 in given else 200
    usual = {404: "{" in path, 400: bool(query) or (bool(body) and not raw), 507: method != "get"}
    fails = {401, 403, 413, 503, *(given - {204}), *(s for s, can in usual.items() if can)}
    files = ("image/*", "application/json", "application/octet-stream")
    said = {"content": {k: {"schema": shape(answer)} for k in (files if answer == "file" else files[1:2])}} if answer else {}
    made: dict[str, Any] = {"responses": {str(good): {"description": "what was asked for", **said}}}
    made["responses"] |= {str(s): _refusal(s, next(e for start, e in ERRORS.items() if path.startswith(start))) for s in sorted(fails)}
    asked = shape(query)["properties"] if query else {}
    made["parameters"] = [*known, *({"name": n, "in": "query", "required": False, "schema": s} for n, s in asked.items())]
    if body:
        schema = shape("file" if raw else body.removeprefix("form "))
        kind = "multipart/form-data" if form else "application/octet-stream" if raw else "application/json"
        made["requestBody"] = {"required": "required" in schema, "content": {kind: {"schema": schema}}}
    return made


def _refusal(status: int, words: str) -> Schema:
    told = {"anyOf": [shape(ERRORS["/"]), shape(words)]} if status in (401, 403, 413) else shape(words)
    return {"description": HTTPStatus(status).phrase, "content": {"application/json": {"schema": told}}}
