// SPDX-License-Identifier: Apache-2.0
// ECP5: 16 words of 4 bits in look-up tables, written at the clock, read without one.
module TRELLIS_DPR16X4 #(
    parameter WCKMUX = "WCK",
    parameter WREMUX = "WRE",
    parameter [63:0] INITVAL = 0
) (
    input [3:0] DI, WAD, RAD,
    input WRE, WCK,
    output [3:0] DO
);
    reg [3:0] words [0:15];
    integer i;
    initial for (i = 0; i < 16; i = i + 1) words[i] = INITVAL[4*i+:4];
    wire write = WREMUX == "1" ? 1'b1 : WREMUX == "0" ? 1'b0 : WRE ^ (WREMUX == "INV");
    generate
        if (WCKMUX != "WCK") begin : lacking
            TRELLIS_DPR16X4_has_no_model_of_this_mode none ();
        end
    endgenerate
    always @(posedge WCK) if (write) words[WAD] <= DI;
    assign DO = words[RAD];
endmodule
