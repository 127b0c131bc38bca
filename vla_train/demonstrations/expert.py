"""Who demonstrates: an expert that the env makes, or a function of the user's."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import numpy as np

from vla_train.registry import load


@runtime_checkable
class Expert(Protocol):
    """Plays one episode in one slot.

    Where it adds noise to what it means to do, its attribute `intended` holds the last action without: that is recorded, since
    a policy should learn what to do where the noise has led, and not the noise.
    """

    def act(self) -> np.ndarray:
        """(A,) the action to play next; called once before each step.

        Raises:
            ValueError: It cannot go on from here; the attempt has failed.
        """
        ...


class ExpertGaveUpError(Exception):
    """The expert cannot play this episode, or not to its end."""


def expert_maker(env: Any, name: str | None) -> Callable[..., Expert]:
    """What makes an expert for the episode that a slot is in: called as `make(slot, noise=, seed=)`.

    Args:
        env: The vector env; one that brings an expert offers `make_expert` of this form.
        name: MODULE:FUNCTION, called as `function(env, slot, noise=, seed=)`; None asks the env.

    Raises:
        ValueError: There is no such function, or the env brings no expert.
    """
    if name is not None:
        function = load(name, {}, option="expert")
        return lambda slot, *, noise, seed: function(env, slot, noise=noise, seed=seed)
    make = getattr(env, "make_expert", None)
    if make is None:
        raise ValueError(
            f"{type(env).__name__} brings no expert (no method make_expert): name a function that makes one with --expert"
        )
    return make


@contextmanager
def giving_up() -> Iterator[None]:
    """What an expert is asked in this block it may refuse by `ValueError`.

    Raises:
        ExpertGaveUpError: It did.
    """
    try:
        yield
    except ValueError as error:
        raise ExpertGaveUpError(str(error)) from error


def label_of(expert: Expert, executed: np.ndarray) -> np.ndarray:
    """(A,) what is recorded of a step: what the expert meant to do."""
    return np.array(getattr(expert, "intended", executed), np.float64)
