# SPDX-License-Identifier: Apache-2.0
"""Register map of the ternary core: one table for RTL, benches, host programs and documentation."""

from enum import IntEnum
from typing import NamedTuple

__all__ = ["IDENTITY", "REGISTERS", "VERSION", "Register", "RegisterInfo"]

IDENTITY = int.from_bytes(b"LUTR", "big")
VERSION = 0x0001_0001


class Register(IntEnum):
    """Word addresses."""

    IDENTITY = 0x00
    VERSION = 0x01
    CONFIG_HASH_LOW = 0x02
    CONFIG_HASH_HIGH = 0x03
    CONTROL = 0x04
    STATUS = 0x05
    START_POSITION = 0x06
    PROMPT_LENGTH = 0x07
    MAX_NEW = 0x08
    STOP_TOKEN = 0x09
    TOKEN_INDEX = 0x0A
    TOKEN = 0x0B
    GENERATED = 0x0C
    BEST_INDEX = 0x0D
    BEST_ID = 0x0E
    BEST_SCORE = 0x0F
    ACTIVATION_SCALE = 0x10
    CYCLES = 0x11
    PASSES = 0x12
    BUSY_LOADER = 0x13
    BUSY_LINEAR = 0x14
    BUSY_VECTOR = 0x15
    BUSY_ATTEND = 0x16
    BUSY_HEAD = 0x17
    CHOICE_INDEX = 0x18
    CHOICE = 0x19


class RegisterInfo(NamedTuple):
    access: str
    meaning: str


REGISTERS: dict[Register, RegisterInfo] = {
    Register.IDENTITY: RegisterInfo("r", "0x4C555452, 'LUTR'"),
    Register.VERSION: RegisterInfo("r", "register map version, major in the upper half"),
    Register.CONFIG_HASH_LOW: RegisterInfo("r", "hash of configuration and model shape, bits 31..0"),
    Register.CONFIG_HASH_HIGH: RegisterInfo("r", "bits 63..32"),
    Register.CONTROL: RegisterInfo(
        "w", "bit 0: start a run; bit 1: abort at the end of the present pass; bit 2: start one serial pass that verifies the prompt"
    ),
    Register.STATUS: RegisterInfo("r", "bit 0: busy; bit 1: program loaded"),
    Register.START_POSITION: RegisterInfo("rw", "position of the first prompt token; above 0 the cache of an earlier turn is kept"),
    Register.PROMPT_LENGTH: RegisterInfo("rw", "prompt tokens of this turn, at least 1; of a serial pass at most draft_lanes"),
    Register.MAX_NEW: RegisterInfo("rw", "tokens to generate, at least 1"),
    Register.STOP_TOKEN: RegisterInfo("rw", "bits 19..0: id that ends the run; bit 31: enabled"),
    Register.TOKEN_INDEX: RegisterInfo("rw", "position that TOKEN reads or writes; advances with every write of TOKEN"),
    Register.TOKEN: RegisterInfo("rw", "token id at TOKEN_INDEX"),
    Register.GENERATED: RegisterInfo("r", "tokens generated in this run"),
    Register.BEST_INDEX: RegisterInfo("rw", "rank that BEST_ID and BEST_SCORE read, 0: best"),
    Register.BEST_ID: RegisterInfo("r", "token id of that rank"),
    Register.BEST_SCORE: RegisterInfo("r", "its score, fp32; times ACTIVATION_SCALE it is the logit"),
    Register.ACTIVATION_SCALE: RegisterInfo("r", "fp32 scale of the head's input"),
    Register.CYCLES: RegisterInfo("r", "clocks from start to done of the last run"),
    Register.PASSES: RegisterInfo("r", "passes of the last run"),
    Register.BUSY_LOADER: RegisterInfo("r", "clocks with a LOADER instruction under way"),
    Register.BUSY_LINEAR: RegisterInfo("r", "clocks with a LINEAR instruction under way"),
    Register.BUSY_VECTOR: RegisterInfo("r", "clocks with a VECTOR instruction under way"),
    Register.BUSY_ATTEND: RegisterInfo("r", "clocks with an ATTEND instruction under way"),
    Register.BUSY_HEAD: RegisterInfo("r", "clocks with a HEAD instruction under way"),
    Register.CHOICE_INDEX: RegisterInfo("rw", "token of the last pass that CHOICE reads, 0: its first"),
    Register.CHOICE: RegisterInfo("r", "id chosen behind that token; behind all but the last only by a serial pass"),
}
