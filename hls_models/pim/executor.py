# SPDX-License-Identifier: Apache-2.0
"""Golden values of a whole PIM system: a program's macro-commands and instructions in program order, without time (docs/architecture.md, part 4).

Channels and companion chip are a Kahn network: what each reads and writes does not depend on when. Queues are unbounded here; whether a program can
stop for full queues is a question of time and belongs to ``system.py``.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lutra.hls_models.errors import LutraError
from lutra.hls_models.pim import mac
from lutra.hls_models.pim.companion import Companion
from lutra.hls_models.pim.config import PimConfig
from lutra.hls_models.pim.program import Macro, MacroKind, Program, Receive, Scalar, Statistic

__all__ = ["Channel", "Execution", "Executor"]

Cells = NDArray[np.uint16]


class Channel:
    """Values of one channel.

    Attributes
    ----------
    cells
        bf16 bits (banks, rows * columns, V); changed in place.
    buffer
        (columns, V).
    accumulators
        fp32 bits (accumulators, banks).
    data
        Beats received so far (V,); ``taken`` of them are used.
    readouts
        Read-outs made so far: (banks,) of RDM, (V,) of RD.
    """

    def __init__(self, config: PimConfig, cells: Cells, macros: Sequence[Macro]) -> None:
        self.config, self.cells, self.macros = config, cells, macros
        self.buffer = np.zeros((config.columns, config.lanes), np.uint16)
        self.accumulators = np.zeros((config.accumulators_per_bank, config.banks), np.uint32)
        self.data: list[NDArray[np.uint16]] = []
        self.taken = 0
        self.readouts: list[NDArray[np.uint16]] = []
        self.next = 0

    @property
    def done(self) -> bool:
        """All macro-commands are carried out."""
        return self.next == len(self.macros)

    def advance(self, readouts: int) -> None:
        """Goes on until there are so many read-outs, or a beat is missing."""
        while len(self.readouts) < readouts and not self.done:
            macro = self.macros[self.next]
            if len(self.data) - self.taken < _beats(macro):
                return
            match macro.kind:
                case MacroKind.MAC:
                    self._multiply()
                    continue
                case MacroKind.BUFFER:
                    self.accumulators[: macro.load] = 0
                    self.buffer[macro.entry : macro.entry + macro.count] = self._take(macro.count)
                case MacroKind.READ:
                    at = self._position(macro)
                    for bank in range(macro.bank, macro.bank + macro.banks):
                        self.readouts.extend(self.cells[bank, at : at + macro.count].copy())
                case MacroKind.WRITE:
                    at = self._position(macro)
                    for bank in range(macro.bank, macro.bank + macro.banks):
                        self.cells[bank, at : at + macro.count] = self._take(macro.count)
                case MacroKind.SCATTER | MacroKind.MODIFY:
                    where = self._position(macro) + np.arange(macro.times) * macro.step
                    self.cells[:, where, macro.element] = self._take(macro.times)[:, : self.config.banks].T
            self.next += 1

    def _position(self, macro: Macro) -> int:
        return macro.row * self.config.columns + macro.column

    def _take(self, count: int) -> NDArray[np.uint16]:
        beats = np.array(self.data[self.taken : self.taken + count], np.uint16)
        self.taken += count
        return beats

    def _multiply(self) -> None:
        """This MAC macro, and those behind it that use the same buffer entries and accumulators that are clear: all their bursts at once."""
        first = self.macros[self.next]
        clear = {a for a in range(len(self.accumulators)) if not self.accumulators[a].any()}
        positions: list[int] = []
        events: list[tuple[int, int]] = []  # (accumulator, read-outs after its burst)
        while not self.done:
            macro = self.macros[self.next]
            if macro.kind != MacroKind.MAC or (macro.entry, macro.count) != (first.entry, first.count):
                break
            fresh = clear | set(range(macro.load))
            if macro.accumulator not in fresh or (macro.times > 1 and macro.accumulator >= macro.load):
                break
            clear = fresh - {macro.accumulator}
            for i in range(macro.times):
                positions.append(self._position(macro) + i * macro.step)
                events.append((macro.accumulator, macro.read))
            self.next += 1
        if not positions:
            self._single(first)
            return
        columns = self.cells[:, np.array(positions)[:, None] + np.arange(first.count)]
        sums = mac.burst(columns, self.buffer[first.entry : first.entry + first.count], 0, self.config.accumulator)
        held = mac.read_out(sums)
        results = dict(enumerate(mac.read_out(self.accumulators)))
        for index, (accumulator, read) in enumerate(events):
            results[accumulator] = held[:, index]
            self.accumulators[accumulator] = sums[:, index]
            self.readouts.extend(results[a] for a in range(read))

    def _single(self, macro: Macro) -> None:
        """One macro whose bursts continue an accumulator."""
        for i in range(macro.times):
            self.accumulators[: macro.load] = 0
            at = self._position(macro) + i * macro.step
            before = self.accumulators[macro.accumulator]
            buffer = self.buffer[macro.entry : macro.entry + macro.count]
            self.accumulators[macro.accumulator] = mac.burst(self.cells[:, at : at + macro.count], buffer, before, self.config.accumulator)
            self.readouts.extend(mac.read_out(self.accumulators[: macro.read]))
        self.next += 1


def _beats(macro: Macro) -> int:
    """Data beats that a macro takes."""
    match macro.kind:
        case MacroKind.BUFFER:
            return macro.count
        case MacroKind.WRITE:
            return macro.count * macro.banks
        case MacroKind.SCATTER | MacroKind.MODIFY:
            return macro.times
    return 0


@dataclass(frozen=True)
class Execution:
    """What a program did."""

    readouts: tuple[list[NDArray[np.uint16]], ...]
    """per channel, in order: (banks,) of RDM, (V,) of RD"""
    beats: tuple[list[NDArray[np.uint16]], ...]
    """per channel, in order, (V,)"""
    received: dict[int, NDArray[np.uint32]]
    """fp32 bits (groups, channels, lanes) of every RECEIVE by its number, where kept; else of those with ARGMAX only"""
    logits: NDArray[np.uint32]
    """fp32 bits of what ARGMAX saw, in order"""
    index: int
    """the index register: the next token"""


class Executor:
    """A PIM system with contents.

    Parameters
    ----------
    config
        The system.
    cells
        bf16 bits (channels, banks, rows * columns, V) of at least the rows that programs touch; changed in place.
    """

    def __init__(self, config: PimConfig, cells: Cells) -> None:
        self.config, self.cells = config, cells
        self.companion = Companion(config)

    def run(self, program: Program, *, keep: bool = False) -> Execution:
        """Carries out a program; ``keep``: all results of RECEIVE are returned.

        Raises
        ------
        LutraError
            A unit waits for what the others never give, or something is left over at the end.
        """
        config = self.config
        channels = [Channel(config, cells, macros) for cells, macros in zip(self.cells, program.macros, strict=True)]
        taken = [0] * config.channels
        received: dict[int, NDArray[np.uint32]] = {}
        logits: list[NDArray[np.uint32]] = []
        for number, instruction in enumerate(program.instructions):
            if isinstance(instruction, Scalar):
                self.companion.scalar(instruction)
            elif isinstance(instruction, Receive):
                lanes = config.lanes if instruction.wide else config.banks
                readouts = np.empty((instruction.groups, instruction.channels, lanes), np.uint16)
                for i in range(instruction.channels):
                    c = instruction.channel + i
                    channels[c].advance(taken[c] + instruction.groups)
                    beats = channels[c].readouts[taken[c] : taken[c] + instruction.groups]
                    if len(beats) < instruction.groups or any(len(beat) != lanes for beat in beats):
                        raise LutraError(_stuck(program, number, c, channels[c], f"{instruction.groups} read-outs of {lanes} values"))
                    readouts[:, i] = beats
                    taken[c] += instruction.groups
                result = self.companion.receive(instruction, readouts)
                if instruction.statistic == Statistic.ARGMAX:
                    logits.append(result.reshape(-1)[: instruction.valid])
                if keep or instruction.statistic == Statistic.ARGMAX:
                    received[number] = result
            else:
                beats = list(self.companion.vector(instruction))
                for c in range(config.channels):
                    if instruction.mask >> c & 1:
                        channels[c].data += beats
        for c, channel in enumerate(channels):
            channel.advance(1 << 62)
            if not channel.done:
                raise LutraError(_stuck(program, len(program.instructions), c, channel, "nothing more"))
            if len(channel.readouts) != taken[c] or len(channel.data) != channel.taken:
                raise LutraError(
                    f"program leaves {len(channel.readouts) - taken[c]} read-outs and {len(channel.data) - channel.taken} data beats on channel {c}"
                )
        values = np.concatenate(logits) if logits else np.zeros(0, np.uint32)
        return Execution(tuple(c.readouts for c in channels), tuple(c.data for c in channels), received, values, self.companion.index)


def _stuck(program: Program, number: int, c: int, channel: Channel, wanted: str) -> str:
    where = "at its end" if number >= len(program.instructions) else f"at instruction {number} ({program.instructions[number]})"
    at = "has no macro-commands left" if channel.done else f"waits for data beats at macro-command {channel.next} ({channel.macros[channel.next].kind.name})"
    return f"program is stuck: the companion chip {where} wants {wanted} from channel {c}, which {at}"
