"""What an evaluation's success rate means: all that decides it besides the weights, as it was and not as it was asked for.

Where a protocol is named, whatever differs from it is named beside it: a figure never passes for one that it is not.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from vla_train.config import EvaluateConfig, ProtocolName
from vla_train.evaluation.evaluate import play_name
from vla_train.pipeline.episodes import evaluation_episodes
from vla_train.policy.base import Policy
from vla_train.protocols import IMAGE_SIZE, NUM_TASKS, PROTOCOLS, Protocol
from vla_train.types import IMAGE, EnvDescription, EpisodeSpec


@dataclass(frozen=True, kw_only=True, slots=True)
class Played:
    """How episodes are played, and which."""

    protocol: ProtocolName
    """What was named."""
    differs: tuple[str, ...]
    """How this is not that protocol."""
    temperatures: tuple[float, ...]
    """0 is greedy."""
    episodes: tuple[int, ...]
    """At each temperature."""
    initial_states: str
    """held-out, all or train; "drawn" where the env draws its own."""
    each_once: tuple[bool, ...]
    """Whether each of these is played exactly once, at each temperature."""
    env: str
    """Gymnasium id."""
    suite: str | None
    num_tasks: int
    time_limit: int | None
    """Env steps; None if it differs from task to task."""
    simulation: Mapping[str, Any]
    """What simulates and draws, and how, where the env says so."""
    image_size: tuple[int, ...] | None
    """Height and width in pixels, as drawn."""
    chunk_size: int
    """Actions per decision."""
    policy: Mapping[str, Any]
    """How images are prepared, which statistics, the gripper: what the policy says of itself."""

    def how(self, temperature: float) -> str:
        """How the policy plays, in words."""
        return "as its server decides" if "server" in self.policy else play_name(temperature)

    def lines(self) -> list[str]:
        """The same for people, in a few lines."""
        once = [", each once" if each_once else "" for each_once in self.each_once]
        others = zip(self.temperatures[1:], self.episodes[1:], once[1:], strict=True)
        further = "".join(f"; {self.how(temperature)}: {episodes} of these{each}" for temperature, episodes, each in others)
        states = "starts of its own" if self.initial_states == "drawn" else f"{self.initial_states} initial states"
        tasks = f"{self.num_tasks} {'task' if self.num_tasks == 1 else 'tasks'}"
        which = f"{self.how(self.temperatures[0])}: {self.episodes[0]} episodes of {tasks}, {states}{once[0]}{further}"
        limit = "time limits by task" if self.time_limit is None else f"time limit {self.time_limit} steps"
        size = [] if self.image_size is None else [f"images {_plain(self.image_size)}"]
        lines = [
            f"played {which}; {limit}, {self.chunk_size} actions per decision",
            f"env {self.suite or self.env}: " + ", ".join([*_named(self.simulation), *size]),
        ]
        if self.policy:
            lines.append("policy: " + ", ".join(_named(self.policy)))
        if self.protocol != "none":
            but = f", but for: {'; '.join(self.differs)}" if self.differs else ""
            lines.append(f"protocol {self.protocol}{but}")
        return lines

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def played(
    config: EvaluateConfig, env: EnvDescription, episodes: Mapping[float, Sequence[EpisodeSpec]], policy: Policy
) -> Played:
    """What an evaluation plays.

    Args:
        config: What was asked for.
        env: What was made.
        episodes: By temperature.
        policy: May say how it plays in an attribute `played_with`.

    Raises:
        ValueError: A protocol is named, and the env plays none of its suites.
    """
    plays = [episodes[temperature] for temperature in config.eval.temperatures]
    image = env.observations.get(IMAGE)
    facts: dict[str, Any] = {
        "temperatures": config.eval.temperatures,
        "episodes": tuple(map(len, plays)),
        "initial_states": config.eval.initial_states if env.num_init_states else "drawn",
        "each_once": tuple(_each_once(config, env, play) for play in plays),
        "env": config.env.id,
        "suite": env.suite,
        "num_tasks": len(env.task_ids),
        "time_limit": env.max_episode_steps,
        "simulation": dict(env.simulation),
        "image_size": None if image is None else image.shape[:2],
        "chunk_size": config.policy.chunk_size,
        "policy": dict(getattr(policy, "played_with", {})),
    }
    differs: tuple[str, ...] = ()
    if config.protocol != "none":
        found = Played(protocol=config.protocol, differs=(), **facts)
        differs = tuple(_differences(found, PROTOCOLS[config.protocol], require_protocol(config, env)))
    return Played(protocol=config.protocol, differs=differs, **facts)


def require_protocol(config: EvaluateConfig, env: EnvDescription) -> str:
    """The suite whose figures a protocol has: the env's, or the one that it varies (LIBERO-PRO's `libero_goal_swap`).

    Raises:
        ValueError: A protocol is named, and has figures of neither.
    """
    suite = env.suite or ""
    published = next((name for name in NUM_TASKS if suite == name or suite.startswith(f"{name}_")), suite)
    if config.protocol != "none" and published not in NUM_TASKS:
        raise ValueError(
            f"protocol {config.protocol} is of the suites {', '.join(NUM_TASKS)}, and {config.env.id} plays {env.suite}"
        )
    return published


def _each_once(config: EvaluateConfig, env: EnvDescription, episodes: Sequence[EpisodeSpec]) -> bool:
    """Whether these begin at all the initial states that may be meant, each of them once."""
    if not env.num_init_states:
        return False
    every = evaluation_episodes(
        env.task_ids,
        env.num_init_states,
        replace(config.eval, episodes_per_task=0),
        temperature=0.0,
        train_fraction=config.train_fraction,
        split_seed=config.split_seed,
    )
    starts = sorted((spec.task_id, spec.init_state_id) for spec in episodes)
    return starts == sorted((spec.task_id, spec.init_state_id) for spec in every)


def _differences(found: Played, protocol: Protocol, suite: str) -> Iterator[str]:
    wanted: list[tuple[str, Any, Any]] = [
        ("suite", found.suite, suite),
        ("temperature", " and ".join(f"{t:g}" for t in found.temperatures), f"{protocol.temperature:g}"),
        ("initial states", found.initial_states, "all"),
        ("each once", all(found.each_once), True),
        ("tasks", found.num_tasks, NUM_TASKS[suite]),
        ("time limit", found.time_limit, protocol.time_limit(suite)),
        ("images", found.policy.get("images"), protocol.images),
        ("jpeg", found.policy.get("jpeg"), protocol.images == "openvla"),
        ("image size", found.image_size, (IMAGE_SIZE, IMAGE_SIZE)),
        ("engine", found.simulation.get("engine"), "mujoco"),
        ("detail", found.simulation.get("detail"), "full"),
        ("control", found.simulation.get("control", "osc_delta"), "osc_delta"),
        ("sleep", found.simulation.get("sleep", False), False),
        ("randomised", found.simulation.get("randomised", False), False),
        ("own states", found.simulation.get("own_states", False), False),
        ("own goal", found.simulation.get("own_goal", False), False),
    ]
    for name, here, there in wanted:
        if here != there:
            yield f"{name} {_plain(here)} ({_plain(there)} there)"


def _named(values: Mapping[str, Any]) -> list[str]:
    return [f"{name.replace('_', ' ')} {_plain(value)}" for name, value in values.items()]


def _plain(value: Any) -> str:
    if value is None:
        return "not said"
    if isinstance(value, tuple):
        return " x ".join(map(str, value))
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else str(value)
