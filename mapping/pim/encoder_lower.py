# SPDX-License-Identifier: Apache-2.0
"""One sentence through an encoder as a program (architecture.md, 4.7): embedding, layers, pooling.

A layer has two phases. First values and keys of all tokens, one token after the other, go into the banks; then every token's queries, scores over all
tokens, weighted values, output and feed-forward layer. Matrices of the second phase take two tokens in turn, so that one token's norms, softmax and GELU
are worked out while the channels multiply for the other; norms are applied to the vectors themselves (SCALE with gain and bias), which the residual needs.
The companion chip also adds up the tokens and makes the length one; the embedding ends in ``EncoderPartition.result``, and as fp32 in its SRAM.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from lutra.hls_models.pim.program import Instruction, Operation, Program, Receive, Scalar, ScalarOperation, Statistic, Vector
from lutra.mapping.pim.encoder import checked
from lutra.mapping.pim.encoder_partition import EncoderPartition, EncoderSram
from lutra.mapping.pim.macros import read, write
from lutra.mapping.pim.parts import FUNCTIONS, SCALE, SQUARES, SUM, Parts
from lutra.mapping.pim.places import Piece

__all__ = ["lower"]


def lower(places: EncoderPartition, ids: Sequence[int], *, overlap: bool = True) -> Program:
    """Program of the sentence with token ids ``ids``; without ``overlap`` channels and companion chip work in turn.

    Raises
    ------
    ModelError
        It has no token, too many, or one that does not exist.
    ConfigError
        The companion chip's SRAM cannot hold what so many tokens need.
    """
    checked(places.shape, np.asarray(ids), places.tokens)
    return _Sentence(places, len(ids), overlap).program(ids)


class _Sentence(Parts):
    def __init__(self, places: EncoderPartition, tokens: int, overlap: bool) -> None:
        super().__init__(places, tokens, overlap)
        self.p, self.shape, self.tokens = places, places.shape, tokens
        self.sram = EncoderSram.plan(self.shape, self.config, self.layout, tokens)
        self.first = self.layout.query_offset // self.config.channels * self.config.channels
        """First word of the joint result that comes with the queries."""
        self.lead = self.first % self.config.words_per_beat

    def program(self, ids: Sequence[int]) -> Program:
        s = self.sram
        self.load("embedding norm", (self.p.gain, s.ffn_gain), (self.p.bias, s.ffn_bias))
        for position, token in enumerate(ids):
            self.embed(int(token), position)
        for layer in range(self.shape.layers):
            self.vectors(layer)
            self.values_and_keys(layer)
            for first in range(0, self.tokens, 2):
                self.outputs(layer, range(first, min(first + 2, self.tokens)))
        self.pool()
        return self.flow.program()

    # hidden vectors

    def home(self, token: int) -> int:
        """Where a token's hidden vector is, or is brought."""
        return self.sram.homes + token * self.sram.home_words if token < self.sram.resident else self.sram.hidden[token % 2]

    def fetch(self, token: int) -> None:
        """A hidden vector that lives in the banks."""
        if token >= self.sram.resident:
            channel, parts = self.p.hidden_pieces(token)
            step = self.flow.step("hidden in")
            step.add([channel], *read(parts))
            beats = self.beats(self.shape.hidden)
            step.receive = [[Receive(channel, 1, beats, self.shape.hidden, self.home(token), wide=True)]]

    def put(self, token: int, after: int | None) -> None:
        """A hidden vector that lives in the banks back there."""
        channel, parts = self.p.hidden_pieces(token)
        d = self.shape.hidden
        self.store("hidden out", channel, parts, [Vector(Operation.COPY, self.home(token), self.beats(d), d, mask=1 << channel)], after)

    def store(self, label: str, channel: int, parts: Sequence[Piece], send: list[Instruction], after: int | None) -> None:
        """What is sent into columns of a bank."""
        step = self.flow.step(label, after=after)
        for piece in parts:
            step.add([channel], *write(piece.bank, piece.row * self.config.columns + piece.column, piece.count, self.config))
        step.send = send

    def norm(self, at: int, gain: int, bias: int) -> list[Instruction]:
        """The vector at ``at``, whose sum is S[SUM], normalised."""
        d = self.shape.hidden
        return [*self.mean(), *self.deviation(at, at), Vector(Operation.SCALE, at, self.beats(d), d, dst=at, b=gain, c=bias, s=SCALE)]

    def embed(self, token: int, position: int) -> None:
        at = self.home(position)
        self.embedded("embedding", token, position, at)
        self.flow.steps[-1].receive[-1] += self.norm(at, self.sram.ffn_gain, self.sram.ffn_bias)
        if position >= self.sram.resident:
            self.put(position, after=None)

    # a layer

    def vectors(self, layer: int) -> None:
        s, at = self.sram, self.p.layers[layer]
        self.load(
            f"layers.{layer} vectors",
            (at.query_bias, s.query_bias),
            (at.output_bias, s.output_bias),
            (at.up_bias, s.up_bias),
            (at.down_bias, s.down_bias),
            (at.attention_gain, s.attention_gain),
            (at.attention_bias, s.attention_bias),
            (at.ffn_gain, s.ffn_gain),
            (at.ffn_bias, s.ffn_bias),
        )

    def after(self, number: int) -> int | None:
        """Receipts that a step waits for whose operands the step before the last one of ``number`` tokens gave: none where there are several."""
        return 0 if number > 1 else None

    def values_and_keys(self, layer: int) -> None:
        """Of all tokens; a token's are written behind the next one's matrix."""
        matrix, channels = self.p.layers[layer].joint, self.config.channels
        groups = range(-(-self.layout.query_offset // channels))
        self.fetch(0)
        for token in range(self.tokens + 1):
            if token + 1 < self.tokens:
                self.fetch(token + 1)
            if token < self.tokens:
                wide = self.sram.wide[token % 2]
                source = self.source(self.home(token), self.shape.hidden)
                after = self.after(self.tokens)
                self.linear(f"layers.{layer} values, keys", matrix, source, wide, self.into(wide), groups=groups, after=after)
            if token:
                wide = self.sram.wide[(token - 1) % 2]
                self.write_key(layer, token - 1, wide, after=self.after(self.tokens))
                self.write_values(layer, token - 1, wide)

    def into(self, dst: int, bias: int | None = None) -> Callable[[int], Receive]:
        """Receipts of a matrix's groups from ``dst`` on."""
        channels = self.config.channels
        return lambda low: Receive(0, channels, 0, 0, dst + low * channels, bias=None if bias is None else bias + low * channels)

    def onto(self, dst: int, bias: int, residual: int) -> Callable[[int], Receive]:
        """Receipts of a whole vector with bias and residual, and its sum."""
        return lambda _: Receive(0, self.config.channels, 0, 0, dst, bias=bias, residual=residual, statistic=Statistic.SUM, stat=SUM)

    def outputs(self, layer: int, tokens: range) -> None:
        """The next hidden vectors of one or two tokens."""
        s, at, label, d = self.sram, self.p.layers[layer], f"layers.{layer}", self.shape.hidden
        after, last = self.after(len(tokens)), layer == self.shape.layers - 1
        for token in tokens:
            self.fetch(token)
        self.queries(layer, tokens)
        self.attention(layer, tokens)
        for token in tokens:
            turn = token % 2
            middle, heads = s.middle[turn], self.source(s.heads[turn], at.output.inputs)
            then = self.norm(middle, s.attention_gain, s.attention_bias)
            self.linear(f"{label} output", at.output, heads, middle, self.onto(middle, s.output_bias, self.home(token)), then=then, after=after)
        function = FUNCTIONS[self.shape.activation]
        for token in tokens:
            turn = token % 2
            receipt = Receive(0, self.config.channels, 0, 0, s.wide[turn], bias=s.up_bias, function=function)
            self.linear(f"{label} up", at.up, self.source(s.middle[turn], d), s.wide[turn], lambda _, r=receipt: r, after=after)  # type: ignore[misc]
        for token in tokens:
            turn, home = token % 2, self.home(token)
            then = self.norm(home, s.ffn_gain, s.ffn_bias)
            if last:
                then += self.pooled(token)
            inner = self.source(s.wide[turn], self.shape.ffn)
            self.linear(f"{label} down", at.down, inner, home, self.onto(home, s.down_bias, s.middle[turn]), then=then, after=after)
        if not last:
            leaving = [token for token in tokens if token >= s.resident]
            for token in leaving:
                self.put(token, self.after(len(leaving)))

    def queries(self, layer: int, tokens: range) -> None:
        s, matrix, channels = self.sram, self.p.layers[layer].joint, self.config.channels
        groups = range(self.layout.query_offset // channels, matrix.groups)
        for token in tokens:
            wide = s.wide[token % 2]
            source = self.source(self.home(token), self.shape.hidden)
            into = self.into(wide + self.lead, s.query_bias)
            self.linear(f"layers.{layer} queries", matrix, source, wide, into, groups=groups, after=self.after(len(tokens)))

    def attention(self, layer: int, tokens: range) -> None:
        """All passes of one token, then of the other: weighted values of a pass and scores of the pass after the next in turn."""
        s, passes = self.sram, range(len(self.layout.passes))
        work = [(token, i) for token in tokens for i in passes]

        def scores(number: int, after: int | None = 0) -> None:
            token, i = work[number]
            self.scores(layer, i, number % 2, s.wide[token % 2] + self.lead - self.first, s.scores[number % 2], after)

        for number in range(min(2, len(work))):
            scores(number, 0 if number else self.after(len(tokens)))
        for number, (token, i) in enumerate(work):
            self.weigh(layer, i, number % 2, s.scores[number % 2], s.heads[token % 2], after=0 if len(work) > 1 else None)
            if number + 2 < len(work):
                scores(number + 2)

    # the end

    def pooled(self, token: int) -> list[Instruction]:
        """The token's last vector added to the others'; the last one's sum of squares."""
        d, pool, last = self.shape.hidden, self.sram.pool, token == self.tokens - 1
        statistic = Statistic.SUMSQ if last else Statistic.NONE
        operation, b = (Operation.ADD, pool) if token else (Operation.COPY, None)
        return [Vector(operation, self.home(token), self.beats(d), d, dst=pool, b=b, statistic=statistic, stat=SQUARES)]

    def pool(self) -> None:
        """The sum over the tokens made a vector of length one (the mean's length does not matter), and where a host finds it."""
        s, d = self.sram, self.shape.hidden
        scaled = Vector(Operation.SCALE, s.pool, self.beats(d), d, dst=s.pool, s=SCALE, mask=1)
        self.store("pooling", 0, self.p.result_pieces(), [Scalar(ScalarOperation.RSQRT, SCALE, SQUARES), scaled], after=None)
