# SPDX-License-Identifier: Apache-2.0
"""A conversation with a host that drafts: the turns that it makes of a core, and which of the core's choices are the text."""

from collections.abc import Collection
from typing import NamedTuple

from lutra.cosim.core import Turn
from lutra.hls_models.ternary.drafts import NgramDrafts
from lutra.hls_models.ternary.executor import Executor

__all__ = ["Drafted", "drafted"]


class Drafted(NamedTuple):
    """``turns``: the prompt's, then one per verified pass; ``accepted``: how many choices of each are the text. All others fell with a wrong draft."""

    turns: list[Turn]
    accepted: list[int]

    @property
    def belongs(self) -> list[bool]:
        """Of every id that the core writes, whether it is the text's."""
        choices = [len(turn.prompt) if turn.verify else turn.count for turn in self.turns]
        return [place < right for count, right in zip(choices, self.accepted, strict=True) for place in range(count)]


def drafted(golden: Executor, prompt: list[int], count: int, drafts: int, stop: Collection[int] = ()) -> Drafted:
    """At most ``count`` tokens behind ``prompt``, up to ``drafts`` drafts verified per pass, as the golden model chooses.

    The turns are played at once, so this host drafts from golden choices. A core that chooses otherwise anywhere differs from them in that word; where none
    differs, a host that reads its registers between the passes makes the same turns.
    """
    passes = [done for done in golden.speculate(prompt, count, NgramDrafts(), drafts=drafts, stop=stop) if done.last]
    turns = [Turn(done.ids, start=done.position, verify=True) if done.serial else Turn(prompt) for done in passes]
    return Drafted(turns, [len(done.accepted) for done in passes])
