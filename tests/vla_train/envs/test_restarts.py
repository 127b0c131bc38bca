"""What works in between may fail again and again; what does not work at all may not."""

from vla_train.envs.restarts import Restarts


def failures_until_exhausted(restarts: Restarts, *, work_between: int, most: int) -> int:
    """How often it fails, with so much work between failures, before it may not be restarted; at most `most` times."""
    for failure in range(1, most):
        if restarts.exhausted:
            return failure
        restarts.restarted()
        for _ in range(work_between):
            restarts.worked()
    return most


def test_what_never_works_is_restarted_so_often_and_no_more() -> None:
    assert failures_until_exhausted(Restarts(most=0, window=4), work_between=0, most=100) == 1
    assert failures_until_exhausted(Restarts(most=3, window=4), work_between=0, most=100) == 4


def test_what_works_in_between_is_restarted_for_ever() -> None:
    assert failures_until_exhausted(Restarts(most=3, window=4), work_between=12, most=1000) == 1000
    assert failures_until_exhausted(Restarts(most=1, window=4), work_between=4, most=1000) == 1000


def test_too_little_work_in_between_is_not_enough() -> None:
    assert failures_until_exhausted(Restarts(most=3, window=3), work_between=1, most=100) == 100, "three in three are allowed"
    assert failures_until_exhausted(Restarts(most=3, window=4), work_between=1, most=100) == 4


def test_no_restart_is_allowed_where_none_may_be_however_much_was_done() -> None:
    restarts = Restarts(most=0, window=1)
    restarts.worked()
    assert restarts.exhausted
