"""Reading a recipe of Data-Juicer 1.6.1: its keys, its operators and their settings. What is not understood is an error with a guess."""
from __future__ import annotations

import math
import os
import re
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from safelight.data.juicer.registry import OPERATORS, Operator, Param, Settings, find, param

PATH, ANY = Param(None, (str,)), Param(None, (object,))

EFFECTIVE: dict[str, Any] = {
    "project_name": "hello_world", "dataset_path": "", "dataset": Param(None, (dict,)),
    "export_path": "./outputs/hello_world/hello_world.jsonl",
    "export_type": Param(None, (str,), ("jsonl", "json", "parquet")), "export_shard_size": Param(0, (int,), low=0),
    "text_keys": Param("text", (str, list)), "image_key": "images", "process": [],
    "image_special_token": "<__dj__image>", "eoc_special_token": "<|__dj__eoc|>", "suffixes": Param([], (str, list)),
    "keep_stats_in_res_ds": False, "load_jsonl_lenient": False,
}
WITHOUT_EFFECT: dict[str, Any] = {
    "np": Param(4, (int,), low=1), "executor_type": ("default", "ray", "ray_partitioned"), "ray_address": "auto",
    "work_dir": PATH, "temp_dir": PATH, "job_id": PATH, "skip_op_error": True, "turbo": False, "use_cache": True, "ds_cache_dir": PATH,
    "cache_compress": PATH,
    "open_monitor": False, "use_checkpoint": False, "checkpoint": ANY, "checkpoint_dir": PATH, "event_logging": ANY, "event_log_dir": PATH,
    "strict_preflight": True, "op_fusion": False, "fusion_strategy": ("probe", "greedy"), "mapper_fusion": True,
    "mapper_fusion_vram_limit": 0.9, "adaptive_batch_size": False, "auto_op_parallelism": True, "export_in_parallel": False, "debug": False,
    "audio_key": "audios", "audio_special_token": "<__dj__audio>", "video_key": "videos", "video_special_token": "<__dj__video>",
    "image_bytes_key": "image_bytes", "percentiles": ANY, "partition": ANY, "partition_size": ANY, "partition_dir": PATH,
    "override_num_blocks": ANY, "read_options": ANY, "load_dataset_kwargs": ANY, "export_extra_args": ANY, "use_dag": False,
    "open_tracer": False, "op_list_to_trace": Param([], (list,)), "trace_num": 10, "trace_keys": Param([], (list,)),
    "open_insight_mining": False, "op_list_to_mine": Param([], (list,)), "export_original_dataset": False, "save_stats_in_one_file": False,
    "min_common_dep_num_to_combine": ANY, "conflict_resolve_strategy": ANY, "data_probe_algo": ANY, "data_probe_ratio": ANY, "auto": False,
    "auto_num": ANY, "elastic_juicer_adaptive_batching": False, "elastic_juicer_profile_seed": ANY, "resume": PATH,
}
"""Keys that say how Data-Juicer is to work, not what comes out."""
REFUSED: dict[str, Any] = {
    "keep_hashes_in_res_ds": False, "encrypt_before_export": False, "decrypt_after_reading": False,
    "encryption_key_path": PATH, "export_aws_credentials": ANY, "generated_dataset_config": ANY, "validators": Param([], (list,)),
    "custom_operator_paths": ANY, "hpo_config": PATH,
}
"""Keys that would change what comes out in a way that is not built; only their defaults are taken."""
KEYS = {k: param(v) for k, v in (EFFECTIVE | WITHOUT_EFFECT | REFUSED).items()}

COMMON: dict[str, Any] = {
    "text_key": PATH, "image_key": PATH, "min_closed_interval": True, "max_closed_interval": True, "reversed_range": False,
    **dict.fromkeys(("audio_key", "video_key", "image_bytes_key", "system_key", "instruction_key", "prompt_key", "query_key",
                     "response_key", "history_key", "index_key", "work_dir", "input_columns", "output_columns", "skip_op_error",
                     "adaptive_batching", "auto_op_parallelism", "batch_mode", "accelerator", "batch_size", "num_proc", "turbo",
                     "cpu_required", "gpu_required",
                     "mem_required", "num_cpus", "num_gpus", "memory", "runtime_env", "ray_execution_mode"), ANY),
}
"""Settings that every operator takes; those after the first line decide how Data-Juicer works and nothing else."""
SHARED = {k: param(v) for k, v in COMMON.items()}
LACKING = {"sentence_split_mapper": "sentence_split_mapper: it needs NLTK's punkt models, pickles that are downloaded, and is not built; "
           "replace_content_mapper with pattern '([.!?。！？]) *(?=.)' and repl '\\1\\n' splits at every such mark"}
"""What is said of operators that are left out on purpose."""
CODE = ("python_lambda_mapper", "python_file_mapper")


class Step(NamedTuple):
    """One operator of a recipe with all of its settings. Plain data: it goes to other processes as it is."""

    name: str
    settings: Settings

    @property
    def operator(self) -> Operator:
        """What is declared under the name."""
        found = OPERATORS.get(self.name) or find(self.name)
        assert found is not None  # the recipe was checked
        return found


class Recipe(NamedTuple):
    """`keys` are the global ones with their defaults filled in; `steps` the operators in order."""

    keys: Mapping[str, Any]
    steps: tuple[Step, ...]

    @property
    def text_keys(self) -> list[str]:
        """Columns that every row must have; the first is what operators read."""
        found = self.keys["text_keys"]
        return [found] if isinstance(found, str) else found

    @property
    def result(self) -> Path:
        """Where the rows go, absolute."""
        return Path(os.path.abspath(self.keys["export_path"]))


def read_recipe(path: str | Path, *, overrides: Mapping[str, Any] | None = None, allow_code: bool = False) -> Recipe:
    """Parse and check a recipe; `overrides` replace global keys. ValueError names every mistake, with a guess at what was meant.

    Operators that run code from the recipe are refused unless `allow_code`.
    """
    import yaml

    loader = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
    try:
        with open(path, encoding="utf-8") as f:
            given = yaml.load(f, loader)  # noqa: S506  (CSafeLoader is the safe one, in C)
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: no YAML: {error}") from error
    if not isinstance(given, dict):
        raise ValueError(f"{path}: expected a recipe, that is keys and values with a list under `process`")
    return checked({**given, **(overrides or {})}, str(path), allow_code=allow_code)


def checked(given: Mapping[str, Any], where: str, *, allow_code: bool = False) -> Recipe:
    """A Recipe of parsed YAML. ValueError lists what is wrong with it, a line each."""
    wrong: list[str] = []
    keys = _filled({k.replace("-", "_") if isinstance(k, str) else k: v for k, v in given.items()}, KEYS, "key", wrong)
    wrong += [f"{k}: got {keys[k]!r}; this is not supported, leave it out" for k in REFUSED if keys[k] != KEYS[k].default]
    ends = [keys["export_type"]] if keys["export_type"] else ["jsonl", "json", "parquet"]
    if not str(keys["export_path"]).endswith(tuple(f".{e}" for e in ends)):
        wrong.append(f"export_path: got {keys['export_path']!r}, expected a path that ends in .{' or .'.join(ends)}")
    steps = [step for entry in keys["process"] or [] if (step := _step(entry, keys, wrong)) is not None]
    coded = [] if allow_code else [s.name for s in steps if s.name in CODE]
    wrong += [f"{name}: it runs code from the recipe; give --allow-code if you trust it" for name in coded]
    if wrong:
        raise ValueError("\n  ".join([f"{where}: {len(wrong)} mistake{'s' * (len(wrong) > 1)}:", *wrong]))
    return Recipe(keys, tuple(steps))


def _step(entry: object, keys: Mapping[str, Any], wrong: list[str]) -> Step | None:
    if isinstance(entry, str):
        entry = {entry: None}
    if not isinstance(entry, dict) or len(entry) != 1:
        wrong.append(f"process: got {entry!r}, expected one operator with its settings below it")
        return None
    name, given = next(iter(entry.items()))
    operator = find(name)
    if operator is None:
        wrong.append(LACKING[name] if name in LACKING else f"{name}: there is no such operator here{_guess(name, OPERATORS)}")
        return None
    if not isinstance(given or {}, dict):
        wrong.append(f"{name}: got {given!r}, expected settings, as in `min_width: 256`")
        return None
    before = len(wrong)
    filled = _filled(given or {}, {**SHARED, **operator.settings}, name, wrong)
    text_keys = keys["text_keys"]
    filled["text_key"] = filled["text_key"] or (text_keys if isinstance(text_keys, str) else text_keys[0])
    filled["image_key"] = filled["image_key"] or keys["image_key"]
    filled |= {k: keys[k] for k in ("image_special_token", "eoc_special_token")}
    for end in ("min_size", "max_size"):
        if name == "image_size_filter" and len(wrong) == before:
            _parse_size(filled, end, wrong)
    return Step(name, filled)


def _parse_size(filled: dict[str, Any], end: str, wrong: list[str]) -> None:
    from safelight.data.juicer.shapes import parse_bytes

    try:
        filled[end] = parse_bytes(filled[end])
    except ValueError as error:
        wrong.append(f"{error} ({end})")


def _filled(given: Mapping[Any, Any], known: Mapping[str, Param], where: str, wrong: list[str]) -> dict[str, Any]:
    """The defaults with what was given put in; mistakes are added to `wrong`."""
    filled = {k: p.default for k, p in known.items()}
    for name, value in given.items():
        if name not in known:
            wrong.append(f"{where}: there is no {name!r}{_guess(name, known)}")
            continue
        problem = _problem(value, known[name])
        if problem:
            wrong.append(f"{'' if where == 'key' else where + ': '}{name}: got {value!r}, expected {problem}")
        else:
            filled[name] = value
    return filled


def _problem(value: Any, p: Param) -> str:
    """What was expected, or "" when the value is right. None is right where the default is None or the key may be left empty."""
    if value is None or p.types == (object,):
        return "" if p.default is None or p.types == (list,) or p.types == (object,) else _named(p)
    number = isinstance(value, int | float) and not isinstance(value, bool)
    fits = any((number and value == int(value)) if t is int else number if t is float else isinstance(value, t) for t in p.types)
    if not fits or (p.choices and value not in p.choices):
        return _named(p) + (_guess(value, p.choices) if p.choices and isinstance(value, str) else "")
    if number and ((p.low is not None and value < p.low) or (p.high is not None and value > p.high)):
        return f"a number from {p.low:g}" + (f" to {p.high:g}" if p.high is not None else "")
    return ""


WORDS = {int: "a whole number", float: "a number", str: "text", bool: "true or false", list: "a list", dict: "keys and values"}


def _named(p: Param) -> str:
    if p.choices:
        return " or ".join(repr(c) for c in p.choices)
    return " or ".join(WORDS.get(t, "nothing") for t in p.types)


def _guess(word: object, names: Iterable[Any]) -> str:
    from difflib import get_close_matches

    found = get_close_matches(str(word), [str(n) for n in names], n=1, cutoff=0.6)
    return f"; did you mean {found[0]!r}?" if found else ""


class Group(NamedTuple):
    """Data of a recipe: files, in order, absolute, and how many of their rows are drawn; None: all are taken as they come."""

    files: tuple[Path, ...]
    take: int | None = None


KINDS = ((".csv",), (".json", ".jsonl", ".json.gz", ".jsonl.gz"), (".parquet",), (".tsv",))
"""Suffixes that are read. Of a folder the files of one kind are taken, of which it has most; the first of these when they are as many."""


def kind(path: Path) -> str:
    """The suffix that says how a file is read: `.jsonl.gz`."""
    return "".join(path.suffixes[-2:] if path.suffix.lower() == ".gz" else path.suffixes[-1:]).lower()


def groups(recipe: Recipe) -> list[Group]:
    """The data to read. ValueError when there are none, or some of a kind that is not read."""
    given, most = _places(recipe.keys)
    if not given:
        raise ValueError("dataset_path: the recipe names no data; give the path of a .jsonl file")
    found, left = list[Group](), most or 0
    for place, weight in given:
        take = min(math.ceil(most * (weight / sum(w for _, w in given))), left) if most else None
        left -= take or 0
        path = Path(os.path.abspath(place))
        there = sorted(p for p in path.rglob("*") if p.is_file()) if path.is_dir() else [path]
        files = max(([f for f in there if kind(f) in suffixes] for suffixes in KINDS), key=len)
        if not files or not all(f.is_file() for f in files):
            known = ", ".join(s for suffixes in KINDS for s in suffixes)
            raise ValueError(f"dataset_path: {place}: expected a file that is there, or a folder with some, of {known}")
        found.append(Group(tuple(files), take))
    return found


def _places(keys: Mapping[str, Any]) -> tuple[list[tuple[str, float]], int | None]:
    """Paths with their weights, and how many rows are drawn; as in Data-Juicer weights count for nothing unless max_sample_num is given."""
    if keys["dataset_path"]:
        return [(p, 1.0) for p in _split(keys["dataset_path"])], None
    dataset: Mapping[str, Any] = keys["dataset"] or {}
    configs: Sequence[Mapping[str, Any]] = dataset.get("configs") or []
    most = dataset.get("max_sample_num")
    if most is not None and not (isinstance(most, int) and most > 0):
        raise ValueError(f"dataset: max_sample_num: got {most!r}, expected a whole number from 1")
    for config in configs:
        if config.get("type", "local") != "local" or "path" not in config:
            raise ValueError(f"dataset: got {dict(config)!r}, expected type: local and a path; `safelight collect` fetches the rest")
        weight = config.get("weight", 1.0)
        if not isinstance(weight, int | float) or weight <= 0:
            raise ValueError(f"dataset: weight: got {weight!r}, expected a number above 0")
    return [(str(c["path"]), float(c.get("weight", 1.0))) for c in configs], most


def _split(paths: str) -> list[str]:
    """`0.5 a.jsonl 0.5 'b c.jsonl'` -> the paths; one path with blanks in it stays whole."""
    words = [] if os.path.exists(paths) else shlex.split(paths)
    return [w for w in words if not re.fullmatch(r"\d*\.?\d*", w)] or [paths]
