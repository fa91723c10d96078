"""`safelight serve`."""
from __future__ import annotations

import os
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import uvicorn

    from safelight.server.studio import Setup


@click.command("serve")
@click.option("--host", default="127.0.0.1", show_default=True, help="Where to listen. Anything but this machine needs --token.")
@click.option("--port", default=8188, show_default=True, type=click.IntRange(0, 65535), help="0: any free one.")
@click.option("--token", envvar="SAFELIGHT_TOKEN", default="", help="What clients must show; or $SAFELIGHT_TOKEN.")
@click.option("--allow-host", "names", multiple=True, metavar="NAME", help="A further name that the server is called by.")
@click.option("--workers", default=1, show_default=True, type=click.IntRange(0, 64), help="Worker processes a device.")
@click.option("--device", "devices", multiple=True, metavar="NAME", help="A device for workers: cpu, cuda:0, ...; may be repeated.")
@click.option("--engine", default="local", show_default=True, type=click.Choice(["local", "ray"]), help="ray: workers are Ray actors.")
@click.option("--address", metavar="HOST:PORT", help="The Ray cluster; default: one on this machine for each worker.")
@click.option("--together", default=8, show_default=True, type=click.IntRange(1, 64), help="Prompts that one worker runs at once.")
@click.option("--models", metavar="DIR", help="Folder of checkpoints/, loras/, ..., or an extra_model_paths.yaml.")
@click.option("--dir", "home", metavar="DIR", type=Path, help="Queue, uploads, results. Default: studio/ in Safelight's own folder.")
@click.option("--input", "uploads", metavar="DIR", type=Path, help="Where uploads lie and LoadImage looks.")
@click.option("--output", "results", metavar="DIR", type=Path, help="Where results are saved.")
@click.option("--data", multiple=True, metavar="DIR", type=Path, help="A folder to show and read. Default: here, but not home.")
@click.option("--nodes", metavar="DIR", type=Path, help="Folder of other people's node classes that are allowed.")
@click.option("--previews", is_flag=True, help="Send previews when a prompt does not say; some clients take them for results.")
@click.option("--max-steps", default=1000, show_default=True, help="Steps that one sampler of a prompt may have.")
@click.option("--max-pixels", default=4096 * 4096, show_default=True, help="Pixels that one picture of a prompt may have.")
@click.option("--max-batch", default=64, show_default=True, help="Pictures of one batch.")
@click.option("--max-seconds", default=86400.0, show_default=True, help="How long one prompt may run.")
@click.option("--patience", default=20.0, show_default=True, metavar="SECONDS", help="How long a client may stand still.")
@click.option("--connections", default=800, show_default=True, type=click.IntRange(600), help="Clients at once; more push the silent out.")
@click.option("--max-memory", default=0, show_default=True, metavar="MB", help="Memory of a worker; 0: what there is.")
def command(host: str, *, port: int, token: str, workers: int, **given: Any) -> None:
    """Serve ComfyUI's API, OpenAI's and AUTOMATIC1111's, with a queue that survives everything.

    Prints where it listens. SIGINT and SIGTERM stop it; prompts that run then wait for the next start.
    """
    from safelight.index import home
    from safelight.server.files import Shelves
    from safelight.server.guard import Rules
    from safelight.server.reading import Most
    from safelight.server.studio import Setup

    if given["models"]:
        os.environ["SAFELIGHT_MODELS"] = given["models"]
    rules = Rules(host, token, given["names"])
    shelves = Shelves.below(given["home"] or home() / "studio", given["uploads"], given["results"])
    most = Most(given["max_steps"], given["max_pixels"], given["max_batch"], given["max_seconds"], given["max_memory"] * 2**20)
    setup = Setup(
        shelves, rules, [d for d in given["devices"] or ("",) for _ in range(workers)], given["together"], previews=given["previews"],
        most=most, data=tuple(p.absolute() for p in given["data"]) or (here(shelves.input.path),), nodes=given["nodes"],
        patience=given["patience"], connections=given["connections"], ray=(given["address"] or "") if given["engine"] == "ray" else None,
    )
    try:
        listen(setup, port)
    except KeyboardInterrupt:
        click.echo("stopped; what waits is kept", err=True)


def here(uploads: Path) -> Path:
    """The folder that pages and prompts may read when nobody says: the one the server was started in, but never a whole home folder or what
    is above it; then the uploads'."""
    if not Path.home().resolve().is_relative_to(Path.cwd().resolve()):
        return Path.cwd()
    click.echo(f"{Path.cwd()} holds more than pictures, so its folders are not shown; --data DIR shows one", err=True)
    return uploads


def listen(setup: Setup, port: int) -> None:
    """Serve until a signal comes."""
    import uvicorn

    from safelight.server import editor

    host = setup.rules.host
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, port), family=family, backlog=512) as listening:
        at = listening.getsockname()[1]
        shown = f"[{host}]" if ":" in host else host
        click.echo(f"Safelight listens on http://{shown}:{at}" + (" (with a token)" if setup.rules.token else ""))
        if editor.frontend():
            click.echo(f"the node editor is on http://{shown}:{at}{editor.AT}/")
        signal.signal(signal.SIGTERM, lambda *_: None)  # uvicorn raises it again when it has stopped
        uvicorn.Server(configured(setup)).run(sockets=[listening])


def configured(setup: Setup) -> uvicorn.Config:
    """How the server speaks HTTP."""
    import uvicorn

    from safelight.server.app import application
    from safelight.server.patience import patient

    return uvicorn.Config(
        application(setup), ws="websockets-sansio", ws_max_size=2**20, ws_per_message_deflate=False, log_level="warning", access_log=False,
        server_header=False, proxy_headers=False, timeout_graceful_shutdown=3, http=patient(setup.patience, setup.connections),
        ws_ping_interval=setup.patience, ws_ping_timeout=setup.patience,
    )
