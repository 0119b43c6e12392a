"""Where the trajectories of a batch are."""

from hybridrl.batch import RankBatch, TokenBlock


def trajectory(batch: RankBatch, index: int) -> tuple[TokenBlock, slice]:
    """The block of trajectory `index` and where its tokens are in it."""
    block = batch.blocks[int(batch.block_N[index])]
    return block, block.row(int(batch.row_N[index]))
