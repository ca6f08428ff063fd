// SPDX-License-Identifier: Apache-2.0
// ECP5: a look-up table. Its contents are a port, so that simulators need no module per table.
module LUT4 (
    input [15:0] INIT,
    input A, B, C, D,
    output Z
);
    assign Z = INIT[{D, C, B, A}];
endmodule
