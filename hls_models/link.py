# SPDX-License-Identifier: Apache-2.0
"""Packets between a host and a core over a serial line: layouts, golden encoder and decoder; RTL, simulation and host program use these definitions.

On the line a packet lies between two flags: FLAG, then length, type, sequence, payload and CRC, then FLAG; of these bytes FLAG and ESCAPE travel as ESCAPE and
themselves with bit FLIP inverted. So a flag is never anything else, and whatever garbage came before, a receiver is in step again at the next one. Numbers are
little-endian. The CRC is that of HDLC (ISO/IEC 13239: reflected 0x1021, all ones before and inverted after) over everything from length to payload.

The host sends one request and waits for its reply, which has the request's sequence number; without a reply it sends the same packet again. A WRITE or START
that was carried out and comes again with the same number is acknowledged, not repeated. Events (tokens) come between replies whenever they happen.
"""

from enum import IntEnum
from typing import NamedTuple

__all__ = [
    "CRC_GOOD",
    "CRC_START",
    "ESCAPE",
    "FLAG",
    "FLIP",
    "FRAMING_BYTES",
    "HEADER_BYTES",
    "MAX_PAYLOAD",
    "MAX_WORDS",
    "PAYLOAD_BYTES",
    "PROTOCOL",
    "Decoder",
    "Fault",
    "Packet",
    "PacketType",
    "crc",
    "encode",
]

PROTOCOL = 1
FLAG, ESCAPE, FLIP = 0x7E, 0x7D, 0x20
CRC_POLYNOMIAL, CRC_START, CRC_GOOD = 0x8408, 0xFFFF, 0xF0B8
"""CRC_GOOD: what a receiver's register holds after a packet with its CRC."""
HEADER_BYTES = 3
FRAMING_BYTES = HEADER_BYTES + 2
"""Bytes of a packet besides its payload: header and CRC."""
MAX_WORDS = 15
MAX_PAYLOAD = 1 + 4 * MAX_WORDS


class PacketType(IntEnum):
    """Requests of the host, replies from 0x81, events from 0x91."""

    HELLO = 0x01
    RESET = 0x02
    READ = 0x03
    WRITE = 0x04
    START = 0x05
    WELCOME = 0x81
    ACK = 0x82
    DATA = 0x83
    ERROR = 0x84
    TOKEN = 0x91
    DONE = 0x92
    RESTARTED = 0x93


class Fault(IntEnum):
    """What was wrong: up to OVERRUN with the line (the reply's sequence number is 0), from TYPE on with a request."""

    CRC = 1
    LENGTH = 2
    LINE = 3
    TIMEOUT = 4
    OVERRUN = 5
    TYPE = 6
    PAYLOAD = 7
    BUSY = 8
    RANGE = 9

    @property
    def meaning(self) -> str:
        """In words."""
        return MEANINGS[self]


MEANINGS = {
    Fault.CRC: "a packet whose checksum is wrong: bytes were changed on the line",
    Fault.LENGTH: "a packet of the wrong length: bytes were lost or added on the line",
    Fault.LINE: "a byte without stop bit: a break, or another baud rate",
    Fault.TIMEOUT: "a packet that was begun and not ended",
    Fault.OVERRUN: "bytes that came before the last reply was given",
    Fault.TYPE: "a request of an unknown type",
    Fault.PAYLOAD: "a request whose payload has the wrong size",
    Fault.BUSY: "a request that a running core does not take",
    Fault.RANGE: "a prompt, a position or a token id outside of what the core has",
}

PAYLOAD_BYTES = {
    PacketType.HELLO: 0,
    PacketType.RESET: 0,
    PacketType.READ: 2,  # first register, words: 1 to MAX_WORDS of ascending registers
    PacketType.START: 10,  # position (2), prompt tokens (2), tokens wanted (2), STOP_TOKEN's word (4)
    PacketType.WELCOME: 6,  # protocol, context (2), vocabulary (3)
    PacketType.ACK: 0,
    PacketType.ERROR: 1,  # fault
    PacketType.TOKEN: 3,  # id; the sequence number counts the tokens of a run from 0
    PacketType.DONE: 2,  # tokens generated; the sequence number is that of the token after the last
    PacketType.RESTARTED: 6,  # as WELCOME
}
"""Of the types with a payload of one size. WRITE: a register, then 1 to MAX_WORDS words, all for it; DATA: the words read."""


class Packet(NamedTuple):
    """A packet; ``type`` is a ``PacketType`` where it is a known one."""

    type: int
    sequence: int
    payload: bytes = b""


def crc(data: bytes, register: int = CRC_START) -> int:
    """The CRC register after ``data``; its inverse is what is sent."""
    for byte in data:
        register ^= byte
        for _ in range(8):
            register = register >> 1 ^ (CRC_POLYNOMIAL if register & 1 else 0)
    return register


def encode(packet: Packet) -> bytes:
    """A packet as it goes over the line.

    Raises
    ------
    ValueError : a payload of more than ``MAX_PAYLOAD`` bytes
    """
    if len(packet.payload) > MAX_PAYLOAD:
        raise ValueError(f"payload must have at most {MAX_PAYLOAD} bytes, not {len(packet.payload)}")
    content = bytes([len(packet.payload), packet.type, packet.sequence]) + packet.payload
    content += (crc(content) ^ 0xFFFF).to_bytes(2, "little")
    line = bytearray([FLAG])
    for byte in content:
        line += bytes([ESCAPE, byte ^ FLIP]) if byte in (FLAG, ESCAPE) else bytes([byte])
    return bytes([*line, FLAG])


class Decoder:
    """The receiving side; both ends have one. An error is reported once: until the next flag everything is ignored then, as it is before the first one."""

    def __init__(self) -> None:
        self._hunting, self._escaped = True, False
        self._content = bytearray()

    @property
    def within(self) -> bool:
        """Whether a packet has begun and not ended."""
        return bool(self._content) or self._escaped

    def feed(self, data: bytes) -> list[Packet | Fault]:
        """What the next bytes of the line complete."""
        return [found for byte in data if (found := self._byte(byte)) is not None]

    def fail(self, fault: Fault) -> list[Packet | Fault]:
        """The line itself failed (LINE), or nothing came for too long (TIMEOUT, which counts within a packet only)."""
        if self._hunting or (fault is Fault.TIMEOUT and not self.within):
            return []
        self._restart(hunting=True)
        return [fault]

    def _restart(self, *, hunting: bool) -> None:
        self._hunting, self._escaped = hunting, False
        self._content.clear()

    def _byte(self, byte: int) -> Packet | Fault | None:
        if byte == FLAG:
            found = self._judge() if self.within else None
            self._restart(hunting=False)
            return found
        if self._hunting:
            return None
        if byte == ESCAPE and not self._escaped:
            self._escaped = True
            return None
        if len(self._content) == MAX_PAYLOAD + FRAMING_BYTES:
            self._restart(hunting=True)
            return Fault.LENGTH
        self._content.append(byte ^ FLIP if self._escaped else byte)
        self._escaped = False
        return None

    def _judge(self) -> Packet | Fault:
        content = bytes(self._content)
        if self._escaped or len(content) < FRAMING_BYTES or len(content) != content[0] + FRAMING_BYTES:
            return Fault.LENGTH
        if crc(content) != CRC_GOOD:
            return Fault.CRC
        return Packet(content[1], content[2], content[HEADER_BYTES:-2])
