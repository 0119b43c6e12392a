"""Launches of verl and OpenRLHF for the work of a case on GPUs: a folder with prompts, reward and a script.

The peers apply the model's own chat template to the same messages. Sizes, lengths, temperature, the number of
tokens in a microbatch and the share of memory of the engines are those of the case.
"""

import json
import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from hybridrl.bench.base import Case
from hybridrl.bench.peers import reward
from hybridrl.bench.peers.work import refuse_several_updates, written
from hybridrl.config.files import atomic_write
from hybridrl.config.load import load
from hybridrl.config.schema import Config
from hybridrl.data.source import open_rows
from hybridrl.errors import ConfigError

LOG = "run.log"
"""The file in the folder that the script writes, and `--log` reads."""


class Peer(NamedTuple):
    packages: tuple[str, ...]
    """Packages whose versions the script prints first."""

    reward: str
    """Python that is put behind the code of `spread`."""

    command: Callable[[Config, int, Path], list[str]]
    """The words of the launch, by the config, the number of steps and the folder."""


def write(peer: str, case: Case, folder: Path) -> list[Path]:
    """Write the folder of a launch; returns the files, the script last.

    Raises:
        ConfigError: the peer counts the work otherwise, or the folder exists and is not empty.
    """
    refuse_several_updates(case)
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty", fix="choose another with --to")
    folder.mkdir(parents=True, exist_ok=True)
    kind, cfg = PEERS[peer], _config(case)
    prompts = folder / "prompts.jsonl"
    atomic_write(prompts, "".join(f"{json.dumps(row)}\n" for row in rows(cfg)))
    scoring = folder / "reward.py"
    atomic_write(scoring, f"{Path(reward.__file__).read_text('utf-8')}\n\n{kind.reward}")
    script = folder / "launch.sh"
    steps = case.warm_up + case.repeats
    atomic_write(script, _script(kind, kind.command(cfg, steps, folder.absolute()), folder.absolute()))
    script.chmod(0o755)
    return [prompts, scoring, script]


def rows(cfg: Config) -> list[dict[str, Any]]:
    """The prompts as chat messages, in the columns that both peers read."""
    _, table = open_rows(cfg.data.train, split="train", seed=cfg.run.seed, where="data.train")
    system = cfg.data.system_prompt
    head = [] if system is None else [{"role": "system", "content": system}]
    found = []
    for index in range(len(table)):
        messages = [*head, {"role": "user", "content": table[index][cfg.data.prompt_field]}]
        extra = {"reward_model": {"style": "rule", "ground_truth": ""}, "extra_info": {"index": index}}
        found.append({"data_source": "hybridrl", "prompt": messages, **extra})
    return found


def verl_command(cfg: Config, steps: int, folder: Path) -> list[str]:
    """verl with Megatron-core and SGLang, on the parallel layout of the case."""
    actor, rollout = "actor_rollout_ref.actor", "actor_rollout_ref.rollout"
    parallel = cfg.actor.parallel
    given: Mapping[str, Any] = {
        "algorithm.adv_estimator": "grpo",
        "algorithm.use_kl_in_reward": False,
        "data.train_files": folder / "prompts.jsonl",
        "data.val_files": folder / "prompts.jsonl",
        "data.train_batch_size": cfg.batch.prompts_per_step,
        "data.max_prompt_length": cfg.rollout.max_prompt_tokens,
        "data.max_response_length": cfg.rollout.max_response_tokens,
        "data.shuffle": False,
        "actor_rollout_ref.model.path": cfg.model.path,
        f"{actor}.optim.lr": cfg.actor.optimizer.lr,
        f"{actor}.ppo_mini_batch_size": cfg.batch.minibatch_prompts,
        f"{actor}.use_dynamic_bsz": True,
        f"{actor}.ppo_max_token_len_per_gpu": cfg.actor.microbatch_tokens,
        f"{actor}.use_kl_loss": False,
        f"{actor}.entropy_coeff": 0,
        f"{actor}.megatron.tensor_model_parallel_size": parallel.tp,
        f"{actor}.megatron.pipeline_model_parallel_size": parallel.pp,
        f"{actor}.megatron.context_parallel_size": parallel.cp,
        f"{rollout}.name": "sglang",
        f"{rollout}.n": cfg.algorithm.samples_per_prompt,
        f"{rollout}.temperature": cfg.rollout.temperature,
        f"{rollout}.tensor_model_parallel_size": cfg.rollout.parallel.tp,
        f"{rollout}.gpu_memory_utilization": cfg.rollout.memory_fraction,
        "reward.custom_reward_function.path": folder / "reward.py",
        "reward.custom_reward_function.name": "compute_score",
        "trainer.nnodes": cfg.cluster.nodes,
        "trainer.n_gpus_per_node": cfg.cluster.gpus_per_node,
        "trainer.logger": '["console"]',
        "trainer.val_before_train": False,
        "trainer.test_freq": -1,
        "trainer.save_freq": -1,
        "trainer.total_epochs": steps,
        "trainer.total_training_steps": steps,
    }
    module = ["python3", "-m", "verl.trainer.main_ppo", "--config-name=ppo_megatron_trainer.yaml"]
    return [*module, *(f"{key}={value}" for key, value in given.items())]


def openrlhf_command(cfg: Config, steps: int, folder: Path) -> list[str]:
    """OpenRLHF with DeepSpeed ZeRO-3 and vLLM on the same GPUs; it has no Megatron-core."""
    gpus = cfg.cluster.gpus_per_node or 0
    answers = cfg.batch.prompts_per_step * cfg.algorithm.samples_per_prompt
    longest = cfg.rollout.max_prompt_tokens + cfg.rollout.max_response_tokens
    given: Mapping[str, Any] = {
        "actor.model_name_or_path": cfg.model.path,
        "actor.num_nodes": cfg.cluster.nodes,
        "actor.num_gpus_per_node": gpus,
        "ref.num_nodes": cfg.cluster.nodes,
        "ref.num_gpus_per_node": gpus,
        "vllm.num_engines": cfg.cluster.nodes * gpus // cfg.rollout.parallel.tp,
        "vllm.tensor_parallel_size": cfg.rollout.parallel.tp,
        "vllm.gpu_memory_utilization": cfg.rollout.memory_fraction,
        "vllm.sync_backend": "nccl",
        "ds.zero_stage": 3,
        "ds.param_dtype": "bf16",
        "actor.adam.lr": cfg.actor.optimizer.lr,
        "actor.lr_scheduler": "constant",
        "algo.advantage.estimator": "group_norm",
        "algo.kl.init_coef": 0,
        "data.prompt_dataset": folder / "prompts.jsonl",
        "data.input_key": "prompt",
        "data.max_len": longest,
        "rollout.max_new_tokens": cfg.rollout.max_response_tokens,
        "rollout.temperature": cfg.rollout.temperature,
        "rollout.batch_size": cfg.batch.prompts_per_step,
        "rollout.n_samples_per_prompt": cfg.algorithm.samples_per_prompt,
        "rollout.max_tokens_per_gpu": cfg.actor.microbatch_tokens,
        "train.batch_size": answers,
        "train.max_tokens_per_gpu": cfg.actor.microbatch_tokens,
        "train.num_episodes": steps,
        "reward.remote_url": folder / "reward.py",
        "ckpt.save_steps": -1,
        "eval.steps": -1,
    }
    switches = (
        *("train.colocate_all", "train.dynamic_batch_enable", "ds.packing_samples", "ds.enable_sleep"),
        *("vllm.enable_sleep", "data.apply_chat_template"),
    )
    words = [f"--{key}={value}" for key, value in given.items()]
    module = ["python3", "-m", "openrlhf.cli.train_ppo_ray"]
    return [*module, *words, *(f"--{name}" for name in switches)]


PEERS: Mapping[str, Peer] = {
    "verl": Peer(
        packages=("verl", "megatron-core", "sglang", "torch", "transformers"),
        reward="def compute_score(data_source, solution_str, ground_truth, extra_info=None, **_):\n"
        "    return spread(solution_str)\n",
        command=verl_command,
    ),
    "openrlhf": Peer(
        packages=("openrlhf", "deepspeed", "vllm", "torch", "transformers"),
        reward="def reward_func(queries, prompts, labels, **_):\n"
        "    import torch\n\n"
        "    found = [spread(query[len(prompt) :]) for query, prompt in zip(queries, prompts, strict=True)]\n"
        '    return {"rewards": torch.tensor(found), "scores": torch.tensor(found), "extra_logs": {}}\n',
        command=openrlhf_command,
    ),
}


def _script(peer: Peer, words: Sequence[str], folder: Path) -> str:
    """It prints versions and then the peer's own output, to the terminal and to LOG."""
    versions = (
        "from importlib.metadata import distributions as d; "
        f"names = {list(peer.packages)!r}; "
        'print("versions:", *(f"{p.name.lower()}=={p.version}" for p in d() if p.name.lower() in names))'
    )
    program, *options = shlex.join(words[:3]), *map(shlex.quote, words[3:])
    command = " \\\n    ".join([program, *options])
    return (
        "#!/usr/bin/env bash\n"
        "# Written by hybridrl bench e2e: the same work, for the environment of the other framework\n"
        "set -eo pipefail\n"
        f"cd {shlex.quote(str(folder))}\n"
        f"{{\n  python3 -c {shlex.quote(versions)}\n  {command}\n}} 2>&1 | tee {LOG}\n"
    )


def _config(case: Case) -> Config:
    with tempfile.TemporaryDirectory() as folder:
        return load(written(case.config, Path(folder), case.warm_up + case.repeats), []).config
