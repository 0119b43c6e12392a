"""How the pictures of a run's prompts are given to its model."""

from hybridrl.config.schema import Config
from hybridrl.data.pictures import PictureFormat
from hybridrl.models import spec
from hybridrl.models.pictures import read_limits


def picture_format(cfg: Config) -> PictureFormat | None:
    """
    Returns:
        None: prompts are text.

    Raises:
        ModelError: the model's preprocessor_config.json does not fit its config.json.
    """
    images = cfg.data.images
    if images is None:
        return None
    vision = spec.read(cfg.model.path).vision
    assert vision is not None, "a rule refuses data.images for a model that reads no pictures"
    return PictureFormat(vision, read_limits(cfg.model.path, vision, images.max_tokens))
