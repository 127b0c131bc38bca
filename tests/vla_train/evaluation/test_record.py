"""Evaluations at several temperatures share a record; the first one's numbers have the plain names."""

import json

from vla_train.evaluation.evaluate import EpisodeResult, EvaluationResult, summary
from vla_train.evaluation.record import evaluation_record, summaries


def result(temperature: float, successes: int) -> EvaluationResult:
    return EvaluationResult(
        episodes=tuple(
            EpisodeResult(
                task_id=0,
                init_state_id=state,
                seed=0,
                instruction="go",
                success=state < successes,
                length=5,
                episode_return=0.0,
                temperature=temperature,
            )
            for state in range(4)
        ),
        temperature=temperature,
    )


def test_a_record_gives_back_the_summaries_that_it_was_made_of() -> None:
    results = [result(0.0, 1), result(1.0, 3), result(1.6, 2)]
    record = json.loads(json.dumps(evaluation_record(results)))
    assert (record["success_rate"], record["success_rate_t1.0"], record["success_rate_t1.6"]) == (0.25, 0.75, 0.5)
    assert summaries(record) == {each.temperature: json.loads(json.dumps(summary(each))) for each in results}


def test_a_record_of_sampled_episodes_alone_has_plain_names() -> None:
    record = evaluation_record([result(1.0, 3)])
    assert record["success_rate"] == 0.75
    assert list(summaries(record)) == [1.0]


def test_records_of_earlier_versions_are_greedy() -> None:
    record = evaluation_record([result(0.0, 1)])
    del record["temperatures"]
    assert list(summaries(record)) == [0.0]
