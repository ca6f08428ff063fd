# SPDX-License-Identifier: Apache-2.0
"""Boards whose FPGA needs the vendor's program: a folder from which Vivado makes the bitstream, and the programs for the processor beside it."""
