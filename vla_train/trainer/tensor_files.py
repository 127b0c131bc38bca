"""Weights and AdamW's moments on the disk: each rank writes its own part of them, and any number of ranks reads them.

    trainer-0000-0001.safetensors  trainer-0000-0002.safetensors    what rank 0 held
    trainer-0001-0001.safetensors                                   what rank 1 held

A tensor that was spread over ranks stands in a file of each, some of its rows in each: in the order of the files' names they
make up the whole.
"""

from collections.abc import Iterable
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Self

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from vla_train.safetensors_file import save_file
from vla_train.trainer.manifest import CheckpointError

_FILE_BYTES = 2_000_000_000
_ALL = slice(None)


def write_tensors(folder: Path, tensors: Iterable[tuple[str, Tensor]], *, rank: int) -> list[Path]:
    """Write a rank's tensors, in host memory or not, into files of about 2 GB; returns these.

    Raises:
        OSError, SafetensorError: They cannot be written.
    """
    written: list[Path] = []
    pending: dict[str, Tensor] = {}

    def flush() -> None:
        written.append(folder / f"trainer-{rank:04d}-{len(written) + 1:04d}.safetensors")
        save_file(pending, written[-1])
        pending.clear()

    for name, tensor in tensors:
        pending[name] = tensor.detach().cpu().contiguous()
        if sum(value.nbytes for value in pending.values()) >= _FILE_BYTES:
            flush()
    if pending:
        flush()
    return written


class StoredTensors:
    """The tensors in a folder, by name; opened as a context, and read from the disk row by row.

    Raises:
        CheckpointError: A file is damaged.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._parts: dict[str, list[Any]] = {}
        """Open files that hold rows of a tensor, in their order."""
        with ExitStack() as stack:
            for path in sorted(folder.glob("trainer-*.safetensors")):
                try:
                    file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
                except (OSError, SafetensorError) as error:
                    raise CheckpointError(f"checkpoint {folder} is damaged: {path.name} ({error})") from error
                for name in file.keys():  # noqa: SIM118 (it is no dictionary)
                    self._parts.setdefault(name, []).append(file)
            self._open = stack.pop_all()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def shape(self, name: str) -> torch.Size:
        """Of the whole tensor.

        Raises:
            ValueError: There is none of that name.
        """
        shapes = [file.get_slice(name).get_shape() for file in self._parts_of(name)]
        return torch.Size(shapes[0] if len(shapes) == 1 else [sum(shape[0] for shape in shapes), *shapes[0][1:]])

    def read(self, name: str, rows: slice = _ALL) -> Tensor:
        """Some rows of a tensor, or all of it.

        Raises:
            ValueError: There is none of that name.
        """
        parts = self._parts_of(name)
        if len(parts) == 1 and rows == _ALL:
            return parts[0].get_tensor(name)
        first, last, _ = rows.indices(self.shape(name)[0])
        found, begin = [], 0
        for part in (file.get_slice(name) for file in parts):
            end = begin + part.get_shape()[0]
            if begin < last and first < end:
                found.append(part[max(first - begin, 0) : min(last, end) - begin])
            begin = end
        return torch.cat(found) if found else parts[0].get_slice(name)[:0]

    def _parts_of(self, name: str) -> list[Any]:
        if name not in self._parts:
            raise ValueError(
                f"checkpoint {self._folder} holds no {name}: it belongs to another policy or another way of training it"
            )
        return self._parts[name]
