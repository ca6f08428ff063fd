// SPDX-License-Identifier: Apache-2.0
// ECP5: a register with enable and set or reset.
module TRELLIS_FF #(
    parameter GSR = "ENABLED",
    parameter CEMUX = "1",
    parameter CLKMUX = "CLK",
    parameter LSRMUX = "LSR",
    parameter SRMODE = "LSR_OVER_CE",
    parameter REGSET = "RESET"
) (
    input CLK, LSR, CE, DI,
    output reg Q
);
    localparam VALUE = REGSET == "SET";
    wire enable = CEMUX == "1" ? 1'b1 : CEMUX == "0" ? 1'b0 : CE ^ (CEMUX == "INV");
    wire reset = LSR ^ (LSRMUX == "INV");
    initial Q = VALUE;
    generate
        if (SRMODE != "LSR_OVER_CE" || CLKMUX != "CLK") begin : lacking
            TRELLIS_FF_has_no_model_of_this_mode none ();
        end
    endgenerate
    always @(posedge CLK)
        if (reset) Q <= VALUE;
        else if (enable) Q <= DI;
endmodule
