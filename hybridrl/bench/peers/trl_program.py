"""TRL's GRPOTrainer on the work of a case, in TRL's own environment, with arguments WORK and RESULT.

WORK is the JSON of `hybridrl.bench.peers.trl.work`. RESULT gets one JSON line for each step. Phases are timed
around TRL's own methods, which compute what they always do.
"""

import importlib.util
import json
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset  # pyright: ignore[reportMissingImports]
from transformers import TrainerCallback
from trl import GRPOConfig, GRPOTrainer  # pyright: ignore[reportMissingImports]

from hybridrl.bench.peers.reward import spread


def main(work_file: str, result_file: str) -> None:
    work = json.loads(Path(work_file).read_text())
    with tempfile.TemporaryDirectory() as folder, open(result_file, "w") as result:
        trainer = TimedTrainer(
            model=work["model"],
            args=arguments(work, folder),
            train_dataset=Dataset.from_list([{"prompt": one["text"]} for one in work["prompts"]]),
            reward_funcs=reward,
        )
        trainer.work, trainer.result = work, result
        trainer.add_callback(EndOfStep(trainer))
        trainer.began = time.perf_counter()
        trainer.train()


def arguments(work: dict[str, Any], folder: str) -> Any:
    """One optimizer step of plain GRPO for each generation, in fp32 on a CPU and bf16 on a GPU."""
    on_gpu = torch.cuda.is_available()
    return GRPOConfig(
        output_dir=folder,
        use_cpu=not on_gpu,
        bf16=on_gpu,
        model_init_kwargs={"dtype": "float32"},
        max_steps=work["steps"],
        per_device_train_batch_size=work["rows"],
        gradient_accumulation_steps=work["answers"] // work["rows"],
        num_generations=work["samples"],
        max_completion_length=work["max_response_tokens"],
        temperature=work["temperature"],
        learning_rate=work["lr"],
        lr_scheduler_type="constant",
        loss_type="grpo",
        beta=0.0,
        shuffle_dataset=False,
        gradient_checkpointing=False,
        optim="adamw_torch",
        use_vllm=on_gpu and importlib.util.find_spec("vllm") is not None,
        vllm_mode="colocate",
        save_strategy="no",
        report_to="none",
        logging_strategy="no",
        disable_tqdm=True,
        seed=0,
    )


def reward(completions: list[str], **_: Any) -> list[float]:
    return [spread(text) for text in completions]


class TimedTrainer(GRPOTrainer):
    """Adds up the seconds of each phase, and refuses prompts that became other tokens than hybridrl's."""

    work: dict[str, Any]
    result: Any
    began: float

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.spent: dict[str, float] = defaultdict(float)
        self.lengths: list[tuple[int, int]] = []
        super().__init__(*args, **kwargs)

    def _tokenize_prompts(self, prompts: list[str]) -> Any:
        found = super()._tokenize_prompts(prompts)
        wanted = {one["text"]: one["token_ids"] for one in self.work["prompts"]}
        for text, ids in zip(prompts, found[0], strict=True):
            if list(ids) != wanted[text]:
                raise SystemExit(f"TRL reads the prompt {text!r} as other tokens: {ids}, not {wanted[text]}")
        return found

    def _generate_single_turn(self, prompt_ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = self._timed("gen", super()._generate_single_turn, prompt_ids, *args, **kwargs)
        self.lengths += [(len(p), len(c)) for p, c in zip(prompt_ids, found[0], strict=True)]
        return found

    def _calculate_rewards(self, *args: Any, **kwargs: Any) -> Any:
        return self._timed("reward", super()._calculate_rewards, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args: Any, **kwargs: Any) -> Any:
        call = super()._get_per_token_logps_and_entropies
        if torch.is_grad_enabled():
            return call(*args, **kwargs)
        return self._timed("old_log_prob", call, *args, **kwargs)

    def _timed(self, phase: str, call: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        start = time.perf_counter()
        found = call(*args, **kwargs)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.spent[phase] += time.perf_counter() - start
        return found

    def end_step(self) -> None:
        """Write the step's line. What is in no other phase is the optimizer step."""
        step_s, self.began = time.perf_counter() - self.began, time.perf_counter()
        phases = {name: self.spent[name] for name in ("gen", "reward", "old_log_prob")}
        responses = [response for _, response in self.lengths]
        line = {
            "step_s": step_s,
            **{f"{name}_s": seconds for name, seconds in phases.items()},
            "update_actor_s": step_s - sum(phases.values()),
            "tokens": sum(map(sum, self.lengths)),
            "response_tokens": sum(responses) / len(responses),
            "longest_response": max(responses),
            "answers": len(responses),
        }
        self.result.write(f"{json.dumps(line)}\n")
        self.spent.clear()
        self.lengths.clear()


class EndOfStep(TrainerCallback):
    def __init__(self, trainer: TimedTrainer) -> None:
        self._trainer = trainer

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._trainer.end_step()


if __name__ == "__main__":
    main(*sys.argv[1:])
