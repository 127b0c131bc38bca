"""SimpleVLA-OFT as vLLM sees it: a multimodal pooling model whose attention is bidirectional.

    frame --our preprocessing, towers and projector--> P embeddings --+
    [BOS | P blanks | prompt | T blanks | stop] --vLLM's Llama, every token sees every other--> T positions --head--> (T, bins)

vLLM batches rows and runs the language model; preparing frames and the towers are the code of the PyTorch backend. Rows lie one
after the other without padding: N positions of all rows of a step, P patches, T action tokens.

Blanks are one id, the first spare one of the vocabulary, which no prompt holds. Its embedding counts as zero, which is what the
action positions want; the patches' embeddings take the place of the others.
"""

from collections.abc import Iterable, Sequence, Set
from typing import Any

import torch
from torch import Tensor, nn
from vllm.config import VllmConfig
from vllm.model_executor.layers.pooler.abstract import Pooler
from vllm.model_executor.model_loader.weight_utils import default_weight_loader
from vllm.model_executor.models.interfaces import SupportsMultiModal
from vllm.model_executor.models.llama import LlamaModel
from vllm.multimodal import MULTIMODAL_REGISTRY
from vllm.multimodal.processing import BaseDummyInputsBuilder, BaseMultiModalProcessor, BaseProcessingInfo
from vllm.tasks import PoolingTask
from vllm.v1.pool.metadata import PoolingMetadata

from vla_train.policy.simplevla_oft.config_json import config_from_json
from vla_train.policy.simplevla_oft.images import preprocess, settings_from_json
from vla_train.policy.simplevla_oft.model import Projector, VisionBackbone

CONFIG_KEY, IMAGES_KEY = "simplevla_oft", "simplevla_oft_images"
"""Where vLLM's config holds ours: a `config.json`; and a `preprocessor_config.json` with `ImageSettings`' `jpeg` and `path`."""
FRAMES = "frames"
"""Name of the input besides ids: (H, W, 3) uint8 of each row."""
TASK: PoolingTask = "token_classify"
_LANGUAGE_MODEL, _HEAD = "language_model.model.", "language_model.lm_head.weight"
"""In the names of a plain model's weights."""


class ActionLogits(Pooler):
    """Logits of each row's action tokens, by the rows of the head that belong to the bins."""

    def __init__(self, width: int, *, num_tokens: int, num_bins: int) -> None:
        super().__init__()
        self._num_tokens = num_tokens
        self.head = nn.Linear(width, num_bins, bias=False)

    def get_supported_tasks(self) -> Set[PoolingTask]:
        return {TASK}

    def forward(self, hidden_states: Tensor, pooling_metadata: PoolingMetadata) -> list[Tensor]:
        """(N, D) to (T, bins) float32 of each row: its prompt's last position predicts token 0, its last blank and the stop
        token predict nothing.

        Rows that vLLM makes up to try its memory are shorter than that, so places are kept in range.
        """
        lengths = pooling_metadata.get_pooling_cursor().num_scheduled_tokens_cpu
        first = (lengths.cumsum(0) - self._num_tokens - 2).to(hidden_states.device)
        places = first[:, None] + torch.arange(self._num_tokens, device=hidden_states.device)
        return list(self.head(hidden_states[places.clamp_min(0)]).float())


class _Info(BaseProcessingInfo):
    """What vLLM's planning asks of a row's image."""

    def get_supported_mm_limits(self) -> dict[str, int | None]:
        return {"image": 1}

    def get_mm_max_tokens_per_item(self, *_: Any, **__: Any) -> dict[str, int]:
        return {"image": config_from_json(getattr(self.get_hf_config(), CONFIG_KEY)).num_patches}


class _NoDummyInputs(BaseDummyInputsBuilder[_Info]):
    """`engine.py` prepares rows, and has vLLM skip what would ask for these."""

    def get_dummy_text(self, *_: Any, **__: Any) -> str:
        raise NotImplementedError

    def get_dummy_mm_data(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


class _NoProcessor(BaseMultiModalProcessor[_Info]):
    """As `_NoDummyInputs`."""

    requires_tokenizer = False

    def _get_mm_fields_config(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError

    def _get_prompt_updates(self, *_: Any, **__: Any) -> Any:
        raise NotImplementedError


@MULTIMODAL_REGISTRY.register_processor(_NoProcessor, info=_Info, dummy_inputs=_NoDummyInputs)
class SimpleVLAOFTForPooling(nn.Module, SupportsMultiModal):
    """The network, made by vLLM from the config that `engine.py` writes."""

    is_pooling_model = True

    def __init__(self, *, vllm_config: VllmConfig, prefix: str = "") -> None:
        super().__init__()
        said = vllm_config.model_config.hf_config
        self._shape = shape = config_from_json(getattr(said, CONFIG_KEY))
        images, jpeg, path = getattr(said, IMAGES_KEY)
        self._images = settings_from_json(images, image_size=shape.image_size, jpeg=jpeg, path=path)
        width = shape.language.hidden_size
        self.vision_backbone = VisionBackbone(shape)
        self.projector = Projector(sum(tower.width for tower in shape.towers), width)
        self.language_model = LlamaModel(vllm_config=vllm_config, prefix="language_model")
        self.pooler = ActionLogits(width, num_tokens=shape.num_action_tokens, num_bins=shape.num_bins)

    def embed_multimodal(self, **inputs: Tensor) -> tuple[Tensor, ...]:
        """Frames (B, H, W, 3) to projected patches (P, D) of each."""
        pixels = preprocess(inputs[FRAMES], self._images).to(self.projector.fc1.weight.dtype)
        return self.projector(self.vision_backbone(pixels, lambda block, x: block(x))).unbind(0)

    def embed_input_ids(
        self,
        input_ids: Tensor,
        multimodal_embeddings: Sequence[Tensor] | None = None,
        *,
        is_multimodal: Tensor | None = None,
    ) -> Tensor:
        """Ids (N,) to (N, D); patches go where `is_multimodal` (N,) says."""
        embedded = self.language_model.embed_input_ids(input_ids)
        embedded = embedded.masked_fill((input_ids == self._shape.pad_token_id)[:, None], 0)
        if not multimodal_embeddings or is_multimodal is None:
            return embedded
        return embedded.masked_scatter(is_multimodal.to(embedded.device)[:, None], torch.cat(list(multimodal_embeddings)))

    def forward(
        self,
        input_ids: Tensor | None,
        positions: Tensor,
        intermediate_tensors: Any = None,
        inputs_embeds: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """Final hidden states (N, D)."""
        return self.language_model(input_ids, positions, intermediate_tensors, inputs_embeds)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> set[str]:
        """Take weights by their names in a plain model (`checkpoint_saving.plain_weights`); returns their names here."""
        parameters = dict(self.named_parameters())
        first, loaded = self._shape.first_action_id, set[str]()
        for name, weight in weights:
            if name == _HEAD:
                name, weight = "pooler.head.weight", weight[first : first + self._shape.num_bins]
            elif name.startswith(_LANGUAGE_MODEL):
                name = f"language_model.{name.removeprefix(_LANGUAGE_MODEL)}"
            parameter = parameters[name]
            getattr(parameter, "weight_loader", default_weight_loader)(parameter, weight)
            loaded.add(name)
        assert loaded == parameters.keys(), f"no weights for {sorted(parameters.keys() - loaded)}"
        return loaded
