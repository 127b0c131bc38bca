"""Large numbers as people read them."""


def format_count(number: float) -> str:
    """Such as 950, 125 k, 4.1 M or 7.6 B."""
    for factor, name in ((1e9, " B"), (1e6, " M"), (1e3, " k")):
        if number >= 0.9995 * factor:
            return _short(number / factor) + name
    return f"{number:.0f}"


def format_bytes(number: float) -> str:
    """Such as 12 kB, 3.4 MB or 106 GB."""
    for factor, name in ((1e9, " GB"), (1e6, " MB"), (1e3, " kB")):
        if number >= 0.9995 * factor:
            return _short(number / factor) + name
    return f"{number:.0f} bytes"


def _short(number: float) -> str:
    return f"{number:.1f}".removesuffix(".0") if number < 99.95 else f"{number:.0f}"
