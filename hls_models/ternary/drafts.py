# SPDX-License-Identifier: Apache-2.0
"""Drafted tokens for serial passes: n-grams of the prompt and the text so far (prompt lookup decoding), and what a pass accepts of them.

A pass takes the newest token and drafts of those behind it; the core chooses a token for every position. Drafts are right as far as they equal the choices
before them, so that the text is the one of greedy decoding whatever was drafted: a pass yields at least one token, at most one more than it has drafts.
"""

from collections.abc import Callable, Collection, Iterator, Sequence

__all__ = ["NgramDrafts", "accepted", "speculate"]


class NgramDrafts:
    """Remembers where every n-gram of a text was seen last and proposes what followed it there.

    Parameters
    ----------
    longest, shortest
        Lengths of n-grams, tried from the longest down.
    """

    def __init__(self, longest: int = 6, shortest: int = 1) -> None:
        if not 1 <= shortest <= longest:
            raise ValueError(f"n-grams must have 1 <= shortest <= longest, not {shortest} and {longest}")
        self._lengths = range(longest, shortest - 1, -1)
        self._text: list[int] = []
        self._after: dict[tuple[int, ...], int] = {}

    def extend(self, tokens: Sequence[int]) -> None:
        """Adds tokens to the text."""
        for token in tokens:
            # What follows an n-gram is known once it came: the newest token is no one's past yet.
            for n in self._lengths:
                if n <= len(self._text):
                    self._after[tuple(self._text[-n:])] = len(self._text)
            self._text.append(token)

    def propose(self, count: int) -> list[int]:
        """At most ``count`` tokens that may follow; drafts that run into the end of the text go on from the n-gram that they make."""
        tail = self._text[-self._lengths[0] :]
        out: list[int] = []
        while len(out) < count:
            place = next((self._after[key] for n in self._lengths if n <= len(tail) and (key := tuple(tail[-n:])) in self._after), None)
            if place is None:
                break
            found = self._text[place : place + count - len(out)]
            out += found
            tail = (tail + found)[-self._lengths[0] :]
        return out


def accepted(drafts: Sequence[int], chosen: Sequence[int]) -> list[int]:
    """Tokens that a pass yields: its choices as far as the drafts behind them are right. ``chosen`` has one choice more than there are drafts."""
    right = next((i for i, draft in enumerate(drafts) if draft != chosen[i]), len(drafts))
    return list(chosen[: right + 1])


def speculate(
    prompt: Sequence[int],
    first: int,
    count: int,
    lanes: int,
    verify: Callable[[list[int], int], Sequence[int]],
    drafter: NgramDrafts,
    *,
    stop: Collection[int] = (),
) -> Iterator[list[int]]:
    """The tokens behind ``first``, which a prefill of ``prompt`` chose, pass by pass, until ``count`` are there (``first`` included) or one of
    ``stop`` came.

    ``verify(ids, position)`` makes a serial pass of the newest token and the drafts behind it and returns the choice for each.
    """
    drafter.extend([*prompt, first])
    newest, position, written = first, len(prompt), 1
    while written < count and newest not in stop:
        drafts = drafter.propose(min(lanes - 1, count - written - 1))
        tokens = accepted(drafts, verify([newest, *drafts], position))
        end = next((place for place, token in enumerate(tokens, 1) if token in stop), len(tokens))
        yield (tokens := tokens[:end])
        drafter.extend(tokens)
        newest, position, written = tokens[-1], position + len(tokens), written + len(tokens)
