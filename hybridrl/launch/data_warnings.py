"""What is suspicious about the data of a run as a whole, though no row is wrong."""

from collections.abc import Iterator, Sequence

from hybridrl.data.overlap import in_both
from hybridrl.data.tables import Table
from hybridrl.wording import counted


def suspicious(
    train: Table, heldout: Table | None, columns: Sequence[str], *, noun: str, key: str, per_step: int
) -> Iterator[str]:
    """
    Args:
        columns: those in which a row is the same as another.
        noun: what a row is, as "prompt".
        key: config key of the number of rows that a step takes, `per_step`.
    """
    if heldout is not None and (both := in_both(train, heldout, columns)):
        share = "all" if len(both) == len(heldout) else f"{len(both):,}"
        of = counted(len(heldout), f"held-out {noun}", form=",")
        yield (
            f"{share} of {of} are in the training data too, as {heldout.place(both[0])}: what is measured on "
            "them was trained on"
        )
    if per_step > len(train):
        of, times = counted(len(train), noun, form=","), per_step / len(train)
        yield (
            f"{key} = {per_step:,} is more than the {of} of data.train: a step takes each {times:.3g} times "
            "on average"
        )
