"""Builds the policy that a run asks for: a checkpoint, or random weights of a named size.

What a published checkpoint does not say (its statistics, its gripper, its images) is settled here, by the user's word, the
checkpoint's, or that of its datasets (`datasets.py`, `image_choice.py`), and said in the log.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

import numpy as np
import torch

from vla_train.config import PolicyConfig
from vla_train.gpu_memory import limit_memory
from vla_train.policy.precision import chosen_device, chosen_dtype
from vla_train.policy.simplevla_oft.action_tokens import ActionCodec, ActionStatistics
from vla_train.policy.simplevla_oft.adapter_files import AdapterFiles
from vla_train.policy.simplevla_oft.checkpoint import (
    CheckpointFiles,
    check_checkpoint_files,
    check_companion,
    is_here,
    open_checkpoint,
)
from vla_train.policy.simplevla_oft.config import Gripper, SimpleVLAOFTConfig, named_config
from vla_train.policy.simplevla_oft.datasets import gripper_of, select_statistics
from vla_train.policy.simplevla_oft.frozen import quantise_base, require_base_dtype
from vla_train.policy.simplevla_oft.image_choice import image_path, passes_jpeg
from vla_train.policy.simplevla_oft.images import settings_from_json, settings_to_json
from vla_train.policy.simplevla_oft.json_files import json_bytes, json_object
from vla_train.policy.simplevla_oft.lora import add_lora, lora_layers
from vla_train.policy.simplevla_oft.model import SimpleVLAOFT
from vla_train.policy.simplevla_oft.policy import SimpleVLAOFTPolicy
from vla_train.policy.simplevla_oft.prompts import TOKENIZER_FILE, PromptEncoder
from vla_train.policy.simplevla_oft.small_tokenizer import PROMPT_END_ID, small_tokenizer
from vla_train.types import IMAGE, EnvDescription

_log = logging.getLogger(__name__)
_Policy = TypeVar("_Policy", bound=SimpleVLAOFTPolicy)
_PREPROCESSOR_FILE = "preprocessor_config.json"
_SIZES_TO_TRAIN_FROM_SCRATCH = ("tiny", "small")


def check_options(config: PolicyConfig) -> None:
    """Refuse what cannot become a policy, before anything else of a run is started; no weights are read or fetched.

    Raises:
        ValueError: There is no such checkpoint, its files are not those of a SimpleVLA-OFT, options contradict each other,
            a large model would start from random weights without being asked to, or there is no GPU where one is asked for.
    """
    if config.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("policy.device is cuda, but PyTorch finds no GPU: set it to auto or cpu, or install PyTorch with CUDA")
    require_base_dtype(config.base_dtype, chosen_device(config))
    if config.checkpoint is None:
        if config.size not in _SIZES_TO_TRAIN_FROM_SCRATCH and not config.random_weights:
            raise ValueError(
                f"policy.size {config.size} goes on from a trained policy: name one with --policy.checkpoint, or try the "
                "machinery on random weights with --policy.random-weights"
            )
        if config.companion is not None:
            raise ValueError(f"policy.companion {config.companion} supplies what a checkpoint lacks: name that, too")
    elif config.random_weights:
        raise ValueError(
            f"policy.random_weights contradicts policy.checkpoint {config.checkpoint}: a checkpoint brings its own weights"
        )
    else:
        check_checkpoint_files(config.checkpoint)
        if config.companion is not None:
            check_companion(config.companion)
        if all(name is None or is_here(name) for name in (config.checkpoint, config.companion)):
            _open(config)


def check_env(config: PolicyConfig, env: EnvDescription) -> None:
    """Refuse an env that a checkpoint does not fit, as `build_policy` would; no weights are read.

    Raises:
        ValueError: Its statistics do not cover the env's suite, or it decides other actions.
    """
    if config.checkpoint is not None:
        _fit(config, _open(config).config, env)


def build_policy(config: PolicyConfig, env: EnvDescription, *, seed: int) -> SimpleVLAOFTPolicy:
    """The policy a run asks for: a checkpoint, or random weights of a named size; see `policy.base.PolicyFactory`.

    Args:
        config: Which model, and how it runs.
        env: Its suite picks a checkpoint's action statistics; with random weights the bins cover its actions.
        seed: Of random weights.

    Raises:
        ValueError: `check_options` refuses the config, or the checkpoint cannot be read or does not fit the env; the message
            says where.
    """
    return build_as(SimpleVLAOFTPolicy, config, env, seed=seed)


def build_as(kind: Callable[..., _Policy], config: PolicyConfig, env: EnvDescription, *, seed: int) -> _Policy:
    """As `build_policy`, of another kind: one that is made of the same parts and samples otherwise."""
    action_low, action_high, suite = env.action_low, env.action_high, env.suite
    check_options(config)
    image = env.observations.get(IMAGE)
    if image is not None and (image.dtype != "uint8" or len(image.shape) != 3 or image.shape[-1] != 3):
        raise ValueError(f"SimpleVLA-OFT reads images of uint8 (H, W, 3), the env observes {image.dtype} {image.shape}")
    device, dtype = chosen_device(config), chosen_dtype(config)
    files = _without_weights(config, action_low, action_high, suite=suite) if config.checkpoint is None else _open(config)
    for note in files.notes:
        _log.info("%s", note)
    shape, companions = files.config, dict(files.companions)
    dataset, codec = _fit(config, shape, env)
    prompts = PromptEncoder.from_json(companions[TOKENIZER_FILE], shape)
    path = image_path(config, shape, files.weights, dataset=dataset)
    preprocessor = companions.get(_PREPROCESSOR_FILE)
    images = settings_from_json(
        {} if preprocessor is None else json_object(preprocessor, name=_PREPROCESSOR_FILE),
        image_size=shape.image_size,
        jpeg=path == "openvla" and passes_jpeg(config, shape, dataset=dataset),
        path=path,
    )
    companions.setdefault(_PREPROCESSOR_FILE, json_bytes(settings_to_json(images)))
    if config.gpu_memory_gb is not None and device.type == "cuda":
        limit_memory(config.gpu_memory_gb, device)
    # Saved checkpoints say what was settled here. Weights come last: reading them can take minutes.
    shape = replace(shape, unnorm_key=dataset, gripper=codec.gripper, jpeg=images.jpeg, images=path)
    files = replace(files, config=shape, companions=companions)
    if config.checkpoint is None:
        model = SimpleVLAOFT.from_random(shape, seed=seed, dtype=dtype, device=device)
        model.companion_files = companions
    else:
        merges = files.adapters is not None and _merges(config, files.adapters)
        model = SimpleVLAOFT.from_files(files, dtype=dtype, device=device, merge_adapters=merges)
    _complete_adapters(model, config, seed=seed)
    if config.base_dtype != "auto":
        quantise_base(model.language_model.model, config.base_dtype)
    model.recompute(float(config.activation_checkpointing == "on"))
    return kind(
        model,
        prompts=prompts,
        images=images,
        codec=codec,
        graphs=config.compile,
        recompute_by_memory=config.activation_checkpointing == "auto",
    )


def _open(config: PolicyConfig) -> CheckpointFiles:
    assert config.checkpoint is not None
    files = open_checkpoint(config.checkpoint, companion=config.companion, nested=config.adapters)
    if TOKENIZER_FILE not in files.companions:
        raise ValueError(
            f"{config.checkpoint} has no {TOKENIZER_FILE}, without which prompts cannot be encoded: name a checkpoint that has "
            "it (the one that this was trained from, say) with policy.companion"
        )
    return files


def _merges(config: PolicyConfig, adapters: AdapterFiles) -> bool:
    """Whether the adapters of a checkpoint become part of its weights, and do not go on as adapters."""
    merges = config.lora_rank != adapters.rank if config.lora_rank else config.base_dtype == "auto"
    becomes = "are merged into its weights" if merges else "go on as adapters"
    _log.info("%s: adapters of rank %d on %s %s", config.checkpoint, adapters.rank, adapters.base, becomes)
    return merges


def _complete_adapters(model: SimpleVLAOFT, config: PolicyConfig, *, seed: int) -> None:
    """Put adapters where they are asked for and none came along; those that came along for other layers stay as they are."""
    asked, present = model.adaptable_layers(config.lora_layers), lora_layers(model)
    if config.lora_rank:
        add_lora(model, config.lora_rank, layers=[name for name in asked if name not in present], seed=seed)
    elif config.base_dtype != "auto":
        model.requires_grad_(False)
    for name, layer in present.items():
        for factor in (layer.lora_A, layer.lora_B):
            factor.requires_grad_(name in asked)


def _without_weights(
    config: PolicyConfig, action_low: np.ndarray, action_high: np.ndarray, *, suite: str | None
) -> CheckpointFiles:
    """What a checkpoint of an untrained model would hold besides weights; its bins cover the env's actions."""
    tokenizer = small_tokenizer()
    statistics = ActionStatistics.from_bounds(action_low, action_high)
    shape = named_config(
        config.size,
        num_text_tokens=tokenizer.get_vocab_size(),
        prompt_end_token_id=PROMPT_END_ID,
        chunk_size=config.chunk_size,
        action_dim=len(action_low),
    )
    dataset = "actions" if suite is None else f"{suite}_no_noops"
    return CheckpointFiles(
        config=replace(shape, gripper=None, jpeg=False, norm_stats={dataset: statistics.to_json()}),
        weights=tuple,
        companions={TOKENIZER_FILE: tokenizer.to_str().encode()},
        has_statistics=True,
    )


def _fit(config: PolicyConfig, shape: SimpleVLAOFTConfig, env: EnvDescription) -> tuple[str, ActionCodec]:
    """The dataset whose statistics the env is played with, and what its tokens mean there."""
    if shape.chunk_size != config.chunk_size:
        raise ValueError(f"policy.chunk_size is {config.chunk_size}, the checkpoint decides {shape.chunk_size} actions")
    dataset = select_statistics(shape.norm_stats, key=config.statistics_key, unnorm_key=shape.unnorm_key, suite=env.suite)
    return dataset, _codec(config, shape, dataset=dataset, action_low=env.action_low, action_high=env.action_high)


def _codec(
    config: PolicyConfig, shape: SimpleVLAOFTConfig, *, dataset: str, action_low: np.ndarray, action_high: np.ndarray
) -> ActionCodec:
    statistics = ActionStatistics.from_json(shape.norm_stats[dataset], name=dataset)
    if not len(statistics.low) == shape.action_dim == len(action_low):
        raise ValueError(
            f"the env has {len(action_low)} action dimensions, the model {shape.action_dim}, its statistics {dataset!r} "
            f"{len(statistics.low)}"
        )
    return ActionCodec(
        statistics=statistics,
        gripper=_gripper(config, shape, statistics, dataset=dataset, low=float(action_low[-1]), high=float(action_high[-1])),
        chunk_size=shape.chunk_size,
        vocab_end=shape.pad_token_id,
        num_bins=shape.num_bins,
    )


def _gripper(
    config: PolicyConfig, shape: SimpleVLAOFTConfig, statistics: ActionStatistics, *, dataset: str, low: float, high: float
) -> Gripper:
    """What the config says, else what the checkpoint says, else how its dataset stores it."""
    if config.gripper != "auto":
        return "libero" if config.gripper == "libero" else None
    if shape.gripper != "unknown":
        return shape.gripper
    gripper = gripper_of(dataset, statistics, low=low, high=high)
    played = "as decoded" if gripper is None else "as +1 close, -1 open; stored as 0 close .. 1 open"
    _log.info("the last action dimension is played %s, by the statistics of dataset %s", played, dataset)
    return gripper
