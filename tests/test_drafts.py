# SPDX-License-Identifier: Apache-2.0
"""Drafts from n-grams: what is proposed, what is accepted, and that the text is greedy decoding's whatever was drafted."""

import itertools
from collections.abc import Callable, Sequence

import numpy as np
import pytest

from lutra.hls_models.ternary.drafts import NgramDrafts, accepted, speculate


def test_longest_match_wins() -> None:
    drafts = NgramDrafts(3, 1)
    drafts.extend([1, 2, 3, 9, 2, 3, 7, 1, 2, 3])
    assert drafts.propose(2) == [9, 2]  # behind (1, 2, 3); behind (2, 3) came 7 last
    assert NgramDrafts(3, 1).propose(4) == []


def test_drafts_go_on_past_the_end() -> None:
    drafts = NgramDrafts(2, 1)
    drafts.extend([5, 6, 5, 6])
    assert drafts.propose(5) == [5, 6, 5, 6, 5]
    drafts.extend([8])
    assert drafts.propose(5) == []


def test_the_newest_place_counts() -> None:
    drafts = NgramDrafts(1, 1)
    drafts.extend([4, 1, 4, 2, 4])
    assert drafts.propose(1) == [2]


def test_accepted() -> None:
    assert accepted([], [3]) == [3]
    assert accepted([3, 4, 5], [3, 4, 6, 1]) == [3, 4, 6]
    assert accepted([3, 4], [3, 4, 5]) == [3, 4, 5]
    assert accepted([9, 4], [3, 4, 5]) == [3]


def model(seed: int) -> Callable[[Sequence[int]], int]:
    """A next token that depends on the two before it: repetitive enough for drafts."""
    table = np.random.default_rng(seed).integers(0, 6, (6, 6))
    return lambda text: int(table[text[-2] % 6, text[-1]])


@pytest.mark.parametrize("lanes", [1, 2, 6])
@pytest.mark.parametrize("seed", range(5))
def test_the_text_is_that_of_greedy_decoding(lanes: int, seed: int) -> None:
    after, prompt = model(seed), [1, 2, 3]
    greedy = list(prompt)
    for _ in range(60):
        greedy.append(after(greedy))
    cache = list(prompt)  # as the core's: rows behind a rejected draft are written again

    def verify(ids: list[int], position: int) -> list[int]:
        assert len(ids) <= lanes
        del cache[position:]
        out = []
        for token in ids:
            cache.append(token)
            out.append(after(cache))
        return out

    passes = list(speculate(prompt, after(prompt), 60, lanes, verify, NgramDrafts()))
    assert [greedy[3], *itertools.chain(*passes)] == greedy[3:]
    assert len(passes) == 59 if lanes == 1 else len(passes) < 59


def test_the_stop_token_ends_the_text() -> None:
    passes = list(speculate([1, 1, 1], 1, 50, 4, lambda ids, position: [1, 1, 7, 7][: len(ids)], NgramDrafts(), stop=7))
    assert passes == [[1, 1, 7]]


def test_lengths_are_checked() -> None:
    with pytest.raises(ValueError, match="shortest"):
        NgramDrafts(2, 3)
