"""Weight files that nobody vouches for: sound ones give torch's own tensors, hostile ones an error; nothing in any of them runs."""
from __future__ import annotations

import io
import json
import os
import pickle
import random
import struct
import subprocess
import sys
import types
import zipfile
from collections import OrderedDict
from collections.abc import Callable
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from safelight.events import Note, Progress
from safelight.weights import header, pickles, torch_file, writing
from safelight.weights.pickles import convert, to_safetensors


def same(got: dict[str, Tensor], want: dict[str, Any]) -> None:
    """Equal in names, dtypes, shapes and every bit."""
    assert got.keys() == want.keys()
    for name, tensor in want.items():
        assert (got[name].dtype, got[name].shape) == (tensor.dtype, tensor.shape), name
        both = [t.detach().contiguous().reshape(-1).view(torch.uint8) for t in (got[name], tensor)]
        assert torch.equal(*both), name


def everything() -> dict[str, Tensor]:
    """Each way a tensor can lie in a file."""
    base = torch.randn(8, 6, 3, 3)
    ints = {str(d): torch.arange(-3, 4).to(d) for d in (torch.int8, torch.uint8, torch.int16, torch.int32, torch.int64)}
    floats = {str(d): torch.randn(2, 3).to(d) for d in (torch.float16, torch.bfloat16, torch.float64, torch.complex64)}
    views = {
        "whole": base, "shared": base, "slice": base[2:5, :, 1], "turned": base.permute(3, 1, 0, 2), "steps": base.flatten()[5::7],
        "channels_last": base.to(memory_format=torch.channels_last), "spread": torch.randn(3, 1).expand(3, 5),
        "spread_wide": torch.randn(1).expand(4),
        "complex_turned": torch.randn(3, 4, dtype=torch.complex64).t(),
    }
    odd = {"scalar": torch.tensor(2.5), "empty": torch.zeros(0, 3), "bool": torch.tensor([True, False])}
    return ints | floats | views | odd | {"parameter": nn.Parameter(torch.randn(2))}


def newest() -> dict[str, Tensor]:
    """What torch itself reads only from archives."""
    eights = (torch.float8_e4m3fn, torch.float8_e5m2, torch.float8_e4m3fnuz, torch.float8_e5m2fnuz, torch.float8_e8m0fnu)
    whole = {"u16": torch.arange(9).to(torch.uint16)[::2], "u32": torch.arange(3).to(torch.uint32)}
    return {str(d): torch.rand(3, 4).to(d) for d in eights} | whole


def no_name() -> Any:
    """An object whose class is not there any more when the file is read, as in checkpoints of other programs."""
    module = types.ModuleType("lightning_of_old")
    module.Settings = type("Settings", (dict,), {"__module__": "lightning_of_old"})  # type: ignore[attr-defined]
    sys.modules[module.__name__] = module
    settings = module.Settings(lr=1e-4, layers=[1, 2])
    settings.more = {"a": None}
    return settings


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "stream"])
def test_tensors_are_torchs_own(tmp_path: Path, archive: bool) -> None:
    tensors = everything() | (newest() if archive else {})
    torch.save(OrderedDict(tensors), tmp_path / "a.pt", _use_new_zipfile_serialization=archive)
    want = torch.load(tmp_path / "a.pt", weights_only=True)
    made = to_safetensors(tmp_path / "a.pt", tmp_path / "kept")
    same(load_file(made), want)
    said = header.read(made)
    assert said.metadata["format"] == "pt" and not [e for e in said.tensors.values() if e.start * 8 % header.BITS[e.dtype]], "not aligned"


@pytest.mark.parametrize("protocol", [1, 2, 3, 4, 5])
def test_every_pickle_protocol(tmp_path: Path, protocol: int) -> None:
    tensors = {"a": torch.randn(3), "b.weight": torch.randn(2, 2).half().t(), "größe": torch.ones(1)}
    held = tensors | {"n": -(10**30), "x": 1.5, "t": (1, "a", b"b", None, True, {3}, frozenset({4})), "i": -70000, "long": "x" * 70000}
    torch.save(held, tmp_path / "a.pt", pickle_protocol=protocol)
    same(load_file(to_safetensors(tmp_path / "a.pt", tmp_path / "kept")), tensors)


def test_a_trainers_checkpoint_gives_its_state_dict(tmp_path: Path) -> None:
    weights = {"blocks.7.attn1.to_q.lora_A.default.weight": torch.randn(4, 8), "scale": torch.tensor(4.0)}
    optimizer = {"state": {0: {"exp_avg": torch.randn(4, 8), "step": torch.tensor(5.0)}}, "param_groups": [{"betas": (0.9, 0.999)}]}
    whole = {"epoch": 0, "state_dict": weights, "optimizer_states": [optimizer], "hyper_parameters": no_name(), "dtype": torch.float16}
    torch.save(whole, tmp_path / "epoch=0-step=500.ckpt")
    del sys.modules["lightning_of_old"]
    work, notes = convert(tmp_path / "epoch=0-step=500.ckpt", tmp_path / "kept"), []
    try:
        while True:
            notes.append(next(work))
    except StopIteration as stop:
        same(load_file(stop.value), weights)
        assert header.read(stop.value).metadata["safelight.place"] == "state_dict"
    assert [type(n) for n in notes] == [Note]
    torch.save({"hyper": no_name(), "w": torch.ones(2), "deep": [{"v": torch.zeros(1)}]}, tmp_path / "b.ckpt")
    del sys.modules["lightning_of_old"]
    made = to_safetensors(tmp_path / "b.ckpt", tmp_path / "kept")
    same(load_file(made), {"w": torch.ones(2), "deep.0.v": torch.zeros(1)})
    assert json.loads(header.read(made).metadata["safelight.left"])["hyper.lr"] == "float 0.0001"


def test_other_shapes_of_checkpoints(tmp_path: Path) -> None:
    network = nn.Sequential(nn.Conv2d(2, 3, 1), nn.BatchNorm2d(3))
    torch.save(network, tmp_path / "module.pt")  # a whole object; torch reads it only by running it
    same(load_file(to_safetensors(tmp_path / "module.pt", tmp_path / "kept")), network.state_dict())
    torch.save({"params_ema": network.state_dict()}, tmp_path / "ema.pth")
    same(load_file(to_safetensors(tmp_path / "ema.pth", tmp_path / "kept")), network.state_dict())
    torch.save({"string_to_token": {"*": 265}, "string_to_param": {"*": torch.ones(2, 3)}, "name": "x"}, tmp_path / "embedding.pt")
    same(load_file(to_safetensors(tmp_path / "embedding.pt", tmp_path / "kept")), {"string_to_param.*": torch.ones(2, 3)})


def test_what_is_safetensors_stays_and_what_was_made_is_kept(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "a.ckpt")  # the content counts, not the name
    assert to_safetensors(tmp_path / "a.ckpt", tmp_path / "kept") == tmp_path / "a.ckpt" and not (tmp_path / "kept").exists()
    torch.save({"a": torch.ones(2)}, tmp_path / "b.safetensors")
    made = to_safetensors(tmp_path / "b.safetensors", tmp_path / "kept")
    before = made.stat()
    (tmp_path / "b.safetensors").rename(tmp_path / "c.bin")
    assert to_safetensors(tmp_path / "c.bin", tmp_path / "kept") == made and made.stat().st_mtime_ns == before.st_mtime_ns
    torch.save({"a": torch.zeros(2)}, tmp_path / "c.bin")
    assert to_safetensors(tmp_path / "c.bin", tmp_path / "kept") != made
    with pytest.raises(ValueError, match=r"b\.ckpt: got a folder"):
        (tmp_path / "b.ckpt").mkdir()
        to_safetensors(tmp_path / "b.ckpt", tmp_path / "kept")


def test_cancelling_ends_the_child_and_leaves_nothing(tmp_path: Path) -> None:
    torch.save({str(i): torch.zeros(2**22) for i in range(12)}, tmp_path / "a.pt")
    work = convert(tmp_path / "a.pt", tmp_path / "kept")
    first = next(work)
    assert isinstance(first, Progress) and first.total == 192 and first.unit == "MB"
    work.close()
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert not list((tmp_path / "kept").glob("*.part")) and not list((tmp_path / "kept").glob("*.safetensors"))


def test_a_file_that_takes_too_long_is_given_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save({"a": torch.ones(2)}, tmp_path / "a.pt")
    monkeypatch.setattr(pickles, "SECONDS", 0)
    with pytest.raises(ValueError, match=r"a\.pt: reading it took too long and was stopped"):
        to_safetensors(tmp_path / "a.pt", tmp_path / "kept")
    with pytest.raises(ChildProcessError):
        os.waitpid(-1, os.WNOHANG)
    assert not list((tmp_path / "kept").glob("*.safetensors"))


# Hostile pickles.


class Evil:
    """Calls a function of the file's choosing when it is unpickled by the rules."""

    def __init__(self, function: Callable[..., Any], *args: Any) -> None:
        self.call = function, args

    def __reduce__(self) -> Any:
        return self.call


@pytest.fixture
def canary(tmp_path: Path) -> Path:
    return tmp_path / "canary"


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "stream"])
@pytest.mark.parametrize("protocol", [2, 4])
def test_calls_do_nothing_and_the_tensors_are_taken(
    tmp_path: Path, canary: Path, archive: bool, protocol: int, caplog: pytest.LogCaptureFixture,
) -> None:
    code = f"open({str(canary)!r}, 'w').close()"
    inner = pickle.dumps(Evil(exec, code))
    calls = [Evil(os.system, f"touch {canary}"), Evil(eval, code), Evil(exec, code), Evil(pickle.loads, inner)]  # noqa: S301, S307
    held = {"w": torch.ones(2), "payload": calls}
    torch.save(held, tmp_path / "a.ckpt", pickle_protocol=protocol, _use_new_zipfile_serialization=archive)
    torch.load(tmp_path / "a.ckpt", weights_only=False)
    assert canary.exists(), "the payload does not work, so it proves nothing"
    canary.unlink()
    same(load_file(to_safetensors(tmp_path / "a.ckpt", tmp_path / "kept")), {"w": torch.ones(2)})
    assert not canary.exists()
    assert "it wants to call 'posix.system'" in caplog.text and "nothing was called" in caplog.text


def archive(data: bytes, others: dict[str, bytes] | None = None, *, compressed: bool = False) -> bytes:
    """A zip archive as torch writes it, around a pickle of one's own."""
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED if compressed else zipfile.ZIP_STORED) as made:
        for name, content in {"x/data.pkl": data, "x/byteorder": b"little", "x/data/0": bytes(64), **(others or {})}.items():
            made.writestr(name, content)
    return out.getvalue()


def text(s: str) -> bytes:
    return b"X" + struct.pack("<I", len(s)) + s.encode()


def number(n: int) -> bytes:
    return b"\x8a\x09" + n.to_bytes(9, "little", signed=True)


def tensor(shape: tuple[int, ...], strides: tuple[int, ...], *, offset: int = 0, key: str = "0", count: int = 16) -> bytes:
    """A tensor's instructions; what they say need not be true."""
    pid = storage("torch\nFloatStorage", key, count)
    sizes = b"".join(b"(" + b"".join(map(number, numbers)) + b"t" for numbers in (shape, strides))
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + pid + number(offset) + sizes + b"\x89}tR"


def storage(kind: str, key: str, count: int) -> bytes:
    return b"(" + text("storage") + f"c{kind}\n".encode() + text(key) + text("cpu") + number(count) + b"tQ"


def table(*parts: bytes) -> bytes:
    """A pickle of a table, its values from instructions."""
    return b"\x80\x02}(" + b"".join(text(str(i)) + part for i, part in enumerate(parts)) + b"u."


GOOD = tensor((16,), (1,))
TOUCH = "touch canary"
HOSTILE: dict[str, tuple[bytes, str]] = {
    "inst": (table(b"(" + text(TOUCH) + b"ios\nsystem\n"), "no tensors in it; it wants to call os.system"),
    "obj": (table(b"(cos\nsystem\n" + text(TOUCH) + b"o"), "it wants to call os.system"),
    "stack global": (b"\x80\x04\x8c\x05posix\x8c\x06system\x93" + text(TOUCH) + b"\x85R.", "it wants to call posix.system"),
    "new object with keywords": (b"\x80\x04cos\nsystem\n)}\x92.", "it wants to call os.system"),
    "dotted name": (table(b"ctorch\nserialization.os.system\n" + text(TOUCH) + b"\x85R"), "no tensors in it"),
    "build on a name": (table(b"ccollections\nOrderedDict\n}" + text("__setstate__") + b"cos\nsystem\nsb" + text(TOUCH) + b"b"), "no t"),
    "slots of our own class": (table(b"ctorch._utils\n_rebuild_tensor_v2\nN}" + text("__init__") + b"cos\nsystem\ns\x86b"), "no tensors"),
    "extension": (b"\x80\x02\x82\x01.", "is not one that weights need"),
    "wide extension": (b"\x80\x02\x84\xff\xff\xff\x7f.", "is not one that weights need"),
    "buffer from outside": (b"\x80\x05\x97.", "is not one that weights need"),
    "persistent id as text": (b"\x80\x02P../../etc/passwd\n.", "is not one that weights need"),
    "persistent id that is no storage": (table(text("/etc/passwd") + b"Q"), "a persistent id that names no storage"),
    "memo bomb": (b"\x80\x02Nr\xff\xff\xff\xff.", "place 4294967295 of the memo"),
    "memo of nothing": (b"\x80\x02h\x07.", "nothing was kept at place 7"),
    "huge bytes": (b"\x80\x04\x8e" + struct.pack("<Q", 2**62) + b"x.", "4611686018427387904 bytes are announced and 2 are left"),
    "huge text": (b"\x80\x04\x8d" + b"\xff" * 8 + b".", "are announced"),
    "huge number": (b"\x80\x02\x8b" + struct.pack("<I", 2**31) + b"1.", "a number of 2147483648 bytes"),
    "digits": (b"\x80\x02L" + b"9" * 60000 + b"L\n.", "is no number"),
    "endless line": (b"\x80\x02c" + b"a" * 10**5, "a line without an end"),
    "empty stack": (b"\x80\x02R.", "the stack is empty"),
    "no mark": (b"\x80\x02u.", "there is no mark"),
    "below the mark": (b"\x80\x02N(\x85.", "the stack is empty"),
    "no end": (b"\x80\x02}", "1 bytes are announced and 0 are left"),
    "protocol of tomorrow": (b"\x80\x09N.", "pickle protocol 9"),
    "entries into a tensor": (table(GOOD + b"(NNu"), "expected a table"),
    "elements into a text": (table(b"X\x00\x00\x00\x00Na"), "expected a list"),
    "objects in a bomb": (b"\x80\x04" + b"\x8f" * 1_500_000 + b".", "it needs more memory"),
    "pairs doubled forty times": (b"\x80\x02N" + b"2\x86" * 40 + b".", "more than 1000000 entries"),
    "deep": (b"\x80\x02" + b"N" + b"\x85" * 200_000 + b".", "no tensors in it"),
    "deep key": (b"\x80\x02}N" + b"\x85" * 200_000 + b"Ns.", "no tensors in it"),
    "a list in itself": (b"\x80\x02]q\x00h\x00a.", "no tensors in it"),
    "offset behind the end": (table(tensor((4,), (1,), offset=13)), "reads 68 bytes of storage '0', which has 64 bytes"),
    "strides behind the end": (table(tensor((2, 2), (1, 2**61))), "which has 64 bytes"),
    "negative stride": (table(tensor((4,), (-1,), offset=8)), "no whole numbers"),
    "negative shape": (table(tensor((-4,), (1,))), "no whole numbers"),
    "shape over all numbers": (table(tensor((2**60, 2**60), (0, 0))), "written out"),
    "more than the file, from one element": (table(tensor((2**33,), (0,))), "views of the same bytes"),
    "storage that claims more": (table(tensor((2**30,), (1,), count=2**30)), "which has 64 bytes"),
    "storage that is not there": (table(tensor((1,), (1,), key="../../../etc/passwd")), "is not in the file"),
    "storage of a foreign kind": (table(storage("os\nsystem", "0", 1)), "of an unknown kind"),
    "tensor of no storage": (table(b"ctorch._utils\n_rebuild_tensor_v2\n(NK\x00))\x89}tR"), "something that is no storage"),
    "two of a name": (b"\x80\x02}(" + text("a.b") + GOOD + text("a") + b"}" + text("b") + GOOD + b"s" + b"u.", "two tensors have the name"),
    "a name of the format": (b"\x80\x02}(" + text("__metadata__") + GOOD + text("b") + GOOD + b"u.", "two tensors have the name"),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_pickles_are_refused(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    content, message = HOSTILE[name]
    (tmp_path / "a.ckpt").write_bytes(archive(content))
    with pytest.raises(ValueError, match=r"a\.ckpt: no checkpoint that can be read: ") as e:
        to_safetensors(tmp_path / "a.ckpt", tmp_path / "kept")
    assert message in str(e.value) and len(str(e.value)) < 800 and str(e.value).isprintable()
    assert {p.name for p in tmp_path.iterdir()} == {"a.ckpt", "kept"}
    assert not list((tmp_path / "kept").glob("*.part")) and not list((tmp_path / "kept").glob("*.safetensors"))


def test_the_corpus_has_sound_neighbours(tmp_path: Path) -> None:
    (tmp_path / "a.ckpt").write_bytes(archive(table(GOOD, tensor((2, 2), (1, 8), offset=6))))
    assert load_file(to_safetensors(tmp_path / "a.ckpt", tmp_path / "kept"))["1"].shape == (2, 2)


ARCHIVES: dict[str, tuple[bytes, str]] = {
    "zip bomb": (archive(table(GOOD), {"x/data/1": bytes(10**7)}, compressed=True), "compressed or encrypted"),
    "archive in an archive": (archive(archive(table(GOOD))), "is not one that weights need"),
    "two pickles": (archive(table(GOOD), {"y/data.pkl": table(GOOD)}), "2 data.pkl"),
    "no pickle": (archive(table(GOOD)).replace(b"data.pkl", b"data.bin"), "0 data.pkl"),
    "TorchScript": (archive(table(GOOD), {"x/constants.pkl": b"", "x/code/a.py": b"import os"}), "a TorchScript program"),
    "big-endian": (archive(table(GOOD)).replace(b"little", b"bigger"), "big-endian"),
    "a pickle of something else": (pickle.dumps({"a": 1}, protocol=2), "none that torch.save wrote"),
    "a page": (b"<!doctype html><title>Sign in</title>", "it begins with b'<!doctyp'"),
    "nothing": (b"", "it is empty"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_are_none(tmp_path: Path, name: str) -> None:
    content, message = ARCHIVES[name]
    (tmp_path / "a.bin").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.bin: ") as e:
        to_safetensors(tmp_path / "a.bin", tmp_path / "kept")
    assert message in str(e.value)


def test_names_that_lead_out_of_the_archive_lead_nowhere(tmp_path: Path) -> None:
    others = {"../../../outside": b"x", "/outside": b"x", "x/data/../../outside": bytes(64)}
    (tmp_path / "a.ckpt").write_bytes(archive(table(GOOD, tensor((16,), (1,), key="../../outside")), others))
    made = load_file(to_safetensors(tmp_path / "a.ckpt", tmp_path / "kept"))
    assert made.keys() == {"0", "1"} and not Path("/outside").exists() and not list(tmp_path.parent.glob("**/outside"))


def test_the_child_can_do_nothing_but_read() -> None:
    source = Path(header.__file__).parents[2]
    start = f"import os, socket, sys; sys.path.append({str(source)!r}); from safelight.weights.child import nothing_else as hook\n"
    for act in ("open('/etc/hostname')", "__import__('ctypes')", "os.system('true')", "socket.socket()", "exec('1')", "os.remove('/no')"):
        code = f"{start}sys.addaudithook(hook)\n{act}"
        done = subprocess.run([sys.executable, "-I", "-S", "-c", code], capture_output=True, text=True, check=False)
        assert done.returncode == 1 and "PermissionError: reading weights is no reason for" in done.stderr, act


def taken_apart(path: Path) -> None:
    """What the child does, without writing, in this process."""
    with open(path, "rb") as f, mmap(f.fileno(), 0, access=ACCESS_READ) as data:
        file = torch_file.load(data, *torch_file.pickled(f, data))
        found = writing.tensors(file.root)[0]
        writing.check(found, file, 2**30)


@pytest.mark.parametrize("form", ["zip", "stream"])
def test_cut_and_scratched_files_are_read_or_refused(tmp_path: Path, form: str) -> None:
    torch.save({"state_dict": everything(), "epoch": 3}, tmp_path / "a.pt", _use_new_zipfile_serialization=form == "zip")
    sound = (tmp_path / "a.pt").read_bytes()
    rng, refused = random.Random(0), 0
    for i in range(300):
        data = bytearray(sound)
        if i % 3 == 0:
            del data[rng.randrange(1, len(sound)) :]
        else:
            for _ in range(rng.randrange(1, 6)):
                data[rng.randrange(len(data) if i % 3 == 1 else 4000)] = rng.randrange(256)
        (tmp_path / "b.pt").write_bytes(data)
        try:
            taken_apart(tmp_path / "b.pt")
        except (ValueError, zipfile.BadZipFile, NotImplementedError):
            refused += 1
        else:
            assert i % 3, "a cut file was taken for a whole one"
    assert refused > 120


# Headers of safetensors.


def raw(told: Any, data: bytes = b"", *, length: int | None = None) -> bytes:
    """A safetensors file with a header of one's own."""
    said = told if isinstance(told, bytes) else json.dumps(told).encode()
    return (len(said) if length is None else length).to_bytes(8, "little") + said + data


def one(**changes: Any) -> dict[str, Any]:
    return {"a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8], **changes}}


LIES: dict[str, tuple[bytes, str]] = {
    "shorter than a header": (b"\x02\0\0\0", "a file of 4 bytes"),
    "length over the file": (raw(one(), bytes(8), length=10**6), "say that the header has 1000000 bytes"),
    "length of all numbers": (b"\xff" * 8 + b"{}", "18446744073709551615"),
    "no JSON": (raw(b"{'a': 1}   "), "not JSON as expected"),
    "no table": (raw(b"[[[[]]]]   "), "begins with b'[[[[]]]]'"),
    "deep": (raw(b'{"a":' + b"[" * 10**5), "nested too deep"),
    "twice": (raw(b'{"a":{"dtype":"U8","shape":[0],"data_offsets":[0,0]},"a":{}}'), "'a' is there twice"),
    "not UTF-8": (raw(b'{"\xff":1}  '), "not JSON as expected"),
    "a dtype of its own": (raw(one(dtype="F33"), bytes(8)), "has dtype 'F33'"),
    "a dtype that is no text": (raw(one(dtype=["F32"]), bytes(8)), "has dtype ['F32']"),
    "negative": (raw(one(shape=[-2]), bytes(8)), "has shape [-2]"),
    "a fraction": (raw(one(shape=[2.0]), bytes(8)), "the number 2.0"),
    "not a number": (raw(b'{"a":{"dtype":"F32","shape":[NaN],"data_offsets":[0,8]}}', bytes(8)), "the number NaN"),
    "a truth": (raw(one(shape=[True, 2]), bytes(8)), "has shape [True, 2]"),
    "overflow": (raw(one(shape=[2**62, 2**62, 4]), bytes(8)), "has 8 bytes; F32 of shape"),
    "digits": (raw(b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', bytes(8)), "not JSON as expected"),
    "dimensions": (raw(one(shape=[1] * 65), bytes(8)), "at most 64"),
    "too few bytes": (raw(one(shape=[3]), bytes(8)), "F32 of shape [3] takes 12"),
    "backwards": (raw(one(data_offsets=[8, 0]), bytes(8)), "data_offsets [8, 0]"),
    "three places": (raw(one(data_offsets=[0, 8, 8]), bytes(8)), "data_offsets [0, 8, 8]"),
    "more than it should say": (raw(one(code="x"), bytes(8)), "expected dtype, shape and data_offsets"),
    "cut off": (raw(one(), bytes(7)), "it is cut off"),
    "something behind": (raw(one(), bytes(9)), "something is behind the tensors"),
    "hole": (raw(one() | {"b": {"dtype": "U8", "shape": [1], "data_offsets": [9, 10]}}, bytes(10)), "'b' begins at byte"),
    "overlap": (raw(one() | {"b": {"dtype": "U8", "shape": [4], "data_offsets": [4, 8]}}, bytes(8)), "'b' begins at byte"),
    "notes that are no texts": (raw({"__metadata__": {"a": {"b": 1}}}), "__metadata__ is no table of texts"),
}


@pytest.mark.parametrize("name", LIES)
def test_headers_that_lie(tmp_path: Path, name: str) -> None:
    content, message = LIES[name]
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors: ") as e:
        header.read(tmp_path / "a.safetensors")
    assert message in str(e.value) and len(str(e.value)) < 800 and str(e.value).isprintable()


def test_a_header_says_what_safetensors_says(tmp_path: Path) -> None:
    tensors = {k: v.detach().contiguous().clone() for k, v in (everything() | newest()).items()}
    save_file(tensors, tmp_path / "a.safetensors", metadata={"ss_network_alpha": "4", "title": "é"})
    said, whole = header.read(tmp_path / "a.safetensors"), (tmp_path / "a.safetensors").read_bytes()
    assert said.metadata == {"ss_network_alpha": "4", "title": "é"} and said.size == len(whole) and said.tensors.keys() == tensors.keys()
    with safe_open(tmp_path / "a.safetensors", "pt") as f:
        for name, entry in said.tensors.items():
            assert entry.dtype == f.get_slice(name).get_dtype() and list(entry.shape) == f.get_slice(name).get_shape()
            assert whole[entry.start : entry.stop] == tensors[name].reshape(-1).view(torch.uint8).numpy().tobytes()
    save_file({"b": torch.zeros(1)}, tmp_path / "a.safetensors")
    assert list(header.read(tmp_path / "a.safetensors").tensors) == ["b"]
