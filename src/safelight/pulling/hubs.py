"""The two hubs behind one waist: what files a repository has, where each is fetched from, and where it is put.

Hugging Face is read through huggingface_hub: its login, its endpoint ($HF_ENDPOINT), its cache, which other tools share. The bytes are
fetched here, since that library begins a file anew after an interruption and does not check hashes. ModelScope is its HTTP file API.
"""
from __future__ import annotations

import os
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import quote

from safelight.disk import place
from safelight.pulling.choose import Remote
from safelight.pulling.http import Http, Refused
from safelight.pulling.names import Wanted

MOST_FILES = {"model": 20_000, "dataset": 2_000_000}
PAGE = 200  # files of a ModelScope dataset in one answer
COMMIT = re.compile(r"[0-9a-f]{40}")


class Hub(Protocol):
    """A repository at one revision."""

    @property
    def http(self) -> Http:
        """Requests to the hub."""
        ...

    def card(self) -> Mapping[str, Any]:
        """What the repository says of itself: `license`, and for a dataset of Hugging Face `configs`."""
        ...

    def files(self) -> list[Remote]:
        """All files. ValueError when the repository or the revision is not there, or not for everybody."""
        ...

    def url(self, file: Remote) -> str:
        """Where its bytes are."""
        ...

    def blob(self, file: Remote) -> Path | None:
        """Where its bytes belong in the hub's own cache; None when there is no such cache."""
        ...

    def link(self, file: Remote) -> Path:
        """Make the cache name a file whose blob is there; its place."""
        ...

    def denied(self, why: Refused) -> ValueError:
        """The same error with what to do."""
        ...


def open_hub(wanted: Wanted, revision: str | None, kind: str = "model") -> Hub:
    """The wanted repository; `kind` is model or dataset."""
    if wanted.hub == "hf":
        return HuggingFace(wanted.id, revision or "main", kind=kind)
    return ModelScope(wanted.id, revision or "master", kind)


@dataclass
class HuggingFace:
    """A repository of Hugging Face, or of a mirror that $HF_ENDPOINT names."""

    id: str
    revision: str
    commit: str = ""
    kind: str = "model"
    said: Mapping[str, Any] = field(default_factory=dict)

    @cached_property
    def http(self) -> Http:
        """The endpoint, with the login that huggingface_hub has."""
        from huggingface_hub.utils import build_hf_headers

        return Http(hf_endpoint(), build_hf_headers(library_name="safelight"))

    def files(self) -> list[Remote]:
        """As Hub; the revision becomes a commit, and stays it."""
        from huggingface_hub import HfApi
        from huggingface_hub.errors import HfHubHTTPError

        try:
            hub = HfApi(endpoint=hf_endpoint())
            info = hub.repo_info(self.id, repo_type=self.kind, revision=self.revision, files_metadata=True, timeout=30)
        except HfHubHTTPError as e:
            raise self.denied(Refused(f"{self.http.endpoint} answers {e.response.status_code}", e.response.status_code)) from e
        if not COMMIT.fullmatch(str(info.sha)):
            raise ValueError(f"hf:{self.id} at {self.revision}: the hub names no commit")
        self.commit, self.said = str(info.sha), info.card_data.to_dict() if info.card_data else {}
        found = []
        for s in (info.siblings or [])[:MOST_FILES[self.kind]]:
            told = f"sha256:{s.lfs.sha256}" if s.lfs else f"git:{s.blob_id}" if s.blob_id else ""
            found.append(Remote(s.rfilename, s.size or 0, told))
        return found

    def card(self) -> Mapping[str, Any]:
        """The head of its README, which came with the list of files."""
        return self.said

    @property
    def _page(self) -> str:
        return f"{self.http.endpoint}/{'datasets/' if self.kind == 'dataset' else ''}{self.id}"

    def url(self, file: Remote) -> str:
        """The file at the commit."""
        return f"{self._page}/resolve/{quote(self.commit, safe='')}/{quote(file.name)}"

    def blob(self, file: Remote) -> Path | None:
        """`blobs/<hash>`, the place that huggingface_hub looks at before it fetches."""
        return self._repository / "blobs" / file.hash.partition(":")[2] if file.hash else None

    def link(self, file: Remote) -> Path:
        """By huggingface_hub itself, which finds the blob and fetches nothing."""
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import HfHubHTTPError

        try:
            found = Path(hf_hub_download(self.id, file.name, repo_type=self.kind, revision=self.commit, endpoint=hf_endpoint()))
        except HfHubHTTPError as e:
            raise self.denied(Refused(str(e), e.response.status_code)) from e
        ref = self._repository / "refs" / self.revision
        if self.revision != self.commit and not (ref.is_file() and ref.read_text() == self.commit):
            ref.parent.mkdir(parents=True, exist_ok=True)
            place(ref.parent, ref, lambda to: to.write_text(self.commit))
        return found

    @property
    def _repository(self) -> Path:
        from huggingface_hub import constants
        from huggingface_hub.file_download import repo_folder_name

        folder: str = repo_folder_name(repo_id=self.id, repo_type=self.kind)
        return Path(constants.HF_HUB_CACHE) / folder

    def denied(self, why: Refused) -> ValueError:
        """Hugging Face answers 401 for what is not there too."""
        name, page = f"hf:{self.id} at {self.revision}", self._page
        if why.status in (401, 403):
            return ValueError(
                f"{name}: not there, or not for everybody ({why}); accept its terms at {page} and log in with `hf auth login` or HF_TOKEN"
            )
        return ValueError(f"{name}: there is no such repository, revision or file ({why}); see {page}") if why.status == 404 else why


def hf_endpoint() -> str:
    """Hugging Face's address, or that of the mirror that is set."""
    from huggingface_hub import constants

    return os.environ.get("HF_ENDPOINT", "").rstrip("/") or str(constants.ENDPOINT)


@dataclass
class ModelScope:
    """A repository of ModelScope, or of the domain that $MODELSCOPE_DOMAIN names; $MODELSCOPE_API_TOKEN is its login."""

    id: str
    revision: str
    kind: str = "model"
    http: Http = field(init=False)

    def __post_init__(self) -> None:
        """Read the environment."""
        domain = os.environ.get("MODELSCOPE_DOMAIN") or "www.modelscope.cn"
        token = os.environ.get("MODELSCOPE_API_TOKEN")
        login = {"Authorization": f"Bearer {token}", "Cookie": f"m_session_id={token}"} if token else {}
        self.http = Http(domain if "://" in domain else f"https://{domain}", {"User-Agent": "safelight", **login})

    def card(self) -> Mapping[str, Any]:
        """The head of its README, and its licence, where the hub tells one."""
        return {"license": str(self._said().get("License") or ""), **self._head()}

    def _said(self) -> Mapping[str, Any]:
        told = self._told(self._api.removesuffix("/repo"))
        data = told.get("Data") if isinstance(told, dict) else None
        return data if isinstance(data, dict) else {}

    def _head(self) -> Mapping[str, Any]:
        import yaml

        try:
            readme = self.http.read(self.url(Remote("README.md", 0, ""))).decode("utf-8-sig", "replace")
            head = yaml.safe_load(readme.split("\n---", 1)[0].removeprefix("---")) if readme.startswith("---") else {}
        except (Refused, yaml.YAMLError):  # none, or none that can be read
            return {}
        return head if isinstance(head, dict) else {}

    def files(self) -> list[Remote]:
        """As Hub: a model's in one answer, a dataset's page by page."""
        at = f"Revision={quote(self.revision, safe='')}&Recursive=True"
        if self.kind == "model":
            return _remotes(self._rows(f"{self._api}/files?{at}")[:MOST_FILES["model"]])
        number = self._said().get("Id")  # modelscope's own client asks for a dataset's files by its number
        api = self._api if number is None else f"{self.http.endpoint}/api/v1/datasets/{number}/repo"
        found: list[Any] = []
        before: list[Any] = []
        while len(found) < MOST_FILES["dataset"]:
            page = self._rows(f"{api}/tree?{at}&Root=%2F&PageNumber={len(found) // PAGE + 1}&PageSize={PAGE}")
            if page == before:  # a hub that knows no pages
                break
            found, before = found + page, page
            if len(page) < PAGE:
                break
        return _remotes(found)

    def _rows(self, url: str) -> list[Any]:
        told = self._told(url)
        rows = told.get("Data", {}).get("Files") if isinstance(told, dict) and isinstance(told.get("Data"), dict) else None
        if not isinstance(rows, list):
            message = str(told.get("Message"))[:200] if isinstance(told, dict) else ""
            raise ValueError(f"ms:{self.id} at {self.revision}: the hub gives no list of files: {message!r}")
        return rows

    def _told(self, url: str) -> Any:
        try:
            return self.http.json(url)
        except Refused as e:
            raise self.denied(e) from e

    @property
    def _api(self) -> str:
        return f"{self.http.endpoint}/api/v1/{self.kind}s/{self.id}/repo"

    def url(self, file: Remote) -> str:
        """The file at the revision."""
        return f"{self._api}?Revision={quote(self.revision, safe='')}&FilePath={quote(file.name, safe='')}"

    def blob(self, file: Remote) -> Path | None:
        """There is no shared cache."""
        return None

    def link(self, file: Remote) -> Path:
        """There is no shared cache."""
        raise AssertionError("ModelScope has no cache to link into")

    def denied(self, why: Refused) -> ValueError:
        """ModelScope answers 404 for what is private too."""
        page = f"{self.http.endpoint}/{self.kind}s/{self.id}"
        if why.status in (401, 403, 404):
            return ValueError(f"ms:{self.id} at {self.revision}: not there, or private ({why}); see {page}; $MODELSCOPE_API_TOKEN logs in")
        return why


def _remotes(rows: Iterable[Any]) -> list[Remote]:
    return [_row(row) for row in rows if isinstance(row, dict) and row.get("Type") != "tree"]


def _row(row: Mapping[str, Any]) -> Remote:
    sha, size = row.get("Sha256"), row.get("Size")
    return Remote(str(row.get("Path") or ""), size if isinstance(size, int) else 0, f"sha256:{sha}" if sha else "")
