import pytest


@pytest.fixture
def rope_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of Transformer Engine: Megatron refuses its use where it is not."""
    for name in ("fused_apply_rotary_pos_emb", "fused_apply_rotary_pos_emb_thd"):
        monkeypatch.setattr(f"megatron.core.models.common.embeddings.rope_utils.{name}", print)
