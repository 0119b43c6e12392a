"""Scoring processes that somebody else ends while they score or wait."""

import os
import resource
import signal
import threading
import time

from hybridrl.errors import WorkerError
from hybridrl.rewards.score import Score


def test_answers_of_a_process_that_somebody_else_killed_are_scored_again(scorer, module, tmp_path):
    """Each answer once: whatever kills a second time on the same answer is the reward's."""
    path = module(
        f"""
        import os, time
        from pathlib import Path
        def reward(answer, row):
            first = Path({str(tmp_path)!r}, answer)
            if not first.exists():
                first.touch()
                time.sleep(60 if answer == "b" else 0)
            return float(ord(answer))
        """
    )
    one = scorer(f"{path}:reward", num_workers=1)
    (pid,) = one.pids

    def kill():
        while not (tmp_path / "b").exists():
            time.sleep(0.01)
        os.kill(pid, signal.SIGKILL)

    killer = threading.Thread(target=kill)
    killer.start()
    found = one.score(["a", "b", "c"], [{}] * 3, ["a", "b", "c"])
    killer.join()
    assert found == [Score(97.0, {}), Score(98.0, {}), Score(99.0, {})]


def test_a_process_that_was_killed_while_it_waited_is_replaced(scorer, module):
    name = module("def reward(answer, row): return 1.0")
    one = scorer(f"{name}:reward", num_workers=1)
    os.kill(one.pids[0], signal.SIGKILL)
    assert one.score(["a"], [{}], ["a"]) == [Score(1.0, {})]


def test_a_scorer_that_is_closed_while_it_scores_says_so(scorer, module, tmp_path):
    begun = tmp_path / "begun"
    path = module(
        f"""
        import time
        from pathlib import Path
        def reward(answer, row):
            Path({str(begun)!r}).touch()
            time.sleep(600)
        """
    )
    one, raised = scorer(f"{path}:reward", num_workers=2, timeout_s=600), []

    def score():
        try:
            one.score(["a", "b"], [{}] * 2, ["a", "b"])
        except BaseException as error:
            raised.append(error)

    scoring = threading.Thread(target=score)
    scoring.start()
    while not begun.exists():
        time.sleep(0.01)
    one.close()
    scoring.join(60)
    assert [(type(error), str(error)) for error in raised] == [
        (WorkerError, f"the scoring processes of reward {path}:reward were ended while they scored")
    ]


def test_a_process_with_thousands_of_open_files_has_a_scorer_too(scorer, module):
    name = module("def reward(answer, row): return 1.0")
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(before[0], 2048), max(before[1], 2048)))
    opened = [os.open(os.devnull, os.O_RDONLY) for _ in range(1100)]
    try:
        assert scorer(f"{name}:reward").score(["a"], [{}], ["a"]) == [Score(1.0, {})]
    finally:
        for descriptor in opened:
            os.close(descriptor)
