"""The loss of supervised training, by hand."""

import pytest
import torch

from vla_train.algo.losses import LossInputs, cross_entropy
from vla_train.config import AlgoConfig


def test_it_is_the_mean_negative_log_probability_of_the_tokens_that_count() -> None:
    logits = torch.randn(3, 4, 5, generator=torch.Generator().manual_seed(0), requires_grad=True)
    tokens = torch.tensor([[0, 1, 2, 3], [4, 0, 1, 2], [3, 3, 3, 3]])
    played = torch.tensor([[True, True], [True, False], [False, False]])  # K = 2 actions of two tokens each
    logprobs = logits.log_softmax(-1)
    chosen = logprobs.gather(-1, tokens[..., None])[..., 0]
    output = cross_entropy(
        {
            "logprobs": chosen,
            "entropies": -(logprobs.exp() * logprobs).sum(-1),
            "likeliest": tokens == logits.argmax(-1),
        },
        LossInputs(decision={}, advantages=torch.ones(3), weights=played.float() / played.sum()),
        AlgoConfig(),
    )
    by_hand = [-chosen[row, token] for row, token in ((0, 0), (0, 1), (0, 2), (0, 3), (1, 0), (1, 1))]
    assert float(output.loss.detach()) == pytest.approx(float(sum(by_hand).detach()) / 6, rel=1e-5)
    assert float(output.count) == 6
    hits = [bool(tokens[row, token] == logits[row, token].argmax()) for row in (0, 1) for token in range(4 - 2 * row)]
    assert float(output.sums["token_accuracy"]) == sum(hits)
    output.loss.backward()
    assert float(logits.grad[2].abs().max()) == float(logits.grad[1, 2:].abs().max()) == 0, "padding moves nothing"


def test_what_does_not_count_contributes_nothing_whatever_it_holds() -> None:
    logprobs = torch.tensor([[-1.0, float("nan")]])
    inputs = LossInputs(decision={}, advantages=torch.ones(1), weights=torch.tensor([[1.0, 0.0]]))
    output = cross_entropy({"logprobs": logprobs}, inputs, AlgoConfig())
    assert (float(output.loss), float(output.count), dict(output.sums)) == (1.0, 1.0, {})


def test_advantages_weight_the_rows() -> None:
    inputs = LossInputs(decision={}, advantages=torch.tensor([2.0, -1.0]), weights=torch.full((2, 1), 0.5))
    assert float(cross_entropy({"logprobs": torch.tensor([-1.0, -3.0])}, inputs, AlgoConfig()).loss) == pytest.approx(-0.5)
