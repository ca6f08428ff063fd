# SPDX-License-Identifier: Apache-2.0
"""One token of a GPT model as a program (architecture.md, 4.7): embedding, layers, head.

The channels' order within a layer: biases; values, keys and queries; the key's write; scores of two passes of heads; the value's writes, while the
softmax is worked on; weighted values and scores of the passes in turn; output; biases; feed-forward. Layer norms send x - mean at once and multiply
what comes back by 1/deviation, which is worked out meanwhile. Everything else that the companion chip works out lies between a step's receipts and the
sends of the next; ``Flow`` lets sends run ahead.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise

from lutra.hls_models.errors import ModelError
from lutra.hls_models.pim.program import (
    Function,
    Instruction,
    Macro,
    MacroKind,
    Operation,
    Program,
    Receive,
    Scalar,
    ScalarOperation,
    Statistic,
    Vector,
)
from lutra.mapping.pim.flow import Flow
from lutra.mapping.pim.heads import HEADS_PER_PASS, Pass
from lutra.mapping.pim.macros import multiply, read, runs, write
from lutra.mapping.pim.partition import Matrix, Partition
from lutra.mapping.pim.places import Striped, pieces
from lutra.mapping.pim.sram import Sram, score_stride

__all__ = ["HEAD_LABEL", "clear", "lower"]

HEAD_LABEL = "head"
"""Label of the steps whose last receipts are the logits."""

FUNCTIONS = {"gelu_tanh": Function.GELU, "gelu_erf": Function.GELU_ERF, "relu": Function.RELU}

SUM, SQUARES, SCALE, BEST = 0, 1, 2, 3
"""Scalars of norms and of the head; attention uses them all in between."""
MAXIMA, SUMS = 0, 2 * HEADS_PER_PASS
"""First scalars of the heads' maxima and sums, a set each for even and odd passes."""


def _k(value: float) -> int:
    """fp32 bits."""
    bits: int = struct.unpack("<I", struct.pack("<f", value))[0]
    return bits


def lower(partition: Partition, position: int, token: int = 0, *, overlap: bool = True) -> Program:
    """Program of the token at ``position``: it attends to ``position`` + 1 tokens and leaves the next token in the index register.

    Without ``overlap`` channels and companion chip work in turn, which is what the difference shows the gain of.

    Raises
    ------
    ModelError
        The token does not exist, or there is no room for the position.
    """
    shape = partition.shape
    if not 0 <= token < shape.vocabulary:
        raise ModelError(f"{shape.name}: token must be 0 to {shape.vocabulary - 1}, not {token}")
    if not 0 <= position < partition.tokens:
        raise ModelError(f"{shape.name}: position must be 0 to {partition.tokens - 1}, not {position}: keys and values have room for {partition.tokens} tokens")
    return _Token(partition, position, overlap).program(token)


def clear(partition: Partition, step: int = 0) -> Program:
    """Program that zeroes the values' room of one step of ``reservation`` tokens in all layers: before its first token is written."""
    config = partition.config
    flow = Flow(config)
    channels, width = range(config.channels), config.columns
    # A zero is whatever the SRAM gives beyond ``valid``.
    zeros = Vector(Operation.COPY, a=0, beats=width, valid=0, mask=(1 << config.channels) - 1)
    for layer, places in enumerate(partition.keyvalues[step]):
        for place in places:
            for block in place.values:
                for row in range(block.row, block.row + block.rows):
                    for bank in range(config.banks):
                        part = flow.step(f"layers.{layer} clear")
                        part.add(channels, Macro(MacroKind.WRITE, row=row, bank=bank, count=width))
                        part.send = [zeros]
    return flow.program()


class _Token:
    def __init__(self, partition: Partition, position: int, overlap: bool) -> None:
        self.p, self.shape, self.config = partition, partition.shape, partition.config
        self.position, self.context = position, position + 1
        self.layout = partition.layout
        self.sram = Sram.plan(self.shape, self.config, self.layout, self.context)
        self.flow = Flow(self.config, overlap=overlap)
        self.channels = range(self.config.channels)
        self.all = (1 << self.config.channels) - 1
        self.block = partition.block
        self.blocks = -(-self.context // self.block)

    def program(self, token: int) -> Program:
        self.embed(token)
        for layer in range(self.shape.layers):
            self.attention(layer)
            self.feed_forward(layer)
        self.head()
        return self.flow.program()

    # shared parts

    def beats(self, values: int) -> int:
        return -(-values // self.config.lanes)

    def load(self, label: str, *vectors: tuple[Striped, int]) -> None:
        """Striped vectors into the SRAM."""
        step = self.flow.step(label)
        step.add(self.channels, *read(piece for vector, _ in vectors for piece in vector.pieces))
        for vector, dst in vectors:
            step.receive.append([Receive(0, self.config.channels, vector.columns, vector.values, dst, wide=True)])

    def mean(self) -> list[Instruction]:
        """S[SUM] = mean of x, whose sum it was."""
        return [Scalar(ScalarOperation.MULK, SUM, SUM, k=_k(1 / self.shape.hidden))]

    def deviation(self, dst: int | None = None) -> list[Instruction]:
        """S[SCALE] = 1 / sqrt(mean square of x - mean, + eps); ``dst`` keeps x - mean."""
        d = self.shape.hidden
        return [
            Vector(Operation.CENTER, self.sram.x, self.beats(d), d, dst=dst, s=SUM, statistic=Statistic.SUMSQ, stat=SQUARES),
            Scalar(ScalarOperation.MULK, SQUARES, SQUARES, k=_k(1 / d)),
            Scalar(ScalarOperation.ADDK, SQUARES, SQUARES, k=_k(self.shape.eps)),
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
        after: int | None = 0,
        cuts: Sequence[int] = (),
        groups: range | None = None,
    ) -> None:
        """Steps of a matrix, one per chunk: partial sums in ``partial``; ``final(g)`` makes the last chunk's receipt from group g on.

        ``before``, ``behind``: what is done before and after the first send; ``after``: of the first step; ``cuts``: groups at which the last receipt is
        cut in parts; ``groups``: of the matrix, all where not given.
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
                step.receive.append([_changed(final(low), groups=high - low, valid=valid, partial=there)])

    def onto_x(self, bias: int) -> Callable[[int], Receive]:
        """Receipts that add to the residual stream, and its sum."""
        x = self.sram.x
        return lambda low: Receive(0, self.config.channels, 0, 0, x, bias=bias, residual=x, statistic=Statistic.SUM, stat=SUM)

    # parts of a token

    def embed(self, token: int) -> None:
        config, x, d = self.config, self.sram.x, self.shape.hidden
        group, rest = divmod(token, config.banks * config.channels)
        channel, bank = divmod(rest, config.banks)
        step = self.flow.step("embedding")
        for chunk in self.p.embedding.chunks:
            step.add([channel], *read(pieces(bank, chunk.position(group), chunk.columns, config.columns)))
        step.add(self.channels, *read(self.p.position_pieces(self.position)))
        columns = self.p.position_groups.columns
        step.receive = [
            [Receive(channel, 1, self.beats(d), d, x, wide=True)],
            [Receive(0, config.channels, columns, d, x, wide=True, residual=x, statistic=Statistic.SUM, stat=SUM)],
        ]

    def attention(self, layer: int) -> None:
        s, label, places, layout = self.sram, f"layers.{layer}", self.p.layers[layer], self.layout
        channels = self.config.channels
        self.load(f"{label} biases", (places.query_bias, s.query_bias), (places.output_bias, s.output_bias), (places.down_bias, s.down_bias))
        biased, whole = layout.query_offset // channels, -(-layout.query_offset // channels)

        def joint(low: int) -> Receive:
            bias = s.query_bias + (low - biased) * channels if low >= biased else None
            return Receive(0, channels, 0, 0, s.joint + low * channels, scale=SCALE, bias=bias)

        cuts = sorted({cut for cut in (biased, whole) if 0 < cut < places.joint.groups})
        source = self.source(s.x, self.shape.hidden, Operation.CENTER)
        label_joint = f"{label} values, keys, queries"
        self.linear(label_joint, places.joint, source, s.joint, joint, before=self.mean(), behind=self.deviation(), cuts=cuts)
        self.write_key(layer, after=len(cuts) if whole < places.joint.groups else None)
        passes = range(len(layout.passes))
        if s.overlap and self.flow.overlap:
            for i in passes[:2]:
                self.scores(layer, i)
            self.write_values(layer)
            for i in passes:
                self.weigh(layer, i, after=0)
                if i + 2 < len(passes):
                    self.scores(layer, i + 2)
        else:
            for i in passes:
                self.scores(layer, i)
                if i == 0:
                    self.write_values(layer)
                self.weigh(layer, i, after=None)
        first = places.output.chunks[0].columns * self.config.lanes
        early = first <= layout.passes[-1].first * layout.words * self.config.banks
        heads = self.source(s.c, places.output.inputs)
        self.linear(f"{label} output", places.output, heads, s.joint, self.onto_x(s.output_bias), after=0 if early else None)

    def write_key(self, layer: int, after: int | None) -> None:
        step = self.flow.step(f"layers.{layer} key", after=after)
        number, token = divmod(self.position, self.p.reservation)
        layout, banks = self.layout, self.config.banks
        for i, part in enumerate(layout.passes):
            group, rest = divmod(token, banks * part.split)
            position = self.p.keyvalues[number][layer][i].keys.position(group)
            for head in range(part.heads):
                channel = head * part.split + rest // banks
                step.add([channel], *write(rest % banks, position, layout.beats, self.config))
                word = self.sram.joint + layout.key_offset + (part.first + head) * layout.head_stride
                step.send.append(Vector(Operation.COPY, word, layout.beats, self.shape.head_dim, mask=1 << channel))

    def write_values(self, layer: int) -> None:
        step = self.flow.step(f"layers.{layer} value")
        number, token = divmod(self.position, self.p.reservation)
        block, token = divmod(token, self.block)
        column, element = divmod(token, self.config.lanes)
        kind = MacroKind.SCATTER if self.p.costs.timing.all_bank_write else MacroKind.MODIFY
        unit = self.config.words_per_beat
        for i, part in enumerate(self.layout.passes):
            room = self.p.keyvalues[number][layer][i].values[block]
            for head in range(part.heads):
                for channel in range(part.split):
                    words = self.layout.value_words(part.split, channel)
                    if not words:
                        continue
                    to = head * part.split + channel
                    for first, times, stride in runs([position + column for position in room.positions(words)]):
                        row, at = divmod(first, self.config.columns)
                        step.add([to], Macro(kind, row=row, column=at, element=element, times=times, step=stride))
                    word = self.sram.joint + self.layout.value_offsets[part.first + head, channel]
                    step.send.append(Vector(Operation.COPY, word, words // unit, words * self.config.banks, mask=1 << to, narrow=True))

    def _mask(self, part: Pass, head: int) -> int:
        return ((1 << part.split) - 1) << (head * part.split)

    def scores(self, layer: int, i: int) -> None:
        """Queries of a pass with all keys; their maxima. Weights of more than a buffer are worked out here, and stay in the SRAM."""
        part, layout, s = self.layout.passes[i], self.layout, self.sram
        step = self.flow.step(f"layers.{layer} scores {i}")
        for head in range(part.heads):
            word = s.joint + layout.query_offset + (part.first + head) * layout.head_stride
            step.send.append(Vector(Operation.COPY, word, layout.beats, self.shape.head_dim, mask=self._mask(part, head)))
        groups = -(-self.context // (part.split * self.config.banks))
        positions: list[int] = []
        for number in range(-(-self.context // self.p.reservation)):
            keys = self.p.keyvalues[number][layer][i].keys
            positions += keys.positions(min(keys.groups, groups - len(positions)))
        step.add(range(part.channels), *multiply(positions, layout.beats, self.config, self.p.keyvalues[0][layer][i].keys.batch))
        stride, dst = score_stride(self.context, part.split, self.config), s.scores[i % 2]
        step.receive = [
            [
                Receive(
                    0,
                    part.channels,
                    groups,
                    self.context,
                    dst,
                    split=part.split,
                    head_step=stride,
                    statistic=Statistic.MAX,
                    stat=MAXIMA + i % 2 * HEADS_PER_PASS,
                )
            ]
        ]
        if self.blocks > 1:
            step.receive[0] += [self.weights(i, head, store=True) for head in range(part.heads)]

    def weights(self, i: int, head: int, *, store: bool) -> Vector:
        """exp of a head's scores, and their sum: into the SRAM, or to its channels."""
        part, turn = self.layout.passes[i], i % 2 * HEADS_PER_PASS + head
        word = self.sram.scores[i % 2] + head * score_stride(self.context, part.split, self.config)
        return Vector(
            Operation.EXP,
            word,
            self.beats(self.context),
            self.context,
            dst=word if store else None,
            s=MAXIMA + turn,
            k=_k(math.log2(math.e) / math.sqrt(self.shape.head_dim)),
            mask=0 if store else self._mask(part, head),
            statistic=Statistic.SUM,
            stat=SUMS + turn,
        )

    def weigh(self, layer: int, i: int, after: int | None) -> None:
        """Values of a pass weighted, a buffer of tokens after the other; divided by the sum of the weights at the end."""
        part, layout, config = self.layout.passes[i], self.layout, self.config
        groups, sums = -(-layout.words // part.split), SUMS + i % 2 * HEADS_PER_PASS
        dst = self.sram.c + part.first * layout.words
        per_step = self.p.reservation // self.block
        for b in range(self.blocks):
            step = self.flow.step(f"layers.{layer} weighted values {i}", after=after if b == 0 else 0)
            tokens = min(self.block, self.context - b * self.block)
            for head in range(part.heads):
                if self.blocks == 1:
                    step.send.append(self.weights(i, head, store=False))
                    continue
                word = self.weights(i, head, store=True).a + b * self.block // config.banks
                step.send.append(Vector(Operation.COPY, word, self.beats(tokens), tokens, mask=self._mask(part, head)))
            room = self.p.keyvalues[b // per_step][layer][i].values[b % per_step]
            step.add(range(part.channels), *multiply(room.positions(groups), self.beats(tokens), config, room.batch))
            last = b == self.blocks - 1
            reciprocals: list[Instruction] = [Scalar(ScalarOperation.RECIPROCAL, sums + head, sums + head) for head in range(part.heads)] if last else []
            step.receive = [
                [
                    *reciprocals,
                    Receive(
                        0,
                        part.channels,
                        groups,
                        self.shape.head_dim,
                        dst,
                        split=part.split,
                        head_step=layout.words,
                        partial=dst if b else None,
                        scale=sums if last else None,
                    ),
                ]
            ]

    def feed_forward(self, layer: int) -> None:
        s, label, places, config = self.sram, f"layers.{layer}", self.p.layers[layer], self.config
        self.load(f"{label} bias", (places.up_bias, s.up_bias))
        function = FUNCTIONS[self.shape.activation]

        def up(low: int) -> Receive:
            at = low * config.channels
            return Receive(0, config.channels, 0, 0, s.up + at, scale=SCALE, bias=s.up_bias + at, function=function)

        first = -(-places.down.chunks[0].columns * config.lanes // (config.channels * config.banks))
        source = self.source(s.x, self.shape.hidden, Operation.CENTER)
        self.linear(f"{label} up", places.up, source, s.up, up, before=self.mean(), behind=self.deviation(), cuts=[first])
        self.linear(f"{label} down", places.down, self.source(s.up, self.shape.ffn), s.up_bias, self.onto_x(s.down_bias), after=1)

    def head(self) -> None:
        """Norm, and the head in tiles whose partial sums fit the SRAM; the largest logit's index."""
        s, config, matrix = self.sram, self.config, self.p.head
        self.load(f"{HEAD_LABEL} norm", (self.p.gain, s.gain), (self.p.bias, s.bias))
        source = self.source(s.c, self.shape.hidden, Operation.SCALE, s.gain, s.bias)
        number = 1 if len(matrix.chunks) == 1 else -(-matrix.groups // (s.tile_words // config.channels))
        size = -(-matrix.groups // number)
        for low in range(0, matrix.groups, size):
            base = low * config.channels * config.banks
            receipt = Receive(0, config.channels, 0, 0, None, statistic=Statistic.ARGMAX, stat=BEST, keep=low > 0, base=base)
            groups = range(low, min(low + size, matrix.groups))
            # The gains must be there before the first send.
            before, after = ([*self.mean(), *self.deviation(s.c)], None) if not low else ([], 0)
            self.linear(HEAD_LABEL, matrix, source, s.tile, lambda _, r=receipt: r, before=before, after=after, groups=groups)  # type: ignore[misc]


Source = Callable[[int, int], list[Instruction]]
"""Instructions that send beats [start, start + beats) of a vector."""


def _changed(receipt: Receive, *, groups: int, valid: int, partial: int | None) -> Receive:
    return replace(receipt, groups=groups, valid=valid, partial=partial)
