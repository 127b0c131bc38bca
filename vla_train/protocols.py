"""Evaluation as others do it: what a published success rate on LIBERO means, as options of `eval --protocol`.

All of them play each of the 50 stored initial states of every task of a suite once, and draw what LIBERO draws. They differ in
how the policy decides, in the time limit, and in how images are prepared. Importing this needs neither torch nor a simulator.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Literal

from vla_train.config import EvaluateConfig, ProtocolName

NUM_TASKS = {"libero_spatial": 10, "libero_object": 10, "libero_goal": 10, "libero_10": 10, "libero_90": 90}
"""Of the suites that the figures are of."""
IMAGE_SIZE = 256
"""Pixels of a side, as simulators draw for all of them."""
_OF_THE_ENV = (
    *("detail", "engine", "quality", "image_size", "max_episode_steps", "settle_steps", "task_ids", "task_id"),
    *("control", "randomization", "init_states", "success_fn", "reward_fn"),
)
"""Arguments of the env that decide what is played, and are left at LIBERO's own."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Protocol:
    """What one group's figures are of."""

    temperature: float
    """0: greedy."""
    max_episode_steps: int | None
    """Of all suites; None: each suite's own."""
    images: Literal["openvla", "rlinf"]

    def time_limit(self, suite: str) -> int:
        """Env steps in an episode of a suite, settling not counted."""
        return self.max_episode_steps or _OPENVLA_TIME_LIMITS[suite]


_OPENVLA_TIME_LIMITS = {"libero_spatial": 220, "libero_object": 280, "libero_goal": 300, "libero_10": 520, "libero_90": 400}
PROTOCOLS: Mapping[ProtocolName, Protocol] = {
    "simplevla-rl": Protocol(temperature=0.0, max_episode_steps=512, images="openvla"),
    "rlinf": Protocol(temperature=1.6, max_episode_steps=512, images="rlinf"),
    "openvla-oft": Protocol(temperature=0.0, max_episode_steps=None, images="openvla"),
}
"""By name; "none" is none of them."""


def with_protocol(config: EvaluateConfig, name: ProtocolName) -> EvaluateConfig:
    """The config with all that a protocol decides; which checkpoint, suite and machine stay as they are.

    How a policy that somebody else serves decides and prepares images is not decided here.
    """
    protocol, is_here = PROTOCOLS[name], config.policy.url is None
    kwargs = {key: value for key, value in config.env.kwargs.items() if key not in _OF_THE_ENV}
    return replace(
        config,
        protocol=name,
        env=replace(config.env, kwargs=kwargs, max_episode_steps=protocol.max_episode_steps),
        policy=replace(config.policy, images=protocol.images, jpeg="auto") if is_here else config.policy,
        eval=replace(
            config.eval,
            temperatures=(protocol.temperature if is_here else 0.0,),
            initial_states="all",
            episodes_per_task=0,
        ),
    )
