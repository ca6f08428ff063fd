# SPDX-License-Identifier: Apache-2.0
"""What goes into and comes out of a simulation: beats as arrays and as the binary files of players, sinks and recorders (cosim/verilog)."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from lutra.hls_models.errors import MismatchError
from lutra.hls_models.streams import words_for

__all__ = ["Port", "Recording", "Stimulus", "compare", "read_recording", "to_words", "write_ready", "write_stimulus"]


@dataclass(frozen=True)
class Stimulus:
    """Beats for an input: payloads as in ``to_words``; ``not_before`` (n,) earliest cycles, 0 where absent."""

    payloads: Any
    not_before: ArrayLike | None = None


@dataclass(frozen=True)
class Recording:
    """Every handshake of a port: payloads (n, words) uint32, lowest word first, and cycles (n,) int64."""

    payloads: NDArray[np.uint32]
    cycles: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.cycles)


def to_words(payloads: Any, width: int) -> NDArray[np.uint32]:
    """Payloads as (n, words) uint32, lowest word first.

    Parameters
    ----------
    payloads
        (n, words) uint32 as they are; (n,) integers of up to 64 bits; or a sequence of Python integers of any size. Negative ones in two's complement.
    width
        Bits of a payload; what does not fit is a ValueError.
    """
    words = words_for(width)
    if isinstance(payloads, np.ndarray) and payloads.ndim == 2:
        if payloads.shape[1] != words:
            raise ValueError(f"payloads of {width} bits need {words} words, not {payloads.shape[1]}")
        out = payloads.astype(np.uint32)
    elif isinstance(payloads, np.ndarray) and words <= 2:
        signed = payloads.dtype.kind == "i"
        low, high = (-(1 << max(width - 1, 0)) if signed else 0), (1 << width) - 1
        if payloads.size and not (low <= int(payloads.min()) and int(payloads.max()) <= high):
            raise ValueError(f"payloads must fit {width} bits")
        mask64 = np.uint64(high)
        out = (payloads.astype(np.int64 if signed else np.uint64).view(np.uint64) & mask64)[:, None].view(np.uint32).reshape(-1, 2)[:, :words]
    else:
        values = [int(value) for value in payloads]
        if any(not -(1 << max(width - 1, 0)) <= value < 1 << width for value in values):
            raise ValueError(f"payloads must fit {width} bits")
        mask = (1 << width) - 1
        raw = b"".join((value & mask).to_bytes(4 * words, "little") for value in values)
        out = np.frombuffer(raw, "<u4").reshape(-1, words)
    spare = 32 * words - width
    if spare and out.size and spare < 32 and (out[:, -1] >> np.uint32(32 - spare)).any():
        raise ValueError(f"payloads must fit {width} bits")
    return np.ascontiguousarray(out)


@dataclass
class Port:
    """A recorded boundary: ``name`` as its files are called, payload ``width`` in bits."""

    name: str
    width: int
    is_input: bool
    has_ready: bool

    @property
    def words(self) -> int:
        return words_for(self.width)


def write_stimulus(folder: Path, port: Port, stimulus: Stimulus) -> int:
    """Writes a player's file; returns the number of beats."""
    try:
        payloads = to_words(stimulus.payloads, port.width)
    except ValueError as error:
        raise ValueError(f"{port.name}: {error}") from None
    not_before = np.zeros(len(payloads), np.int64) if stimulus.not_before is None else np.asarray(stimulus.not_before, np.int64)
    if not_before.shape != (len(payloads),) or (not_before < 0).any():
        raise ValueError(f"{port.name}: not_before must be {len(payloads)} cycles of 0 or more")
    # $fread fills a register from its most significant byte on.
    records = np.empty((len(payloads), 2 + port.words), ">u4")
    records[:, 0] = not_before >> 32
    records[:, 1] = not_before & 0xFFFFFFFF
    records[:, 2:] = payloads[:, ::-1]
    (folder / f"{port.name}.in").write_bytes(records.tobytes())
    return len(payloads)


def write_ready(folder: Path, port: Port, trace: ArrayLike) -> None:
    """Writes a sink's file; ready past its end."""
    bits = np.asarray(trace, bool)
    bits = np.concatenate([bits, np.ones(-len(bits) % 32, bool)])
    (folder / f"{port.name}.ready").write_bytes(np.packbits(bits, bitorder="little").view("<u4").astype(">u4").tobytes())


def read_recording(path: Path, width: int) -> Recording:
    """What a recorder wrote of a stream with ``width`` payload bits."""
    words = np.fromfile(path, "<u4").reshape(-1, 2 + words_for(width))
    return Recording(payloads=words[:, 2:].astype(np.uint32), cycles=words[:, 0].astype(np.int64) | words[:, 1].astype(np.int64) << 32)


def _hex(words: NDArray[np.uint32]) -> str:
    return "0x" + "".join(f"{int(word):08x}" for word in words[::-1])


def compare(name: str, expected_payloads: ArrayLike | None, expected_cycles: ArrayLike | None, recording: Recording, *, first: int = 0) -> int:
    """Compares a port's recording with golden payloads and predicted handshake cycles; returns the number of payload words compared.

    Parameters
    ----------
    name
        Of the tensor or port, for the message.
    expected_payloads
        (n, words) or, of one word, (n,) uint32; None: not compared.
    expected_cycles
        (n,) cycles; None: not compared.
    first
        Index of the first beat, where these are a part of the whole.

    Raises
    ------
    MismatchError
        The first beat in time order that differs: name, index, expected and actual payload in hexadecimal, and cycles.
    """
    payloads = None
    if expected_payloads is not None:
        payloads = np.asarray(expected_payloads).astype(np.uint32, copy=False).reshape(-1, recording.payloads.shape[1])
    cycles = None if expected_cycles is None else np.asarray(expected_cycles, np.int64)
    count = len(recording)
    for wanted in (payloads, cycles):
        if wanted is not None:
            count = min(count, len(wanted))
    wrong = np.zeros(count, bool)
    if payloads is not None:
        wrong |= (payloads[:count] != recording.payloads[:count]).any(axis=1)
    if cycles is not None:
        wrong |= cycles[:count] != recording.cycles[:count]
    if wrong.any():
        i = int(np.argmax(wrong))
        value = "" if payloads is None else f" expected {_hex(payloads[i])}, got {_hex(recording.payloads[i])};"
        when = f" cycle {recording.cycles[i]}" + ("" if cycles is None else f", expected cycle {cycles[i]}")
        at = int(recording.cycles[i]) if cycles is None else int(min(recording.cycles[i], cycles[i]))
        raise MismatchError(f"{name}[{first + i}]:{value}{when} ({int(wrong.sum())} of {count} beats differ)", at, first + i)
    for wanted, what in ((payloads, "golden"), (cycles, "predicted")):
        if wanted is not None and len(wanted) != len(recording):
            after = f", the last at cycle {recording.cycles[-1]}" if len(recording) else ""
            beyond = cycles if cycles is not None and len(cycles) > count else recording.cycles
            at = int(beyond[min(count, len(beyond) - 1)]) if len(beyond) else 0
            raise MismatchError(f"{name}[{first + count}]: {len(recording)} beats recorded{after}, {len(wanted)} {what}", at, first + count)
    return 0 if payloads is None else payloads.size
