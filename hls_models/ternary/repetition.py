# SPDX-License-Identifier: Apache-2.0
"""Layers that are alike and find the same state are worked out once: the state of a pass's cycle model, relative to a clock, and moved by some clocks.

Everything that a cycle model remembers is shown to a ``Moments``: clocks, and what is none (counts). Two states whose clocks are equal relative to their
own reference lead to the same further cycles, relative to it. Clocks that lie ``PAST`` before the reference bind nothing any more and count as equal.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, TypeVar

import numpy as np

from lutra.hls_models.ternary.isa import Instruction, LoadTarget, Unit

__all__ = ["PAST", "Moments", "Mover", "Snapshot", "repeated_body"]

T = TypeVar("T")

PAST = 4096
"""Clocks; what happens next lies behind the reference, and nothing that is added to a remembered clock before it binds (latencies, pipelines) is as long."""


class Moments(ABC):
    """Visitor of a state: ``at`` is shown every clock (an int, or an array of any shape) and returns what shall stand in its place."""

    @abstractmethod
    def at(self, cycles: T) -> T: ...

    @abstractmethod
    def note(self, *facts: Any) -> None:
        """What is no clock but decides about the further cycles."""


class Snapshot(Moments):
    """Collects a state relative to clock ``reference``."""

    def __init__(self, reference: int) -> None:
        self._reference = reference
        self._seen: list[Any] = []

    def at(self, cycles: T) -> T:
        self._seen.append(np.maximum(np.asarray(cycles, np.int64) - self._reference, -PAST))
        return cycles

    def note(self, *facts: Any) -> None:
        self._seen.append(facts)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Snapshot) or len(self._seen) != len(other._seen):
            return False
        return all(_same(a, b) for a, b in zip(self._seen, other._seen, strict=True))

    __hash__ = None  # type: ignore[assignment]


def _same(a: Any, b: Any) -> bool:
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray):
        return a.shape == b.shape and np.array_equal(a, b)
    return type(a) is type(b) and bool(a == b)


class Mover(Moments):
    """Moves a state by ``clocks``."""

    def __init__(self, clocks: int) -> None:
        self._clocks = clocks

    def note(self, *facts: Any) -> None:
        """They are the same wherever the layer begins."""

    def at(self, cycles: T) -> T:
        return cycles + self._clocks  # type: ignore[operator, return-value]


def repeated_body(program: Sequence[Instruction], burst_beats: int) -> tuple[list[int], int]:
    """Places of the program from which on equal instructions follow, and how many they are; ([], 0) where nothing repeats.

    Equal: but for the layer, and for addresses that are whole bursts apart. The bodies begin with ATTEND, so that each ends with the next layer's.
    """
    places = [index for index, one in enumerate(program) if one.unit is Unit.ATTEND]
    if len(places) < 2:
        return [], 0
    size = places[1] - places[0]
    forms = [_form(one, burst_beats) for one in program]
    first = forms[places[0] : places[0] + size]
    bodies = [place for place in places[:-1] if forms[place : place + size] == first]
    alike = bodies == list(range(places[0], places[0] + size * len(bodies), size))
    return (bodies, size) if alike and len(bodies) > 1 else ([], 0)


def _form(one: Instruction, burst_beats: int) -> tuple[Any, ...]:
    fields = dict(one.fields)
    fields.pop("layer", None)
    if "address" in fields and fields["target"] != LoadTarget.ROPE:  # one table for all layers
        fields["address"] %= burst_beats
    return one.unit, one.when, one.wait, one.signal, tuple(sorted(fields.items()))
