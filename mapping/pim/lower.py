# SPDX-License-Identifier: Apache-2.0
"""One token of a GPT model as a program (architecture.md, 4.7): embedding, layers, head.

The channels' order within a layer: biases; values, keys and queries; the key's write; scores of two passes of heads; the value's writes, while the
softmax is worked on; weighted values and scores of the passes in turn; output; biases; feed-forward. Layer norms send x - mean at once and multiply
what comes back by 1/deviation, which is worked out meanwhile. Everything else that the companion chip works out lies between a step's receipts and the
sends of the next; ``Flow`` lets sends run ahead.
"""

from __future__ import annotations

from collections.abc import Callable

from lutra.hls_models.errors import ModelError
from lutra.hls_models.pim.program import Macro, MacroKind, Operation, Program, Receive, Statistic, Vector
from lutra.mapping.pim.flow import Flow
from lutra.mapping.pim.partition import Partition, Placed
from lutra.mapping.pim.parts import FUNCTIONS, SCALE, SUM, Parts
from lutra.mapping.pim.sram import Sram

__all__ = ["HEAD_LABEL", "clear", "lower"]

HEAD_LABEL = "head"
"""Label of the steps whose last receipts are the logits."""

BEST = 3
"""Scalar of the largest logit."""


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


def clear(partition: Placed, step: int = 0) -> Program:
    """Program that zeroes the values' room of one step of ``reservation`` tokens in all layers, of any family: before its first token is written."""
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


class _Token(Parts):
    def __init__(self, partition: Partition, position: int, overlap: bool) -> None:
        super().__init__(partition, position + 1, overlap)
        self.p, self.shape, self.position = partition, partition.shape, position
        self.sram = Sram.plan(self.shape, self.config, self.layout, self.context)

    def program(self, token: int) -> Program:
        self.embedded("embedding", token, self.position, self.sram.x)
        for layer in range(self.shape.layers):
            self.attention(layer)
            self.feed_forward(layer)
        self.head()
        return self.flow.program()

    def onto_x(self, bias: int) -> Callable[[int], Receive]:
        """Receipts that add to the residual stream, and its sum."""
        x = self.sram.x
        return lambda low: Receive(0, self.config.channels, 0, 0, x, bias=bias, residual=x, statistic=Statistic.SUM, stat=SUM)

    # parts of a token

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
        self.linear(label_joint, places.joint, source, s.joint, joint, before=self.mean(), behind=self.deviation(s.x), cuts=cuts)
        self.write_key(layer, self.position, s.joint, after=len(cuts) if whole < places.joint.groups else None)
        passes = range(len(layout.passes))
        if s.overlap and self.flow.overlap:
            for i in passes[:2]:
                self.scored(layer, i)
            self.write_values(layer, self.position, s.joint)
            for i in passes:
                self.weighed(layer, i, after=0)
                if i + 2 < len(passes):
                    self.scored(layer, i + 2)
        else:
            for i in passes:
                self.scored(layer, i)
                if i == 0:
                    self.write_values(layer, self.position, s.joint)
                self.weighed(layer, i, after=None)
        first = places.output.chunks[0].columns * self.config.lanes
        early = first <= layout.passes[-1].first * layout.words * self.config.banks
        heads = self.source(s.c, places.output.inputs)
        self.linear(f"{label} output", places.output, heads, s.joint, self.onto_x(s.output_bias), after=0 if early else None)

    def scored(self, layer: int, i: int) -> None:
        self.scores(layer, i, i % 2, self.sram.joint, self.sram.scores[i % 2])

    def weighed(self, layer: int, i: int, after: int | None) -> None:
        self.weigh(layer, i, i % 2, self.sram.scores[i % 2], self.sram.c, after)

    def feed_forward(self, layer: int) -> None:
        s, label, places, config = self.sram, f"layers.{layer}", self.p.layers[layer], self.config
        self.load(f"{label} bias", (places.up_bias, s.up_bias))
        function = FUNCTIONS[self.shape.activation]

        def up(low: int) -> Receive:
            at = low * config.channels
            return Receive(0, config.channels, 0, 0, s.up + at, scale=SCALE, bias=s.up_bias + at, function=function)

        first = -(-places.down.chunks[0].columns * config.lanes // (config.channels * config.banks))
        source = self.source(s.x, self.shape.hidden, Operation.CENTER)
        self.linear(f"{label} up", places.up, source, s.up, up, before=self.mean(), behind=self.deviation(s.x), cuts=[first])
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
            before, after = ([*self.mean(), *self.deviation(s.x, s.c)], None) if not low else ([], 0)
            self.linear(HEAD_LABEL, matrix, source, s.tile, lambda _, r=receipt: r, before=before, after=after, groups=groups)  # type: ignore[misc]
