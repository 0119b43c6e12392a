"""Recognises checkpoints of other trainers, which are no model folders, and names what converts them."""

from pathlib import Path
from typing import NamedTuple


class Foreign(NamedTuple):
    """A folder that another trainer wrote."""

    kind: str
    converter: str


_BRIDGE = (
    "export it to Hugging Face format with Megatron Bridge (AutoBridge.from_hf_pretrained(HF_MODEL)"
    ".export_ckpt(megatron_path, hf_path)) or slime's tools/convert_torch_dist_to_hf.py, and give that folder"
)
_MERGER = (
    "merge it into Hugging Face format with python -m verl.model_merger merge --backend {} --local_dir {} "
    "--target_dir NEW, and give that folder"
)


def recognise(folder: Path) -> Foreign | None:
    """What a folder without config.json is, if another trainer's checkpoint has its form; no file is read."""
    if any(folder.glob("model_world_size_*_rank_*.pt")):
        return Foreign("an FSDP checkpoint of verl", _MERGER.format("fsdp", folder))
    if (folder / "dist_ckpt").is_dir():
        return Foreign("a Megatron checkpoint of verl", _MERGER.format("megatron", folder))
    if (folder / "latest_checkpointed_iteration.txt").is_file() or _is_torch_dist(folder):
        return Foreign("a Megatron checkpoint (torch_dist)", _BRIDGE)
    return None


def _is_torch_dist(folder: Path) -> bool:
    """Whether it is one iteration of such a checkpoint."""
    return (folder / ".metadata").is_file() and any(folder.glob("*.distcp"))
