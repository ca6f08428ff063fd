# SPDX-License-Identifier: Apache-2.0
"""Golden model of the device's end of the link: what it does with each request, and what it answers."""

from typing import Protocol

from lutra.hls_models.link import MAX_WORDS, PAYLOAD_BYTES, PROTOCOL, Fault, Packet, PacketType
from lutra.hls_models.ternary.registers import Register

__all__ = ["ABORT", "WHILE_BUSY", "BridgeModel", "RegisterBus", "start_payload"]

ABORT = 2
"""Of CONTROL; bit 0 starts a run, and only START may: it checks what it starts."""

WHILE_BUSY = (Register.CONTROL, Register.TOKEN_INDEX, Register.BEST_INDEX)
"""Registers that may be written during a run."""
ADDRESSES = 0x3F
"""Register addresses have six bits."""


class RegisterBus(Protocol):
    """The core as the link sees it."""

    @property
    def busy(self) -> bool: ...

    def read(self, register: int) -> int: ...

    def write(self, register: int, value: int) -> None: ...

    def reset(self) -> None: ...


def start_payload(position: int, length: int, wanted: int, stop: int | None = None) -> bytes:
    """Payload of START: ``length`` prompt tokens from ``position`` on, ``wanted`` tokens after them, or up to ``stop``."""
    word = 0 if stop is None else stop | 1 << 31
    return b"".join(value.to_bytes(size, "little") for value, size in ((position, 2), (length, 2), (wanted, 2), (word, 4)))


class BridgeModel:
    """Requests to replies, in order.

    Parameters
    ----------
    context, vocabulary : of the core's model; positions and token ids outside of them are refused
    core : its registers
    """

    def __init__(self, *, context: int, vocabulary: int, core: RegisterBus) -> None:
        self._context, self._vocabulary, self._core = context, vocabulary, core
        self._last: int | None = None

    @property
    def welcome(self) -> bytes:
        """Payload of WELCOME and RESTARTED."""
        return bytes([PROTOCOL]) + self._context.to_bytes(2, "little") + self._vocabulary.to_bytes(3, "little")

    def respond(self, request: Packet | Fault) -> Packet:
        """The reply to a request, or to a fault of the line."""
        if isinstance(request, Fault):
            return Packet(PacketType.ERROR, 0, bytes([request]))
        changes = request.type in (PacketType.WRITE, PacketType.START)
        if changes and request.sequence == self._last:
            return Packet(PacketType.ACK, request.sequence)
        found = self._carry_out(request)
        if isinstance(found, Fault):
            return Packet(PacketType.ERROR, request.sequence, bytes([found]))
        if changes:
            self._last = request.sequence
        elif request.type in (PacketType.HELLO, PacketType.RESET):
            self._last = None
        return found

    def _carry_out(self, request: Packet) -> Packet | Fault:
        payload, core = request.payload, self._core
        match request.type:
            case PacketType.WRITE:
                if len(payload) % 4 != 1 or len(payload) < 5:
                    return Fault.PAYLOAD
                return self._write(payload[0] & ADDRESSES, payload[1:]) or Packet(PacketType.ACK, request.sequence)
            case PacketType.HELLO | PacketType.RESET | PacketType.READ | PacketType.START as kind if len(payload) != PAYLOAD_BYTES[PacketType(kind)]:
                return Fault.PAYLOAD
            case PacketType.HELLO:
                return Packet(PacketType.WELCOME, request.sequence, self.welcome)
            case PacketType.RESET:
                core.reset()
                return Packet(PacketType.WELCOME, request.sequence, self.welcome)
            case PacketType.READ:
                first, count = payload
                if not 1 <= count <= MAX_WORDS:
                    return Fault.PAYLOAD
                return Packet(PacketType.DATA, request.sequence, b"".join(core.read(first + i & ADDRESSES).to_bytes(4, "little") for i in range(count)))
            case PacketType.START:
                return self._start(payload) or Packet(PacketType.ACK, request.sequence)
            case _:
                return Fault.TYPE

    def _write(self, register: int, words: bytes) -> Fault | None:
        if self._core.busy and register not in WHILE_BUSY:
            return Fault.BUSY
        for at in range(0, len(words), 4):
            value = int.from_bytes(words[at : at + 4], "little")
            if register == Register.TOKEN and value >= self._vocabulary:
                return Fault.RANGE
            self._core.write(register, value & ABORT if register == Register.CONTROL else value)
        return None

    def _start(self, payload: bytes) -> Fault | None:
        position, length, wanted, stop = (int.from_bytes(payload[at:end], "little") for at, end in ((0, 2), (2, 4), (4, 6), (6, 10)))
        if self._core.busy:
            return Fault.BUSY
        if length == 0 or wanted == 0 or position + length > self._context:
            return Fault.RANGE
        for register, value in (
            (Register.START_POSITION, position),
            (Register.PROMPT_LENGTH, length),
            (Register.MAX_NEW, wanted),
            (Register.STOP_TOKEN, stop),
            (Register.CONTROL, 1),
        ):
            self._core.write(register, value)
        return None
