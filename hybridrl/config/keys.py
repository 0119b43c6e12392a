"""The schema seen as dotted keys: what exists, what each key takes, and which key a person meant.

A dotted key is what stands in a YAML: actor.parallel.tp, algorithm.kl.in.
"""

import difflib
import types
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, Union, get_args, get_origin

from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hybridrl.config.schema import Config, ModelConfig, PluginConfig, SourceConfig

SHORT_FORM: dict[type[BaseModel], str] = {ModelConfig: "path", SourceConfig: "path", PluginConfig: "name"}
"""Sections that may be written as one text, and the key that the text is the value of."""

MEANINGS = {
    "actor.parallel.tp": "tensor tensor_parallel tensor_parallel_size tensor_model_parallel_size tp_size",
    "rollout.parallel.tp": "rollout.tensor_model_parallel_size rollout_num_gpus_per_engine rollout.tp_size rollout.tp"
    " vllm_tensor_parallel_size",
    "actor.parallel.pp": "pipeline pipeline_parallel_size pipeline_model_parallel_size pp_size",
    "actor.parallel.dp": "data_parallel_size dp_size num_replicas",
    "actor.optimizer.lr": "learning_rate lr max_lr peak_lr",
    "actor.optimizer.schedule": "lr_scheduler lr_scheduler_type lr_decay_style lr_schedule scheduler",
    "actor.optimizer.warmup_steps": "lr_warmup_steps lr_warmup_iters num_warmup_steps warmup",
    "actor.optimizer.clip_grad_norm": "clip_grad grad_clip max_grad_norm gradient_clipping",
    "actor.optimizer.weight_decay": "wd",
    "actor.microbatch_tokens": "ppo_max_token_len_per_gpu max_tokens_per_gpu micro_batch_size micro_train_batch_size"
    " ppo_micro_batch_size_per_gpu tokens_per_gpu per_device_train_batch_size max_tokens_per_mb microbatch_size",
    "actor.precision": "dtype bf16 torch_dtype mixed_precision",
    "actor.recompute": "gradient_checkpointing recompute_granularity enable_gradient_checkpointing activation_checkpointing",
    "algorithm.samples_per_prompt": "rollout.n n n_samples n_samples_per_prompt num_generations rollout_n group_size"
    " num_generations_per_prompt num_return_sequences",
    "algorithm.estimator": "adv_estimator advantage_estimator advantage",
    "algorithm.loss": "policy_loss loss_mode loss_type",
    "algorithm.aggregate": "loss_agg_mode loss_aggregation",
    "algorithm.kl.coefficient": "kl_coef kl_loss_coef beta init_kl_coef kl_ctl kl_coefficient",
    "algorithm.kl.estimator": "kl_loss_type kl_penalty kl_estimator",
    "algorithm.kl.in": "place use_kl_loss use_kl_in_reward",
    "algorithm.entropy_coefficient": "entropy_coeff entropy_coef entropy_loss_coef",
    "batch.prompts_per_step": "train_batch_size rollout_batch_size num_prompts_per_step global_batch_size batch_size",
    "batch.minibatch_prompts": "ppo_mini_batch_size mini_batch_size minibatch_size",
    "batch.epochs": "ppo_epochs num_iterations num_ppo_epochs max_epochs",
    "batch.max_lag": "max_staleness max_head_offpolicyness async_level max_async_level staleness",
    "rollout.max_response_tokens": "max_response_length rollout_max_response_len response_length max_new_tokens"
    " max_completion_length generate_max_len max_tokens",
    "rollout.max_prompt_tokens": "max_prompt_length prompt_max_len max_prompt_len rollout_max_prompt_len",
    "rollout.temperature": "rollout_temperature sampling_temperature",
    "rollout.memory_fraction": "gpu_memory_utilization mem_fraction_static sglang_mem_fraction_static",
    "rollout.max_running_requests": "max_num_seqs sglang_server_concurrency max_batch_size",
    "rollout.kv_cache_tokens": "max_total_tokens kv_cache_size",
    "rollout.num_engines": "num_replicas_rollout rollout_num_engines vllm_num_engines num_workers_rollout",
    "cluster.gpus_per_node": "n_gpus_per_node num_gpus_per_node actor_num_gpus_per_node num_gpus gpus",
    "cluster.nodes": "nnodes num_nodes actor_num_nodes",
    "run.steps": "total_training_steps total_steps num_rollout max_steps num_steps train_steps total_epochs num_epochs",
    "run.save_every": "save_freq save_interval save_steps checkpoint_every",
    "run.evaluate_every": "test_freq eval_interval eval_steps eval_every val_every",
    "run.name": "experiment_name run_name wandb_name trial_name",
    "run.folder": "default_local_dir output_dir save_dir checkpoint_dir work_dir",
    "run.keep_checkpoints": "max_actor_ckpt_to_keep save_total_limit",
    "data.train": "train_files prompt_data train_file dataset dataset_name train_data",
    "data.heldout": "val_files eval_prompt_data test_files validation val test eval held_out eval_dataset",
    "data.prompt_field": "prompt_key input_key prompt_column question_field",
    "data.chat_template": "apply_chat_template",
    "reward.answer_field": "label_key answer_key reward_fn_key answer_column",
    "reward.name": "custom_reward_function rm_type reward_function reward_fn reward_funcs",
    "model.path": "hf_checkpoint model_name_or_path model_name pretrain model_path",
    "model.make": "maker",
}
"""Names that other frameworks, or habit, give to our keys: our key -> their last words, dotted where one word is not enough."""

_BY_MEANING = {name: key for key, names in MEANINGS.items() for name in names.split()}


@dataclass(frozen=True, slots=True)
class Key:
    """One place of the schema."""

    name: str
    """Dotted."""

    field: FieldInfo

    @property
    def section(self) -> type[BaseModel] | None:
        """The section that stands here; None for a value."""
        return section_of(self.field.annotation)


def section_of(annotation: Any) -> type[BaseModel] | None:
    """The section class that an annotation means, alone or beside None."""
    found = [
        a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)
    ]
    return found[0] if found else None


def takes_options(section: type[BaseModel]) -> bool:
    """Whether further keys of the section belong to its plug-in."""
    return section.model_config.get("extra") == "allow"


def short_form(section: type[BaseModel]) -> str | None:
    """The key that a text in place of the section stands for."""
    return next((key for kind, key in SHORT_FORM.items() if issubclass(section, kind)), None)


def fields_of(section: type[BaseModel]) -> dict[str, FieldInfo]:
    """Fields by the name that stands in a YAML."""
    return {field.alias or name: field for name, field in section.model_fields.items()}


def all_keys(section: type[BaseModel] = Config, prefix: str = "") -> Iterator[Key]:
    """Every key of the schema, sections before what they hold."""
    for name, field in fields_of(section).items():
        key = Key(f"{prefix}{name}", field)
        yield key
        if key.section is not None:
            yield from all_keys(key.section, f"{key.name}.")


def find(dotted: str) -> Key | None:
    """The key with this name; None: there is none, or it is an option of a plug-in."""
    return next((key for key in all_keys() if key.name == dotted), None)


def meant(dotted: str) -> list[str]:
    """Known keys that a person who wrote the unknown key `dotted` may have meant, best first; [] when no guess is fair."""
    known = [key.name for key in all_keys()]
    parent, _, word = dotted.rpartition(".")
    beside = {name.rpartition(".")[2]: name for name in known if name.rpartition(".")[0] == parent}
    if typo := difflib.get_close_matches(word, beside, n=1, cutoff=0.75):
        return [beside[typo[0]]]
    if key := _meaning(dotted):
        return [beside.get(key.rpartition(".")[2], key)]
    if same := [name for name in known if name.rpartition(".")[2] == word]:
        return sorted(same, key=lambda name: -_shared(name, dotted))[:2]
    words = {name.rpartition(".")[2]: name for name in reversed(known)}
    near = difflib.get_close_matches(word, words, n=1, cutoff=0.75)
    near = [words[w] for w in near] or difflib.get_close_matches(dotted, known, n=1, cutoff=0.75)
    return near or [beside[w] for w in difflib.get_close_matches(word, beside, n=1, cutoff=0.5)]


def expected(key: Key) -> str:
    """What the key takes, in words: "a positive integer", "one of none, full"."""
    if key.section is not None:
        return f"keys of {key.name}: {', '.join(fields_of(key.section))}"
    kinds = [a for a in _members(key.field.annotation) if a is not type(None)]
    words = " or ".join(_kind(kind, key.field) for kind in kinds)
    optional = type(None) in _members(key.field.annotation)
    return f"{words} or null" if optional else words


def _members(annotation: Any) -> tuple[Any, ...]:
    return get_args(annotation) if get_origin(annotation) in {Union, types.UnionType} else (annotation,)


def _kind(annotation: Any, field: FieldInfo) -> str:
    if get_origin(annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(annotation)))}"
    if get_origin(annotation) is tuple:
        return f"a list of {len(get_args(annotation))} numbers"
    bounds = [*field.metadata, *getattr(annotation, "__metadata__", ())]
    base = get_args(annotation)[0] if hasattr(annotation, "__metadata__") else annotation
    noun = {int: "integer", float: "number", bool: "true or false", str: "text"}[base]
    if base in {bool, str}:
        return noun
    low = next(
        (
            f"{word} {getattr(b, at):g}"
            for b in bounds
            for at, word in _LOW
            if getattr(b, at, None) is not None
        ),
        "",
    )
    high = next((f"at most {b.le:g}" for b in bounds if getattr(b, "le", None) is not None), "")
    article = "an" if noun == "integer" else "a"
    return " ".join(filter(None, [article, noun, " and ".join(filter(None, [low, high]))]))


_LOW = (("gt", "above"), ("ge", "of at least"))


def _meaning(dotted: str) -> str | None:
    parts = dotted.split(".")
    tails = (".".join(parts[i:]) for i in range(len(parts)))  # the longest first: rollout.tp before tp
    return next((_BY_MEANING[tail] for tail in tails if tail in _BY_MEANING), None)


def _shared(one: str, other: str) -> int:
    """How many leading parts two dotted keys share."""
    pairs = zip(one.split("."), other.split("."), strict=False)
    return next((i for i, (a, b) in enumerate(pairs) if a != b), min(one.count("."), other.count(".")))
