# SPDX-License-Identifier: Apache-2.0
"""From steps to a program: what channels do in order, and the companion chip's instructions around it, sends one step ahead of receipts.

A step is what the channels do next, what they must be sent for it and what they give back. Sends of a step may go out before the receipts of the
step before, so that the data wait for the channels and not the other way round; never where a full queue could then block both sides for good.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace

from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.instructions import Add, Kind, Scale, Work
from lutra.hls_models.pim.program import Instruction, Macro, MacroKind, Program, Scalar, Statistic

__all__ = ["Flow", "Step"]


@dataclass
class Step:
    """One step.

    Attributes
    ----------
    macros
        Per channel, in order.
    send
        Instructions that the channels' data come from, and what they need.
    receive
        Instructions that take what comes back, in parts.
    after
        Parts of the receipts of the step before that must be taken before ``send``; None: all.
    """

    label: str
    macros: list[list[Macro]]
    send: list[Instruction] = field(default_factory=list)
    receive: list[list[Instruction]] = field(default_factory=list)
    after: int | None = 0

    def add(self, channels: Iterable[int], *macros: Macro) -> None:
        """Macro-commands for some channels."""
        for channel in channels:
            self.macros[channel] += macros


class Flow:
    """Collects steps; ``program`` puts them in order.

    Parameters
    ----------
    config
        The system.
    overlap
        Sends may run ahead and instructions follow each other in the pipeline; without it one thing is done after the other, as in PIM-GPT.
    """

    def __init__(self, config: PimConfig, *, overlap: bool = True) -> None:
        self.config, self.overlap = config, overlap
        self.steps: list[Step] = []

    def step(self, label: str, after: int | None = 0) -> Step:
        """A new step behind the others."""
        self.steps.append(Step(label, [[] for _ in range(self.config.channels)], after=after))
        return self.steps[-1]

    def program(self) -> Program:
        """The program; ``labels`` name the step at its first instruction, send or receipt."""
        instructions: list[Instruction] = []
        labels: dict[int, str] = {}

        def put(label: str, more: Sequence[Instruction]) -> None:
            if more:
                labels[len(instructions)] = label
                instructions.extend(more)

        before: Step | None = None
        for step in [*self.steps, None]:
            parts = before.receive if before is not None else []
            needed = len(parts)
            if self.overlap and step is not None and before is not None and step.after is not None and self._safe(before, step):
                needed = min(step.after, needed)
            for part in parts[:needed]:
                put(before.label if before is not None else "", part)
            if step is not None:
                put(step.label, step.send)
            for part in parts[needed:]:
                put(before.label if before is not None else "", part)
            before = step
        channels = range(self.config.channels)
        macros = tuple(tuple(macro for step in self.steps for macro in step.macros[channel]) for channel in channels)
        shared: dict[tuple[Macro, ...], tuple[Macro, ...]] = {}
        ordered = overlapped(instructions, self.config) if self.overlap else instructions
        return Program(tuple(shared.setdefault(one, one) for one in macros), tuple(ordered), labels)

    def _safe(self, before: Step, step: Step) -> bool:
        """Both steps' data fit their queues, or the read-outs of the step before do: neither side can wait for the other in a circle."""
        config = self.config
        beats = [data_beats(before.macros[c]) + data_beats(step.macros[c]) for c in range(config.channels)]
        if max(beats) <= config.companion.data_depth:
            return True
        readouts = max(readout_beats(macros) for macros in before.macros)
        return readouts <= config.companion.readout_depth and max(data_beats(macros) for macros in step.macros) <= config.companion.data_depth


def data_beats(macros: Iterable[Macro]) -> int:
    """Data beats that macro-commands take."""
    total = 0
    for m in macros:
        if m.kind == MacroKind.BUFFER:
            total += m.count
        elif m.kind == MacroKind.WRITE:
            total += m.banks * m.count
        elif m.kind in (MacroKind.SCATTER, MacroKind.MODIFY):
            total += m.times
    return total


def readout_beats(macros: Iterable[Macro]) -> int:
    """Read-outs that macro-commands give."""
    return sum(m.times * m.read if m.kind == MacroKind.MAC else m.banks * m.count if m.kind == MacroKind.READ else 0 for m in macros)


def overlapped(instructions: Iterable[Instruction], config: PimConfig) -> list[Instruction]:
    """The instructions with ``drain`` off wherever one follows on the same path and touches nothing that is still in the pipeline."""
    made: list[Instruction] = []
    known: dict[Instruction, tuple[Instruction, Instruction, Work]] = {}  # layers repeat their instructions
    before: Work | None = None
    written: list[tuple[int, int]] = []
    results: set[int] = set()
    for instruction in instructions:
        forms = known.get(instruction)
        if forms is None:
            loose = strict = instruction
            if not isinstance(instruction, Scalar):
                loose, strict = replace(instruction, drain=False), replace(instruction, drain=True)
            forms = known[instruction] = (loose, strict, Work.of(loose, config))
        loose, strict, work = forms
        if work.follows(before) and not _touches(work, config, written, results):
            made.append(loose)
        else:
            made.append(strict)
            written, results = [], set()
        before = work
        if work.store:
            written.append((work.dst, work.dst + _span(work, config)))
        if work.statistic != Statistic.NONE:
            results |= set(range(work.stat, work.stat + _segments(work)))
    return made


def _segments(work: Work) -> int:
    return -(-work.channels // work.split)


def _span(work: Work, config: PimConfig) -> int:
    """Words from a base to the end of what is touched."""
    last = (work.groups - 1) * work.split + min(work.split, work.channels) - 1 + (_segments(work) - 1) * work.step
    return (last + 1) * (config.words_per_beat if work.wide else 1)


def _touches(work: Work, config: PimConfig, written: list[tuple[int, int]], results: set[int]) -> bool:
    """Whether words or scalars that are not written yet are read or written."""
    vector, span = work.kind == Kind.VECTOR, _span(work, config)
    bases = [work.dst] if work.store else []
    bases += [work.a] if vector or work.add != Add.NONE else []
    bases += [work.b] if (vector and work.add == Add.WORD) or work.gain or work.residual else []
    bases += [work.c] if work.offset else []
    if any(base < end and start < base + span for base in bases for start, end in written):
        return True
    used = range(work.s, work.s + _segments(work)) if work.scale == Scale.SCALAR or work.add == Add.SCALAR else ()
    stats = range(work.stat, work.stat + _segments(work)) if work.statistic != Statistic.NONE else ()
    return not results.isdisjoint(used) or (work.keep and not results.isdisjoint(stats))
