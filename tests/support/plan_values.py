"""Settings and configs of cluster runs, for tests of what a plan says about them."""

from pathlib import Path

from hybridrl.config.schema import Config
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.setting import Setting
from hybridrl.models.published import read_published

CLUSTER_YAML = """\
model: Qwen/Qwen2.5-72B-Instruct
data: {train: math.parquet}
reward: math_verify
algorithm: {samples_per_prompt: 16, kl: {coefficient: 0.001}}
batch: {prompts_per_step: 512, minibatch_prompts: 128}
actor:
  parallel: {tp: 8, pp: 4, cp: 2}
  offload: all
rollout: {parallel: {tp: 8}, max_response_tokens: 8192}
cluster: {nodes: 16, gpus_per_node: 8, gpu: h100}
run: {name: seventy-two}
"""


def write_cluster_config(folder: Path) -> Path:
    path = folder / "cluster.yaml"
    path.write_text(CLUSTER_YAML)
    return path


def make_setting(
    model: str,
    *,
    nodes: int = 1,
    gpu: str = "h100",
    lag: int = 0,
    swap: str = "drain",
    separate_engines: int | None = None,
) -> Setting:
    """GRPO with a reference on nodes of eight GPUs.

    Args:
        separate_engines: engines of one GPU each on dedicated GPUs; None: engines share the trainer's.
    """
    placement = "colocated" if separate_engines is None else "separate"
    config = Config.model_validate(
        {
            "model": model,
            "data": {"train": "math.parquet"},
            "reward": "math_verify",
            "algorithm": {"samples_per_prompt": 16, "kl": {"coefficient": 0.001}},
            "batch": {"prompts_per_step": 512, "minibatch_prompts": 128, "max_lag": lag},
            "rollout": {"max_response_tokens": 4096, "swap": swap, "num_engines": separate_engines},
            "cluster": {"nodes": nodes, "gpus_per_node": 8, "gpu": gpu, "placement": placement},
            "run": {"name": "plan"},
        }
    )
    spec = read_published(model)
    assert spec is not None
    return Setting.of(config, spec, GPUS[gpu])
