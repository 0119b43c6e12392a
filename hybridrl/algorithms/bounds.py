"""Bounds that options of plug-ins keep. Imports no torch, so that a plan checks them too."""


def check_clip(low: float, high: float) -> None:
    """
    Raises:
        ValueError: a bound that is no bound on a ratio.
    """
    if not 0 <= low <= 1 or high < 0:
        raise ValueError(f"clip_low = {low} is not in [0, 1], or clip_high = {high} is negative")
