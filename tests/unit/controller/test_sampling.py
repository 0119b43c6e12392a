"""What engines are asked for: training samples from the whole vocabulary, evaluation as the config says."""

from controller_fakes import config

from hybridrl.controller.sampling import group_task, heldout_sampling
from hybridrl.types import Prompt

OPTIONS = {"samples_per_prompt": 4, "temperature": 0.7, "top_p": 0.9, "top_k": 5}


def test_an_evaluation_samples_as_the_config_says() -> None:
    found = heldout_sampling(config(evaluate=OPTIONS), step=3)
    assert (found.num_samples, found.temperature, found.top_p, found.top_k) == (4, 0.7, 0.9, 5)
    usual = heldout_sampling(config(), step=3)
    assert (usual.num_samples, usual.temperature, usual.top_p, usual.top_k) == (1, 0.0, 1.0, -1)
    assert found.seed == usual.seed != heldout_sampling(config(), step=4).seed


def test_training_samples_from_the_whole_vocabulary_whatever_an_evaluation_does() -> None:
    task = group_task(config(evaluate=OPTIONS), 0, Prompt("train/0", (1,), {}), greedy=True)
    assert (task.sampling.top_p, task.sampling.top_k, task.sampling.temperature) == (1.0, -1, 1.0)
    assert task.greedy is not None and task.greedy.temperature == 0.0


def test_only_a_loss_that_centres_scores_asks_for_likeliest_tokens() -> None:
    loss = {"name": "score_centering", "head_tokens": 7}
    task = group_task(config(algorithm={"loss": loss}), 0, Prompt("train/0", (1,), {}), greedy=True)
    assert task.greedy is not None and task.sampling.head_tokens == task.greedy.head_tokens == 7
    usual = group_task(config(), 0, Prompt("train/0", (1,), {}), greedy=False)
    assert usual.sampling.head_tokens == 0
    assert heldout_sampling(config(algorithm={"loss": loss}), step=3).head_tokens == 0
