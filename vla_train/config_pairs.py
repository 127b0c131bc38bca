"""How the command line reads and shows fields that are not plain values: KEY=VALUE pairs, several behind one name, and fields
that are no options."""

import tyro
from tyro.constructors import PrimitiveConstructorSpec

from vla_train.config_checks import require


def _parse_pairs(pairs: list[str]) -> dict[str, str]:
    for pair in pairs:
        require("=" in pair, f"expected KEY=VALUE, got {pair!r}")
    return {key: value for key, _, value in (pair.partition("=") for pair in pairs)}


KEY_VALUE_PAIRS = PrimitiveConstructorSpec(
    nargs="*",
    metavar="KEY=VALUE",
    instance_from_str=_parse_pairs,
    is_instance=lambda value: isinstance(value, dict),
    str_from_instance=lambda value: [f"{key}={item}" for key, item in value.items()],
)
"""Annotates a `dict[str, str]`."""
NO_OPTION = tyro.conf.Fixed
"""Annotates a field that is no option; with `tyro.conf.SuppressFixed`, help does not show it."""
