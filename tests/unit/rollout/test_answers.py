"""Which policy versions an answer may have."""

import numpy as np
import pytest

from hybridrl.errors import EngineLostError
from hybridrl.rollout.answers import refuse_other_versions
from hybridrl.rollout.base import Answer


def answer(*versions: int) -> Answer:
    version_T = np.array(versions, np.int32)
    return Answer(id="a", token_T=version_T, logp_T=version_T * -1.0, version_T=version_T, finish="stop")


@pytest.mark.parametrize("versions", [(), (4, 4), (4, 5), (4, 5, 6), (6,)])
def test_an_answer_may_have_every_version_from_when_it_was_asked_on(versions: tuple[int, ...]) -> None:
    refuse_other_versions(answer(*versions), oldest=4, newest=6, name="engine 1")


@pytest.mark.parametrize(
    ("versions", "oldest", "newest", "message"),
    [
        ((3, 3), 4, 4, "engine 1 answered with weights of version 3, it was given 4"),
        ((4, 5), 4, 4, "engine 1 answered with weights of version 4 to 5, it was given 4"),
        ((3, 4), 4, 5, "engine 1 answered with weights of version 3 to 4, it was given 4 to 5"),
        ((4,), 4, None, "version 4"),
    ],
)
def test_an_answer_of_other_weights_is_refused(
    versions: tuple[int, ...], oldest: int, newest: int | None, message: str
) -> None:
    with pytest.raises(EngineLostError, match=message):
        refuse_other_versions(answer(*versions), oldest=oldest, newest=newest, name="engine 1")
