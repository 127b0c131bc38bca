"""What a run shows says which phase it is in, how far, and how fast, on a terminal and in a log file."""

import re
import threading
import time

import pytest

import vla_train.display
from vla_train.display import Display


def without_control_codes(text: str) -> str:
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


def shown_within(seconds: float, capsys: pytest.CaptureFixture[str], wanted: str) -> str:
    """What is printed until `wanted` is among it."""
    shown, deadline = "", time.monotonic() + seconds
    while wanted not in shown and time.monotonic() < deadline:
        time.sleep(0.01)
        shown += capsys.readouterr().out
    return shown


def test_plain_lines_say_the_phase_how_far_what_was_told_and_since_when(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vla_train.display, "_INTERVAL_S", 0.05)
    with Display("plain").phase("rollout", total=8, unit="groups") as show:
        assert re.search(r"^  rollout: 0/8 groups  \(\d+ s so far\)$", shown_within(60, capsys, "so far)\n"), re.MULTILINE)
        show(3, "1.8 chunks/s")
        line = r"^  rollout: 3/8 groups  1\.8 chunks/s  \(\d+ s so far\)$"
        assert re.search(line, shown_within(60, capsys, "chunks/s  "), re.MULTILINE)


def test_plain_lines_say_how_fast_where_nothing_else_was_told(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(vla_train.display, "_INTERVAL_S", 0.05)
    with Display("plain").phase("evaluation", total=9, unit="episodes") as show:
        show(4, "")
        assert "evaluation: 4/9 episodes  (" in shown_within(60, capsys, "4/9"), "one reading says nothing about speed"
        show(7, "")
        assert re.search(r"  evaluation: 7/9 episodes  \d+\.\d episodes/(s|min)  \(", shown_within(60, capsys, "7/9"))


def test_a_log_file_does_not_fill_with_progress(capsys: pytest.CaptureFixture[str]) -> None:
    with Display("plain").phase("update", total=10_000, unit="chunks") as show:
        for done in range(10_000):
            show(done, "")
    assert capsys.readouterr().out.count("\n") <= 1


def test_whatever_takes_long_says_what_it_is(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(vla_train.display, "_INTERVAL_S", 0.05)
    with Display("plain").waiting("setting [up]"):
        assert "  setting [up]  (0 s so far)\n" in shown_within(60, capsys, "so far)\n")
    with Display("rich").waiting("setting [up]"):
        pass
    assert "setting [up]" in without_control_codes(capsys.readouterr().out)


def test_what_is_quick_says_nothing_and_leaves_no_thread(capsys: pytest.CaptureFixture[str]) -> None:
    before = set(threading.enumerate())
    with Display("plain").waiting("setting up"), Display("none").waiting("more"):
        pass
    with Display("plain").phase("update", total=8, unit="chunks"):
        pass
    assert capsys.readouterr().out == ""
    assert set(threading.enumerate()) <= before


def test_plain_lines_are_never_wrapped_nor_coloured(capsys: pytest.CaptureFixture[str]) -> None:
    Display("plain").line("[bold]iteration 1[/bold]  " + "x" * 300)
    assert capsys.readouterr().out == "iteration 1  " + "x" * 300 + "\n"


def test_the_live_bar_shows_phase_count_unit_and_status(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("rich")
    with display.phase("rollout", total=8, unit="groups") as show:
        show(3, "1.8 chunks/s")
        display.line("iteration 1/2  [yellow]no group with signal[/yellow]")
    drawn = capsys.readouterr().out
    assert "\x1b[" in drawn
    text = without_control_codes(drawn)
    bar = next(line for line in text.replace("\r", "\n").splitlines() if "3/8" in line)
    assert re.search(r"rollout .*3/8 groups .*1\.8 chunks/s", bar)
    assert "iteration 1/2  no group with signal" in text


@pytest.mark.parametrize("mode", ["rich", "plain"])
def test_a_table_shows_every_cell_as_it_is(mode: str, capsys: pytest.CaptureFixture[str]) -> None:
    Display(mode).table("after [1]", ["task", "success"], [["0 open the [red] drawer", "50.0%"], ["all", "25.0%"]])  # type: ignore[arg-type]
    text = without_control_codes(capsys.readouterr().out)
    for cell in ("after [1]", "task", "0 open the [red] drawer", "50.0%", "25.0%"):
        assert cell in text


def test_none_prints_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    display = Display("none")
    display.line("x")
    display.table("t", ["a"], [["b"]])
    with display.phase("update", total=1, unit="chunks") as show:
        show(1, "")
    assert capsys.readouterr().out == ""


def test_auto_is_plain_where_the_output_is_no_terminal(capsys: pytest.CaptureFixture[str]) -> None:
    Display("auto").line("[bold]x[/bold]")
    assert capsys.readouterr().out == "x\n"


def test_an_error_inside_a_phase_comes_out_of_it() -> None:
    for mode in ("rich", "plain", "none"):
        with pytest.raises(ZeroDivisionError), Display(mode).phase("update", total=1, unit="chunks"):  # type: ignore[arg-type]
            _ = 1 / 0
