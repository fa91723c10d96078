"""What a declaration says, and that everything given to an op ends in one canonical form or in an error that helps."""
from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from safelight.binding import arguments, by_name, settle
from safelight.literals import check, parse
from safelight.op import InputError, Op, find, load_ops, op, source_of
from safelight.source import _tree, reached, source_hash
from safelight.spec import REQUIRED
from safelight.values import Dataset, Image, Model, Value
from tests.small_ops import NAMES_ASKED, SMALL, Rate


def spec_of(name: str) -> Any:
    return SMALL[name].spec


def canonical(name: str, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The literals of a Python call; the first error is raised."""
    wrong: list[InputError] = []
    _, literals = settle(spec_of(name), by_name(spec_of(name), args, kwargs), wrong)
    if wrong:
        raise wrong[0]
    return literals


def test_ports_and_settings_are_read_from_the_signature() -> None:
    spec = spec_of("add")
    assert [(p.name, p.types, p.optional) for p in spec.ports] == [("image", (Image,), False), ("other", (Image,), True)]
    assert list(spec.setting) == ["by", "style", "mode", "steps", "lr", "betas", "warm"]
    assert spec.setting["lr"].path == ("rate", "lr")
    assert spec.setting["betas"].many and spec.setting["betas"].length == 2 and spec.setting["betas"].default == (0.9, 0.99)
    assert spec.output is Image and spec.positional == 2 and spec.summary == "Add a number, and another picture."


def test_helps_come_from_docstrings_and_knobs() -> None:
    spec = spec_of("add")
    assert spec.setting["by"].help == "the number, in units of full white"
    assert spec.port["image"].help == "what to add to"
    assert spec.setting["lr"].help == "size of a step"
    assert spec.setting["warm"].help == "steps before full speed"


def test_lists_drawn_seeds_and_required_settings() -> None:
    spec = spec_of("stack")
    assert spec.port["images"].many
    assert spec.setting["seeds"].many and spec.setting["seeds"].default == (-1,)
    assert spec_of("paint").setting["prompt"].default is REQUIRED


def test_names_are_not_asked_for_at_declaration() -> None:
    NAMES_ASKED.clear()

    @op("test", registry={})
    def late(*, style: str = "plain") -> Image:
        """Nothing."""
        raise NotImplementedError

    assert spec_of("add").setting["style"].names is not None and not NAMES_ASKED
    assert late.spec.setting["style"].choices is None


@pytest.mark.parametrize("body", ["star", "bare", "odd", "twice", "result"])
def test_a_signature_that_no_surface_can_show_is_refused(body: str) -> None:
    def star(*images: Image) -> Image: ...
    def bare(image) -> Image: ...  # type: ignore[no-untyped-def]
    def odd(image: Image, *, when: complex) -> Image: ...
    def twice(image: Image, *, lr: float, rate: Rate = Rate()) -> Image: ...  # noqa: B008
    def result(image: Image) -> int: ...

    with pytest.raises(TypeError, match=body):
        op("test", registry={})(locals()[body])


def test_the_python_face_of_an_op() -> None:
    assert SMALL["add"].__name__ == "add" and "Add a number" in (inspect.getdoc(SMALL["add"]) or "")
    assert list(inspect.signature(SMALL["add"]).parameters) == ["image", "other", "by", "style", "mode", "steps", "rate"]
    assert repr(SMALL["add"]) == "<op add>"


def test_groups_whole_and_flat_are_the_same() -> None:
    whole = canonical("add", "0.5", rate=Rate(lr=0.2, warm=3))
    assert whole == canonical("add", "0.5", lr=0.2, warm=3) == canonical("add", "0.5", rate={"lr": 0.2, "warm": 3})
    assert canonical("add", "0.5", rate=Rate(lr=0.2), warm=3) == whole
    assert arguments(spec_of("add"), {}, whole)["rate"] == Rate(lr=0.2, warm=3)


def test_a_group_checks_itself() -> None:
    with pytest.raises(InputError, match=r"add: rate: got .*warm=3, expected lr at most 0.5"):
        arguments(spec_of("add"), {}, canonical("add", "0.5", lr=0.9, warm=3))


@pytest.mark.parametrize(("name", "given", "form"), [
    ("by", 1, 1.0), ("by", np.float32(0.5), 0.5), ("steps", 4.0, 4), ("steps", np.int64(4), 4), ("betas", [0, 1], (0.0, 1.0)),
    ("betas", np.array([0.5, 0.25]), (0.5, 0.25)), ("mode", "mean", "mean"),
])
def test_one_canonical_form(name: str, given: Any, form: Any) -> None:
    found = check("add", spec_of("add").setting[name], given)
    assert found == form and type(found) is type(form)


def test_a_list_takes_one_item_a_range_or_what_comfyui_wraps() -> None:
    seeds = spec_of("paint").setting["seeds"]
    assert check("paint", seeds, 7) == (7,)
    assert check("paint", seeds, range(3)) == (0, 1, 2)
    assert check("paint", seeds, {"__value__": [1, 2]}) == (1, 2)


def test_minus_one_draws_a_seed() -> None:
    seeds = spec_of("paint").setting["seeds"]
    drawn = {check("paint", seeds, [-1, 5, -1]) for _ in range(4)}
    assert len(drawn) == 4
    assert all(a >= 0 and b == 5 and c >= 0 and a != c for a, b, c in drawn)


@pytest.mark.parametrize(("kwargs", "message", "kind"), [
    ({"stepz": 3}, "add: stepz: got an unknown input, expected one of image, other, by, .*; did you mean 'steps'?", "unknown_input"),
    ({"steps": 0}, "add: steps: got 0, expected int, 1 to 1000", "too_small"),
    ({"steps": 5000}, "add: steps: got 5000, expected int, 1 to 1000", "too_big"),
    ({"steps": "3"}, r"add: steps: got '3' \(str\), expected int, 1 to 1000", "wrong_type"),
    ({"steps": 2.5}, r"add: steps: got 2.5 \(float\), expected int", "wrong_type"),
    ({"steps": True}, r"add: steps: got True \(bool\), expected int", "wrong_type"),
    ({"by": float("nan")}, "add: by: got nan", "wrong_type"),
    ({"style": "bolt"}, "add: style: got 'bolt', expected one of plain, bold; did you mean 'bold'?", "not_in_list"),
    ({"mode": "max"}, "add: mode: got 'max', expected one of sum, mean", "not_in_list"),
    ({"betas": [1]}, r"add: betas: got 1 items, expected a list of 2 \(float\)", "wrong_type"),
    ({"by": None}, "add: by: got nothing, expected float", "missing"),
])
def test_errors_name_op_input_got_and_expected(kwargs: dict[str, Any], message: str, kind: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        canonical("add", "0.5", **kwargs)
    assert caught.value.kind == kind and isinstance(caught.value, ValueError)


def test_positions() -> None:
    with pytest.raises(InputError, match=r"got 3 positional arguments, expected at most 2 \(image, other\)"):
        canonical("add", 1, 2, 3)
    with pytest.raises(InputError, match="image: got it twice"):
        canonical("add", 1, image=2)
    with pytest.raises(InputError, match="image: got nothing, expected an IMAGE"):
        canonical("add")
    with pytest.raises(InputError, match="rate: got 3"):
        canonical("add", 1, rate=3)


@pytest.mark.parametrize(("op_name", "name", "text", "value"), [
    ("add", "steps", "800", 800), ("add", "by", "1e-4", 1e-4), ("add", "betas", "0.5,0.9", [0.5, 0.9]),
    ("add", "betas", "[0.5, 0.9]", [0.5, 0.9]),
    ("paint", "seeds", "0..3", [0, 1, 2, 3]), ("paint", "seeds", "7", [7]), ("paint", "prompt", "a, b: c", "a, b: c"),
])
def test_text_is_read_as_the_settings_kind(op_name: str, name: str, text: str, value: Any) -> None:
    assert parse(op_name, spec_of(op_name).setting[name], text) == value


@pytest.mark.parametrize(("name", "text"), [("steps", "many"), ("by", "x"), ("betas", "[0.5,")])
def test_text_that_cannot_be_read(name: str, text: str) -> None:
    with pytest.raises(InputError, match=f"add: {name}: got "):
        parse("add", spec_of("add").setting[name], text)


def test_booleans_and_json_as_text() -> None:
    registry: dict[str, Op[..., Any]] = {}

    @op("test", registry=registry)
    def flags(*, on: bool = False, note: str | None = None, more: dict[str, Any] | None = None, size: int | None = None) -> Image:
        """Nothing."""
        raise NotImplementedError

    setting = flags.spec.setting
    assert [parse("flags", setting["on"], t) for t in ("yes", "Off", "1", "false")] == [True, False, True, False]
    assert parse("flags", setting["more"], '{"a": [1, 2]}') == {"a": [1, 2]}
    assert parse("flags", setting["size"], "none") is None and parse("flags", setting["size"], "3") == 3
    assert check("flags", setting["more"], {"a": (1, Path("b"))}) == {"a": [1, "b"]}
    with pytest.raises(InputError, match="on: got 'perhaps', expected bool"):
        parse("flags", setting["on"], "perhaps")


def test_ports_know_what_they_take() -> None:
    registry: dict[str, Op[..., Any]] = {}

    @op("test", registry=registry)
    def any_of(first: Image | Dataset, second: Value | None = None, *, third: list[Model] | None = None) -> Image:
        """Nothing."""
        raise NotImplementedError

    ports = any_of.spec.port
    assert ports["first"].socket == "IMAGE,DATASET" and ports["first"].takes(Dataset) and not ports["first"].takes(Model)
    assert ports["second"].socket == "*" and ports["second"].takes(Model) and ports["second"].optional
    assert ports["third"].many and ports["third"].optional
    assert source_of(ports["third"], SMALL) is SMALL["net"] and source_of(spec_of("wear").port["patch"], {}) is None


def test_a_port_is_read_by_the_op_of_its_own_name_first() -> None:
    ops = load_ops()
    for op_name, port in (("with_lora", "lora"), ("with_control", "control"), ("with_embedding", "embedding"), ("generate", "image")):
        assert source_of(ops[op_name].spec.port[port], ops) is ops[f"load_{port}"]
    assert source_of(ops["generate"].spec.port["model"], ops) is ops["model"]


def test_unknown_ops_have_near_names() -> None:
    with pytest.raises(InputError, match=r"did you mean 'grey'\?"):
        find("gray", SMALL)
    assert find("load-image", {"load_image": SMALL["grey"]}) is SMALL["grey"]


def test_schema_accepts_what_the_op_accepts() -> None:
    schema = spec_of("add").schema()
    jsonschema.Draft202012Validator.check_schema(schema)
    validate = jsonschema.Draft202012Validator(schema)
    assert validate.is_valid({"image": ["1", 0], "by": 0.5, "style": "bold", "betas": [0.1, 0.2]})
    for wrong in ({"by": 1}, {"image": [], "steps": 0}, {"image": [], "style": "x"}, {"image": [], "betas": [1]}, {"image": [], "more": 1}):
        assert not validate.is_valid(wrong), wrong


def test_object_info_has_what_the_web_page_needs() -> None:
    info = spec_of("add").object_info()
    required, optional = info["input"]["required"], info["input"]["optional"]
    assert required["image"] == ["IMAGE", {"tooltip": "what to add to"}] and optional == {"other": ["IMAGE"]}
    assert required["steps"] == ["INT", {"default": 3, "min": 1, "max": 1000, "step": 1}]
    assert required["style"] == ["COMBO", {"default": "plain", "options": ["plain", "bold"]}]
    assert required["betas"][0] == "STRING" and required["betas"][1]["default"] == "0.9,0.99"
    assert info["input_order"]["required"] == list(required) and info["output"] == ["IMAGE"] and info["category"] == "safelight/test"
    assert spec_of("learn").object_info()["input"]["required"]["seed"][1]["control_after_generate"] is True
    assert spec_of("stack").object_info()["is_input_list"] is True


def test_markdown_has_every_input() -> None:
    page = spec_of("add").markdown()
    for word in ("## add", "| image | IMAGE |", "| lr | float, 0 to 1 | `0.1` | size of a step |", "safelight add", "one of sum, mean"):
        assert word in page


def test_source_hash_sees_code_and_not_comments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import importlib

    package = tmp_path / "shop"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "wares.py").write_text("from shop.tax import rate\ndef price(): return rate()\n")
    (package / "tax").mkdir()
    (package / "tax" / "__init__.py").write_text("def rate(): return 1\n")
    (package / "tax" / "found_by_name.py").write_text("LEVY = 1\n")
    lines = ["def total():", "    from shop.wares import price", "    return price()", ""]
    (package / "till.py").write_text("\n".join(lines))
    monkeypatch.syspath_prepend(str(tmp_path))

    def now() -> str:
        _tree.cache_clear()
        return source_hash(importlib.import_module("shop.till").total)

    first = now()
    assert {p.name for p in reached(importlib.import_module("shop.till").total)} == {"wares.py", "__init__.py", "found_by_name.py"}
    (package / "till.py").write_text("\n".join(['"""Words."""', lines[0], '    """More."""', "    # and more", *lines[1:]]))
    assert now() == first
    (package / "till.py").write_text("\n".join([*lines, "@op('x')", "def another(): return 9", ""]))
    assert now() == first
    for file, text in (("wares.py", "from shop.tax import rate\ndef price(): return 2 * rate()\n"), ("tax/found_by_name.py", "LEVY = 2\n")):
        (package / file).write_text(text)
        assert now() != first
        first = now()


def test_a_changed_op_is_noticed() -> None:
    sys.path.insert(0, str(Path(__file__).parents[2] / "tools"))
    try:
        from op_versions import changes
    finally:
        sys.path.pop(0)
    old: Any = {"a": {"version": 1, "source": "x"}, "b": {"version": 2, "source": "y"}}
    assert changes(old, old) == []
    assert "a: its code changed, its version is still 1" in changes(old, {**old, "a": {"version": 1, "source": "z"}})[0]
    assert changes(old, {**old, "a": {"version": 2, "source": "z"}}) == ["a: version 1 is now 2"]
    assert "went back" in changes(old, {**old, "b": {"version": 1, "source": "y"}})[0]
    assert changes(old, {"a": old["a"], "c": old["b"]}) == ["b: gone", "c: new, version 2"]
