"""One checkpoint as a whole, in the published layout (`python -m vla_train export`): adapters are merged into their base.

The base's weights are those of its files, whatever precision the adapters were trained on. The model is held once, on the host.
"""

import logging
import shutil
from contextlib import ExitStack

import torch
from safetensors import SafetensorError

from vla_train.export_config import ExportConfig
from vla_train.policy.simplevla_oft.checkpoint import open_checkpoint
from vla_train.policy.simplevla_oft.json_files import json_object
from vla_train.policy.simplevla_oft.model import SimpleVLAOFT
from vla_train.run.named_checkpoint import resolve_checkpoint

_log = logging.getLogger(__name__)


class Export:
    """A checkpoint, read; `write` writes it.

    Raises:
        ValueError: There is no such checkpoint, it cannot be read, or the output is not empty.
    """

    def __init__(self, config: ExportConfig) -> None:
        self.output = config.output
        if self.output.exists() and not (self.output.is_dir() and not any(self.output.iterdir())):
            raise ValueError(f"{self.output} exists and is no empty folder: choose another --output, or delete it")
        name = resolve_checkpoint(config.checkpoint)
        files = open_checkpoint(name, companion=config.companion, nested=config.adapters)
        for note in files.notes:
            _log.info("%s", note)
        _log.info("reading %s%s", name, "" if files.adapters is None else f" and its base {files.adapters.base}")
        for companion, content in files.companions.items():
            if companion.endswith(".json"):
                json_object(content, name=f"{name}: {companion}")
        self._model = SimpleVLAOFT.from_files(files, dtype=getattr(torch, config.dtype), device="cpu")

    def write(self) -> None:
        """Write the folder; where that fails, nothing of it is left.

        Raises:
            OSError: It cannot be written, for want of room say.
        """
        _log.info("writing %s", self.output)
        with ExitStack() as undo:
            undo.callback(shutil.rmtree, self.output, ignore_errors=True)
            try:
                self._model.save_pretrained(self.output)
            except (OSError, SafetensorError) as error:
                raise OSError(f"{self.output} could not be written: {error}") from error
            undo.pop_all()
        print(f"exported: {self.output}")
