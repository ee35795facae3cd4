"""Whoever waits is woken by a signal, and a poll that may be bringing messages just now is heard out."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import pytest

from handler.drain import Drain, on_ending


def ask_soon(drain: Drain) -> None:
    threading.Timer(0.05, drain.ask).start()


def test_work_is_awaited_and_its_result_returned() -> None:
    assert Drain(5).during(lambda: 7, 0.0) == 7


def test_error_of_the_work_is_raised() -> None:
    def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        Drain(5).during(fail, 0.0)


def test_old_work_is_left_when_asked_to_end() -> None:
    drain, forever = Drain(5), threading.Event()
    ask_soon(drain)
    assert drain.during(forever.wait, patience=0.0) is None
    assert not forever.is_set()
    forever.set()


def test_young_work_is_heard_out() -> None:
    drain, answer = Drain(5), threading.Event()

    def work() -> str:
        drain.ask()
        answer.wait(0.05)
        return "messages"

    assert drain.during(work, patience=30.0) == "messages"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_wakes_the_main_thread_out_of_its_wait(number: signal.Signals) -> None:
    drain, before, forever = Drain(5), signal.getsignal(number), threading.Event()
    with on_ending(drain.ask):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        assert drain.during(forever.wait, patience=0.0) is None
        os.kill(os.getpid(), number)  # a second one changes nothing
    forever.set()
    assert drain.is_asked
    assert signal.getsignal(number) is before


def test_pause_ends_when_asked_to_end_and_is_none_afterwards() -> None:
    drain, begin = Drain(5), time.monotonic()
    drain.pause(0.01)
    ask_soon(drain)
    drain.pause(60)
    drain.pause(60)
    assert time.monotonic() - begin < 30


def test_time_left_counts_from_the_first_asking() -> None:
    now = [100.0]
    drain = Drain(25, clock=lambda: now[0])
    assert (drain.is_asked, drain.time_left) == (False, math.inf)
    drain.ask()
    now[0] = 110.0
    drain.ask()
    assert (drain.is_asked, drain.time_left) == (True, 15.0)
