"""The same prompts through a ComfyUI server and through Safelight, both in float32 on the CPU: how far are the pictures apart?

    python bench/parity/compare.py --server http://127.0.0.1:8188 --models ~/ComfyUI/models --name checkpoint=v1-5.safetensors

Start ComfyUI with `--cpu --force-fp32 --fp32-text-enc`. Words in braces in the prompts are put in by --name (`checkpoint`, `lora`, `lora2`,
`vae`, `embedding`, `controlnet`, `inpaint`) and --side; a prompt whose names are not given is left out. `--matrix` runs every sampler with
every schedule, `--parts` every scheduler and sampler node of custom sampling.
Bounds: no value of a deterministic sampler's PNG more than 1 of 255 apart, a stochastic one's mean below 2.
"""
from __future__ import annotations

import argparse
import io
import json
import sys
import time
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlencode
from urllib.request import Request, urlopen

import numpy as np
from PIL import Image, ImageDraw

from safelight.comfy import NODES, Places, run
from safelight.computing import computing
from safelight.engine import finish
from safelight.folders import roots
from safelight.op import load_ops
from safelight.sampling import SAMPLERS
from safelight.store import Store

HERE = Path(__file__).parent
PICTURE = "safelight-parity.png"
Prompt = dict[str, Any]


class Server:
    """A running ComfyUI."""

    def __init__(self, url: str) -> None:
        self.url = url.rstrip("/")

    def ask(self, path: str, data: bytes | None = None, kind: str = "application/json") -> bytes:
        """The answer's body. ValueError when it refuses."""
        try:
            with urlopen(Request(self.url + path, data, {"Content-Type": kind} if data else {})) as answer:
                return bytes(answer.read())
        except HTTPError as e:
            raise ValueError(f"{path}: {e.code} {e.read().decode()[:1000]}") from e

    def upload(self, picture: Path) -> None:
        """Put a picture into its input folder."""
        mark = uuid.uuid4().hex
        fields = f'--{mark}\r\nContent-Disposition: form-data; name="overwrite"\r\n\r\ntrue\r\n'
        file = f'--{mark}\r\nContent-Disposition: form-data; name="image"; filename="{picture.name}"\r\nContent-Type: image/png\r\n\r\n'
        body = (fields + file).encode() + picture.read_bytes() + f"\r\n--{mark}--\r\n".encode()
        self.ask("/upload/image", body, f"multipart/form-data; boundary={mark}")

    def draw(self, prompt: Prompt) -> dict[str, list[np.ndarray]]:
        """The saved pictures by node."""
        posted = json.loads(self.ask("/prompt", json.dumps({"prompt": prompt}).encode()))
        while not (found := json.loads(self.ask(f"/history/{posted['prompt_id']}"))):
            time.sleep(0.1)
        told = found[posted["prompt_id"]]
        if told["status"]["status_str"] != "success":
            raise ValueError(told["status"]["messages"][-1][1].get("exception_message", "stopped").strip())
        return {node: [self._view(i) for i in out["images"]] for node, out in told["outputs"].items() if "images" in out}

    def _view(self, image: Mapping[str, str]) -> np.ndarray:
        return pixels(io.BytesIO(self.ask("/view?" + urlencode(image))))


def pixels(file: Any) -> np.ndarray:
    """(H, W, 3) int16."""
    with Image.open(file) as picture:
        return np.asarray(picture.convert("RGB"), np.int16)


def ours(prompt: Prompt, places: Places, store: Store) -> dict[str, list[np.ndarray]]:
    """The same by us."""
    with computing("cpu", "float32"):
        return {node: [pixels(f) for f in files] for node, files in finish(run(prompt, places, store=store)).items()}


def picture(path: Path, side: int) -> None:
    """A colourful picture with a hole: fully transparent in the middle."""
    x, y = np.meshgrid(np.linspace(0, 1, side), np.linspace(0, 1, side))
    rgba = np.stack([x, y, 0.5 + 0.5 * np.sin(9 * x + 5 * y), np.ones_like(x)], axis=-1)
    drawn = Image.fromarray((rgba * 255).astype(np.uint8))
    ImageDraw.Draw(drawn).rectangle((side // 4, side // 4, side // 2, side * 3 // 4), (200, 30, 90, 0))
    path.parent.mkdir(parents=True, exist_ok=True)
    drawn.save(path)


def filled(data: Any, names: Mapping[str, Any]) -> Any:
    """The prompt with the words in braces put in. KeyError for a word that was not given."""
    if isinstance(data, dict):
        return {k: filled(v, names) for k, v in data.items()}
    if isinstance(data, list):
        return [filled(v, names) for v in data]
    if isinstance(data, str) and data.startswith("{") and data.endswith("}"):
        return names[data[1:-1]]
    return data.replace("{embedding}", names["embedding"]) if isinstance(data, str) and "{embedding}" in data else data


def prompts(folder: Path, names: Mapping[str, Any]) -> Iterator[tuple[str, Prompt]]:
    """The folder's prompts by file name, without those that name what was not given."""
    for path in sorted(folder.glob("*.json")):
        try:
            yield path.stem, filled(json.loads(path.read_text("utf-8")), names)
        except KeyError as e:
            print(f"{path.stem:28} left out: no --name {e.args[0]}=...")


def matrix(server: Server, names: Mapping[str, Any], steps: int) -> Iterator[tuple[str, Prompt]]:
    """One prompt a sampler, with a branch for each schedule; `names` may say which, as `schedules`."""
    known = json.loads(server.ask("/object_info/KSampler"))["KSampler"]["input"]["required"]
    shared = load_ops()["sample"].spec.setting["schedule"].choices or ()
    wanted = names["schedules"].split(",") if "schedules" in names else shared
    schedules = [s for s in known["scheduler"][0] if s in wanted]
    base = filled(json.loads((HERE / "prompts" / "text_to_image.json").read_text("utf-8")), names)
    sampler, decode, save = (next(k for k, e in base.items() if e["class_type"] == c) for c in ("KSampler", "VAEDecode", "SaveImage"))
    for name in (s for s in known["sampler_name"][0] if s in SAMPLERS):
        out = {k: e for k, e in base.items() if k not in (sampler, decode, save)}
        for i, schedule in enumerate(schedules):
            a, b, c = (f"{100 * (i + 1) + j}" for j in range(3))
            more = {"sampler_name": name, "scheduler": schedule, "steps": steps}
            out[a] = {"class_type": "KSampler", "inputs": {**base[sampler]["inputs"], **more}}
            out[b] = {"class_type": "VAEDecode", "inputs": {**base[decode]["inputs"], "samples": [a, 0]}}
            out[c] = {"class_type": "SaveImage", "inputs": {"images": [b, 0], "filename_prefix": f"parity/{name}-{schedule}"}}
        yield name, out


LESS = {"eta": 0.6, "s_noise": 1.02, "noise_device": "cpu", "rho": 5.0, "order": 2, "solver_type": "heun"}
"""What `parts` gives to nodes instead of their defaults, where that is allowed."""


def parts(server: Server, names: Mapping[str, Any], steps: int) -> Iterator[tuple[str, Prompt]]:
    """A prompt for every node that makes noise levels or a sampler of nothing but settings and a model, into SamplerCustom."""
    base = filled(json.loads((HERE / "prompts" / "text_to_image.json").read_text("utf-8")), names)
    at = next(k for k, e in base.items() if e["class_type"] == "KSampler")
    kept = {name: base[at]["inputs"][name] for name in ("model", "positive", "negative", "latent_image")}
    for kind in (k for k in NODES.values() if k.outputs in (("SIGMAS",), ("SAMPLER",)) and k.name != "KSamplerSelect"):
        told = json.loads(server.ask(f"/object_info/{kind.name}"))[kind.name]["input"]["required"]
        if "SIGMAS" in [form[0] for form in told.values()]:
            continue
        own = {name: setting(name, form, steps, kept["model"]) for name, form in told.items()}
        ends = {"SIGMAS": ("KarrasScheduler", {"steps": steps, "sigma_max": 14.6, "sigma_min": 0.03, "rho": 7.0}),
                "SAMPLER": ("KSamplerSelect", {"sampler_name": "dpmpp_2m"})} | {kind.outputs[0]: (kind.name, own)}
        made = {f"{at}.{i}": {"class_type": ends[o][0], "inputs": ends[o][1]} for i, o in enumerate(ends)}
        links = {"sigmas": [f"{at}.0", 0], "sampler": [f"{at}.1", 0]}
        inputs = {**kept, **links, "add_noise": True, "noise_seed": 7, "cfg": 6.0}
        yield kind.name, base | made | {at: {"class_type": "SamplerCustom", "inputs": inputs}}


def setting(name: str, form: Any, steps: int, model: Any) -> Any:
    """What an input of a node is given."""
    options = form[0] if isinstance(form[0], list) else form[1].get("options") if form[0] == "COMBO" else None
    if form[0] == "MODEL":
        return model
    if options is not None:
        return LESS[name] if LESS.get(name) in options else options[0]
    usual = steps if name == "steps" and form[1]["max"] > steps else form[1]["default"]
    return LESS.get(name, usual) if usual else usual


def stochastic(prompt: Prompt) -> bool:
    """Whether a sampler in it draws noise on its way."""
    used = (e["inputs"].get("sampler_name", "euler") for e in prompt.values())
    own = any(e["class_type"].startswith("Sampler") and e["inputs"].get("eta") for e in prompt.values())
    return own or any(SAMPLERS[u.removesuffix("_gpu")].noise != "none" for u in used)


def compared(name: str, prompt: Prompt, theirs: dict[str, list[np.ndarray]], mine: dict[str, list[np.ndarray]]) -> bool:
    """Print how far apart the pictures are; whether they are within bounds."""
    within = True
    for node, drawn in theirs.items():
        label = prompt[node]["inputs"].get("filename_prefix", node).rpartition("/")[2]
        own = mine.get(node, [])
        if [p.shape for p in own] != [p.shape for p in drawn]:
            print(f"{name:28} {label:34} {[p.shape for p in drawn]} against our {[p.shape for p in own]}")
            within = False
            continue
        apart = np.stack([np.abs(a - b) for a, b in zip(drawn, own, strict=True)])
        spread = float(np.stack(drawn).std())
        good = apart.mean() < 2 if stochastic(prompt) else apart.max() <= 1
        within &= bool(good)
        numbers = f"max {apart.max():3d}  mean {apart.mean():.5f}  equal {float((apart == 0).mean()):7.3%}  spread {spread:5.1f}"
        print(f"{name:28} {label:34} {numbers}{'' if good else '  BEYOND'}", flush=True)
    return within


def main() -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--server", default="http://127.0.0.1:8188")
    parser.add_argument("--models", type=Path, required=True, help="ComfyUI's models folder, or an extra_model_paths.yaml")
    parser.add_argument("--prompts", type=Path, default=HERE / "prompts")
    parser.add_argument("--only", default="", help="prompts, or samplers of the matrix, with this in their name")
    parser.add_argument("--name", action="append", default=[], metavar="WORD=FILE")
    parser.add_argument("--side", type=int, default=512, help="pixels a side")
    parser.add_argument("--matrix", action="store_const", const="matrix", dest="loop", help="every sampler with every schedule")
    parser.add_argument("--parts", action="store_const", const="parts", dest="loop", help="every node that makes noise levels or a sampler")
    parser.add_argument("--steps", type=int, default=6, help="of these")
    parser.add_argument("--out", type=Path, default=Path("out/parity"))
    given = parser.parse_args()
    names: dict[str, Any] = dict(n.split("=", 1) for n in given.name)
    names |= {"side": given.side, "half": max(64, given.side // 2), "quarter": given.side // 4, "picture": PICTURE}
    server, places = Server(given.server), Places(roots(given.models), given.out / "input", given.out)
    picture(places.input / PICTURE, given.side)
    server.upload(places.input / PICTURE)
    loops = {"matrix": matrix, "parts": parts}
    every = loops[given.loop](server, names, given.steps) if given.loop else prompts(given.prompts, names)
    with TemporaryDirectory() as store:  # an empty one: nothing comes from before
        drawn = [one(server, name, prompt, places, Store(Path(store))) for name, prompt in every if given.only in name]
    return 0 if all(drawn) else 1


def one(server: Server, name: str, prompt: Prompt, places: Places, store: Store) -> bool:
    """Draw a prompt twice, print how far apart; whether within bounds."""
    try:
        return compared(name, prompt, server.draw(prompt), ours(prompt, places, store))
    except ValueError as e:
        print(f"{name:28} {e}", flush=True)
        return False


if __name__ == "__main__":
    sys.exit(main())
