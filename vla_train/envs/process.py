"""A shard in a process of its own: for envs that hold the GIL, crash or hang.

Commands and replies are a few numbers through a pipe; observations and actions lie in shared memory. The child ignores
Ctrl-C (its parent decides) and ends when the pipe closes, however its parent ended. It may have children of its own.
"""

import atexit
import contextlib
import multiprocessing
import pickle
import signal
import threading
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess

import numpy as np

from vla_train.config import EnvConfig
from vla_train.envs.factory import make_env_shard
from vla_train.envs.shard import ShardResult
from vla_train.envs.shared_arrays import ArrayLayout, SharedFile, attach_arrays, create_arrays, make_shared_file
from vla_train.envs.worker import CLOSE_TIMEOUT_S, Command, EnvWorker, Reset, Started, Step, WorkerFault, execute
from vla_train.types import EnvDescription

_RESULT_FIELDS = ("rewards", "num_steps", "terminated", "truncated", "succeeded")
_OBSERVATION = "observation/"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Done:
    """A command was carried out; the arrays of the result lie in shared memory."""

    keys: tuple[str, ...]
    instructions: tuple[str, ...] | None
    """None where they are what they were."""
    frames: Mapping[int, np.ndarray]
    """Of few slots: they go through the pipe."""
    began: float
    ended: float
    drew: tuple[float, float] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class _Failed:
    error: bytes
    """Pickled; empty where it cannot be."""
    text: str
    traceback: str

    def cause(self) -> BaseException:
        """The error itself where this process knows its class, and it survives pickling; else its text."""
        try:
            return pickle.loads(self.error)
        except Exception:
            error = RuntimeError(self.text)
            error.add_note(self.traceback)
            return error


@dataclass(frozen=True, kw_only=True, slots=True)
class _StepSent:
    """Actions lie in shared memory."""

    keys: tuple[str, ...]
    film: Mapping[int, bool]


class ProcessWorker(EnvWorker):
    """A shard in a spawned process."""

    _process: BaseProcess | None = None
    _up = False
    _pipe: Connection
    _arrays: dict[str, np.ndarray]
    _receiver: threading.Thread

    def start(self) -> None:
        self.incarnation += 1
        self._up = False
        context = multiprocessing.get_context("spawn")
        self._pipe, child_pipe = context.Pipe()
        # What is observed is not known yet; where the file lies only has to suit two usual images.
        file = make_shared_file(2 * self.config.envs_per_worker * 512 * 512 * 3)
        try:
            process = context.Process(
                target=_serve,
                args=(child_pipe, file, self.config, self.chunk_size),
                name=f"env {self.index}",
                daemon=False,  # daemonic processes may have no children
            )
            process.start()
        except BaseException:
            file.close()
            raise
        self._process = process
        atexit.register(process.kill)  # else Python would wait for it, where nobody closed this worker
        child_pipe.close()
        self._receiver = threading.Thread(
            target=self._receive,
            args=(self.incarnation, self._pipe, process, file),
            name=f"env {self.index} receiver",
            daemon=True,
        )
        self._receiver.start()

    def _receive(self, incarnation: int, pipe: Connection, process: BaseProcess, file: SharedFile) -> None:
        instructions: tuple[str, ...] = ()
        arrays: dict[str, np.ndarray] = {}
        try:
            while True:
                message = pipe.recv()
                if isinstance(message, Started):
                    arrays = attach_arrays(file, _layout(message.description, self.chunk_size))
                    if incarnation == self.incarnation:
                        self._arrays, self._up = arrays, True
                    self._emit(incarnation, message)
                elif isinstance(message, _Done):
                    if message.instructions is not None:
                        instructions = message.instructions
                    result = ShardResult(
                        observations={key: arrays[_OBSERVATION + key] for key in message.keys},
                        instructions=instructions,
                        frames=message.frames,
                        **{name: arrays[name] for name in _RESULT_FIELDS},
                        began=message.began,
                        ended=message.ended,
                        drew=message.drew,
                    )
                    self._emit(incarnation, result)
                else:
                    self._emit(incarnation, WorkerFault(error=message.cause()))
                    return
        except (EOFError, OSError):
            process.join(CLOSE_TIMEOUT_S)
            code = process.exitcode
            how = f"was killed by signal {-code}" if code is not None and code < 0 else f"ended with status {code}"
            self._emit(incarnation, WorkerFault(error=RuntimeError(f"the process of worker {self.index} {how}")))
        except Exception as error:  # the fault boundary of this thread
            self._emit(incarnation, WorkerFault(error=error))
        finally:
            file.close()

    def send(self, command: Command) -> None:
        try:
            if isinstance(command, Step):
                self._arrays["actions"][:] = command.actions
                self._arrays["active"][:] = command.active
                self._pipe.send(_StepSent(keys=command.keys, film=command.film))
            else:
                self._pipe.send(command)
        except OSError:
            pass  # it died; the receiver has said so, or will

    def kill(self) -> None:
        self.incarnation += 1
        process, self._process = self._process, None
        if process is not None:
            atexit.unregister(process.kill)
            process.kill()
            process.join(CLOSE_TIMEOUT_S)

    def close(self) -> None:
        if self._process is None:
            return
        self.incarnation += 1
        if self._up:  # while it is being made, it does not listen
            with contextlib.suppress(OSError):
                self._pipe.send(None)
            self._process.join(CLOSE_TIMEOUT_S)
        self.kill()
        self._receiver.join(CLOSE_TIMEOUT_S)
        self._pipe.close()


def _layout(description: EnvDescription, chunk_size: int) -> dict[str, ArrayLayout]:
    slots = description.num_slots
    return {
        **{_OBSERVATION + key: ArrayLayout((slots, *spec.shape), spec.dtype) for key, spec in description.observations.items()},
        "actions": ArrayLayout((slots, chunk_size, description.action_dim), "float32"),
        "active": ArrayLayout((slots,), "bool"),
        "rewards": ArrayLayout((slots,), "float32"),
        "num_steps": ArrayLayout((slots,), "int32"),
        "terminated": ArrayLayout((slots,), "bool"),
        "truncated": ArrayLayout((slots,), "bool"),
        "succeeded": ArrayLayout((slots,), "bool"),
    }


def _serve(pipe: Connection, file: SharedFile, config: EnvConfig, chunk_size: int) -> None:
    """The child: carry out commands until the pipe closes."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    shard = None
    try:
        shard = make_env_shard(config, chunk_size=chunk_size)
        arrays = create_arrays(file, _layout(shard.description, chunk_size))
        pipe.send(Started(description=shard.description))
        instructions: tuple[str, ...] = ()
        while (message := pipe.recv()) is not None:
            if isinstance(message, Reset):
                command: Command = message
                changed = np.array(message.slots)
            else:
                given = {"actions": arrays["actions"].copy(), "active": arrays["active"].copy()}
                command = Step(**given, keys=message.keys, film=message.film)
                changed = np.flatnonzero(command.active)
            result = execute(shard, command)
            for name in _RESULT_FIELDS:
                arrays[name][:] = getattr(result, name)
            for key, array in result.observations.items():
                arrays[_OBSERVATION + key][changed] = array[changed]
            news = None if result.instructions == instructions else result.instructions
            instructions = result.instructions
            done = _Done(
                keys=command.keys,
                instructions=news,
                frames=result.frames,
                began=result.began,
                ended=result.ended,
                drew=result.drew,
            )
            pipe.send(done)
    except (EOFError, BrokenPipeError):
        pass  # the parent is gone
    except BaseException as error:  # the fault boundary of this process
        with contextlib.suppress(OSError):
            pipe.send(_failed(error))
    finally:
        if shard is not None:
            shard.close()


def _failed(error: BaseException) -> _Failed:
    told = "".join(traceback.format_exception(error))
    error.add_note(told)
    try:
        pickled = pickle.dumps(error)
    except Exception:
        pickled = b""
    return _Failed(error=pickled, text=f"{type(error).__name__}: {error}", traceback=told)
