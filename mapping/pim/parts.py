# SPDX-License-Identifier: Apache-2.0
"""Parts that programs of all families are made of: matrices, keys and values, attention heads (architecture.md, 4.7)."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from lutra.hls_models.pim.program import (
    Function,
    Instruction,
    Macro,
    MacroKind,
    Operation,
    Receive,
    Scalar,
    ScalarOperation,
    Statistic,
    Vector,
)
from lutra.mapping.pim.flow import Flow
from lutra.mapping.pim.heads import HEADS_PER_PASS, Pass
from lutra.mapping.pim.macros import multiply, read, runs, write
from lutra.mapping.pim.partition import Matrix, Placed
from lutra.mapping.pim.places import Striped, pieces
from lutra.mapping.pim.sram import score_stride

__all__ = ["FUNCTIONS", "SCALE", "SQUARES", "SUM", "Parts", "Source", "constant"]

FUNCTIONS = {"gelu_tanh": Function.GELU, "gelu_erf": Function.GELU_ERF, "relu": Function.RELU}

SUM, SQUARES, SCALE = 0, 1, 2
"""Scalars of norms; attention uses them all in between."""
MAXIMA, SUMS = 0, 2 * HEADS_PER_PASS
"""First scalars of the heads' maxima and sums, a set each for even and odd turns."""

Source = Callable[[int, int], list[Instruction]]
"""Instructions that send beats [start, start + beats) of a vector."""


def constant(value: float) -> int:
    """fp32 bits."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


class Parts:
    """Adds steps to ``flow``.

    Parameters
    ----------
    places
        Where everything lies.
    context
        Tokens that are attended to.
    overlap
        As in ``Flow``.
    """

    def __init__(self, places: Placed, context: int, overlap: bool) -> None:
        self.places, self.config, self.layout, self.context = places, places.config, places.layout, context
        self.flow = Flow(self.config, overlap=overlap)
        self.channels = range(self.config.channels)
        self.all = (1 << self.config.channels) - 1
        self.blocks = -(-context // places.block)

    # vectors and matrices

    def beats(self, values: int) -> int:
        """Beats of V values."""
        return -(-values // self.config.lanes)

    def load(self, label: str, *vectors: tuple[Striped, int]) -> None:
        """Striped vectors into the SRAM."""
        step = self.flow.step(label)
        step.add(self.channels, *read(piece for vector, _ in vectors for piece in vector.pieces))
        for vector, dst in vectors:
            step.receive.append([Receive(0, self.config.channels, vector.columns, vector.values, dst, wide=True)])

    def embedded(self, label: str, token: int, position: int, dst: int) -> None:
        """Embedding of a token plus that of its position; S[SUM]: the sum over both."""
        config, embedding, d = self.config, self.places.embedding, self.places.shape.hidden
        group, rest = divmod(token, config.banks * config.channels)
        channel, bank = divmod(rest, config.banks)
        step = self.flow.step(label)
        for chunk in embedding.chunks:
            step.add([channel], *read(pieces(bank, chunk.position(group), chunk.columns, config.columns)))
        step.add(self.channels, *read(self.places.position_pieces(position)))
        columns = self.places.position_groups.columns
        step.receive = [
            [Receive(channel, 1, self.beats(d), d, dst, wide=True)],
            [Receive(0, config.channels, columns, d, dst, wide=True, residual=dst, statistic=Statistic.SUM, stat=SUM)],
        ]

    def mean(self) -> list[Instruction]:
        """S[SUM] = mean of the vector whose sum it was."""
        return [Scalar(ScalarOperation.MULK, SUM, SUM, k=constant(1 / self.places.shape.hidden))]

    def deviation(self, x: int, dst: int | None = None) -> list[Instruction]:
        """S[SCALE] = 1 / sqrt(mean square of x - mean, + eps); ``dst`` keeps x - mean."""
        d = self.places.shape.hidden
        return [
            Vector(Operation.CENTER, x, self.beats(d), d, dst=dst, s=SUM, statistic=Statistic.SUMSQ, stat=SQUARES),
            Scalar(ScalarOperation.MULK, SQUARES, SQUARES, k=constant(1 / d)),
            Scalar(ScalarOperation.ADDK, SQUARES, SQUARES, k=constant(self.places.shape.eps)),
            Scalar(ScalarOperation.RSQRT, SCALE, SQUARES),
        ]

    def source(self, base: int, values: int, operation: Operation = Operation.COPY, gain: int | None = None, bias: int | None = None) -> Source:
        """Sends of any beats of a vector at ``base``."""
        unit = self.config.words_per_beat

        def send(start: int, beats: int) -> list[Instruction]:
            at = start * unit
            valid = min(beats * self.config.lanes, values - start * self.config.lanes)
            scalar = {Operation.SCALE: SCALE, Operation.CENTER: SUM}.get(operation, 0)
            b, c = (None if word is None else word + at for word in (gain, bias))
            return [Vector(operation, base + at, beats, valid, b=b, c=c, s=scalar, mask=self.all)]

        return send

    def linear(
        self,
        label: str,
        matrix: Matrix,
        source: Source,
        partial: int,
        final: Callable[[int], Receive],
        *,
        before: Sequence[Instruction] = (),
        behind: Sequence[Instruction] = (),
        then: Sequence[Instruction] = (),
        after: int | None = 0,
        cuts: Sequence[int] = (),
        groups: range | None = None,
    ) -> None:
        """Steps of a matrix, one per chunk: partial sums in ``partial``; ``final(g)`` makes the last chunk's receipt from group g on.

        ``before``, ``behind``: what is done before and after the first send, ``then``: after the last receipt; ``after``: of the first step; ``cuts``: groups
        at which the last receipt is cut in parts; ``groups``: of the matrix, all where not given.
        """
        config, span = self.config, range(matrix.groups) if groups is None else groups
        outputs = min(matrix.outputs - span.start * config.banks * config.channels, len(span) * config.banks * config.channels)
        for i, (chunk, start) in enumerate(zip(matrix.chunks, matrix.starts(), strict=True)):
            step = self.flow.step(label, after=after if i == 0 else 0)
            step.add(self.channels, *multiply([chunk.position(g) for g in span], chunk.columns, config, chunk.batch))
            sent = source(start, chunk.columns)
            step.send = [*before, *sent, *behind] if i == 0 else sent
            held = partial if i else None
            if i < len(matrix.chunks) - 1:
                step.receive = [[Receive(0, config.channels, len(span), outputs, partial, partial=held)]]
                continue
            edges = [0, *sorted({cut for cut in cuts if 0 < cut < len(span)}), len(span)]
            for low, high in pairwise(edges):
                done = low * config.channels * config.banks
                there = None if held is None else held + low * config.channels
                valid = min(outputs - done, (high - low) * config.channels * config.banks)
                step.receive.append([replace(final(low), groups=high - low, valid=valid, partial=there)])
            step.receive[-1] += then

    # attention; ``joint``: word at which the joint matrix's result begins

    def write_key(self, layer: int, position: int, joint: int, after: int | None) -> None:
        """A token's key into the banks."""
        step = self.flow.step(f"layers.{layer} key", after=after)
        number, token = divmod(position, self.places.reservation)
        layout, banks = self.layout, self.config.banks
        for i, part in enumerate(layout.passes):
            group, rest = divmod(token, banks * part.split)
            place = self.places.keyvalues[number][layer][i].keys.position(group)
            for head in range(part.heads):
                channel = head * part.split + rest // banks
                step.add([channel], *write(rest % banks, place, layout.beats, self.config))
                word = joint + layout.key_offset + (part.first + head) * layout.head_stride
                step.send.append(Vector(Operation.COPY, word, layout.beats, self.places.shape.head_dim, mask=1 << channel))

    def write_values(self, layer: int, position: int, joint: int) -> None:
        """A token's value into the banks, one bf16 in each of a row per dimension."""
        step = self.flow.step(f"layers.{layer} value")
        number, token = divmod(position, self.places.reservation)
        block, token = divmod(token, self.places.block)
        column, element = divmod(token, self.config.lanes)
        kind = MacroKind.SCATTER if self.places.costs.timing.all_bank_write else MacroKind.MODIFY
        unit = self.config.words_per_beat
        for i, part in enumerate(self.layout.passes):
            room = self.places.keyvalues[number][layer][i].values[block]
            for head in range(part.heads):
                for channel in range(part.split):
                    words = self.layout.value_words(part.split, channel)
                    if not words:
                        continue
                    to = head * part.split + channel
                    for first, times, stride in runs([place + column for place in room.positions(words)]):
                        row, at = divmod(first, self.config.columns)
                        step.add([to], Macro(kind, row=row, column=at, element=element, times=times, step=stride))
                    word = joint + self.layout.value_offsets[part.first + head, channel]
                    step.send.append(Vector(Operation.COPY, word, words // unit, words * self.config.banks, mask=1 << to, narrow=True))

    def _mask(self, part: Pass, head: int) -> int:
        return ((1 << part.split) - 1) << (head * part.split)

    def scores(self, layer: int, i: int, turn: int, joint: int, dst: int, after: int | None = 0) -> None:
        """Queries of pass ``i`` with all keys, into ``dst``; their maxima, in the scalars of ``turn`` (0 or 1). Weights of more than a buffer are worked out
        here, and stay in the SRAM."""
        part, layout = self.layout.passes[i], self.layout
        step = self.flow.step(f"layers.{layer} scores {i}", after=after)
        for head in range(part.heads):
            word = joint + layout.query_offset + (part.first + head) * layout.head_stride
            step.send.append(Vector(Operation.COPY, word, layout.beats, self.places.shape.head_dim, mask=self._mask(part, head)))
        groups = -(-self.context // (part.split * self.config.banks))
        positions: list[int] = []
        for number in range(-(-self.context // self.places.reservation)):
            keys = self.places.keyvalues[number][layer][i].keys
            positions += keys.positions(min(keys.groups, groups - len(positions)))
        step.add(range(part.channels), *multiply(positions, layout.beats, self.config, self.places.keyvalues[0][layer][i].keys.batch))
        receipt = Receive(
            0,
            part.channels,
            groups,
            self.context,
            dst,
            split=part.split,
            head_step=score_stride(self.context, part.split, self.config),
            statistic=Statistic.MAX,
            stat=MAXIMA + turn * HEADS_PER_PASS,
        )
        step.receive = [[receipt]]
        if self.blocks > 1:
            step.receive[0] += [self.weights(i, head, turn, dst, store=True) for head in range(part.heads)]

    def weights(self, i: int, head: int, turn: int, scores: int, *, store: bool) -> Vector:
        """exp of a head's scores, and their sum: into the SRAM, or to its channels."""
        part, scalar = self.layout.passes[i], turn * HEADS_PER_PASS + head
        word = scores + head * score_stride(self.context, part.split, self.config)
        return Vector(
            Operation.EXP,
            word,
            self.beats(self.context),
            self.context,
            dst=word if store else None,
            s=MAXIMA + scalar,
            k=constant(math.log2(math.e) / math.sqrt(self.places.shape.head_dim)),
            mask=0 if store else self._mask(part, head),
            statistic=Statistic.SUM,
            stat=SUMS + scalar,
        )

    def weigh(self, layer: int, i: int, turn: int, scores: int, dst: int, after: int | None) -> None:
        """Values of pass ``i`` weighted, a buffer of tokens after the other; divided by the sum of the weights at the end; head 0's result at ``dst``."""
        part, layout, config, places = self.layout.passes[i], self.layout, self.config, self.places
        groups, sums = -(-layout.words // part.split), SUMS + turn * HEADS_PER_PASS
        dst += part.first * layout.words
        per_step = places.reservation // places.block
        for b in range(self.blocks):
            step = self.flow.step(f"layers.{layer} weighted values {i}", after=after if b == 0 else 0)
            tokens = min(places.block, self.context - b * places.block)
            for head in range(part.heads):
                if self.blocks == 1:
                    step.send.append(self.weights(i, head, turn, scores, store=False))
                    continue
                word = self.weights(i, head, turn, scores, store=True).a + b * places.block // config.banks
                step.send.append(Vector(Operation.COPY, word, self.beats(tokens), tokens, mask=self._mask(part, head)))
            room = places.keyvalues[b // per_step][layer][i].values[b % per_step]
            step.add(range(part.channels), *multiply(room.positions(groups), self.beats(tokens), config, room.batch))
            last = b == self.blocks - 1
            reciprocals: list[Instruction] = [Scalar(ScalarOperation.RECIPROCAL, sums + head, sums + head) for head in range(part.heads)] if last else []
            receipt = Receive(
                0,
                part.channels,
                groups,
                places.shape.head_dim,
                dst,
                split=part.split,
                head_step=layout.words,
                partial=dst if b else None,
                scale=sums if last else None,
            )
            step.receive = [[*reciprocals, receipt]]
