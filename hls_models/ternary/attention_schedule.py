# SPDX-License-Identifier: Apache-2.0
"""The attending phase of ATTEND, item by item: when each stage takes it (docs/architecture.md §2.8).

Time is not in the data: a schedule follows from tokens and position and from when the ports move. All stages take items (a query row and a key tile) in the
same order, so each stage is one recurrence over items. An event of clock t is seen by whoever waits for it at t + 1 (all waiting is for registered
counters); the rest are the pipelines' lengths:

    stage        taken no earlier than one clock after                                 ends
    tile         its memory's business, given the release of the half it needs         with its last row
    scores       last key of the item before, tile, room for scores, room for maximum  keys later, its maximum ``score`` clocks after that
    softmax      last score of the item before, tile, maximum, a place for w, for p    as many clocks later; w follows by ``weight``, sums by SUMS
    quotients    operand, result before                                                divsqrt later (int8 only)
    denominator  sums, the one before                                                  partials + (levels + 1) * add later
    products     quotient or weights, last one of the item before, place for P         keys later, P by ``product``
    output       P, 1 / denominator, last write of the item before, room for values    head_beats + ``update`` later

Scores and products spend ``key_clocks`` on a key, the softmax one.
"""

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple, Protocol

from lutra.hls_models.floats import FLOAT_LATENCY
from lutra.hls_models.functions import FUNCTION_LATENCY
from lutra.hls_models.ternary.attention import STORED_ITEMS, AttentionConfig

__all__ = ["WALK", "Known", "Schedule", "Sink", "TileMemory"]

WALK = 2  # from START to the first tile or item on offer: its position, then its size, in registers
MUL, ADD, DIVSQRT = FLOAT_LATENCY["mul"], FLOAT_LATENCY["add"], FLOAT_LATENCY["divsqrt"]
EXP2 = ADD + FUNCTION_LATENCY["exp2"]  # subtraction and exp2
SUMS = 1 + EXP2 + FLOAT_LATENCY["convert"] + ADD  # from an item's last score's read (synchronous) to its last partial sum
DIVIDE = 1 + DIVSQRT  # a serial divider's operand is taken a clock after it came or after the result before
KNOWN_TILES = 1 << 12


class Latencies:
    """What depends on the number format.

    ``score``: from the last clock of an item's last key in the scores stage to its maximum; ``weight``: from its last score's read to its last weight;
    ``product``: from the last clock of its last key in the products stage to P, ``release``: … to the strobe that frees the tile of V; ``update``: from a
    beat of P to the written output, ``value``: … to the queue of values.
    """

    def __init__(self, config: AttentionConfig) -> None:
        if config.kv_format == "int8":
            # Key and product registers, a register per level of the tree, conversion, scale.
            self.score = 2 + (config.head_dim - 1).bit_length() + FLOAT_LATENCY["from_int"] + MUL
            self.weight = 1 + EXP2 + MUL
            code = MUL + FLOAT_LATENCY["to_int"]  # from a weight's read to its code; the row of V is read one clock before that
            self.product, self.release = code + 1, code - 1
            self.update = FLOAT_LATENCY["from_int"] + MUL + ADD
        else:
            spare = config.key_clocks - config.key_steps  # clocks of a key after its last step
            levels = (config.key_lanes - 1).bit_length() + (config.key_steps - 1).bit_length()
            self.score = 1 + MUL + levels * ADD - spare  # key register, product, an adder per level of both trees
            self.weight = 1 + EXP2  # p itself
            self.product, self.release = 1 + MUL + ADD - spare, 0  # weight and row register, product, sum
            self.update = 1 + MUL + ADD  # the output's read
        self.value = self.update + MUL + FLOAT_LATENCY["convert"]


class TileMemory(Protocol):
    """Where tiles come from, in the order of ``key_tiles``."""

    def tile(self, value: bool, freed: int) -> int:
        """Cycle of the last row of the next tile, which is of values or of keys; the half buffer that it needs was released in ``freed`` (-1: never used)."""


class Sink(Protocol):
    def take(self, first: int, beats: int) -> list[int]:
        """Handshakes of beats that enter the queue of values in successive cycles from ``first``."""


class Row(NamedTuple):
    """An item of a tile: the keys that a query row sees; whether it is the row's first or last one of this KV head in the order of work."""

    keys: int
    first: bool
    last: bool


Rows = tuple[Row, ...]


class Work(NamedTuple):
    """Rows of a key tile that are scored, rows of a value tile that are attended: in prefill both, by turns."""

    scored: Rows | None
    attended: Rows | None


def _work(config: AttentionConfig, tokens: int, position: int, prefill: bool, full: Rows) -> Iterator[Work]:
    """Tiles in the order of ``key_tiles``; where every row of a prefill sees the whole tile and it is neither its first nor its last one, rows are ``full``."""
    TL, heads = config.key_tile, config.kv_heads
    if prefill:
        tiles: list[Rows] = []
        for base in range(0, position + tokens, TL):
            spans = [position + token + 1 - base for token in range(tokens) if position + token >= base]
            inner = base > 0 and spans[0] > TL
            tiles.append(full if inner else tuple(Row(min(span, TL), span <= TL, base == 0) for span in spans for _ in range(config.group)))
        for _ in range(heads):
            yield from (Work(rows, rows) for rows in reversed(tiles))
        return
    for end in range(position + 1, position + tokens + 1):
        tiles = [(Row(min(TL, end - base), base == 0, end - base <= TL),) * config.group for base in range(0, end, TL)]
        for head in range(heads + 1):
            for rows in tiles:
                if head:
                    yield Work(None, rows)
                if head < heads:
                    yield Work(rows, None)


class _Tile(NamedTuple):
    """What a tile of full rows leaves, in clocks from ``Schedule.next_score`` before it."""

    state: tuple[int, ...]
    items: tuple[int, ...]
    k_freed: int
    v_freed: int


Known = dict[tuple[int, ...], _Tile]
"""Tiles of full rows that were gone through once, by the state before them: long prompts repeat a few of them thousands of times."""


class Schedule:
    """The attending phase of one instruction whose START is in cycle ``start``.

    ``values``: handshakes; ``items``: clocks in which the softmax takes items (for timelines); ``k_freed``, ``v_freed``: clocks in which halves of the tile
    buffers are released.

    Parameters
    ----------
    serial
        Token after token, as if each were decoded.
    known
        Of this config; kept from one schedule to the next by whoever makes many.
    """

    def __init__(
        self,
        config: AttentionConfig,
        tokens: int,
        position: int,
        start: int,
        memory: TileMemory,
        sink: Sink,
        *,
        serial: bool = False,
        known: Known | None = None,
    ) -> None:
        self._config, self._sink = config, sink
        self._prefill = tokens != 1 and not serial
        self._latencies = latencies = Latencies(config)
        self._divides = config.kv_format == "int8"  # 255 by the largest weight
        denominator = config.partials + config.partials.bit_length() * ADD
        self._clocks = (
            config.key_clocks,
            latencies.score + 1,
            latencies.weight,
            1 + denominator,
            latencies.product + 1,
            config.head_beats + latencies.update + 1,
        )
        self._places = config.maximum_depth
        # Between scores and softmax there wait, of a prefill, no more items than maxima have places, and one; else no more than a row's in two heads. Where
        # their scores fit anyway, nobody counts them.
        self._depth = config.score_depth
        self._counts_room = self._depth < ((self._places + 1) * config.key_tile if self._prefill else 2 * config.group * (position + tokens))
        ready = start + WALK
        # Scores: first clock of the next take, keys so far, maxima under way.
        self._next_score, self._scored = ready, 0
        self._maxima: deque[int] = deque()
        # Softmax and what follows it: events are kept as the first clock in which they count.
        self._next_softmax = ready
        self._popped = deque([0] * self._places, self._places)
        self._read: deque[tuple[int, int]] = deque()  # scores read so far, from when on that counts
        self._seen = 0
        self._weights, self._sums, self._outputs = (deque([0] * places, places) for places in (STORED_ITEMS, STORED_ITEMS, 2))
        self._quotient = self._summed = self._inverse = self._next_product = self._next_output = 0
        self.values: list[int] = []
        self.items: list[int] = []
        self.k_freed: list[int] = []
        self.v_freed: list[int] = []

        full = (Row(config.key_tile, False, False),) * (tokens * config.group)
        known = {} if known is None else known
        keys_at = values_at = 0
        for scored, attended in _work(config, tokens, position, self._prefill, full):
            if scored:
                keys_at = memory.tile(False, self.k_freed[-2] if len(self.k_freed) > 1 else -1) + 1
            if attended:
                values_at = memory.tile(True, self.v_freed[-2] if len(self.v_freed) > 1 else -1) + 1
            if scored is full and not self._counts_room:
                self._full_tile(known, full, keys_at, values_at)
            else:
                self._tile(scored, attended, keys_at, values_at)

    def _full_tile(self, known: Known, rows: Rows, keys_at: int, values_at: int) -> None:
        """As ``_tile``, from memory where the same rows met the same state before: nothing changes when all is shifted in time."""
        base = self._next_score
        before = (len(rows), max(keys_at - base, 0), max(values_at, self._next_softmax) - base, *self._state(base))
        tile = known.get(before)
        if tile is None:
            first = len(self.items)
            self._tile(rows, rows, keys_at, values_at)
            if len(known) >= KNOWN_TILES:
                known.clear()
            items = tuple(item - base for item in self.items[first:])
            known[before] = _Tile(self._state(base), items, self.k_freed[-1] - base, self.v_freed[-1] - base)
            return
        state = [clock + base for clock in tile.state]
        self._next_score, self._next_softmax, self._quotient, self._summed, self._inverse, self._next_product, self._next_output = state[:7]
        at = 7
        for history in (self._weights, self._sums, self._outputs, self._popped):
            history.extend(state[at : at + len(history)])
            at += len(history)
        self.items += [item + base for item in tile.items]
        self.k_freed.append(tile.k_freed + base)
        self.v_freed.append(tile.v_freed + base)

    def _state(self, base: int) -> tuple[int, ...]:
        """All that the items of a prefill hand on, from ``base`` on."""
        scalars = (self._next_score, self._next_softmax, self._quotient, self._summed, self._inverse, self._next_product, self._next_output)
        return tuple([clock - base for clock in (*scalars, *self._weights, *self._sums, *self._outputs, *self._popped)])

    def _tile(self, scored: Rows | None, attended: Rows | None, keys_at: int, values_at: int) -> None:
        """Items of a tile whose keys count from ``keys_at`` on and whose values from ``values_at`` on. Plain comparisons of local variables: this is the loop
        that long prompts spend their time in."""
        prefill, counts_room, divides = self._prefill, self._counts_room, self._divides
        key_clocks, to_maximum, to_weight, to_sum, to_output, output_clocks = self._clocks
        next_score, maxima = self._next_score, self._maxima
        next_softmax, popped, items = self._next_softmax, self._popped, self.items
        weights, sums, outputs = self._weights, self._sums, self._outputs
        quotient, summed, inverse = self._quotient, self._summed, self._inverse
        next_product, next_output = self._next_product, self._next_output
        for keys, first, last in scored or attended or ():
            if scored:
                take = next_score if next_score > keys_at else keys_at
                if counts_room:
                    take = max(take, self._room(keys))
                end = take + keys * key_clocks
                if prefill or last:
                    # Room for scores of one row may come from another of the same tile, so that both stages go by turns.
                    if popped[len(maxima)] > take:
                        end += popped[len(maxima)] - take
                    maxima.append(end + to_maximum)
                next_score = end + 1
            if attended:
                take = next_softmax if next_softmax > values_at else values_at
                if weights[0] > take:
                    take = weights[0]
                if sums[0] > take:
                    take = sums[0]
                if prefill or first:
                    maximum = maxima.popleft()
                    if maximum > take:
                        take = maximum
                    popped.append(take + 1)
                items.append(take)
                end = take + keys
                next_softmax = end + 1
                if counts_room:
                    self._seen += keys
                    self._read.append((self._seen, next_softmax))

                weighted = end + to_weight
                quotient = (weighted if weighted > quotient else quotient) + DIVIDE if divides else weighted
                end += SUMS
                summed = (end if end > summed else summed) + to_sum
                inverse = (summed if summed > inverse else inverse) + DIVIDE
                sums.append(summed + 1)

                take = quotient + 1
                if next_product > take:
                    take = next_product
                if outputs[0] > take:
                    take = outputs[0]
                end = take + keys * key_clocks
                next_product = end + 1
                weights.append(next_product)

                take = end + to_output
                if inverse >= take:
                    take = inverse + 1
                if next_output > take:
                    take = next_output
                if last:
                    take = self._values(take)
                outputs.append(take + 1)
                next_output = take + output_clocks
        if scored:
            self._next_score = next_score
            self.k_freed.append(next_score - 1)
        if attended:
            self._next_softmax, self._quotient, self._summed, self._inverse = next_softmax, quotient, summed, inverse
            self._next_product, self._next_output = next_product, next_output
            self.v_freed.append(next_product - 1 + self._latencies.release)

    def _room(self, keys: int) -> int:
        """First clock in which the queue of scores has room for so many more."""
        self._scored += keys
        if self._scored <= self._depth:
            return 0
        while self._read[0][0] < self._scored - self._depth:
            self._read.popleft()
        return self._read[0][1]

    def _values(self, take: int) -> int:
        """When a row's last item is taken, which could be in ``take``; its values leave. Two heads' fit the queue: the beat that makes room for this one's last
        is two heads back."""
        beats = self._config.head_beats
        if len(self.values) >= 2 * beats:
            take = max(take, self.values[-beats - 1] + 1)
        self.values += self._sink.take(take + 1 + self._latencies.value, beats)
        return take
