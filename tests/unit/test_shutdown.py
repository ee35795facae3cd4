"""Shutdown: a signal wakes the waiting thread, but a recent poll that may still return messages is awaited."""

from __future__ import annotations

import math
import os
import signal
import threading
import time

import pytest

from handler.cli.shutdown import Shutdown, on_shutdown_signal


def request_soon(shutdown: Shutdown) -> None:
    threading.Timer(0.05, shutdown.request).start()


def test_during_returns_the_result() -> None:
    assert Shutdown(5).during(lambda: 7, 0.0) == 7


def test_during_raises_the_error() -> None:
    def fail() -> None:
        raise LookupError("gone")

    with pytest.raises(LookupError, match="gone"):
        Shutdown(5).during(fail, 0.0)


def test_shutdown_abandons_work_after_its_patience() -> None:
    shutdown, never = Shutdown(5), threading.Event()
    request_soon(shutdown)
    assert shutdown.during(never.wait, patience=0.0) is None
    assert not never.is_set()
    never.set()


def test_shutdown_waits_for_recent_work() -> None:
    shutdown, answer = Shutdown(5), threading.Event()

    def work() -> str:
        shutdown.request()
        answer.wait(0.05)
        return "messages"

    assert shutdown.during(work, patience=30.0) == "messages"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signal_wakes_the_waiting_main_thread(number: signal.Signals) -> None:
    shutdown, before, never = Shutdown(5), signal.getsignal(number), threading.Event()
    with on_shutdown_signal(shutdown.request):
        threading.Timer(0.05, os.kill, (os.getpid(), number)).start()
        assert shutdown.during(never.wait, patience=0.0) is None
        os.kill(os.getpid(), number)  # a second one changes nothing
    never.set()
    assert shutdown.is_requested
    assert signal.getsignal(number) is before


def test_shutdown_ends_the_pause_and_skips_later_ones() -> None:
    shutdown, begin = Shutdown(5), time.monotonic()
    shutdown.pause(0.01)
    request_soon(shutdown)
    shutdown.pause(60)
    shutdown.pause(60)
    assert time.monotonic() - begin < 30


def test_time_left_counts_from_the_first_request() -> None:
    now = [100.0]
    shutdown = Shutdown(25, clock=lambda: now[0])
    assert (shutdown.is_requested, shutdown.time_left) == (False, math.inf)
    shutdown.request()
    now[0] = 110.0
    shutdown.request()
    assert (shutdown.is_requested, shutdown.time_left) == (True, 15.0)
