"""Names that other frameworks, or habit, give to our keys: what an unknown key may mean."""

_PART = (
    "tokens that are trained on are sampled from the whole distribution. From a part of it, the engine's "
    "probability of a token would be another one than the trainer computes"
)
WITHHELD: dict[str, tuple[str, str]] = {
    **{
        f"rollout.{name}": (_PART, f"leave it out; evaluate.{name} is for evaluation")
        for name in ("top_p", "top_k", "min_p")
    },
    **{
        f"rollout.{name}": (_PART, "leave it out; let the reward or the environment judge the form")
        for name in ("grammar", "json_schema", "regex", "ebnf")
    },
}
"""Keys that other frameworks have and a run must not have -> (the reason, what to do)."""

MEANINGS: dict[str, str] = {
    "actor.parallel.tp": "tensor tensor_parallel tensor_parallel_size tensor_model_parallel_size tp_size",
    "rollout.parallel.tp": (
        "rollout.tensor_model_parallel_size rollout_num_gpus_per_engine rollout.tp_size rollout.tp "
        "vllm_tensor_parallel_size"
    ),
    "actor.parallel.pp": "pipeline pipeline_parallel_size pipeline_model_parallel_size pp_size",
    "actor.parallel.dp": "data_parallel_size dp_size num_replicas",
    "actor.optimizer.lr": "learning_rate lr max_lr peak_lr",
    "actor.optimizer.schedule": "lr_scheduler lr_scheduler_type lr_decay_style lr_schedule scheduler",
    "actor.optimizer.warmup_steps": "lr_warmup_steps lr_warmup_iters num_warmup_steps warmup",
    "actor.optimizer.clip_grad_norm": "clip_grad grad_clip max_grad_norm gradient_clipping",
    "actor.optimizer.weight_decay": "wd",
    "actor.microbatch_tokens": (
        "ppo_max_token_len_per_gpu max_tokens_per_gpu micro_batch_size micro_train_batch_size "
        "ppo_micro_batch_size_per_gpu tokens_per_gpu per_device_train_batch_size max_tokens_per_mb "
        "microbatch_size"
    ),
    "actor.precision": "dtype bf16 torch_dtype mixed_precision",
    "rollout.precision": "rollout.quantization rollout.dtype quantization",
    "rollout.kv_cache_precision": "kv_cache_dtype rollout.kv_cache_dtype",
    "actor.recompute": (
        "gradient_checkpointing recompute_granularity enable_gradient_checkpointing activation_checkpointing"
    ),
    "algorithm.samples_per_prompt": (
        "rollout.n n n_samples n_samples_per_prompt num_generations rollout_n group_size "
        "num_generations_per_prompt num_return_sequences"
    ),
    "algorithm.estimator": "adv_estimator advantage_estimator advantage",
    "algorithm.loss": "policy_loss loss_mode loss_type",
    "algorithm.aggregate": "loss_agg_mode loss_aggregation",
    "algorithm.kl.coefficient": "kl_coef kl_loss_coef beta init_kl_coef kl_ctl kl_coefficient",
    "algorithm.kl.estimator": "kl_loss_type kl_penalty kl_estimator",
    "algorithm.kl.in": "place use_kl_loss use_kl_in_reward",
    "algorithm.entropy_coefficient": "entropy_coeff entropy_coef entropy_loss_coef",
    "batch.prompts_per_step": (
        "train_batch_size rollout_batch_size num_prompts_per_step global_batch_size batch_size"
    ),
    "batch.minibatch_prompts": "ppo_mini_batch_size mini_batch_size minibatch_size",
    "batch.epochs": "ppo_epochs num_iterations num_ppo_epochs max_epochs",
    "batch.max_lag": "max_staleness max_head_offpolicyness async_level max_async_level staleness",
    "reward_model.path": "reward_model_path rm_path reward_pretrain",
    "rollout.max_response_tokens": (
        "max_response_length rollout_max_response_len response_length max_new_tokens "
        "max_completion_length generate_max_len max_tokens"
    ),
    "rollout.max_prompt_tokens": "max_prompt_length prompt_max_len max_prompt_len rollout_max_prompt_len",
    "rollout.temperature": "rollout_temperature sampling_temperature",
    "rollout.memory_fraction": "gpu_memory_utilization mem_fraction_static sglang_mem_fraction_static",
    "rollout.max_running_requests": "max_num_seqs sglang_server_concurrency max_batch_size",
    "rollout.kv_cache_tokens": "max_total_tokens kv_cache_size",
    "rollout.num_engines": "num_replicas_rollout rollout_num_engines vllm_num_engines num_workers_rollout",
    "cluster.gpus_per_node": "n_gpus_per_node num_gpus_per_node actor_num_gpus_per_node num_gpus gpus",
    "cluster.nodes": "nnodes num_nodes actor_num_nodes",
    "run.steps": (
        "total_training_steps total_steps num_rollout max_steps num_steps train_steps total_epochs num_epochs"
    ),
    "run.save_every": "save_freq save_interval save_steps checkpoint_every",
    "run.evaluate_every": "test_freq eval_interval eval_steps eval_every val_every",
    "run.name": "experiment_name run_name wandb_name trial_name",
    "run.folder": "default_local_dir output_dir save_dir checkpoint_dir work_dir",
    "run.keep_checkpoints": "max_actor_ckpt_to_keep save_total_limit",
    "observe.sinks": (
        "report_to trainer.logger logger use_wandb use_tensorboard wandb tensorboard mlflow sinks log_to"
    ),
    "data.train": "train_files prompt_data train_file dataset dataset_name train_data",
    "data.heldout": "val_files eval_prompt_data test_files validation val test eval held_out eval_dataset",
    "data.prompt_field": "prompt_key input_key prompt_column question_field",
    "data.chat_template": "apply_chat_template",
    "reward.answer_field": "label_key answer_key reward_fn_key answer_column",
    "reward.name": "custom_reward_function rm_type reward_function reward_fn reward_funcs",
    "model.path": "hf_checkpoint model_name_or_path model_name pretrain model_path",
    "model.make": "maker",
}
"""Our key -> last words of their keys, with the section where the last word is ambiguous."""
