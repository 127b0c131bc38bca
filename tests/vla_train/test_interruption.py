"""Ctrl-C and SIGTERM end a run where it can be saved; asked twice, at once."""

import os
import signal
import threading
from collections.abc import Callable

import pytest

from vla_train.interruption import Interrupted, Interruption

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def work(interruption: Interruption, *steps: Callable[[], object]) -> None:
    """Do the steps in a deferred block."""
    with interruption.deferred():
        for step in steps:
            step()


@SIGNALS
def test_a_signal_raises_at_once_where_nothing_is_deferred(number: int) -> None:
    interruption = Interruption(lambda: pytest.fail("nothing is deferred"))
    with interruption.watch():
        with pytest.raises(Interrupted):
            send(number)
        assert not interruption.broke_off


@SIGNALS
def test_the_first_signal_waits_for_the_end_of_a_deferred_block(number: int) -> None:
    told: list[str] = []
    interruption = Interruption(lambda: told.append("waits"))
    with interruption.watch():
        with pytest.raises(Interrupted):
            work(interruption, lambda: send(number), lambda: told.append("block went on"))
        told.append("raised")
    assert told == ["waits", "block went on", "raised"]
    assert not interruption.broke_off


def test_the_second_signal_breaks_a_deferred_block_off() -> None:
    reached: list[str] = []
    interruption = Interruption(lambda: reached.append("waits"))
    with interruption.watch():
        with pytest.raises(Interrupted):
            work(
                interruption,
                lambda: send(signal.SIGINT),
                lambda: reached.append("first"),
                lambda: send(signal.SIGTERM),
                lambda: reached.append("second"),
            )
        assert interruption.broke_off
        work(interruption, lambda: reached.append("nothing is left of it"))
    assert reached == ["waits", "first", "nothing is left of it"]


def test_a_block_without_signals_ends_quietly() -> None:
    interruption = Interruption(lambda: pytest.fail("nobody asked"))
    with interruption.watch(), interruption.deferred():
        pass


def test_an_error_in_a_deferred_block_is_not_hidden_by_a_signal() -> None:
    interruption = Interruption(lambda: None)
    with interruption.watch(), pytest.raises(ZeroDivisionError):
        work(interruption, lambda: send(signal.SIGTERM), lambda: 1 / 0)


def test_earlier_handlers_come_back_also_after_an_interruption() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interruption = Interruption(lambda: None)
    with interruption.watch():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    with pytest.raises(Interrupted), interruption.watch():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interruption_is_a_keyboard_interrupt_so_that_no_handler_of_errors_swallows_it() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def test_another_thread_than_the_main_one_may_watch_without_effect() -> None:
    before = signal.getsignal(signal.SIGTERM)
    outcome: list[object] = []

    def work() -> None:
        with Interruption(lambda: None).watch():
            outcome.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [before]
