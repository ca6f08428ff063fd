# SPDX-License-Identifier: Apache-2.0
# Clocks are those of the block design's cells; no pin of the FPGA is used but the processor's.
set_property BITSTREAM.GENERAL.COMPRESS TRUE [current_design]
