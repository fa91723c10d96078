"""One op as a command: its positional parameters as arguments, all parameters as options, read as text like everywhere else."""
from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from safelight import engine
from safelight.cli import compute
from safelight.cli.show import deliver, follow
from safelight.literals import parse, plain
from safelight.op import Op
from safelight.schema import widget_text
from safelight.spec import Port, Setting, Spec, Work
from safelight.store import current
from safelight.values import Dataset, Model, Patch

DEFAULT_MODEL = "mini"
LORA = "with_lora"
LAYOUTS = ("imagefolder", "imagefolder-csv", "imagefolder-parquet", "kohya", "numbered", "webdataset")
LAYOUT_HELP = ("How --out lies there: imagefolder (with metadata.jsonl, .csv or .parquet), kohya (a caption beside each picture), numbered "
               "(train/0.jpg, ... as RGB JPEG), or webdataset (tar files of 1000).")


def op_command(op: Op[..., Any]) -> click.Command:
    """The click command of an op."""
    spec = op.spec
    words = _arguments(spec)
    params: list[click.Parameter] = [
        click.Argument([f"{name}_"], required=False, nargs=-1 if many else 1, metavar=_metavar(spec, name)) for name, many in words
    ]
    params += [_port_option(port) for port in spec.ports]
    params += [_setting_option(s) for s in spec.settings]
    if _takes_lora(op):
        params.append(click.Option(["--lora"], multiple=True, metavar="FILE[:STRENGTH]", help="Put a LoRA on the model; may be repeated."))
    if any(Model in p.types for p in spec.ports):
        params += compute.options()
    if spec.group == "train":
        params += compute.sharing()
    params += [
        click.Option(["--out", "-o", "out_"], metavar="PATH", help="Save the result here: a file, or a folder."),
        click.Option(["--events", "events_"], type=click.Choice(["jsonl"]), help="Print every event as a line of JSON."),
    ]
    if spec.output is Dataset:
        params.append(click.Option(["--layout", "layout_"], type=click.Choice(LAYOUTS), help=LAYOUT_HELP))

    def callback(**given: Any) -> None:
        out, events, layout = given.pop("out_"), given.pop("events_"), given.pop("layout_", None)
        loras = given.pop("lora", ())
        store = current()
        with compute.shared(given) as here, store.pin():
            if not here:
                return
            value = follow(_work(op, _given(spec, given, words), loras), events)
            deliver({"": value}, None if out is None else Path(out), events, layout)

    return click.Command(spec.command, params=params, callback=callback, help=_help(spec), short_help=spec.summary)


def _takes_lora(op: Op[..., Any]) -> bool:
    """Whether `--lora` makes sense: the op takes a model, and no patch of its own."""
    kinds = [t for p in op.spec.ports for t in p.types]
    return Model in kinds and Patch not in kinds and LORA in op.registry


def _help(spec: Spec) -> str:
    return "\b\n" + spec.doc.partition("\nArgs:")[0].strip().replace("\n\n", "\n\n\b\n")


def _arguments(spec: Spec) -> list[tuple[str, bool]]:
    """Names of the positional parameters and whether they take several words. Models are named by option, they have a default."""
    names = [n for n in spec.order[: spec.positional] if n not in spec.groups and not (n in spec.port and Model in spec.port[n].types)]
    many = [(spec.port.get(n) or spec.setting[n]).many for n in names]
    return [(n, m and i == len(names) - 1) for i, (n, m) in enumerate(zip(names, many, strict=True))]


def _metavar(spec: Spec, name: str) -> str:
    """The word in the usage line: `PROMPT...`, `DATA`."""
    many = (spec.port.get(name) or spec.setting[name]).many
    word = name.removesuffix("s") if many else name
    return f"[{word.upper()}]" + ("..." if many else "")


def _port_option(port: Port) -> click.Option:
    default = f" Default: {DEFAULT_MODEL}." if Model in port.types and not port.optional else ""
    word = {"MODEL": "NAME", "DATASET": "FOLDER", "IMAGE": "PICTURE", "MASK": "PICTURE", "PATCH": "FILE"}.get(port.socket, "VALUE")
    return click.Option(_names(port.name, port.many), multiple=port.many, metavar=word, help=_sentence(port.help) + default)


def _setting_option(s: Setting) -> click.Option:
    flags = _names(s.name, s.many)
    if s.kind == "bool" and not s.many:
        dashed = s.name.replace("_", "-")
        flags = [f"--{dashed}/--no-{dashed}", s.name]
        return click.Option(flags, default=None, help=_sentence(s.help) + _default(s))
    return click.Option(flags, multiple=s.many, metavar=s.kind.upper(), help=f"{_sentence(s.help)} {_range(s)}{_default(s)}".strip())


def _names(name: str, many: bool) -> list[str]:
    """`--seeds`, and for a list the singular too: `--seed 7`."""
    names = [f"--{name.replace('_', '-')}"]
    if many and name.endswith("s"):
        names.append(names[0][:-1])
    return [*names, name]


def _sentence(text: str) -> str:
    text = text.strip()
    return text and text[0].upper() + text[1:] + ("" if text.endswith(".") else ".")


def _range(s: Setting) -> str:
    if s.names is None and s.knob.min is None and s.knob.max is None and not s.many:
        return ""
    return s.expects[0].upper() + s.expects[1:] + "."


def _default(s: Setting) -> str:
    if s.required:
        return " Required."
    if s.default in (None, "", ()):
        return ""
    shown = ("yes" if s.default else "no") if s.kind == "bool" else widget_text(s, plain(s.default))
    return f" Default: {shown}."


def _given(spec: Spec, options: dict[str, Any], words: list[tuple[str, bool]]) -> dict[str, Any]:
    """What was typed, by flat name: positions and options of the same parameter are one, text is read as the setting's kind."""
    texts: dict[str, Any] = {}
    for name in (*spec.port, *spec.setting):
        typed = options.get(name)
        placed = options.get(f"{name}_") if any(n == name for n, _ in words) else None
        both = [t for t in (typed, placed) if t not in (None, ())]
        if len(both) > 1:
            raise click.UsageError(f"{spec.command}: {name} is given twice, by position and by option")
        if both:
            texts[name] = both[0]
    given: dict[str, Any] = {}
    for name, typed in texts.items():
        setting = spec.setting.get(name)
        if setting is None or isinstance(typed, bool):
            given[name] = list(typed) if isinstance(typed, tuple) else typed
        elif setting.many:
            parts = typed if isinstance(typed, tuple) else (typed,)
            given[name] = [item for text in parts for item in parse(spec.name, setting, text) or ()]
        else:
            given[name] = parse(spec.name, setting, typed)
    for port in spec.ports:
        if Model in port.types and not port.optional:
            given.setdefault(port.name, DEFAULT_MODEL)
    return given


def _work(op: Op[..., Any], given: dict[str, Any], loras: tuple[str, ...]) -> Work[Any]:
    """The op's work, after the models were given their LoRAs."""
    store = current()
    models = [p.name for p in op.spec.ports if Model in p.types and given.get(p.name) is not None]
    for name, text in ((name, text) for text in loras for name in models):
        file, strength = _with_strength(text)
        put_on = op.registry[LORA]
        ports = {next(t for t in p.types if t in (Model, Patch)): p.name for p in put_on.spec.ports}
        asked = {ports[Model]: given[name], ports[Patch]: file, "strength": strength}
        given[name] = yield from engine.call(put_on, asked, store)
    return (yield from engine.call(op, given, store))


def _with_strength(text: str) -> tuple[str, float]:
    """`FILE` or `FILE:STRENGTH`."""
    file, _, strength = text.rpartition(":")
    try:
        return (file, float(strength)) if file else (text, 1.0)
    except ValueError:
        return text, 1.0
