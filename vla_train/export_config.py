"""What `export` can be told; importing this needs no torch. The text under each field is its `--help`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from vla_train.config_checks import check_fields


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """One checkpoint, to be written whole."""

    checkpoint: str
    """A run's folder (its newest checkpoint), one of its checkpoints, or any folder or hub id of weights or adapters."""
    companion: str | None = None
    """Folder or hub id of what the checkpoint lacks: tokenizer, statistics, image settings; it is written along."""
    adapters: Literal["auto", "merged", "separate"] = "auto"
    """A lora_adapter/ beside whole weights: merged (they hold it), separate (merge it now); auto: by its record, or asks."""
    output: Path
    """Folder to write to; it must be empty or new."""
    dtype: Literal["bfloat16", "float32"] = "bfloat16"
    """Of the written weights: published checkpoints are bfloat16."""

    def __post_init__(self) -> None:
        check_fields(self)
