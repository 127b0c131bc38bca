"""A vLLM engine in this process that gives the action logits of SimpleVLA-OFT.

    rows --add_request--> vLLM's scheduler and model runner --step--> logits (B, T, bins)

The engine lives in the caller's process: weights are handed over as tensors, and copied once, on the device that they are on.
Rows come prepared (ids and frames), so vLLM needs neither a tokenizer nor a processor of the checkpoint, and its config is
written here. It begins with made-up weights: `load` comes before the first `logits`.
"""

import json
import logging
import tempfile
from collections.abc import Iterable, Sequence
from itertools import count
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from vllm import PoolingParams
from vllm.engine.arg_utils import EngineArgs
from vllm.inputs.engine import mm_input
from vllm.multimodal.inputs import MultiModalFieldConfig, MultiModalKwargsItems, PlaceholderRange
from vllm.v1.engine.llm_engine import LLMEngine
from vllm.v1.executor.uniproc_executor import UniProcExecutor

from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig
from vla_train.policy.simplevla_oft.config_json import config_to_json
from vla_train.policy.simplevla_oft.images import ImageSettings, settings_to_json
from vla_train.policy.vllm.model import CONFIG_KEY, FRAMES, IMAGES_KEY, TASK
from vla_train.policy.vllm.options import EngineOptions
from vla_train.policy.vllm.plugin import ARCHITECTURE, register

MAX_POSITIONS = 2048
"""Most patches, prompt ids and action tokens of a row together."""
_MAX_ROWS = 256
"""Most rows of one step."""


class ActionEngine:
    """vLLM with one model on one device.

    Args:
        shape: Of the network.
        images: How frames are prepared.
        dtype: Of weights and activations.
        compiled: Whether vLLM compiles the language model and makes CUDA graphs; that takes a minute or more.
        options: Of the user.

    Raises:
        ValueError: vLLM refuses the model, or too little of the GPU's memory is free.
    """

    def __init__(
        self, shape: SimpleVLAOFTConfig, images: ImageSettings, *, dtype: torch.dtype, compiled: bool, options: EngineOptions
    ) -> None:
        register()
        # A reload warns of every layer that has a table and no weights (the rotary embedding), at each update.
        logging.getLogger("vllm.model_executor.model_loader.reload.layerwise").setLevel(logging.ERROR)
        self.asleep = False
        """Whether it has given its memory back."""
        self._shape = shape
        self._numbers = count()
        self._params = PoolingParams(task=TASK)
        with tempfile.TemporaryDirectory() as folder:
            (Path(folder) / "config.json").write_text(json.dumps(_vllm_config(shape, images)))
            config = EngineArgs(
                model=folder,
                runner="pooling",
                load_format="dummy",
                skip_tokenizer_init=True,
                dtype=str(dtype).removeprefix("torch."),  # type: ignore[arg-type]
                enforce_eager=not compiled,
                distributed_executor_backend=UniProcExecutor,  # "uni" becomes another process on CPUs
                max_model_len=MAX_POSITIONS,
                max_num_seqs=_MAX_ROWS,
                max_num_batched_tokens=max(options.max_batched_tokens, MAX_POSITIONS),
                gpu_memory_utilization=_free_share(),
                enable_prefix_caching=False,
                enable_chunked_prefill=False,  # a row is computed at once: each of its tokens sees every other
                limit_mm_per_prompt={"image": 1},
                mm_processor_cache_gb=0,
                skip_mm_profiling=True,
                enable_sleep_mode=options.sleep,
                disable_log_stats=True,
            ).create_engine_config()
            self._engine = LLMEngine(config, UniProcExecutor, log_stats=False, multiprocess_mode=False)

    def logits(self, frames: Tensor, prompts: Sequence[list[int]]) -> Tensor:
        """Logits (B, T, bins) float32 of the action tokens, on the host.

        Args:
            frames: (B, H, W, 3) uint8 on the host.
            prompts: Ids of B prompts, BOS first.
        """
        rows: dict[str, int] = {}
        for row, prompt in enumerate(prompts):
            number = str(next(self._numbers))
            rows[number] = row
            self._engine.add_request(number, self._input(frames[row : row + 1], prompt, number), self._params)
        logits: dict[int, Tensor] = {}
        while self._engine.has_unfinished_requests():
            for output in self._engine.step():
                if output.request_id in rows:  # not of a call that was broken off
                    logits[rows[output.request_id]] = output.outputs.data
        return torch.stack([logits[row] for row in range(len(prompts))])

    def _input(self, frame: Tensor, prompt: list[int], number: str) -> Any:
        """What vLLM takes of a row. Its identity is new each time: patches of older weights are never found again."""
        shape, blank = self._shape, self._shape.pad_token_id
        ids = [prompt[0], *[blank] * shape.num_patches, *prompt[1:], *[blank] * shape.num_action_tokens, shape.stop_token_id]
        return mm_input(
            ids,
            MultiModalKwargsItems.from_hf_inputs({FRAMES: frame}, {FRAMES: MultiModalFieldConfig.batched("image")}),
            mm_hashes={"image": [number]},
            mm_placeholders={"image": [PlaceholderRange(offset=1, length=shape.num_patches)]},
        )

    def load(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Take all weights of a plain model, by name (`checkpoint_saving.plain_weights`); none may be under way."""
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": weights})

    def sleep(self) -> None:
        """Give the memory of the weights back; what they were is lost."""
        self._engine.sleep(level=2)
        self.asleep = True

    def wake(self) -> None:
        """Take the memory again; `load` comes next."""
        self._engine.wake_up()
        self.asleep = False


def _free_share() -> float:
    """What vLLM may take for granted of the device's memory: a model without a KV cache takes what it needs, no more."""
    if not torch.cuda.is_available():
        return 0.05
    free, total = torch.cuda.mem_get_info()
    return 0.9 * free / total


def _vllm_config(shape: SimpleVLAOFTConfig, images: ImageSettings) -> dict[str, object]:
    """A `config.json` of a Llama without a causal mask, and in it what our model reads besides."""
    language = shape.language
    return {
        "architectures": [ARCHITECTURE],
        "model_type": "llama",
        "is_causal": False,
        "vocab_size": language.vocab_size,
        "hidden_size": language.hidden_size,
        "intermediate_size": language.intermediate_size,
        "num_hidden_layers": language.num_layers,
        "num_attention_heads": language.num_heads,
        "num_key_value_heads": language.num_heads,
        "rms_norm_eps": language.rms_norm_eps,
        "rope_theta": language.rope_theta,
        "max_position_embeddings": MAX_POSITIONS,
        "tie_word_embeddings": False,
        CONFIG_KEY: config_to_json(shape),
        IMAGES_KEY: [settings_to_json(images), images.jpeg, images.path],
    }
