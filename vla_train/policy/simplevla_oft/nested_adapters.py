"""Adapters in `lora_adapter/` beside whole weights, as SimpleVLA-RL, RLinf and OpenVLA-OFT save them.

Whether the weights hold the adapters already, no file says outright; merged twice, they ruin a policy without an error. Those
savers merge them, and the record of an adapter (`base_model_name_or_path`) then names another checkpoint than the one that it
lies in. Where it does not, the user is asked. Nothing is ever merged that the user did not ask for.
"""

import filecmp
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from vla_train.policy.simplevla_oft.adapter_files import ADAPTER_CONFIG_FILE, BASE_KEY, AdapterFiles, open_adapters
from vla_train.policy.simplevla_oft.json_files import read_json

NestedAdapters = Literal["auto", "merged", "separate"]
NESTED_FOLDER = "lora_adapter"


def adapters_beside(folder: Path, *, name: str, asked: NestedAdapters) -> tuple[AdapterFiles | None, str | None]:
    """The adapters to put on the whole weights of a folder; None where there are none, or where the weights hold them.

    Args:
        folder: Holds whole weights.
        name: What the user calls it.
        asked: `policy.adapters`.

    Returns:
        Adapters, and what was taken for granted, to be said in the log.

    Raises:
        ValueError: Nothing says whether the weights hold them, or they are to go on top and cannot be read.
    """
    nested = folder / NESTED_FOLDER
    if not (nested / ADAPTER_CONFIG_FILE).exists():
        if asked == "separate":
            raise ValueError(f"policy.adapters is separate, but {name} has no {NESTED_FOLDER}/{ADAPTER_CONFIG_FILE}")
        return None, None
    if asked == "separate":
        adapters = open_adapters(nested)
        assert adapters is not None
        return replace(adapters, base=name), None
    if asked == "merged":
        return None, None
    record = read_json(nested / ADAPTER_CONFIG_FILE).get(BASE_KEY)
    if _may_be(record, folder, name):
        raise ValueError(
            f"{name} holds whole weights and {NESTED_FOLDER}/, whose {BASE_KEY} is {record!r}: it does not say whether the "
            "weights hold the adapters already; set policy.adapters to merged (they do) or separate (put them on top)"
        )
    return None, f"{name}: its weights hold {NESTED_FOLDER}/ already, which was trained on {record}"


def require_other_than_nested(adapters: AdapterFiles, base: Path) -> None:
    """Refuse adapters of their own that also lie in the folder of their base, whose weights may hold them.

    Raises:
        ValueError: The message says what to name instead.
    """
    nested = base / NESTED_FOLDER / adapters.file.name
    if nested.exists() and filecmp.cmp(nested, adapters.file, shallow=False):
        raise ValueError(
            f"{adapters.folder} holds the adapters that lie in {base}/{NESTED_FOLDER} too, and the weights of {base} may hold "
            "them already: name that folder, with policy.adapters merged (they do) or separate (put them on top)"
        )


def _may_be(record: Any, folder: Path, name: str) -> bool:
    """Whether a record names nothing, or what may be the folder itself, by whatever path it had where it was trained."""
    if not isinstance(record, str) or record.strip("./") == "":
        return True
    return Path(record).name in (folder.resolve().name, Path(name).name)
