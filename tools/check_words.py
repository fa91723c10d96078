"""Check the words of the pages: they speak of the product, not of how it was made, and point at nothing that a reader does not have.

Pages are the Markdown files of the repository. Code may say `session` or `agent` where it means a login or a User-Agent header, so of
Python files only the patterns in CODE are checked.
"""
from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]
CODE = [
    r"issue ?#?\d+", r"/work/", r"\bCEO\b", r"\bcontract\.md\b", r"\bdesign\.md\b", r"\bstyle\.md\b", r"\bTODO\b", r"\bFIXME\b",
]
PAGE = [
    *CODE, r"\bsessions?\b", r"\bagents?\b", r"\bcutting[- ]edge\b", r"\bstate[- ]of[- ]the[- ]art\b", r"\bseamless(?:ly)?\b",
    r"\bpowerful\b", r"\bblazing(?:ly)?\b", r"\bdelve\b", r"\beffortless(?:ly)?\b", r"\brevolutionary\b",
    r"@[A-Z]+@",  # a place in a model card that was not filled in
]
SELF = "tools/check_words.py"


def main() -> int:
    """Exit status: 1 when a page or a source file uses one of the words."""
    listed = subprocess.run(["git", "ls-files", "-co", "--exclude-standard"], cwd=ROOT, check=True, capture_output=True, text=True)
    failed = False
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if name == SELF or path.suffix not in {".md", ".py", ".toml", ".yml", ".yaml"} or not path.is_file():
            continue
        pattern = re.compile("|".join(PAGE if path.suffix == ".md" else CODE), re.IGNORECASE if path.suffix == ".md" else 0)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            for found in pattern.findall(line):
                failed = True
                print(f"{name}:{number}: {found!r} does not belong here")
    return failed


if __name__ == "__main__":
    sys.exit(main())
