import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from vla_train.config import PolicyConfig
from vla_train.policy.simplevla_oft import SimpleVLAOFT
from vla_train.policy.simplevla_oft.build import build_policy
from vla_train.policy.simplevla_oft.policy import action_logprobs, batch_bucket, draw, worth_graphs
from vla_train.types import EnvDescription, Observation


def _uniforms(policy, num_rows: int) -> np.ndarray:
    return np.random.default_rng(1).random((num_rows, policy.chunk_size * policy.action_dim), dtype=np.float32)


def _rows(observation: Observation, rows: list[int]) -> Observation:
    return Observation(
        arrays={"image": observation["image"][rows]}, instructions=tuple(observation.instructions[row] for row in rows)
    )


@pytest.mark.parametrize("options", [{}, {"lora_rank": 2}, {"activation_checkpointing": "on"}, {"jpeg": "on"}], ids=str)
def test_training_recomputes_the_logprobs_that_sampling_gave(make_policy, make_observation, options):
    policy, observation = make_policy(**options), make_observation()
    output = policy.act(observation, uniforms=_uniforms(policy, 5), temperature=1.6)
    evaluated = policy.evaluate(observation, {"token_ids": torch.from_numpy(output.decision["token_ids"])}, temperature=1.6)
    logprobs, entropies = evaluated["logprobs"], evaluated["entropies"]
    np.testing.assert_allclose(logprobs.detach().numpy(), output.decision["logprobs"], atol=1e-5)
    assert logprobs.dtype == entropies.dtype == torch.float32
    assert logprobs.requires_grad
    assert ((entropies > 0) & (entropies <= np.log(256) + 1e-5)).all()


@pytest.mark.parametrize("checkpointing", ["off", "on"])
def test_in_bfloat16_logprobs_are_float32_and_still_agree(make_policy, make_observation, checkpointing):
    policy = make_policy(dtype="bfloat16", lora_rank=2, activation_checkpointing=checkpointing)
    observation = make_observation()
    output = policy.act(observation, uniforms=_uniforms(policy, 5), temperature=1.6)
    assert output.decision["logprobs"].dtype == np.float32
    evaluated = policy.evaluate(observation, {"token_ids": torch.from_numpy(output.decision["token_ids"])}, temperature=1.6)
    logprobs = evaluated["logprobs"]
    np.testing.assert_allclose(logprobs.detach().numpy(), output.decision["logprobs"], atol=1e-3)
    logprobs.sum().backward()
    trained = [parameter for parameter in policy.trainable_module().parameters() if parameter.requires_grad]
    assert all(parameter.grad is not None for parameter in trained)


def test_a_row_decides_the_same_alone_in_any_batch_and_in_any_order(make_policy, make_observation):
    policy, observation = make_policy(), make_observation(6)
    uniforms = _uniforms(policy, 6)
    together = policy.act(observation, uniforms=uniforms, temperature=1.6)
    for rows in ([0], [1], [2], [5, 3, 1], [4, 0, 2, 3]):
        output = policy.act(_rows(observation, rows), uniforms=uniforms[rows], temperature=1.6)
        assert np.array_equal(output.decision["token_ids"], together.decision["token_ids"][rows])
        np.testing.assert_allclose(output.decision["logprobs"], together.decision["logprobs"][rows], atol=1e-5)
        np.testing.assert_allclose(output.actions, together.actions[rows], atol=1e-6)


def test_without_numbers_the_likeliest_tokens_are_taken(make_policy, make_observation):
    policy, observation = make_policy(), make_observation(2)
    greedy = policy.act(observation, uniforms=None, temperature=1.0)
    for seed in range(3):
        uniforms = np.random.default_rng(seed).random(greedy.decision["token_ids"].shape, dtype=np.float32)
        assert (
            policy.act(observation, uniforms=uniforms, temperature=1.0).decision["logprobs"]
            <= greedy.decision["logprobs"] + 1e-6
        ).all()


def test_a_low_temperature_makes_sampling_greedy_and_logprobs_near_zero(make_policy, make_observation):
    policy, observation = make_policy(), make_observation(2)
    greedy = policy.act(observation, uniforms=None, temperature=1e-5)
    sampled = policy.act(observation, uniforms=_uniforms(policy, 2), temperature=1e-5)
    assert (sampled.decision["token_ids"] == greedy.decision["token_ids"]).mean() > 0.95
    assert np.median(greedy.decision["logprobs"]) > -0.1


@given(
    hnp.arrays(np.float32, (3, 8), elements=st.floats(-20, 20, width=32)),
    hnp.arrays(np.float32, 3, elements=st.floats(0, 1, exclude_max=True, width=32)),
)
def test_a_token_is_drawn_by_inverting_the_cumulative_distribution(logits, uniforms):
    logprobs = action_logprobs(torch.from_numpy(logits), 1.3)
    drawn = draw(logprobs, torch.from_numpy(uniforms)).numpy()
    cumulative = np.cumsum(logprobs.double().exp().numpy(), axis=-1)
    for row, index in enumerate(drawn):
        below = cumulative[row, index - 1] if index else 0.0
        assert below - 1e-5 <= uniforms[row] <= cumulative[row, index] + 1e-5


def test_draws_follow_the_distribution():
    logprobs = torch.tensor([0.1, 0.0, 0.6, 0.3]).log()
    drawn = draw(logprobs.expand(20000, 4), torch.rand(20000, generator=torch.Generator().manual_seed(0)))
    frequencies = torch.bincount(drawn, minlength=4) / 20000
    torch.testing.assert_close(frequencies, logprobs.exp(), atol=0.02, rtol=0)
    assert frequencies[1] == 0


@pytest.mark.parametrize(("action_dim", "chunk_size"), [(1, 8), (3, 1), (7, 5)])
def test_any_action_space_gets_a_chunk_within_its_bounds(make_observation, action_dim, chunk_size):
    low, high = np.linspace(-2, 0, action_dim).astype(np.float32), np.linspace(1, 5, action_dim).astype(np.float32)
    config = PolicyConfig(chunk_size=chunk_size, device="cpu")
    policy = build_policy(config, EnvDescription(observations={}, action_low=low, action_high=high), seed=0)
    output = policy.act(make_observation(3, size=40), uniforms=_uniforms(policy, 3), temperature=1.0)
    assert output.actions.shape == (3, chunk_size, action_dim)
    assert output.decision["token_ids"].shape == output.decision["logprobs"].shape == (3, chunk_size * action_dim)
    assert ((low <= output.actions) & (output.actions <= high)).all()
    assert (output.actions.max((0, 1)) - output.actions.min((0, 1)) > 0.3 * (high - low)).all()


def test_a_saved_policy_loads_again_and_decides_the_same(make_policy, make_observation, tmp_path):
    policy, observation = make_policy(suite="libero_goal"), make_observation(3)
    policy.save_pretrained(str(tmp_path))
    again = make_policy(suite="libero_goal", checkpoint=str(tmp_path), seed=5)
    expected, output = (p.act(observation, uniforms=_uniforms(p, 3), temperature=1.0) for p in (policy, again))
    assert np.array_equal(output.decision["token_ids"], expected.decision["token_ids"])
    assert np.array_equal(output.actions, expected.actions)
    assert {path.name for path in tmp_path.iterdir()} == {
        "config.json",
        "model.safetensors",
        "dataset_statistics.json",
        "preprocessor_config.json",
        "tokenizer.json",
    }


def test_weights_of_another_copy_can_be_loaded_with_their_version(make_policy, make_observation):
    source, target, observation = make_policy(seed=1), make_policy(seed=2), make_observation(2)
    expected = source.act(observation, uniforms=None, temperature=1.0)
    target.load_weights(dict(source.trainable_module().named_parameters()), version=7)
    frozen = {name: p for name, p in source.trainable_module().named_parameters() if not p.requires_grad}
    assert frozen
    output = target.act(observation, uniforms=None, temperature=1.0)
    assert np.array_equal(output.decision["logprobs"], expected.decision["logprobs"])
    assert (expected.policy_version, output.policy_version, target.version) == (0, 7, 7)


def test_of_a_policy_with_adapters_the_adapters_are_enough(make_policy, make_observation):
    source, target = make_policy(lora_rank=2), make_policy(lora_rank=2)
    adapters = {name: p for name, p in source.trainable_module().named_parameters() if p.requires_grad}
    for parameter in adapters.values():
        torch.nn.init.normal_(parameter, std=0.1)
    target.load_weights(adapters, version=1)
    outputs = [p.act(make_observation(2), uniforms=None, temperature=1.0) for p in (source, target)]
    assert np.array_equal(outputs[0].decision["logprobs"], outputs[1].decision["logprobs"])


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (lambda weights: weights.update(stranger=torch.ones(1)), "stranger"),
        (lambda weights: weights.update({"projector.fc1.bias": torch.ones(3)}), r"projector\.fc1\.bias has shape \(3,\)"),
        (lambda weights: weights.pop("projector.fc1.bias"), r"lack 1 .*projector\.fc1\.bias"),
    ],
)
def test_weights_that_do_not_fit_are_refused_and_change_nothing(make_policy, edit, message):
    policy, other = make_policy(seed=0), make_policy(seed=1)
    before = {name: p.clone() for name, p in policy.trainable_module().named_parameters()}
    weights = dict(other.trainable_module().named_parameters())
    edit(weights)
    with pytest.raises(ValueError, match=message):
        policy.load_weights(weights, version=3)
    assert policy.version == 0
    assert all(torch.equal(p, before[name]) for name, p in policy.trainable_module().named_parameters())


def test_numbers_and_tokens_of_the_wrong_shape_are_refused(make_policy, make_observation):
    policy, observation = make_policy(), make_observation(2)
    with pytest.raises(ValueError, match=r"uniforms must be \(2, 56\), got \(2, 7\)"):
        policy.act(observation, uniforms=np.zeros((2, 7), np.float32), temperature=1.0)
    with pytest.raises(ValueError, match=r"token_ids must be \(2, 56\)"):
        policy.evaluate(observation, {"token_ids": torch.zeros(2, 7, dtype=torch.int32)}, temperature=1.0)


def test_padding_to_fixed_shapes_changes_no_decision(make_policy, make_observation, monkeypatch):
    monkeypatch.setattr(SimpleVLAOFT, "compile_blocks", lambda self: None)
    plain, bucketed, observation = make_policy(), make_policy(compile=True), make_observation(19)
    shapes = []
    bucketed.model.register_forward_hook(lambda module, inputs, output: shapes.append((len(output), inputs[1].shape[1])))
    expected, output = (p.act(observation, uniforms=_uniforms(p, 19), temperature=1.6) for p in (plain, bucketed))
    [(rows, width)] = shapes
    config = plain.model.config
    assert rows == 20
    assert (width + config.num_patches + config.num_action_tokens + 1) % 8 == 0
    assert np.array_equal(output.decision["token_ids"], expected.decision["token_ids"])
    np.testing.assert_allclose(output.decision["logprobs"], expected.decision["logprobs"], atol=1e-5)


def test_fewer_rows_than_the_graph_of_updates_has_are_padded_to_as_many_and_learn_the_same(make_policy, make_observation):
    plain, padded, observation = make_policy(), make_policy(), make_observation(3)

    class Graph:
        num_rows = 5

        def __call__(self, frames, *prompts):
            assert len(frames) == 5
            return padded._logits(frames, *prompts)

    padded._graphed_logits = Graph()
    tokens, results = torch.randint(0, 256, (3, 56)) + plain.model.config.first_action_id, []
    for policy in (plain, padded):
        logprobs = policy.evaluate(observation, {"token_ids": tokens}, temperature=1.6)["logprobs"]
        assert logprobs.shape == (3, 56)
        logprobs.sum().backward()
        gradients = [p.grad.flatten() for p in policy.trainable_module().parameters() if p.grad is not None]
        results.append((logprobs.detach(), torch.cat(gradients)))
    torch.testing.assert_close(results[1][0], results[0][0])
    torch.testing.assert_close(results[1][1], results[0][1], rtol=1e-3, atol=1e-5)


def test_rows_of_one_prompt_length_are_not_padded_even_where_shapes_are_fixed(make_policy, make_observation, monkeypatch):
    monkeypatch.setattr(SimpleVLAOFT, "compile_blocks", lambda self: None)
    policy, observation = make_policy(compile=True), _rows(make_observation(4), [0, 3])
    seen = []
    policy.model.register_forward_hook(lambda module, inputs, output: seen.append(inputs))
    policy.act(observation, uniforms=None, temperature=1.0)
    [(_, ids, mask)] = seen
    assert mask is None
    assert (ids[:, -1] == policy.model.config.prompt_end_token_id).all()


def test_weights_that_are_not_finite_are_refused_when_they_act(make_policy, make_observation):
    policy = make_policy()
    with torch.no_grad():
        policy.model.projector.fc3.bias[0] = float("nan")
    with pytest.raises(RuntimeError, match="log-probs are not finite at version 0"):
        policy.act(make_observation(2), uniforms=None, temperature=1.0)


@given(st.integers(1, 2000))
def test_batch_sizes_are_rounded_up_by_at_most_an_eighth_to_few_values(num_rows):
    bucket = batch_bucket(num_rows)
    assert num_rows <= bucket <= max(num_rows, num_rows * 9 / 8)
    assert batch_bucket(bucket) == bucket
    assert len({batch_bucket(n) for n in range(1, 257)}) <= 48


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_sharded_policy_evaluates_trains_and_saves_as_a_plain_one(make_policy, make_observation, tmp_path, compiled):
    from torch.distributed.fsdp import fully_shard

    plain, sharded, observation = make_policy(lora_rank=2), make_policy(lora_rank=2), make_observation(2)
    if compiled:
        sharded.model.recompute(1.0)
        sharded.model.compile_blocks(backend="aot_eager")
    tokens = torch.from_numpy(plain.act(observation, uniforms=None, temperature=1.0).decision["token_ids"])
    torch.distributed.init_process_group("gloo", store=torch.distributed.HashStore(), rank=0, world_size=1)
    try:
        module = sharded.trainable_module()
        for block in module.blocks:
            fully_shard(block)
        fully_shard(module)
        logprobs = [p.evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"] for p in (plain, sharded)]
        torch.testing.assert_close(logprobs[1], logprobs[0])
        for result in logprobs:
            result.sum().backward()
        gradients = [{n: p.grad for n, p in policy.model.named_parameters() if p.requires_grad} for policy in (plain, sharded)]
        for name, gradient in gradients[0].items():
            torch.testing.assert_close(gradients[1][name].full_tensor(), gradient, msg=name)
        sharded.save_pretrained(str(tmp_path))
    finally:
        torch.distributed.destroy_process_group()
    again = make_policy(checkpoint=str(tmp_path))
    torch.testing.assert_close(again.evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"], logprobs[0])


@pytest.mark.parametrize(
    ("trained", "gigabytes", "worth"),
    [(7.5e9, 150, False), (7.5e9, 80, False), (0.11e9, 24, True), (16e6, 24, True)],
    ids=["all weights of the 7B", "the same on 80 GB", "its adapters", "all weights of the small one"],
)
def test_updates_are_graphs_unless_their_gradients_take_much_of_the_gpu(trained: float, gigabytes: int, worth: bool) -> None:
    assert worth_graphs(int(2 * trained), gigabytes * 10**9) == worth


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4}], ids=str)
def test_cuda_graphs_of_compiled_blocks_give_what_the_plain_module_gives(make_policy, make_observation, options):
    plain, graphed = (make_policy(device="cuda", compile=compiled, **options) for compiled in (False, True))
    for num_rows in (3, 19) * 4:
        observation = make_observation(num_rows, seed=num_rows)
        for uniforms in (None, _uniforms(plain, num_rows)):
            expected, output = (p.act(observation, uniforms=uniforms, temperature=1.6) for p in (plain, graphed))
            same = output.decision["token_ids"] == expected.decision["token_ids"]
            assert same.mean() > 0.99
            np.testing.assert_allclose(output.decision["logprobs"][same], expected.decision["logprobs"][same], atol=1e-3)


@pytest.mark.gpu
def test_a_replayed_graph_sees_new_weights(make_policy, make_observation):
    policy, other, observation = (
        make_policy(device="cuda", compile=True),
        make_policy(device="cuda", seed=1),
        make_observation(),
    )
    for _ in range(4):
        policy.act(observation, uniforms=None, temperature=1.0)
    policy.load_weights(dict(other.trainable_module().named_parameters()), version=1)
    outputs = [p.act(observation, uniforms=None, temperature=1.0) for p in (policy, other)]
    np.testing.assert_allclose(outputs[0].decision["logprobs"], outputs[1].decision["logprobs"], atol=1e-3)


@pytest.mark.gpu
@pytest.mark.parametrize("options", [{}, {"lora_rank": 4, "activation_checkpointing": "on"}], ids=str)
def test_compiled_training_gives_the_gradients_of_plain_training(make_policy, make_observation, options):
    policies = [make_policy(device="cuda", compile=compiled, **options) for compiled in (False, True)]
    for num_rows in (3, 5):
        observation, gradients = make_observation(num_rows), []
        tokens = torch.from_numpy(policies[0].act(observation, uniforms=None, temperature=1.0).decision["token_ids"])
        for policy in policies:
            policy.model.zero_grad()
            policy.evaluate(observation, {"token_ids": tokens}, temperature=1.0)["logprobs"].sum().backward()
            gradients.append({name: p.grad for name, p in policy.model.named_parameters() if p.grad is not None})
        assert gradients[0].keys() == gradients[1].keys()
        for name, expected in gradients[0].items():
            assert (gradients[1][name] - expected).norm() <= 1e-3 * expected.norm() + 1e-6, name


@pytest.mark.gpu
def test_sampling_in_bfloat16_graphs_stays_near_training_in_smaller_batches(make_policy, make_observation):
    policy, observation = make_policy(device="cuda", dtype="bfloat16", compile=True, lora_rank=4), make_observation(19)
    output = policy.act(observation, uniforms=_uniforms(policy, 19), temperature=1.6)
    gaps = []
    for first in range(0, 19, 4):
        rows = list(range(19))[first : first + 4]
        tokens = torch.from_numpy(output.decision["token_ids"][rows])
        logprobs = policy.evaluate(_rows(observation, rows), {"token_ids": tokens}, temperature=1.6)["logprobs"].detach()
        gaps.append(np.abs(logprobs.cpu().numpy() - output.decision["logprobs"][rows]))
    assert np.concatenate(gaps).mean() < 0.01
