"""A passage and the conversation about it as one tagged text, as usual for CoQA.

    [CLS] passage [SEP] question [SEP] answer [SEP] ... question [SEP]

Every token has a role (0 question, 1 answer, 2 passage) and a turn (0 the passage, 1 the last question, then upwards into the
past; turns older than 15 share it).
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from unimo_ds.data.schema import CLS, SEP

Tokens = NDArray[np.int32]

NUM_ROLES, NUM_TURNS = 3, 16
_QUESTION, _ANSWER, _PASSAGE = 0, 1, 2
_LEAST_PASSAGE = 64
"""A long conversation leaves at least so many tokens of the passage; its oldest turns are dropped first."""


def lay_out(passage: Tokens, turns: Sequence[Tokens], *, max_tokens: int) -> tuple[Tokens, NDArray[np.int32]]:
    """[n] the text with its specials, and [2, n] role and turn of each token.

    passage, turns: without specials; turns: question, answer, ..., question. max_tokens: largest n. To fit, the oldest turns
    are dropped, then the end of the passage.
    """
    room = max_tokens - 2
    least = min(len(passage), _LEAST_PASSAGE, room // 2)
    while len(turns) > 1 and sum(len(turn) + 1 for turn in turns) + least > room:
        turns = turns[2:]
    turns = [turn[: max(1, room - least - 1)] for turn in turns]
    passage = passage[: room - sum(len(turn) + 1 for turn in turns)]
    parts = [np.array([CLS]), passage, np.array([SEP])]
    roles, ages = [_PASSAGE] * (len(passage) + 2), [0] * (len(passage) + 2)
    num_turns = (len(turns) + 1) // 2
    for place, turn in enumerate(turns):
        parts += [turn, np.array([SEP])]
        age = min(num_turns - place // 2, NUM_TURNS - 1)
        roles += [_QUESTION if place % 2 == 0 else _ANSWER] * (len(turn) + 1)
        ages += [age] * (len(turn) + 1)
    return np.concatenate(parts).astype(np.int32), np.array([roles, ages], np.int32)
