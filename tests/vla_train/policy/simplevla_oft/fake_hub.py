"""A Hugging Face hub of these tests' own: a folder per name, and a connection that can be cut."""

import fnmatch
import shutil
from pathlib import Path
from types import SimpleNamespace

from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError


class Hub:
    """`owner/name` is a folder of that name; what was fetched is kept."""

    def __init__(self, root: Path) -> None:
        self.root, self.kept = root / "hub", root / "kept"
        self.connected = True
        self.fetched: list[str] = []

    def upload(self, hub_id: str, folder: Path, *extra: str) -> None:
        shutil.copytree(folder, self.root / hub_id)
        for name in extra:
            (self.root / hub_id / name).parent.mkdir(exist_ok=True)
            (self.root / hub_id / name).write_bytes(b"weights")

    def model_info(self, hub_id: str, *, timeout: float) -> SimpleNamespace:
        if not self.connected:
            raise HfHubHTTPError.__bases__[0]("no connection")
        if not (self.root / hub_id).is_dir():
            raise OSError(f"404: no {hub_id}\nRequest ID: 1")
        files = [path for path in (self.root / hub_id).rglob("*") if path.is_file()]
        names = [path.relative_to(self.root / hub_id).as_posix() for path in files]
        return SimpleNamespace(siblings=[SimpleNamespace(rfilename=name) for name in names])

    def snapshot_download(self, hub_id: str, *, allow_patterns: list[str]) -> str:
        target = self.kept / hub_id
        if self.connected:
            target.mkdir(parents=True, exist_ok=True)
            for file in self.model_info(hub_id, timeout=1).siblings:
                if any(fnmatch.fnmatch(file.rfilename, pattern) for pattern in allow_patterns):
                    (target / file.rfilename).parent.mkdir(exist_ok=True)
                    shutil.copy(self.root / hub_id / file.rfilename, target / file.rfilename)
                    self.fetched.append(file.rfilename)
        elif not target.exists():
            raise LocalEntryNotFoundError("no connection, and nothing was fetched before")
        return str(target)

    def try_to_load_from_cache(self, hub_id: str, name: str) -> str | None:
        file = self.kept / hub_id / name
        return str(file) if file.exists() else None
