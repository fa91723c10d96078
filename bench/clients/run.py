"""Clients that others wrote for ComfyUI, OpenAI and AUTOMATIC1111, unmodified, against our server: `make clients`; `run.py NAME ...`.

Each `with_*` file is one client's own way of drawing one picture. Its first line says what is installed (each into a folder of its own),
its second what it does. It is given the server's address, the prompt, and where to write the picture, which is looked at here.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from PIL import Image

HERE = Path(__file__).parent
AT = Path(os.environ.get("CLIENTS_DIR", HERE.parents[1] / "build" / "clients")).absolute()


def head(script: Path) -> tuple[str, list[str], str]:
    """Which registry, which packages, what it does."""
    first, second = script.read_text("utf-8").splitlines()[:2]
    kind, packages = re.fullmatch(r"\W+(pip|npm): (.+)", first).groups()
    return kind, packages.split(), second.partition("does: ")[2]


def installed(script: Path) -> list[str]:
    """The command that runs the script, with its packages there."""
    kind, packages, _ = head(script)
    folder = AT / script.stem
    done = folder / "installed.txt"
    if not done.exists() or done.read_text() != " ".join(packages):
        folder.mkdir(parents=True, exist_ok=True)
        if kind == "pip":
            subprocess.run([sys.executable, "-m", "venv", folder], check=True)
            subprocess.run([folder / "bin" / "pip", "install", "-q", "--disable-pip-version-check", *packages], check=True)
        else:
            subprocess.run(["npm", "install", "--prefix", folder, "--no-audit", "--no-fund", "--ignore-scripts", *packages], check=True)
        done.write_text(" ".join(packages))
    return [str(folder / "bin" / "python")] if kind == "pip" else ["node"]


def tried(script: Path, url: str) -> str:
    """Run one; empty, or what went wrong."""
    out = AT / script.stem / "picture.png"
    out.unlink(missing_ok=True)
    command = [*installed(script), str(script), url, str(HERE / "prompt.json"), str(out)]
    more = [str(AT / script.stem / "node_modules")] if script.suffix == ".mjs" else []
    try:
        done = subprocess.run([*command, *more], capture_output=True, text=True, timeout=180, cwd=AT / script.stem, check=False)
    except subprocess.TimeoutExpired:
        return "it did not end in three minutes"
    (AT / script.stem / "log.txt").write_text(done.stdout + done.stderr)
    if done.returncode or not out.is_file():
        return (done.stderr or done.stdout).strip()[-1500:] or "no picture"
    with Image.open(out) as picture:
        if picture.size != (128, 128) or len(set(picture.convert("L").tobytes())) < 16:
            return f"its picture is {picture.size}, or of one colour"
    return ""


def main() -> int:
    """Run them all, print the table; how many failed."""
    scripts = sorted(s for s in HERE.glob("with_*") if len(sys.argv) == 1 or s.stem.removeprefix("with_") in sys.argv[1:])
    home = AT / "server"
    home.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "SAFELIGHT_HOME": str(home / "store")}
    serve = [sys.executable, "-c", "from safelight.cli import main; main()", "serve", "--port", "0", "--dir", str(home / "studio")]
    server = subprocess.Popen(serve, stdout=subprocess.PIPE, env=environment, text=True, cwd=home)
    failed = 0
    try:
        assert server.stdout is not None
        url = re.search(r"http://\S+", server.stdout.readline())[0]
        print("| client | runs | what it does |\n| --- | --- | --- |")
        for script in scripts:
            wrong = tried(script, url)
            failed += bool(wrong)
            _, packages, does = head(script)
            print(f"| {packages[0]} | {'no' if wrong else 'yes'} | {does} |", flush=True)
            if wrong:
                print(wrong, file=sys.stderr)
    finally:
        server.terminate()
        server.wait(60)
    return failed


if __name__ == "__main__":
    sys.exit(main())
