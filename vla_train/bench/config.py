"""What `bench` can be told; importing this needs neither torch nor a simulator. The text under each field is its `--help`."""

import json
import tempfile
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Self

from vla_train.config import TrainConfig
from vla_train.config_checks import check_positive, require


@dataclass(frozen=True, kw_only=True)
class BenchConfig(TrainConfig):
    """The options of a run, and how long to measure. No folder is made."""

    seconds: float = 12.0
    """Length of each of the four measurements, in seconds."""
    json: Path | None = None
    """File to write the results to, besides showing them."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive(self, "", "seconds")
        if self.json is not None:
            fits = self.json.absolute().parent.is_dir() and (self.json.is_file() or not self.json.exists())
            require(fits, f"json must be a file in a folder that exists, got {self.json}")
            require(_is_own(self.json), f"json: {self.json} holds something else than results of bench: choose another")
            try:
                with tempfile.TemporaryFile(dir=self.json.absolute().parent):
                    pass
            except OSError as error:
                raise ValueError(f"json: {self.json} cannot be written ({error.strerror}): choose another") from None

    @classmethod
    def of_run(cls, config: TrainConfig) -> Self:
        """The options of a run, measured for the default length."""
        return cls(**{f.name: getattr(config, f.name) for f in fields(TrainConfig)})


def _is_own(file: Path) -> bool:
    """Whether it holds earlier results, or is not there."""
    if not file.exists():
        return True
    try:
        held = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return isinstance(held, dict) and "policy_chunks_per_s" in held
