"""Numbers on the terminal are short, and never 0.0 of something where there is some."""

import pytest

from vla_train.units import format_bytes, format_count


@pytest.mark.parametrize(
    ("number", "text"),
    [(7_640_000_000, "7.6 B"), (4_100_000, "4.1 M"), (15_700_000, "15.7 M"), (125_000, "125 k"), (999_900, "1 M"), (12, "12")],
)
def test_counts_have_the_unit_that_suits_them(number: int, text: str) -> None:
    assert format_count(number) == text


@pytest.mark.parametrize(
    ("number", "text"),
    [(106e9, "106 GB"), (4.14e9, "4.1 GB"), (45e6, "45 MB"), (999_999_999, "1 GB"), (1500, "1.5 kB"), (3, "3 bytes")],
)
def test_sizes_have_the_unit_that_suits_them(number: float, text: str) -> None:
    assert format_bytes(number) == text
