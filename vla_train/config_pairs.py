"""Options of the form KEY=VALUE, several behind one name: how the command line reads and shows them."""

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
