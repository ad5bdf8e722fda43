"""Calls in threads of their own."""

from __future__ import annotations

import subprocess
import sys
import threading
import time

import pytest

from ddpo.rewards.worker import Worker
from tests.support.paths import ROOT


def test_calls_run_in_order_off_the_main_thread():
    worker, seen = Worker("w"), []
    calls = [
        worker.submit(lambda i=i: (seen.append(i), threading.current_thread())[1])
        for i in range(20)
    ]
    threads = {call.result(5) for call in calls}
    assert seen == list(range(20))
    assert [thread.name for thread in threads] == ["w"]
    assert threads.pop().daemon


def test_what_a_call_raises_is_raised_where_its_result_is_asked_for():
    worker = Worker("w")
    failing, next_one = worker.submit(lambda: 1 / 0), worker.submit(lambda: 7)
    with pytest.raises(ZeroDivisionError):
        failing.result(5)
    assert next_one.result(5) == 7


def test_a_new_thread_takes_over_where_one_hangs():
    worker, is_over, ran = Worker("w"), threading.Event(), []
    hanging = worker.submit(lambda: is_over.wait(30))
    waiting = worker.submit(lambda: ran.append(1))
    with pytest.raises(TimeoutError, match=r"within 0\.01 s"):
        hanging.result(0.01)
    worker.abandon(hanging)
    waiting.result(5)
    is_over.set()
    assert hanging.result(5) is True  # late, and nobody needs it
    assert [worker.submit(lambda i=i: ran.append(i)).result(5) for i in range(3)] == [None] * 3
    assert ran == [1, 0, 1, 2]


def test_a_call_that_answered_after_all_keeps_its_thread():
    worker = Worker("w")
    first = worker.submit(threading.current_thread)
    thread = first.result(5)
    worker.abandon(first)
    assert worker.submit(threading.current_thread).result(5) is thread


def test_the_time_limit_of_a_call_starts_when_it_does():
    worker, is_over = Worker("w"), threading.Event()
    before = worker.submit(lambda: is_over.wait(30))
    call = worker.submit(lambda: 3)
    is_over.set()
    assert before.result(5) is True
    assert call.result(5) == 3
    assert call.seconds < 5


def test_a_closed_worker_waits_for_its_thread_and_drops_what_waits():
    worker, has_begun, ran = Worker("w"), threading.Event(), []

    def run():
        has_begun.set()
        time.sleep(0.05)
        return threading.current_thread()

    running = worker.submit(run)
    worker.submit(lambda: ran.append(1))
    assert has_begun.wait(5)
    worker.close()
    assert not running.result(5).is_alive()
    assert ran == []
    worker.close()  # again, as at the end of the program


def test_closing_does_not_wait_for_a_call_that_hangs():
    worker, is_over, has_begun = Worker("w", 0.01), threading.Event(), threading.Event()
    hanging = worker.submit(lambda: (has_begun.set(), is_over.wait(30)))
    assert has_begun.wait(5)
    worker.close()
    assert not hanging.is_done
    is_over.set()


def test_a_program_ends_although_a_call_hangs_and_nobody_closed_its_worker():
    code = (
        "import time; from ddpo.rewards.worker import Worker\n"
        "Worker('idle'); worker = Worker('hangs', 0.1)\n"
        "call = worker.submit(lambda: time.sleep(1000))\n"
        "try: call.result(0.1)\n"
        "except TimeoutError: worker.abandon(call)\n"
        "print('end')"
    )
    run = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=60,
        check=True,
    )
    assert run.stdout == "end\n"
    assert run.stderr == ""
