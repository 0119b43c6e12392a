"""What a person may have meant by a key that does not exist."""

import pytest

from hybridrl.config import keys, schema
from hybridrl.config.meanings import MEANINGS
from hybridrl.config.section import Section

KNOWN = {key.name for key in keys.all_keys()}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("actor.parallel.tensor", "actor.parallel.tp"),
        ("actor.parallel.tensor_model_parallel_size", "actor.parallel.tp"),
        ("rollout.parallel.tensor_parallel_size", "rollout.parallel.tp"),
        ("rollout.tensor_model_parallel_size", "rollout.parallel.tp"),
        ("actor_rollout_ref.rollout.n", "algorithm.samples_per_prompt"),
        ("rollout.n", "algorithm.samples_per_prompt"),
        ("data.train_batch_size", "batch.prompts_per_step"),
        ("actor.ppo_mini_batch_size", "batch.minibatch_prompts"),
        ("lr", "actor.optimizer.lr"),
        ("actor.lr", "actor.optimizer.lr"),
        ("actor.optimizer.learning_rate", "actor.optimizer.lr"),
        ("actor.optimizer.warmup_step", "actor.optimizer.warmup_steps"),
        ("batch.prompt_per_step", "batch.prompts_per_step"),
        ("algorithm.kl.place", "algorithm.kl.in"),
        ("algorithm.kl.coef", "algorithm.kl.coefficient"),
        ("trainer.n_gpus_per_node", "cluster.gpus_per_node"),
        ("trainer.total_training_steps", "run.steps"),
        ("max_response_length", "rollout.max_response_tokens"),
        ("reward.rm_type", "reward.name"),
        ("seed", "run.seed"),
        ("algoritm", "algorithm"),
        ("actor.paralel", "actor.parallel"),
    ],
)
def test_the_nearest_key_is_found(written: str, meant: str) -> None:
    assert keys.meant(written)[0] == meant


@pytest.mark.parametrize("written", ["zzz", "actor.qqqqqq", "data.frobnicate"])
def test_no_guess_is_made_from_nothing(written: str) -> None:
    assert keys.meant(written) == []


def test_a_word_of_two_sections_names_both() -> None:
    assert keys.meant("temperature") == ["rollout.temperature", "evaluate.temperature"]


def test_meanings_lead_to_keys_and_are_no_keys_themselves() -> None:
    assert MEANINGS.keys() <= KNOWN
    words = [word for names in MEANINGS.values() for word in names.split()]
    assert len(words) == len(set(words))
    assert not set(words) & KNOWN


def test_short_forms_are_those_of_the_schema() -> None:
    for section, name in keys.SHORT_FORM.items():
        assert getattr(section.model_validate("x"), name) == "x"
    sections = [kind for kind in vars(schema).values() if isinstance(kind, type)]
    for section in (kind for kind in sections if issubclass(kind, Section)):
        has_validator = any("_short_form" in vars(base) for base in section.__mro__)
        assert (keys.short_form(section) is not None) == has_validator, section


def test_every_section_is_small() -> None:
    sections = [key.section for key in keys.all_keys() if key.section]
    assert max(len(keys.fields_of(section)) for section in sections) <= 25


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("batch.epochs", "an integer above 0"),
        ("run.seed", "an integer of at least 0"),
        ("actor.parallel.dp", "an integer above 0 or null"),
        ("rollout.memory_fraction", "a number above 0 and at most 1"),
        ("actor.precision", "one of fp32, bf16, fp16 or null"),
        ("run.export", "true or false"),
        ("run.name", "text"),
        ("actor.optimizer.betas", "a list of 2 numbers"),
    ],
)
def test_what_a_key_takes_is_said_in_words(name: str, words: str) -> None:
    key = keys.find(name)
    assert key is not None and keys.expected(key) == words
