"""Fine-tuning and reward models: however model and batch are cut, the same as in plain torch."""

from pathlib import Path
from typing import Any

import pytest
import supervised_values as supervised
import torch
import trainer_values as values
from trainer_ranks import on_ranks

from hybridrl.config.training import TrainParallel

STEPS = 3
RELATIVE = 2e-6
SHAPES = {"tp2": (2, 1, 1), "pp2": (1, 2, 1), "dp2": (1, 1, 2), "cp2": TrainParallel(cp=2, dp=1)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return values.make_model(tmp_path_factory.mktemp("model"), "qwen2_tied")


@pytest.fixture(scope="module")
def plain(folder: Path) -> dict[str, list[tuple[float, float]]]:
    return {
        "sft": list(supervised.plain_sft(folder, STEPS)),
        "rm": list(supervised.plain_rm(folder, STEPS)),
    }


@pytest.fixture(scope="module", params=SHAPES)
def runs(request, folder, tmp_path_factory) -> tuple[list[dict[str, Any]], Path]:
    out = tmp_path_factory.mktemp("export")
    return on_ranks(2, supervised.train, folder, SHAPES[request.param], STEPS, out), out


@pytest.mark.parametrize("kind", supervised.EXAMPLES)
def test_losses_and_gradient_norms_equal_plain_torch(runs, plain, kind) -> None:
    for rank in runs[0]:
        for found, expected in zip(rank[kind]["losses"], plain[kind][:-1], strict=True):
            assert found == pytest.approx(expected, rel=RELATIVE)
        assert rank[kind]["evaluated"]["train/loss"] == pytest.approx(plain[kind][-1][0], rel=RELATIVE)


def test_an_evaluation_counts_the_pairs_that_are_ranked_right(runs) -> None:
    model = reward_model(runs[1])
    ahead = [chosen - rejected for chosen, rejected in (scores(model, pair) for pair in supervised.pairs())]
    found = runs[0][0]["rm"]["evaluated"]
    assert found["train/accuracy"] == pytest.approx(sum(gap > 0 for gap in ahead) / len(ahead))
    assert found["train/reward_gap"] == pytest.approx(sum(ahead) / len(ahead), abs=1e-6)


def test_transformers_reads_the_exported_reward_model(runs, plain) -> None:
    model = reward_model(runs[1])
    loss = 0.0
    for pair in supervised.pairs():
        chosen, rejected = scores(model, pair)
        loss -= torch.nn.functional.logsigmoid(torch.tensor(chosen - rejected - pair.margin)).item()
    assert loss / len(supervised.pairs()) == pytest.approx(plain["rm"][-1][0], abs=1e-5)


def reward_model(out: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    model, report = AutoModelForSequenceClassification.from_pretrained(
        out / "rm", dtype=torch.float32, output_loading_info=True
    )
    assert not report["missing_keys"] and not report["unexpected_keys"]
    assert model.config.num_labels == 1
    return model


def scores(model: Any, pair: Any) -> list[float]:
    with torch.no_grad():
        ids = [torch.tensor(encoded.token_ids[:-1])[None] for encoded in pair.sequences]
        return [float(model(one).logits[0, 0]) for one in ids]
