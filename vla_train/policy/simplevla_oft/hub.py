"""Checkpoints on the Hugging Face hub: which files one has, and a copy here of those that are wanted.

Works without a connection for what was fetched before.
"""

from collections.abc import Sequence
from pathlib import Path

_TIMEOUT_S = 20.0


def hub_file_names(hub_id: str) -> list[str]:
    """Paths of all files of `owner/name`; nothing is fetched. Without a connection, those of the copy that is here.

    Raises:
        ValueError: The hub has no such checkpoint, or cannot be asked, and none was fetched before.
    """
    import huggingface_hub

    try:
        files = huggingface_hub.HfApi().model_info(hub_id, timeout=_TIMEOUT_S).siblings
        return [file.rfilename for file in files or ()]
    except _hub_errors() as error:
        kept = huggingface_hub.try_to_load_from_cache(hub_id, "config.json")
        if not isinstance(kept, str):
            raise _unavailable(hub_id, error) from error
        folder = Path(kept).parent
        return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def fetch(hub_id: str, patterns: Sequence[str]) -> Path:
    """The folder of a copy of `owner/name` that has the files which match one of `patterns`.

    Raises:
        ValueError: It cannot be fetched, and was not before.
    """
    import huggingface_hub

    try:
        return Path(huggingface_hub.snapshot_download(hub_id, allow_patterns=list(patterns)))
    except _hub_errors() as error:
        raise _unavailable(hub_id, error) from error


def _unavailable(hub_id: str, error: BaseException) -> ValueError:
    cause = str(error).splitlines()[0] if str(error) else type(error).__name__
    return ValueError(f"{hub_id} is no folder here, and cannot be had from the Hugging Face hub: {cause}")


def _hub_errors() -> tuple[type[BaseException], ...]:
    """What the hub's library raises: `OSError`s of its own, and errors of the HTTP library it uses, which depends on its
    version. Its own error is built on that library's."""
    from huggingface_hub.errors import HfHubHTTPError

    return (OSError, *HfHubHTTPError.__bases__)
