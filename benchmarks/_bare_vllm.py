"""vLLM's class LLM without hybridrl: reads its arguments, then lists of prompts; writes counts of tokens."""

# pyright: reportMissingImports=false
# vLLM is in another environment.

import json
import os
import sys
from typing import Any


def main() -> None:
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # vLLM prints too
    from vllm import LLM, SamplingParams

    given: dict[str, Any] = json.loads(sys.stdin.readline())
    engine = LLM(**given["engine"])
    print(json.dumps("up"), file=answers, flush=True)
    sampling = SamplingParams(
        max_tokens=given["tokens"],
        stop_token_ids=given["stops"],
        logprobs=0,
        detokenize=False,
    )
    for line in sys.stdin:
        prompts = [{"prompt_token_ids": ids} for ids in json.loads(line)]
        found = engine.generate(prompts, sampling, use_tqdm=False)
        tokens = sum(len(one.outputs[0].token_ids) for one in found)
        print(json.dumps(tokens), file=answers, flush=True)


if __name__ == "__main__":
    main()
