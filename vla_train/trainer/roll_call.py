"""What ranks say beside their collectives: that they are there, that all should end, and when they meet.

A collective cannot tell a rank that is gone from one whose rollout takes long, and what waits in one hears no signal. So
messages go through rank 0:

    r -> 0    here | at, asked | call | bye | left, text         0 -> r    here | met, asked | call | bye | lost, text

* The *main thread* waits in `meet`, where signals reach it, until all ranks are there, however long that takes.
* *A thread* says `here` every second, and hears the others.

Invariant: once a rank is lost, every other one ends within `GRACE_S`, whatever it waits for. A rank is lost when its process
ends before it said `bye`, or gives no sign of life for `SILENT_S`. What keeps the thread from running, a call that waits for a
GPU and holds Python's global lock, makes it silent, and ends it after both; another process says so then.
"""

import faulthandler
import os
import queue
import selectors
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import IO

from vla_train.trainer.rank_lines import Message, RankLostError, read_messages, send

SILENT_S = 40.0
"""A process or a machine that stands still is noticed after this."""
GRACE_S = 15.0
"""What is left to the main thread to end by itself."""
_BEAT_S = 1.0
_LAST_WORDS = "import sys; text = sys.stdin.read(); sys.exit(text + sys.argv[1] if text else 0)"
"""Program of a process that outlives a rank, and says why it ended, if it was ended in the middle of a call."""


class RollCall:
    """This rank's end.

    Args:
        rank: This one.
        lines: By rank; see `open_lines`.
        silent_s: See `SILENT_S`.
        grace_s: See `GRACE_S`.
    """

    def __init__(
        self, rank: int, lines: Mapping[int, socket.socket], *, silent_s: float = SILENT_S, grace_s: float = GRACE_S
    ) -> None:
        self.on_call: Callable[[], None] = lambda: None
        """Told, in another thread, that all should end."""
        self.kept: Callable[[], str] = lambda: "the same command starts again"
        """What the last line says of what is left, where the main thread cannot say it."""
        self.lost: str | None = None
        """Which rank is gone, and how that was seen."""
        self._rank = rank
        self._lines = dict(lines)
        self._silent_s = silent_s
        self._grace_s = grace_s
        self._arrived: dict[int, bool] = {}
        """On rank 0: who is at the next meeting, and whether it asks to end."""
        self._met: queue.SimpleQueue[bool | None] = queue.SimpleQueue()
        """Outcomes of meetings; None where a rank was lost."""
        self._parted: set[int] = set()
        """Ranks that said `bye`."""
        self._left = False
        self._noticed = threading.Event()
        self._lock = threading.RLock()
        self._last_words = self._open_last_words()
        threading.Thread(target=self._attend, name="roll call", daemon=True).start()

    # --- the main thread's side

    def meet(self, *, asked: bool) -> bool:
        """Wait until all ranks are here; returns whether any of them asks to end.

        Raises:
            RankLostError: One is gone.
        """
        outcome = None
        if self.lost is None:
            self._tell_first({"say": "at", "asked": asked})
            outcome = self._met.get()
        if outcome is None:
            raise RankLostError(self.lost)
        return outcome

    def call(self) -> None:
        """Ask the others to break off what can be done again, and come to the next meeting."""
        self._tell_first({"say": "call"})

    def leave(self, text: str | None = None) -> None:
        """End this rank's part: as agreed, or for the reason that `text` gives. Only the first call counts."""
        with self._lock:
            if self._left:
                return
            self._left = True
            faulthandler.cancel_dump_traceback_later()
        self._tell_first({"say": "bye"} if text is None else {"say": "left", "text": f"rank {self._rank} ended: {text}"})

    def find_lost(self, timeout_s: float) -> str | None:
        """`lost`, after a while if need be: a collective may have failed a moment earlier."""
        self._noticed.wait(timeout_s)
        return self.lost

    def with_kept(self, lost: str) -> str:
        """What was lost, and what is left, which the rank that is gone may have said already."""
        kept = self.kept()
        return lost if lost.endswith(kept) else f"{lost}; {kept}"

    # --- messages

    def _tell_first(self, message: Message) -> None:
        """Tell rank 0, which may be this one."""
        if self._rank == 0:
            self._hear(0, message)
        else:
            self._tell(0, message)

    def _tell(self, rank: int, message: Message) -> None:
        with self._lock, suppress(OSError):  # who reads the line sees that it has ended
            send(self._lines[rank], message)

    def _tell_others(self, message: Message, *, but: int) -> None:
        if self._rank == 0:
            for rank in self._lines:
                if rank != but:
                    self._tell(rank, message)

    def _hear(self, rank: int, message: Message) -> None:
        """What a rank says; on rank 0 its own too."""
        with self._lock:
            match message["say"]:
                case "at":
                    self._arrived[rank] = message["asked"]
                    if len(self._arrived) == len(self._lines) + 1:
                        asked = any(self._arrived.values())
                        self._arrived = {}
                        self._tell_others({"say": "met", "asked": asked}, but=0)
                        self._met.put(asked)
                case "met":
                    self._met.put(message["asked"])
                case "call":
                    self._tell_others(message, but=rank)
                    if rank != self._rank:
                        self.on_call()
                case "bye":
                    self._parted.add(rank)
                    if rank == self._rank:
                        self._tell_others(message, but=rank)
                case "left" if rank == self._rank:
                    self._tell_others({**message, "say": "lost"}, but=rank)
                case "left" | "lost":
                    self._parted.add(rank)
                    self._lose(message["text"])

    # --- the thread

    def _attend(self) -> None:
        """Be heard, and hear all others until they are gone."""
        next_beat = 0.0
        readers = {rank: read_messages(line) for rank, line in self._lines.items()}
        heard = dict.fromkeys(readers, time.monotonic())
        with selectors.DefaultSelector() as selector:
            for rank, line in self._lines.items():
                selector.register(line, selectors.EVENT_READ, rank)
            while selector.get_map():
                for key, _ in selector.select(timeout=_BEAT_S):
                    rank = key.data
                    messages, heard[rank] = next(readers[rank]), time.monotonic()
                    if messages is None:
                        selector.unregister(key.fileobj)
                        self._miss(rank, "its process ended")
                    for message in messages or ():
                        self._hear(rank, message)
                now = time.monotonic()
                if now >= next_beat:
                    next_beat = now + _BEAT_S
                    self._live_on()
                    for rank in self._lines:
                        self._tell(rank, {"say": "here"})
                for rank, at in heard.items():
                    if now - at > self._silent_s:
                        self._miss(rank, f"it gave no sign of life for {self._silent_s:g} s")
        if self.lost is None:  # all others have left
            faulthandler.cancel_dump_traceback_later()

    def _open_last_words(self) -> IO[bytes]:
        """Whatever is written there goes to stderr when this process has ended, and what that means after it."""
        text = (
            f"error: rank {self._rank} waited in a call that lets no other thread run, as for a GPU where another rank is gone"
            "; the same command goes on from the newest checkpoint"
        )
        words = [sys.executable, "-I", "-S", "-c", _LAST_WORDS, text]
        process = subprocess.Popen(words, stdin=subprocess.PIPE, start_new_session=True)  # Ctrl-C is not for it
        assert process.stdin is not None
        return process.stdin

    def _live_on(self) -> None:
        """Let this process be ended, with the traceback of each thread, where this is not called again in time."""
        with self._lock:
            if not self._left:
                faulthandler.dump_traceback_later(self._silent_s + self._grace_s, exit=True, file=self._last_words)

    def _miss(self, rank: int, how: str) -> None:
        if rank not in self._parted:
            self._lose(f"rank {rank} is gone: {how}")

    def _lose(self, text: str) -> None:
        """Pass it on, and see that this process ends."""
        with self._lock:
            if self.lost is not None or self._left:
                return
            self.lost = text
            self._tell_others({"say": "lost", "text": text}, but=0)
        self._met.put(None)
        self._noticed.set()
        self.on_call()
        timer = threading.Timer(self._grace_s, self._end_process)
        timer.daemon = True
        timer.start()

    def _end_process(self) -> None:
        if not self._left:  # the main thread waits for what never comes
            print(f"error: {self.with_kept(self.lost or '')}", file=sys.stderr, flush=True)
        os._exit(1)
