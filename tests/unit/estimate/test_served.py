"""The memory of engines whose models are never trained."""

import pytest

from hybridrl.config.judge import JudgeConfig
from hybridrl.config.schema import Config
from hybridrl.estimate.engine import kv_bytes
from hybridrl.estimate.gpus import GPUS
from hybridrl.estimate.memory import least, on_cpu, phases
from hybridrl.estimate.served import engines_on_a_gpu, served_bytes, weights_too_large
from hybridrl.estimate.setting import Setting
from hybridrl.models import spec
from hybridrl.models.published import read_published
from hybridrl.models.tiny import random_model

POLICY, JUDGE = "Qwen/Qwen2.5-7B-Instruct", "Qwen/Qwen2.5-14B-Instruct"
H100 = GPUS["h100"]
GB = 1e9


def config(cluster=True, **sections):
    given = {
        "model": POLICY,
        "data": {"train": "math.parquet"},
        "reward": "math_verify",
        "rollout": {"max_response_tokens": 1024},
        "run": {"name": "plan"},
        **({"cluster": {"nodes": 1, "gpus_per_node": 8, "gpu": "h100"}} if cluster else {}),
        **sections,
    }
    return Config.model_validate(given)


def setting(**sections):
    model = read_published(POLICY)
    assert model is not None
    return Setting.of(config(**sections), model, H100)


@pytest.mark.parametrize(
    ("num_engines", "tp", "nodes", "on_a_gpu"),
    [(1, 4, 1, 1), (2, 4, 1, 1), (3, 4, 1, 2), (8, 1, 1, 1), (9, 1, 1, 2), (4, 8, 2, 2), (2, 8, 2, 1)],
)
def test_engines_share_a_gpu_once_a_node_is_full(num_engines, tp, nodes, on_a_gpu):
    judge = JudgeConfig(path=JUDGE, num_engines=num_engines, tp=tp)
    assert engines_on_a_gpu(judge, nodes, 8) == on_a_gpu


def test_a_judge_takes_its_share_of_a_gpu_in_every_phase():
    plain, judged = setting(), setting(judge={"path": JUDGE, "tp": 4, "memory_fraction": 0.25})
    assert judged.served == 0.25 * H100.memory_bytes
    for one, other in zip(phases(plain), phases(judged), strict=True):
        assert other.engine - one.engine == pytest.approx(judged.served), one.name


def test_the_policys_share_is_of_what_the_others_leave():
    plain = setting()
    served = {"path": JUDGE, "tp": 4, "memory_fraction": 0.25}
    judged = setting(judge=served, frozen={**served, "agents": (1,)})
    assert judged.served == 0.5 * H100.memory_bytes
    lost = kv_bytes(plain) - kv_bytes(judged)
    assert lost == pytest.approx(plain.memory_fraction * judged.served)


def test_weights_that_do_not_fit_their_share_are_found():
    small = config(judge={"path": JUDGE, "memory_fraction": 0.2})
    ((section, weights, share),) = weights_too_large(small, H100)
    assert section == "judge" and 29 < weights / GB < 30 and share == 0.2 * H100.memory_bytes
    assert not list(weights_too_large(config(judge={"path": JUDGE, "tp": 4}), H100))


def test_without_gpus_the_weights_of_all_engines_count(tmp_path):
    random_model(tmp_path / "judge", "qwen3", 0)
    random_model(tmp_path / "m", "qwen3", 0)
    served = {"path": str(tmp_path / "judge"), "num_engines": 3, "kv_cache_tokens": 1000}
    cfg = config(cluster=False, model=str(tmp_path / "m"), judge=served)
    model = spec.read(str(tmp_path / "m"))
    alone = Setting.of(cfg.model_copy(update={"judge": None}), model, None)
    whole = Setting.of(cfg, model, None)
    expected = 3 * 4 * (spec.count(model) + 1000 * model.kv_cache_size)
    assert whole.served == pytest.approx(expected, rel=0.05)  # the engine pads the vocabulary
    assert on_cpu(whole).peak - on_cpu(alone).peak == pytest.approx(whole.served)
    assert least(whole).peak - least(alone).peak == pytest.approx(whole.served)


def test_a_model_that_is_not_here_is_not_counted_without_gpus():
    assert served_bytes(config(cluster=False, judge={"path": "/nowhere"}), None) == 0
