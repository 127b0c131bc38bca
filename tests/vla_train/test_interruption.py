"""Ctrl-C and SIGTERM end a run where it can be saved; asked twice, at once."""

import contextlib
import os
import queue
import signal
import threading
from collections.abc import Callable

import pytest

from vla_train.interruption import Interrupted, Interruption

SIGNALS = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])


def send(number: int) -> None:
    os.kill(os.getpid(), number)


def work(interruption: Interruption, *steps: Callable[[], object]) -> None:
    """Do the steps in a block that may be broken off."""
    with interruption.allowed():
        for step in steps:
            step()


@SIGNALS
def test_a_signal_raises_at_once_where_that_is_allowed(number: int) -> None:
    interruption = Interruption(lambda: pytest.fail("nothing has to wait"))
    with interruption.watch():
        with pytest.raises(Interrupted):
            work(interruption, lambda: send(number), lambda: pytest.fail("the block went on"))
        assert not interruption.broke_off


@SIGNALS
@pytest.mark.parametrize("until", ["check", "allowed"])
def test_elsewhere_the_first_signal_waits(number: int, until: str) -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    interruption = Interruption(lambda: told.put("it waits"))
    with interruption.watch():
        send(number)
        assert told.get(timeout=60) == "it waits"
        with pytest.raises(Interrupted):
            interruption.check() if until == "check" else work(interruption, lambda: pytest.fail("a block was begun"))
    assert not interruption.broke_off


@SIGNALS
def test_the_second_signal_raises_wherever_it_comes(number: int) -> None:
    interruption = Interruption(lambda: None)
    with interruption.watch():
        send(signal.SIGINT)
        with pytest.raises(Interrupted):
            send(number)
    assert interruption.broke_off


def test_on_several_ranks_signals_that_come_together_are_one_and_all_are_told_once() -> None:
    told: queue.SimpleQueue[str] = queue.SimpleQueue()
    interruption = Interruption(lambda: told.put("it waits"), on_ask=lambda: told.put("all are told"))
    with interruption.watch():
        send(signal.SIGTERM)
        send(signal.SIGTERM)
        assert {told.get(timeout=60), told.get(timeout=60)} == {"it waits", "all are told"}
        assert told.empty()
        with pytest.raises(Interrupted):
            interruption.check()
    assert not interruption.broke_off


def test_another_rank_breaks_off_what_a_signal_breaks_off() -> None:
    interruption = Interruption(lambda: pytest.fail("nothing has to wait"), on_ask=lambda: pytest.fail("nobody is told"))
    nothing: queue.SimpleQueue[None] = queue.SimpleQueue()
    with interruption.watch(), pytest.raises(Interrupted):
        work(interruption, threading.Thread(target=interruption.ask).start, lambda: nothing.get(timeout=60))
    assert not interruption.broke_off


def test_what_another_rank_asked_for_does_not_make_a_signal_the_second() -> None:
    interruption = Interruption(lambda: None, on_ask=lambda: None)
    with interruption.watch():
        interruption.ask()
        send(signal.SIGTERM)
    assert not interruption.broke_off


def test_a_rank_that_asks_late_ends_nothing() -> None:
    interruption = Interruption(lambda: None, on_ask=lambda: None)
    with interruption.watch():
        pass
    interruption.ask()


def test_what_swallows_the_exception_does_not_swallow_the_signal() -> None:
    interruption = Interruption(lambda: None)
    with interruption.watch(), pytest.raises(Interrupted), interruption.allowed(), contextlib.suppress(Interrupted):
        send(signal.SIGTERM)


def test_without_signals_nothing_is_raised() -> None:
    interruption = Interruption(lambda: pytest.fail("nobody asked"))
    with interruption.watch(), interruption.allowed():
        pass
    interruption.check()


def test_an_error_is_not_hidden_by_a_signal_that_waits() -> None:
    interruption = Interruption(lambda: None)
    with pytest.raises(ZeroDivisionError), interruption.watch():  # noqa: PT012
        send(signal.SIGTERM)
        1 / 0  # noqa: B018


def test_a_signal_in_the_middle_of_a_print_waits_for_its_end_to_say_so() -> None:
    printing, told = threading.Lock(), threading.Event()

    def announce() -> None:
        with printing:
            told.set()

    with Interruption(announce).watch():
        with printing:
            send(signal.SIGINT)
        assert told.wait(timeout=60)


def test_earlier_handlers_come_back_also_after_an_interruption() -> None:
    before = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    interruption = Interruption(lambda: None)
    with interruption.watch():
        assert signal.getsignal(signal.SIGTERM) != before[1]
    with pytest.raises(Interrupted), interruption.watch(), interruption.allowed():
        send(signal.SIGINT)
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == before


def test_an_interruption_is_a_keyboard_interrupt_so_that_no_handler_of_errors_swallows_it() -> None:
    assert issubclass(Interrupted, KeyboardInterrupt)
    assert not issubclass(Interrupted, Exception)


def test_another_thread_than_the_main_one_may_watch_without_effect() -> None:
    before = signal.getsignal(signal.SIGTERM)
    outcome: list[object] = []

    def work() -> None:
        interruption = Interruption(lambda: None)
        with interruption.watch(), interruption.allowed():
            outcome.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert outcome == [before]
