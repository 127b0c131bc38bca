"""A policy that is a few matrices, and trajectories with random contents, for the tests of the trainer."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from safetensors.torch import save_file
from torch import Tensor, nn

from vla_train.policy.base import TrainablePolicy
from vla_train.trainer.parallel import full_tensor, local_part
from vla_train.trainer.saving import CheckpointSaver
from vla_train.trainer.trainer import Trainer
from vla_train.types import EpisodeSpec, Group, Observation, PolicyOutput, Trajectory

CHUNK_SIZE, ACTION_DIM, NUM_BINS = 3, 2, 5
NUM_TOKENS = CHUNK_SIZE * ACTION_DIM
IMAGE_SHAPE = (4, 4, 3)
TEMPERATURE = 1.6


class SmallModule(nn.Module):
    """Image to logits (B, T, bins), through two blocks."""

    def __init__(self, width: int = 12) -> None:
        super().__init__()
        self.inner = nn.Linear(int(np.prod(IMAGE_SHAPE)), width)
        self.blocks = nn.ModuleList([nn.Sequential(nn.Linear(width, width), nn.Tanh()) for _ in range(2)])
        self.head = nn.Linear(width, NUM_TOKENS * NUM_BINS)

    def forward(self, pixels: Tensor) -> Tensor:
        x = self.inner(pixels)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x).unflatten(-1, (NUM_TOKENS, NUM_BINS)).clone()  # FSDP2 warns of outputs that are views


class SmallPolicy:
    """Implements `TrainablePolicy` with `SmallModule`."""

    chunk_size, action_dim = CHUNK_SIZE, ACTION_DIM
    observation_keys, num_uniforms = ("image",), NUM_TOKENS

    def __init__(self, *, seed: int = 0, dtype: torch.dtype = torch.float32) -> None:
        torch.manual_seed(seed)
        self.version = 0
        self.module = SmallModule().to(dtype)
        self.dtype = dtype

    def trainable_module(self) -> nn.Module:
        return self.module

    def _logprobs(self, observation: Observation, temperature: float) -> Tensor:
        pixels = torch.from_numpy(observation["image"]).flatten(1).to(self.dtype) / 255
        return (self.module(pixels).float() / temperature).log_softmax(-1)

    @torch.no_grad()
    def act(self, observation: Observation, *, uniforms: np.ndarray | None, temperature: float) -> PolicyOutput:
        logprobs = self._logprobs(observation, temperature)
        if uniforms is None:
            token_ids = logprobs.argmax(-1)
        else:
            token_ids = (logprobs.exp().cumsum(-1) < torch.from_numpy(uniforms)[..., None]).sum(-1).clamp(max=NUM_BINS - 1)
        chosen = logprobs.gather(-1, token_ids[..., None])[..., 0]
        actions = (token_ids / (NUM_BINS - 1) * 2 - 1).reshape(-1, CHUNK_SIZE, ACTION_DIM)
        return PolicyOutput(
            actions=actions.numpy(),
            decision={"token_ids": token_ids.numpy().astype(np.int32), "logprobs": chosen.numpy()},
            policy_version=self.version,
        )

    def evaluate(self, observation: Observation, decision: Mapping[str, Tensor], *, temperature: float) -> dict[str, Tensor]:
        logprobs = self._logprobs(observation, temperature)
        return {
            "logprobs": logprobs.gather(-1, decision["token_ids"].long()[..., None])[..., 0],
            "entropies": -(logprobs.exp() * logprobs).sum(-1),
        }

    @torch.no_grad()
    def load_weights(self, weights: Mapping[str, Tensor], *, version: int) -> None:
        parameters = dict(self.module.named_parameters())
        for name, weight in weights.items():
            parameters[name].copy_(weight)
        self.version = version

    def save_pretrained(self, folder: str) -> None:
        whole = {name: full_tensor(local_part(value), value).contiguous() for name, value in self.module.named_parameters()}
        if not dist.is_initialized() or dist.get_rank() == 0:
            Path(folder).mkdir(parents=True, exist_ok=True)
            save_file(whole, Path(folder) / "model.safetensors")


def save_checkpoint(run: Path, *, trainer: Trainer, keep: int = 2, **what: Any) -> Path:
    """Save, and wait for it."""
    saver = CheckpointSaver(run, trainer=trainer, keep=keep)
    path = saver.begin(**{"rollout_state": {}, "extra": {}, **what})
    saver.finish()
    return path


def make_trajectory(
    policy: TrainablePolicy,
    *,
    group_id: int,
    sample_id: int,
    success: bool,
    length: int,
    seed: int = 0,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
) -> Trajectory:
    """An episode of noise images and the actions that the policy drew for them; the last chunk is cut short."""
    random = np.random.default_rng([seed, group_id, sample_id])
    images = random.integers(0, 256, (length, *image_shape), np.uint8)
    instruction = f"instruction {'x' * (group_id % 3)}"
    output = policy.act(
        Observation(arrays={"image": images}, instructions=(instruction,) * length),
        uniforms=random.random((length, policy.chunk_size * policy.action_dim), np.float32),
        temperature=TEMPERATURE,
    )
    num_steps = np.full(length, policy.chunk_size, np.int32)
    num_steps[-1] = random.integers(1, policy.chunk_size + 1)
    rewards = np.zeros(length, np.float32)
    rewards[-1] = success
    return Trajectory(
        spec=EpisodeSpec(group_id=group_id, sample_id=sample_id, task_id=0, init_state_id=-1, seed=group_id),
        instruction=instruction,
        observations={"image": images},
        decisions={"token_ids": output.decision["token_ids"], "logprobs": output.decision["logprobs"]},
        num_steps=num_steps,
        rewards=rewards,
        policy_versions=np.full(length, policy.version, np.int32),
        success=success,
        truncated=not success,
    )


def make_groups(
    policy: TrainablePolicy,
    *,
    num_groups: int = 3,
    group_size: int = 4,
    seed: int = 0,
    image_shape: tuple[int, int, int] = IMAGE_SHAPE,
) -> list[Group]:
    """Groups with one to all-but-one successes and episodes of 1 to 6 decisions."""
    random = np.random.default_rng([seed, 99])
    return [
        Group(
            group_id=group_id,
            trajectories=tuple(
                make_trajectory(
                    policy,
                    group_id=group_id,
                    sample_id=sample_id,
                    success=sample_id <= group_id % (group_size - 1),
                    length=int(random.integers(1, 7)),
                    seed=seed,
                    image_shape=image_shape,
                )
                for sample_id in range(group_size)
            ),
        )
        for group_id in range(num_groups)
    ]
