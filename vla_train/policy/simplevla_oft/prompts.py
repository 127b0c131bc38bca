"""From instructions to prompt ids.

The tokenizer is read from `tokenizer.json`: data for the tokenizers library, no code, no guessing of classes.
"""

import json

import torch
from tokenizers import Tokenizer
from torch import Tensor

from vla_train.policy.simplevla_oft.config import SimpleVLAOFTConfig

TOKENIZER_FILE = "tokenizer.json"


def prompt_text(instruction: str) -> str:
    """What the published checkpoints were trained to read."""
    return f"In: What action should the robot take to {instruction.lower()}?\nOut:"


class PromptEncoder:
    """Instructions to ids; each instruction is tokenized once."""

    def __init__(self, tokenizer: Tokenizer, config: SimpleVLAOFTConfig) -> None:
        tokenizer.no_padding()
        tokenizer.no_truncation()
        self._tokenizer = tokenizer
        self._config = config
        self._ids: dict[str, list[int]] = {}

    @classmethod
    def from_json(cls, content: bytes | str, config: SimpleVLAOFTConfig) -> "PromptEncoder":
        """From the content of a `tokenizer.json`.

        Raises:
            ValueError: It is damaged, or has more ids than the model.
        """
        text = content if isinstance(content, str) else content.decode("utf-8", errors="replace")
        try:
            json.loads(text)
            tokenizer = Tokenizer.from_str(text)
        except Exception as error:  # the tokenizers library raises plain Exception
            raise ValueError(f"{TOKENIZER_FILE} is damaged: {error}") from None
        largest = max(tokenizer.get_vocab().values(), default=-1)
        if largest >= config.language.vocab_size:
            raise ValueError(f"{TOKENIZER_FILE} has id {largest}, the model a vocabulary of {config.language.vocab_size}")
        return cls(tokenizer, config)

    def ids(self, instruction: str) -> list[int]:
        """Ids of the prompt: BOS first, the prompt's end token last."""
        known = self._ids.get(instruction)
        if known is None:
            known = self._tokenizer.encode(prompt_text(instruction)).ids
            if known[:1] != [self._config.bos_token_id]:
                known = [self._config.bos_token_id, *known]
            if known[-1] != self._config.prompt_end_token_id:
                known = [*known, self._config.prompt_end_token_id]
            self._ids[instruction] = known
        return known

    def batch(
        self, instructions: tuple[str, ...], *, one_width: bool = False, multiple_of: int = 1, beside: int = 0
    ) -> tuple[Tensor, Tensor | None]:
        """Ids (B, L) and mask (B, L) of B prompts, padded at the right end to the longest.

        Prompts of one length need neither padding nor a mask, which is then None. Others are padded further, until L +
        `beside` is a multiple of `multiple_of`. With `one_width`, all prompts that were ever asked for count as if they were
        in the batch: soon all batches have one width.
        """
        rows = [self.ids(instruction) for instruction in instructions]
        lengths = {len(row) for row in (self._ids.values() if one_width else rows)}
        longest = max(lengths)
        if len(lengths) == 1:
            return torch.tensor(rows), None
        width = -(-(longest + beside) // multiple_of) * multiple_of - beside
        pad = self._config.pad_token_id
        ids = torch.tensor([row + [pad] * (width - len(row)) for row in rows])
        return ids, torch.arange(width) < torch.tensor([[len(row)] for row in rows])
