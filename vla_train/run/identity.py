"""What makes a run the one it is: a resumed run may change how fast, how long or how it learns, but not what it plays."""

import json

from vla_train.config import TrainConfig, config_to_json

_FIXED = {
    "": ("seed", "train_fraction"),
    "env": ("id", "kwargs", "image_key", "instruction", "success", "success_return", "max_episode_steps"),
    "policy": ("checkpoint", "size", "chunk_size", "statistics_key", "gripper", "jpeg", "lora_rank"),
    "rollout": ("group_size", "temperature"),
}
"""What a resumed run cannot change, by section of the config: episodes begun before would not be its own."""


def require_same_run(config: TrainConfig) -> None:
    """Refuse to go on with a run whose episodes would not be those of the run that `config.output` holds.

    Raises:
        ValueError: The run may not be resumed, or differs in a way that no resumed run can.
    """
    output = config.output
    if not config.resume:
        raise ValueError(f"{output} holds a run already: choose another output, or delete it")
    file = output / "config.json"
    if not file.exists():
        return
    try:
        held = json.loads(file.read_text())
        if not isinstance(held, dict) or not all(isinstance(held.get(section), dict) for section in filter(None, _FIXED)):
            raise ValueError("a section is missing")
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}): restore or delete it") from error
    asked = config_to_json(config)
    for section, names in _FIXED.items():
        before, now = (data[section] if section else data for data in (held, asked))
        for name in names:
            if before.get(name, now[name]) != now[name]:
                option = f"{section}.{name}" if section else name
                raise ValueError(
                    f"{output} holds a run with {option} {before[name]!r}, not {now[name]!r}: choose another output "
                    "(policy.checkpoint may start it from this run's weights)"
                )
