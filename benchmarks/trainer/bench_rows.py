"""Rows of supervised training per second: pictures read, moved and brightened, beside the plain loop that decodes each one.

    python -m vla_train collect --suite libero_spatial --detail fast --image-size 128 --episodes-per-task 2 --output runs/rows
    python benchmarks/trainer/bench_rows.py runs/rows

`decoded` is how a run reads where its pictures fit into memory, `encoded` where they do not. Nothing is trained.
"""

import argparse
import math
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from vla_train.demonstrations.dataset import DemonstrationDataset
from vla_train.sft.augmentation import augment, draws
from vla_train.sft.batches import BatchMaker
from vla_train.sft.config import AugmentConfig, SftConfig
from vla_train.sft.samples import sample_places, samples_of_step
from vla_train.trainer.parallel import ONE_RANK

BRIGHTNESS = AugmentConfig(contrast=0.0, saturation=0.0, hue=0.0, brightness=0.15)
"""As in the recipe `gpu-from-scratch`."""


class Labels:
    """As much of a policy as rows take."""

    observation_keys = ("image", "instruction")
    chunk_size, crop_area = 8, 0.9

    def targets(self, actions: np.ndarray, *, label_step: float) -> dict[str, np.ndarray]:
        return {"actions": actions}


def rate(make: Callable[[int], object], *, steps: int, rows: int) -> float:
    """Rows per second of so many steps, after as many that do not count."""
    for step in range(steps):
        make(step)
    began = time.perf_counter()
    for step in range(steps, 2 * steps):
        make(step)
    return steps * rows / (time.perf_counter() - began)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path, help="a folder of demonstrations")
    parser.add_argument("--rows", type=int, default=256, help="of a step")
    parser.add_argument("--steps", type=int, default=30)
    arguments = parser.parse_args()
    config = SftConfig(data=arguments.data, output=Path("unused"), batch_rows=arguments.rows, augment=BRIGHTNESS)
    rates: dict[str, float] = {}
    whole = DemonstrationDataset(arguments.data)
    picture_bytes = whole.num_steps * sum(map(math.prod, whole.image_shapes.values()))
    for name, memory_bytes in (("decoded", 2 * picture_bytes), ("encoded", 2 * picture_bytes - 2)):
        data = DemonstrationDataset(arguments.data, memory_bytes=memory_bytes)
        places = sample_places(data.episodes, range(len(data.episodes)), stride=1)
        maker = BatchMaker(config, data=data, policy=Labels(), train=places, validation=places[:0], ranks=ONE_RANK)  # type: ignore[arg-type]
        rates[name] = rate(maker.of_step, steps=arguments.steps, rows=arguments.rows)
        maker.close()

    def plain(step: int) -> np.ndarray:
        numbers = samples_of_step(step, num_samples=len(places), batch_rows=arguments.rows, seed=config.seed)
        varied = draws(config.seed, step, rows=arguments.rows, images=1)[:, 0]
        frames = (data.images(episode, "image", [at])[0] for episode, at in places[numbers].tolist())
        return np.stack([augment(*one, BRIGHTNESS, crop_area=0.9) for one in zip(frames, varied, strict=True)])

    rates["plain loop"] = rate(plain, steps=arguments.steps, rows=arguments.rows)
    for name, rows in rates.items():
        print(f"{name}: {rows:,.0f} rows/s, {rows / rates['plain loop']:.1f} x")


if __name__ == "__main__":
    main()
