"""How long training stands still for a checkpoint of all weights, and how long the writing takes beside it.

    torchrun --nproc-per-node 2 benchmarks/trainer/bench_saving.py --layers 20 --width 1024          # 0.3 billion weights, 6 GB
    torchrun --nproc-per-node 4 benchmarks/trainer/bench_saving.py --size openvla-7b --output DISK   # 106 GB, four GPUs

The model has random weights, bfloat16 with float32 state on a GPU, float32 on the CPU. As in a run, the memory for copies is
there before the first checkpoint. The last line is the same without it: all is written while training stands still. `pause_s`
is the longest that the main thread's Python had to wait while the other thread wrote. What goes on, each rank says on stderr.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch

from vla_train.config import AlgoConfig, OptimConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT, named_config
from vla_train.trainer import saving
from vla_train.trainer.parallel import Ranks, join_ranks
from vla_train.trainer.saving import CheckpointSaver
from vla_train.trainer.trainer import Trainer


class SavedModel:
    """As much of a policy as is trained and saved."""

    def __init__(self, model: SimpleVLAOFT) -> None:
        self._model = model
        self.version = 0
        self.save_pretrained, self.snapshot = model.save_pretrained, model.snapshot

    def trainable_module(self) -> torch.nn.Module:
        return self._model


def make_model(arguments: argparse.Namespace, rank: int) -> SimpleVLAOFT:
    config = named_config(arguments.size, num_text_tokens=32_000, prompt_end_token_id=1, chunk_size=8, action_dim=7)
    if arguments.layers:
        language = replace(config.language, num_layers=arguments.layers, hidden_size=arguments.width, num_heads=8)
        config = replace(config, language=replace(language, intermediate_size=4 * arguments.width))
    on_gpu = torch.cuda.is_available()
    device = f"cuda:{rank}" if on_gpu else "cpu"
    return SimpleVLAOFT.from_random(config, seed=0, dtype=torch.bfloat16 if on_gpu else torch.float32, device=device)


def say(ranks: Ranks, text: str) -> None:
    print(f"rank {ranks.rank}, {time.strftime('%H:%M:%S')}: {text}", file=sys.stderr, flush=True)


def make_moments(trainer: Trainer, model: SimpleVLAOFT) -> None:
    """One step, on one row."""
    size = model.config.image_size
    pixels = torch.zeros(1, 6, size, size, device=trainer.device)
    prompt = torch.ones(1, 8, dtype=torch.long, device=trainer.device)
    model(pixels, prompt).float().sum().backward()
    trainer.optimizer.step(1e-6)


def measure(saver: CheckpointSaver, ranks: Ranks, iteration: int) -> dict[str, float]:
    """Seconds, of the slowest rank."""
    ranks.barrier()
    began = time.perf_counter()
    saver.begin(iteration=iteration, rollout_state={}, extra={})
    still = last = time.perf_counter()
    pause = 0.0
    while saver._under_way is not None:
        saver.check()
        time.sleep(0.001)
        now = time.perf_counter()
        pause, last = max(pause, now - last), now
    told = ranks.gather_objects((still - began, last - began, pause))
    still_s, done_s, pause_s = np.max(told, axis=0).round(3).tolist()
    return {"stands_still_s": still_s, "done_s": done_s, "pause_s": pause_s}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", default="small", help="tiny, small or openvla-7b")
    parser.add_argument("--layers", type=int, help="of the language model, instead of the size's own")
    parser.add_argument("--width", type=int, default=1024, help="of these layers")
    parser.add_argument("--times", type=int, default=3, help="checkpoints with copies, before the one without")
    parser.add_argument("--output", type=Path, help="a folder on the disk to be measured; by default that of temporary files")
    arguments = parser.parse_args()
    if arguments.output is not None and not arguments.output.is_dir():
        parser.error(f"--output {arguments.output} is no folder")
    ranks = join_ranks()
    say(ranks, "making the model")
    model = make_model(arguments, ranks.rank)
    policy = SavedModel(model)
    say(ranks, "dividing it among the ranks")
    trainer = Trainer(OptimConfig(), AlgoConfig(), policy=policy, temperature=1.0, total_steps=1, ranks=ranks)
    say(ranks, "one step")
    make_moments(trainer, model)
    run = ranks.gather_objects(Path(tempfile.mkdtemp(dir=arguments.output)))[0]
    saver = CheckpointSaver(run, trainer=trainer, keep=1)
    say(ranks, "making memory for copies" if saver.in_background else "no memory for copies")
    if saver.in_background:
        saver._reserved.result()
    weights = sum(parameter.numel() for parameter in model.parameters())
    try:
        for number in range(1, arguments.times + 2):
            how = f"with copies, {number}" if number <= arguments.times else "without copies"
            if how == "without copies":
                saving.free_host_bytes = lambda: 0
                saver = CheckpointSaver(run, trainer=trainer, keep=1)
            say(ranks, f"checkpoint: {how}")
            record = {"checkpoint": how, **measure(saver, ranks, number)}
            if ranks.rank == 0:
                size = sum(file.stat().st_size for file in run.rglob("*") if file.is_file())
                print(json.dumps({**record, "gb": round(size / 1e9, 1), "weights": weights, "ranks": ranks.size}), flush=True)
                shutil.rmtree(run / "checkpoints")  # a disk need not hold two
            ranks.barrier()
    finally:
        if ranks.rank == 0:
            shutil.rmtree(run, ignore_errors=True)
        ranks.leave()


if __name__ == "__main__":
    main()
    os._exit(0)  # the process group has nothing left to say
