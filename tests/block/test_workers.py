"""Workers answer what they are asked, pass errors on, and let go."""

from __future__ import annotations

import threading

import pytest

from vdisk.block.workers import Workers


def test_each_answer_is_that_of_its_task() -> None:
    with Workers(3) as workers:
        answers = [workers.ask(pow, number, 2) for number in range(100)]
        assert [answer.take() for answer in answers] == [number**2 for number in range(100)]


def test_an_error_is_raised_where_the_answer_is_taken() -> None:
    with Workers(2) as workers:
        fails, works = workers.ask(int, "x"), workers.ask(int, "7")
        with pytest.raises(ValueError, match="invalid literal"):
            fails.take()
        assert works.take() == 7


def test_leaving_drops_what_has_not_begun_and_ends_the_threads() -> None:
    before = threading.active_count()
    begun, go_on, done = threading.Event(), threading.Event(), []

    def wait() -> None:
        begun.set()
        go_on.wait(10)
        done.append("first")

    def leave_halfway() -> None:
        with Workers(1) as workers:
            workers.ask(wait)
            for _ in range(5):
                workers.ask(done.append, "never")
            begun.wait(10)
            threading.Timer(0.05, go_on.set).start()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        leave_halfway()
    assert done == ["first"]
    assert threading.active_count() <= before + 1  # the timer may be about to end
