"""A policy for the envs of `corners_env`, small enough to learn them in seconds."""

from pathlib import Path

import numpy as np
import torch

from vla_train.policy.simplevla_oft import SimpleVLAOFT, SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.action_tokens import ActionStatistics
from vla_train.policy.simplevla_oft.config import LanguageConfig, TowerConfig
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer

CHUNK_SIZE, ACTION_DIM, NUM_BINS = 2, 2, 5


def save_untrained(folder: Path, *, seed: int) -> None:
    """A SimpleVLA-OFT of 0.4 million weights, as a checkpoint in the published layout."""
    tokenizer = small_tokenizer()

    def tower(name: str, *, dinov2: bool) -> TowerConfig:
        sizes = {"width": 32, "depth": 2, "num_heads": 2, "mlp_width": 64, "patch_size": 28}
        return TowerConfig(name=name, class_token=dinov2, num_registers=0, layer_scale=dinov2, **sizes)

    num_ids = tokenizer.get_vocab_size() + NUM_BINS + SimpleVLAOFTConfig.num_spare_tokens
    bound = np.ones(ACTION_DIM)
    config = SimpleVLAOFTConfig(
        towers=(tower("dinov2", dinov2=True), tower("siglip", dinov2=False)),
        image_size=28,
        language=LanguageConfig(vocab_size=num_ids, hidden_size=64, intermediate_size=128, num_layers=2, num_heads=4),
        chunk_size=CHUNK_SIZE,
        action_dim=ACTION_DIM,
        num_bins=NUM_BINS,
        prompt_end_token_id=PROMPT_END_ID,
        gripper=None,
        norm_stats={"actions": ActionStatistics.from_bounds(-bound, bound).to_json()},
    )
    model = SimpleVLAOFT.from_random(config, seed=seed, dtype=torch.float32, device=torch.device("cpu"))
    model.companion_files[TOKENIZER_FILE] = tokenizer.to_str().encode()
    model.save_pretrained(str(folder))
