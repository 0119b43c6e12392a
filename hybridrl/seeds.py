"""Seeds of sampling: functions of the run's seed, the prompt's index in its stream, sample and turn.

So a seed depends neither on the step that trains on the answer nor on the engine that gives it.
"""

_BITS_64 = 2**64 - 1
_BITS_62 = 2**62 - 1


def group_seed(run_seed: int, index: int) -> int:
    """Seed of the group of prompt `index`, from 0 to 2^62 - 1."""
    return _mixed(run_seed, index) & _BITS_62


def sample_seed(seed: int, sample: int, turn: int = 0) -> int:
    """Seed of one answer of a group with this seed, from 0 to 2^62 - 1."""
    return _mixed(_mixed(seed, sample), turn) & _BITS_62


def _mixed(seed: int, number: int) -> int:
    """64 bits that differ unpredictably for neighbouring arguments: output `number` of two chained splitmix64
    generators."""
    return _splitmix(_splitmix(seed) + number)


def _splitmix(state: int) -> int:
    """The output of splitmix64 (Steele, Lea and Flood, 2014) for a state."""
    state = (state + 0x9E3779B97F4A7C15) & _BITS_64
    state = ((state ^ (state >> 30)) * 0xBF58476D1CE4E5B9) & _BITS_64
    state = ((state ^ (state >> 27)) * 0x94D049BB133111EB) & _BITS_64
    return state ^ (state >> 31)
