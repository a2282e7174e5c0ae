"""`Workers`: threads that work through tasks, and can be left at any moment.

The standard pools wait on conditions whose locks are taken in Python: an interrupt (Ctrl-C, SIGTERM) that arrives just
then leaves a lock taken, and the pool's end waits for ever; or it finds one that is free, as `Thread.start` does, and
ends in a RuntimeError. Here the threads share nothing but `SimpleQueue`s, whose waiting is one step that an interrupt
either ends or does not.
"""

from __future__ import annotations

import _thread
from collections.abc import Callable
from queue import SimpleQueue
from typing import Any, Generic, Self, TypeVar

_T = TypeVar("_T")


class Answer(Generic[_T]):
    """What a task will return."""

    def __init__(self) -> None:
        self._queue: SimpleQueue[tuple[Any, BaseException | None]] = SimpleQueue()

    @property
    def is_there(self) -> bool:
        """Whether `take` would not have to wait."""
        return not self._queue.empty()

    def take(self) -> _T:
        """Wait for the task; returns what it returned, or raises what it raised. To be called once."""
        value, error = self._queue.get()
        if error is not None:
            raise error
        result: _T = value
        return result


class Workers:
    """Some threads, as a context manager: leaving it drops the tasks not begun and waits for those that are."""

    def __init__(self, count: int) -> None:
        self._tasks: SimpleQueue[tuple[Callable[..., Any], tuple[Any, ...], Answer[Any]] | None] = SimpleQueue()
        self._ended: SimpleQueue[None] = SimpleQueue()
        self._is_left = False
        self._count = count

    def ask(self, task: Callable[..., _T], *arguments: Any) -> Answer[_T]:
        """Let a thread call `task(*arguments)`."""
        answer: Answer[_T] = Answer()
        self._tasks.put((task, arguments, answer))
        return answer

    def _work(self) -> None:
        try:
            self._work_off()
        finally:
            self._ended.put(None)

    def _work_off(self) -> None:
        while (item := self._tasks.get()) is not None:
            task, arguments, answer = item
            if self._is_left:
                continue
            try:
                answer._queue.put((task(*arguments), None))
            except BaseException as error:
                answer._queue.put((None, error))
            del item, task, arguments, answer  # a worker that waits keeps no buffer alive

    def __enter__(self) -> Self:
        for _ in range(self._count):
            _thread.start_new_thread(self._work, ())  # such a thread keeps no process from ending
        return self

    def __exit__(self, *exc: object) -> None:
        self._is_left = True
        for _ in range(self._count):
            self._tasks.put(None)
        for _ in range(self._count):
            self._ended.get()
