"""What pictures add to an estimate: the tower's activations on the first pipeline stage, and bytes of pixels.

How many pictures the prompts have is not known before the run. So all tokens of a prompt are counted as
tokens of pictures, and every trajectory of a microbatch as one with pictures of its own.
"""

from hybridrl.estimate.setting import Setting
from hybridrl.models import spec as models
from hybridrl.models.spec import ModelSpec
from hybridrl.models.vision import VisionSpec


def tower_weights(model: ModelSpec) -> int:
    """Parameters of the vision tower; 0: there is none."""
    return sum(p.num_elements for p in models.parameters(model) if p.name.startswith("vision."))


def has_pictures(setting: Setting) -> bool:
    return setting.batch.picture_tokens > 0 and setting.model.vision is not None


def as_dict(setting: Setting) -> dict[str, float]:
    """Limits and sizes of what pictures add, for a plan as JSON."""
    return {
        "most_tokens": setting.batch.picture_tokens,
        "tower_parameters": tower_weights(setting.model),
        "tower_activation_bytes": tower_kept(setting),
        "pixel_bytes_per_step": step_pixels(setting),
    }


def pixel_bytes(setting: Setting, tokens: float) -> float:
    """Bytes of the pixels that become `tokens` tokens, as prompts carry them: 3 a pixel."""
    vision = setting.model.vision
    return 3 * vision.token_pixels**2 * tokens if has_pictures(setting) and vision is not None else 0.0


def step_pixels(setting: Setting) -> float:
    """Bytes of pixels that engines send to trainer ranks in a step, each prompt's once."""
    return pixel_bytes(setting, setting.batch.prompts * setting.batch.mean_prompt)


def tower_kept(setting: Setting) -> float:
    """Bytes that the tower keeps of the largest microbatch until its backward pass, on the first stage."""
    vision = setting.model.vision
    if not has_pictures(setting) or vision is None or setting.actor.vision.mode == "frozen":
        return tower_forward(setting)
    again = _layer(vision) if setting.recompute == "full" else 0
    kept = vision.hidden_size if setting.recompute == "full" else _layer(vision)
    return _patches(setting, vision) * (vision.depth * kept + again) * setting.weight_bytes


def tower_forward(setting: Setting) -> float:
    """Peak bytes of a forward pass of the tower alone."""
    vision = setting.model.vision
    if not has_pictures(setting) or vision is None:
        return 0.0
    return _patches(setting, vision) * (_layer(vision) + vision.patch_values) * setting.weight_bytes


def _patches(setting: Setting, vision: VisionSpec) -> float:
    """Patches of the largest microbatch."""
    batch = setting.batch
    return setting.packed_tokens * batch.prompt_tokens / batch.longest * vision.merge_size**2


def _layer(vision: VisionSpec) -> int:
    """Elements of a patch in one layer: two norms with their inputs, q, k and v, the turned q and k, the
    output of the attention, and both sides of the activation."""
    return 10 * vision.hidden_size + 2 * vision.ffn_size
