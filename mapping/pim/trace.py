# SPDX-License-Identifier: Apache-2.0
"""Reads public AiM trace files (the form of arkhadem/aim_simulator's ``test/`` folder).

One request per line, numbers decimal or 0x, ``#`` starts a comment, opcodes may carry the prefix ``ISR_``:

    AiM WR_GB opsize gpr mask        AiM MAC_ABK opsize mask row           AiM WR_SBK gpr mask bank row     AiM SYNC
    AiM WR_BIAS gpr mask             AiM MAC_SBK opsize mask bank row      AiM RD_SBK gpr mask bank row     AiM EOC
    AiM RD_MAC gpr mask              AiM COPY_BKGB opsize mask bank row    AiM WR_ABK gpr mask row          R|W MEM channel bank row
    AiM RD_AF gpr mask               AiM COPY_GBBK opsize mask bank row    AiM EWMUL opsize mask row        R|W GPR index
    AiM AF mask                      AiM EWADD opsize gpr0 gpr1            W CFR index value                R CFR index

As there, bit 0 of a mask is the last of the 32 channels, while MEM counts them from the first. What follows EOC is not read.
"""

from __future__ import annotations

from pathlib import Path

from lutra.hls_models.errors import ModelError
from lutra.hls_models.load import nearest
from lutra.hls_models.pim.requests import ACTIVATION_ROWS, BANKS, TRACE_CHANNELS, Opcode, Request

__all__ = ["parse_trace", "read_trace"]

MAX_BYTES = 1 << 28
ROWS, COLUMNS, GPRS = 16384, 64, 1 << 32
CONFIGURATION = {0: "broadcast", 1: "ewmul_bg", 2: "afm"}
ACTIVATION_MODE = 2
FUNCTIONS = 8
ALL = (1 << TRACE_CHANNELS) - 1

FIELDS: dict[str, str] = {
    "WR_SBK": "gpr mask bank row",
    "RD_SBK": "gpr mask bank row",
    "WR_ABK": "gpr mask row",
    "WR_GB": "opsize gpr mask",
    "WR_BIAS": "gpr mask",
    "RD_MAC": "gpr mask",
    "RD_AF": "gpr mask",
    "COPY_BKGB": "opsize mask bank row",
    "COPY_GBBK": "opsize mask bank row",
    "MAC_SBK": "opsize mask bank row",
    "MAC_ABK": "opsize mask row",
    "AF": "mask",
    "EWMUL": "opsize mask row",
    "EWADD": "opsize gpr gpr",
    "SYNC": "",
    "EOC": "",
}
"""Fields of the AiM opcodes, in order."""

RANGES = {
    "opsize": (1, COLUMNS),
    "gpr": (0, GPRS - 1),
    "index": (0, GPRS - 1),
    "mask": (1, ALL),
    "bank": (0, BANKS - 1),
    "row": (0, ROWS - 1),
    "channel": (0, TRACE_CHANNELS - 1),
    "register": (0, len(CONFIGURATION) - 1),
    "value": (0, (1 << 32) - 1),
}
"""Legal values of a field."""


def read_trace(path: str | Path) -> list[Request]:
    """The requests of a trace file.

    Raises
    ------
    ModelError : one line with file, line and what was expected there
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise ModelError(f"{file}: a trace must be at most {MAX_BYTES} bytes, not {file.stat().st_size}")
        text = file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise ModelError(f"{file}: must be UTF-8 text (byte {error.start} is not)") from None
    except OSError as error:
        raise ModelError(f"{file}: cannot be read: {error.strerror}") from None
    return parse_trace(text, source=str(file))


def parse_trace(text: str, *, source: str = "<text>") -> list[Request]:
    """The requests of a trace's ``text``; ``source`` names it in errors."""
    requests: list[Request] = []
    function, number = 0, 0
    for number, line in enumerate(text.splitlines(), 1):
        words = line.partition("#")[0].split()
        if not words:
            continue
        try:
            if words[0] == "AiM":
                request = _instruction(words[1:], function)
            elif words[0] in ("R", "W"):
                request, function = _access(words, function)
            else:
                raise _LineError(f"AiM, R or W first, not {words[0]!r}")
        except _LineError as error:
            raise ModelError(f"{source}:{number}: expected {error}") from None
        requests.append(request)
        if request.opcode is Opcode.EOC:
            return requests
    raise ModelError(f"{source}:{number + 1}: expected AiM EOC before the end of the file")


class _LineError(Exception):
    """What was expected instead."""


def _instruction(words: list[str], function: int) -> Request:
    name = words[0].removeprefix("ISR_") if words else ""
    if name not in FIELDS:
        near = nearest(name, {legal.lower() for legal in FIELDS}).upper()
        raise _LineError(f"an opcode ({', '.join(FIELDS)}), not {name or 'nothing'!r}" + (f"; nearest opcode: {near}" if near else ""))
    found = _fields(f"AiM {name}", FIELDS[name], words[1:])
    opcode = Opcode[name]
    if opcode in (Opcode.SYNC, Opcode.EOC):
        return Request(opcode, ALL)
    if opcode is Opcode.EWADD:
        return Request(opcode)
    if opcode is Opcode.WR_ABK and found["mask"].bit_count() != 1:
        raise _LineError(f"a mask of one channel, not {found['mask']:#x} ({found['mask'].bit_count()} channels)")
    row = ACTIVATION_ROWS + function if opcode is Opcode.AF else found.get("row", -1)
    return Request(opcode, int(f"{found['mask']:0{TRACE_CHANNELS}b}"[::-1], 2), found.get("bank", -1), row, found.get("opsize", 1))


def _access(words: list[str], function: int) -> tuple[Request, int]:
    """A read or write of the host, and the activation function selected after it."""
    region = words[1] if len(words) > 1 else ""
    shape = {"MEM": "channel bank row", "GPR": "index", "CFR": "register value" if words[0] == "W" else "register"}.get(region)
    if shape is None:
        raise _LineError(f"MEM, GPR or CFR after {words[0]}, not {region or 'nothing'!r}")
    found = _fields(f"{words[0]} {region}", shape, words[2:])
    if region == "MEM":
        opcode = Opcode.RD_SBK if words[0] == "R" else Opcode.WR_SBK
        return Request(opcode, 1 << found["channel"], found["bank"], found["row"]), function
    if found.get("register") == ACTIVATION_MODE and "value" in found:
        if found["value"] >= FUNCTIONS:
            raise _LineError(f"an activation function from 0 to {FUNCTIONS - 1}, not {found['value']}")
        function = found["value"]
    return Request(Opcode.HOST), function


def _fields(what: str, shape: str, words: list[str]) -> dict[str, int]:
    names = shape.split()
    if len(words) != len(names):
        after = f"{len(names)} fields after {what} ({shape})" if names else f"nothing after {what}"
        raise _LineError(f"{after}, not {len(words)}")
    found = {}
    for name, word in zip(names, words, strict=True):
        try:
            value = int(word, 16) if word.lower().startswith("0x") else int(word, 10)
        except ValueError:
            raise _LineError(f"a number (decimal or 0x) for {name}, not {word!r}") from None
        low, high = RANGES[name]
        if not low <= value <= high:
            limits = f"{low:#x} to {high:#x}" if name == "mask" else f"{low} to {high}"
            raise _LineError(f"{name} from {limits}, not {word}")
        found[name] = value
    return found
