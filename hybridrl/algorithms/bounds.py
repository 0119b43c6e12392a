"""Checks of plug-in options. The module imports no torch, so that `plan` checks them too."""


def check_clip(low: float, high: float) -> None:
    """
    Raises:
        ValueError: one of them cannot bound a ratio.
    """
    if not 0 <= low <= 1 or high < 0:
        raise ValueError(f"clip_low = {low} is not in [0, 1], or clip_high = {high} is negative")
