"""Mappers that change the text. Patterns are compiled by `regex`, as Data-Juicer does, so that a recipe's patterns keep their meaning."""
from __future__ import annotations

import html.parser
import importlib.util
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

from safelight.data.juicer.registry import MAX, Param, Sample, Settings, mapper
from safelight.data.juicer.texts import special

PATTERN = Param(None, (str,))
TEXTS = (str, list)

EMAIL = r"[A-Za-z0-9.\-+_]+@[a-z0-9.\-+_]+\.[a-z]+"
_OCTETS = "1[0-9][0-9]", "2[0-4][0-9]", "25[0-5]", "[1-9][0-9]", "[0-9]"
IP = (f"(?:{'|'.join(f'(?:{o}[.])' for o in _OCTETS)}){{3}}(?:{'|'.join(f'(?:{o})' for o in _OCTETS)})"
      r"|([\da-fA-F]{1,4}:){7}[\da-fA-F]{1,4}")
_BRACKETS = r"\(([^\s()<>]+|(\([^\s()<>]+\)))*\)"
LINK = (r"(?i)\b((?:[a-z][\w-]+:(?:/{1,3}|[a-z0-9%])|www\d{0,3}[.]|[a-z0-9.\-]+[.][a-z]{2,4}/)"
        rf"(?:[^\s()<>]+|{_BRACKETS})+(?:{_BRACKETS}|[^\s`!()\[\]{{}};:'\".,<>?«»“”‘’]))")

PUNCTUATION = str.maketrans({
    **dict.fromkeys("„”“«»１」「《》", '"'), **dict.fromkeys("´’", "'"), **dict.fromkeys("∶：", ":"), **dict.fromkeys("–━►", "-"),
    **dict(zip("，。、？！（）；～〈〉【】％", ",.,?!();~<>[]%", strict=True)), "—": " - ", "．": ". ", "…": "...",
})
WHITE = str.maketrans(dict.fromkeys("\t\xa0\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007\u2008\u2009\u200a\u200b\u200c\u200d\u202f\u205f"
                                    "\u2060\u3000\ufffc\x84", " "))


@cache
def compiled(pattern: str) -> Any:
    """A pattern in `regex`'s language, also one written as r'...' within the string. ValueError when it is none."""
    regex = import_module("regex")  # transformers, a dependency, brings it
    if len(pattern) > 2 and pattern[:2] in ("r'", 'r"') and pattern[-1] == pattern[1]:
        pattern = pattern[2:-1]
    try:
        return regex.compile(pattern, flags=regex.DOTALL)
    except regex.error as error:
        raise ValueError(f"pattern {pattern!r}: {error}") from error


def _replaced(name: str, default: str) -> None:
    def run(text: str, s: Settings) -> str:
        out: str = compiled(s["pattern"] or default).sub(s["repl"], text)
        return out

    run.__name__ = name
    mapper(pattern=PATTERN, repl="")(run)


for _name, _default in (("clean_email_mapper", EMAIL), ("clean_ip_mapper", IP), ("clean_links_mapper", LINK)):
    _replaced(_name, _default)


@mapper()
def clean_copyright_mapper(text: str, _: Settings) -> str:
    """Cut a first block comment that speaks of copyright; without a block comment, leading lines that are comments or empty."""
    block = compiled(r"/\*[^*]*\*+(?:[^/*][^*]*\*+)*/").search(text)
    if block:
        return text[:block.start()] + text[block.end():] if "copyright" in block[0].lower() else text
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line and not line.startswith(("//", "#", "--"))), len(lines))
    return "\n".join(lines[first:])


class _Plain(html.parser.HTMLParser):
    def __init__(self) -> None:
        super().__init__(convert_charrefs=True)
        self.parts: list[str] = []

    def handle_data(self, data: str) -> None:
        """Text between tags."""
        self.parts.append(data)


@mapper()
def clean_html_mapper(text: str, _: Settings) -> str:
    """The text without tags; list items begin a line with `*`."""
    for tag, mark in (("<li>", "\n*"), ("</li>", ""), ("<ol>", "\n*"), ("</ol>", "")):
        text = text.replace(tag, mark)
    parser = _Plain()
    parser.feed(text)
    parser.close()
    return "".join(parser.parts).lstrip("\t\n\f\r ")  # a document's body does not begin with blanks


@mapper(normalization=Param("NFC", (str,), ("NFC", "NFKC", "NFD", "NFKD", "nfc", "nfkc", "nfd", "nfkd", "")))
def fix_unicode_mapper(text: str, s: Settings) -> str:
    """Repair text that was decoded wrongly, by ftfy."""
    try:
        ftfy = import_module("ftfy")
    except ImportError as error:
        raise ImportError("fix_unicode_mapper needs ftfy, which is not installed: pip install ftfy") from error
    fixed: str = ftfy.fix_text(text, normalization=(s["normalization"] or "NFC").upper())
    return fixed


@mapper()
def punctuation_normalization_mapper(text: str, _: Settings) -> str:
    """Full-width and typographic punctuation as ASCII."""
    return text.translate(PUNCTUATION)


@mapper()
def whitespace_normalization_mapper(text: str, _: Settings) -> str:
    """Both ends stripped, every kind of blank but the line end as a space."""
    return text.strip().translate(WHITE)


@mapper(chars_to_remove=Param("◆●■►▼▲▴∆▻▷❖♡□", TEXTS))
def remove_specific_chars_mapper(text: str, s: Settings) -> str:
    """Without the given characters."""
    return text.translate(dict.fromkeys(map(ord, "".join(s["chars_to_remove"] or ()))))


def _per_word(text: str, keep: Callable[[str], bool]) -> str:
    """The words that `keep` accepts, in their lines and columns; what holds no word is left out."""
    lines = ([" ".join(w for w in cell.split(" ") if w and keep(w)) for cell in line.split("\t")] for line in text.split("\n"))
    joined = ("\t".join(cell for cell in line if cell) for line in lines)
    return "\n".join(line for line in joined if line)


@mapper(min_len=1, max_len=MAX)
def remove_long_words_mapper(text: str, s: Settings) -> str:
    """Without words of fewer than min_len or more than max_len characters; special characters at the ends of a long one do not count."""
    low, high = s["min_len"], s["max_len"]
    return _per_word(text, lambda w: low <= len(w) and (len(w) <= high or low <= len(w.strip(special())) <= high))


@mapper(lang="en", tokenization=(False,), substrings=Param(None, (list,)))
def remove_words_with_incorrect_substrings_mapper(text: str, s: Settings) -> str:
    """Without words that contain any of the substrings, by default parts of web addresses."""
    bad = ("http", "www", ".com", "href", "//") if s["substrings"] is None else s["substrings"]
    return _per_word(text, lambda w: not any(b in w.strip(special()) for b in bad))


SENTENCES = ((r"([.。！!？\?])([^’”])", r"\1\n\2"), (r"(\.{6})([^’”])", r"\1\n\2"), (r"(…{2})([^’”])", r"\1\n\2"),
             (r"([.。!！？\?…{}26][’”])([^’”])", r"\1\n\2"))


@mapper(lowercase=False, ignore_special_character=True, min_repeat_sentence_length=2, tokenizer=(None,))
def remove_repeat_sentences_mapper(text: str, s: Settings) -> str:
    """Every sentence once, the first time it comes; those shorter than the minimum stay."""
    seen: set[str] = set()

    def fresh(sentence: str) -> bool:
        said = sentence.strip().lower() if s["lowercase"] else sentence.strip()
        if s["ignore_special_character"]:
            said = compiled(r"[^a-zA-Z0-9\u4e00-\u9fa5\n\t ]").sub("", said)
        if len(said) < s["min_repeat_sentence_length"]:
            return True
        known = said in seen
        seen.add(said)
        return not known

    return "\n".join("".join(filter(fresh, _sentences(line))) for line in text.split("\n"))


def _sentences(line: str) -> list[str]:
    for pattern, between in SENTENCES:
        line = compiled(pattern).sub(between, line)
    return line.split("\n")


@mapper(pattern=Param(None, TEXTS), repl=Param("", TEXTS))
def replace_content_mapper(text: str, s: Settings) -> str:
    """Every match of the pattern replaced; several patterns in turn, each by its own replacement or all by one."""
    patterns = [s["pattern"]] if isinstance(s["pattern"], str) else s["pattern"] or []
    texts = s["repl"] if isinstance(s["repl"], list) else [s["repl"]] * len(patterns)
    if len(texts) < len(patterns):
        raise ValueError(f"replace_content_mapper: {len(patterns)} patterns but {len(texts)} replacements; give one for each, or one text")
    for pattern, repl in zip(patterns, texts, strict=False):
        text = compiled(pattern).sub(repl, text)
    return text


@mapper(needs="pixels", lambda_str="", batched=(False,))
def python_lambda_mapper(sample: Sample, _: object, s: Settings) -> None:
    """A recipe's own expression on the row. Runs only when code is allowed."""
    if s["lambda_str"]:
        _returned(sample, "python_lambda_mapper", _code(s["lambda_str"])(sample.row))


@cache
def _code(source: str) -> Callable[[dict[str, Any]], Any]:
    import ast

    tree = ast.parse(source, mode="eval")
    if not isinstance(tree.body, ast.Lambda) or len(tree.body.args.args) != 1:
        raise ValueError(f"python_lambda_mapper: lambda_str: got {source!r}, expected `lambda row: ...` that returns the row")
    made: Callable[[dict[str, Any]], Any] = eval(compile(tree, "<recipe>", "eval"))  # noqa: S307  (what --allow-code allows)
    return made


@mapper(needs="pixels", file_path="", function_name="process_single", batched=(False,))
def python_file_mapper(sample: Sample, _: object, s: Settings) -> None:
    """A function of a Python file on the row. Runs only when code is allowed."""
    if s["file_path"]:
        _returned(sample, "python_file_mapper", _function(s["file_path"], s["function_name"])(sample.row))


@cache
def _function(path: str, name: str) -> Callable[[dict[str, Any]], Any]:
    spec = importlib.util.spec_from_file_location(Path(path).stem, path)
    if spec is None or spec.loader is None:
        raise ValueError(f"python_file_mapper: file_path: {path} is no Python file")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found = vars(module).get(name)
    if not callable(found):
        raise ValueError(f"python_file_mapper: {path} has no function {name!r}")
    made: Callable[[dict[str, Any]], Any] = found
    return made


def _returned(sample: Sample, name: str, row: object) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{name}: the function returned {type(row).__name__}, expected the row as a dictionary")
    sample.row = dict(row)
