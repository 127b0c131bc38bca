"""Any Gymnasium env as a shard: the one place that decides how.

* A vector env of its own (`vector_entry_point`, or `vectorization_mode=` in the arguments): `VectorShard`.
* Any other env: one instance per slot, `SingleEnvsShard`.
"""

import importlib
import inspect
import json
from collections.abc import Mapping
from typing import Any

import gymnasium as gym
from gymnasium.envs.registration import EnvSpec, load_env_creator

from vla_train.config import EnvConfig
from vla_train.envs.bugs import as_refusal
from vla_train.envs.observations import RENDER
from vla_train.envs.shard import EnvShard
from vla_train.envs.single import SingleEnvsShard
from vla_train.envs.vector import VectorShard


def make_env_shard(config: EnvConfig, *, chunk_size: int, tensors: bool = False) -> EnvShard:
    """Build one shard as the config says.

    Args:
        config: The env.
        chunk_size: K.
        tensors: Leave observations on the GPU that an env simulates on, as PyTorch tensors.

    Raises:
        EnvRefusal: The env is unknown, or cannot be used (its actions are not continuous, it has no
            time limit, it does not say what a success is, ...); the message says what to change.
        EnvPackageMissing: The env needs a package that is not installed.
        Exception: A bug of the env.
    """
    try:
        return _make(config, chunk_size=chunk_size, tensors=tensors)
    except Exception as error:
        refusal = as_refusal(error, config)
        if refusal is None:
            raise
        raise refusal from error


def _make(config: EnvConfig, *, chunk_size: int, tensors: bool) -> EnvShard:
    kwargs = parse_kwargs(config.kwargs)
    if config.max_episode_steps is not None:
        kwargs.pop("max_episode_steps", None)  # the recipe's own, say: the option counts
    module, _, name = config.id.rpartition(":")
    if module:
        importlib.import_module(module)  # registers its envs, as gym.make does; gym.spec does not
    spec = gym.spec(name)
    mode = kwargs.pop("vectorization_mode", None)
    if mode is None and (spec.vector_entry_point is None or config.image_key == RENDER):
        return SingleEnvsShard(config, kwargs=kwargs, chunk_size=chunk_size)
    if config.image_key == RENDER:
        raise ValueError("env.image_key=render makes one env per slot: leave vectorization_mode out of env.kwargs")
    if mode in (None, "vector_entry_point"):
        accepted = vector_arguments(spec)
        offered = {"chunk_size": chunk_size, "autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        if config.max_episode_steps is not None:
            offered["max_episode_steps"] = config.max_episode_steps
        if tensors:
            offered["arrays"] = "torch"
        kwargs = {**{name: value for name, value in offered.items() if name in accepted}, **kwargs}
        env = gym.make_vec(config.id, num_envs=config.envs_per_worker, vectorization_mode="vector_entry_point", **kwargs)
    else:
        vector_kwargs: dict[str, Any] = {"autoreset_mode": gym.vector.AutoresetMode.DISABLED}
        if mode == "async":
            vector_kwargs["shared_memory"] = False  # with it, Gymnasium reads texts once, before the first reset
        if config.max_episode_steps is not None:
            kwargs["max_episode_steps"] = config.max_episode_steps
        env = gym.make_vec(
            config.id, num_envs=config.envs_per_worker, vectorization_mode=mode, vector_kwargs=vector_kwargs, **kwargs
        )
    return VectorShard(env, config=config, chunk_size=chunk_size, tensors=tensors)


def parse_kwargs(kwargs: Mapping[str, str]) -> dict[str, Any]:
    """Each value as JSON where it is JSON, else as the text it is."""

    def parse(text: str) -> Any:
        try:
            return json.loads(text)
        except json.JSONDecodeError:
            return text

    return {name: parse(value) for name, value in kwargs.items()}


def vector_arguments(spec: EnvSpec) -> frozenset[str]:
    """Names of the arguments that an env's own vectorisation takes."""
    entry_point = spec.vector_entry_point
    creator = load_env_creator(entry_point) if isinstance(entry_point, str) else entry_point
    assert creator is not None
    return frozenset(inspect.signature(creator).parameters)
