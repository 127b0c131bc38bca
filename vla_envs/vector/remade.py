"""Copies and pickles of an env: the arguments that it was made by, from which an independent env is made.

Invariant: what is copied has no episodes. An env that was reset is refused: a copy of its arguments would be elsewhere.
"""

from abc import abstractmethod
from collections.abc import Callable, Mapping
from typing import Any, Self


class Remade:
    """An object that `copy` and `pickle` make anew by the arguments of its constructor."""

    _arguments: tuple[tuple[Any, ...], dict[str, Any]]

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        """Keep the arguments, whatever the constructor does with them."""
        env = super().__new__(cls)
        env._arguments = args, kwargs
        return env

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[Any, ...], dict[str, Any]]:
        """How `copy` and `pickle` make it anew.

        Raises:
            RuntimeError: It was reset, or is closed.
        """
        changed = self._changed_since_made()
        args, kwargs = self._arguments
        return _make, (type(self), args, kwargs), dict(changed)

    @abstractmethod
    def _changed_since_made(self) -> Mapping[str, Any]:
        """Attributes that a copy takes over; raises `RuntimeError` where a copy could not be the same."""


def _make(kind: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return kind(*args, **kwargs)
