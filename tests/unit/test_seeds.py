"""Seeds are functions of their arguments alone, fit into 62 bits, and do not repeat."""

from hybridrl.seeds import group_seed, sample_seed

FIRST = [2812178212566171247, 2180211747422036254, 3069472533636442495]
SAMPLE = 466993078867791478


def test_seeds_are_fixed_numbers() -> None:
    assert group_seed(0, 0) == group_seed(0, 0)
    assert [group_seed(0, 0), group_seed(1, 0), group_seed(0, 1)] == FIRST
    assert sample_seed(FIRST[0], 3, turn=2) == SAMPLE


def test_no_seed_of_a_large_run_repeats() -> None:
    groups = [group_seed(run, index) for run in (0, 1, 2) for index in range(2_000)]
    samples = [sample_seed(seed, i, turn) for seed in groups[:500] for i in range(8) for turn in (0, 1)]
    every = groups + samples
    assert len(set(every)) == len(every)
    assert all(0 <= seed < 2**62 for seed in every)


def test_neighbours_differ_in_about_half_of_the_bits() -> None:
    changed = [(group_seed(0, i) ^ group_seed(0, i + 1)).bit_count() for i in range(1000)]
    assert 29 < sum(changed) / len(changed) < 33
