// SPDX-License-Identifier: Apache-2.0
// ECP5: a multiplier, with registers of both operands or none: CE0 enables those of A, CE1 those of B.
module MULT18X18D #(
    parameter GSR = "ENABLED",
    parameter REG_INPUTA_CLK = "NONE",
    parameter REG_INPUTA_CE = "CE0",
    parameter REG_INPUTA_RST = "RST0",
    parameter REG_INPUTB_CLK = "NONE",
    parameter REG_INPUTB_CE = "CE0",
    parameter REG_INPUTB_RST = "RST0"
) (
    input CLK0, CE0, CE1, RST0,
    input A0, A1, A2, A3, A4, A5, A6, A7, A8, A9, A10, A11, A12, A13, A14, A15, A16, A17,
    input B0, B1, B2, B3, B4, B5, B6, B7, B8, B9, B10, B11, B12, B13, B14, B15, B16, B17,
    input SIGNEDA, SIGNEDB,
    output P0, P1, P2, P3, P4, P5, P6, P7, P8, P9, P10, P11, P12, P13, P14, P15, P16, P17, P18, P19, P20, P21, P22, P23, P24, P25, P26, P27, P28, P29,
    P30, P31, P32, P33, P34, P35
);
    wire [17:0] port_a = {A17, A16, A15, A14, A13, A12, A11, A10, A9, A8, A7, A6, A5, A4, A3, A2, A1, A0};
    wire [17:0] port_b = {B17, B16, B15, B14, B13, B12, B11, B10, B9, B8, B7, B6, B5, B4, B3, B2, B1, B0};
    wire [17:0] a, b;
    generate
        if (REG_INPUTA_CLK == "NONE" && REG_INPUTB_CLK == "NONE") begin : plain
            assign a = port_a;
            assign b = port_b;
        end else if (REG_INPUTA_CLK == "CLK0" && REG_INPUTA_CE == "CE0" && REG_INPUTA_RST == "RST0"
            && REG_INPUTB_CLK == "CLK0" && REG_INPUTB_CE == "CE1" && REG_INPUTB_RST == "RST0") begin : registered
            reg [17:0] held_a = 0, held_b = 0;
            always @(posedge CLK0) begin
                if (RST0) held_a <= 0; else if (CE0) held_a <= port_a;
                if (RST0) held_b <= 0; else if (CE1) held_b <= port_b;
            end
            assign a = held_a;
            assign b = held_b;
        end else begin : lacking
            MULT18X18D_has_no_model_of_this_mode none ();
        end
    endgenerate
    wire signed [35:0] wide_a = {{18{SIGNEDA & a[17]}}, a};
    wire signed [35:0] wide_b = {{18{SIGNEDB & b[17]}}, b};
    assign {
        P35, P34, P33, P32, P31, P30, P29, P28, P27, P26, P25, P24, P23, P22, P21, P20, P19, P18, P17, P16, P15, P14, P13, P12, P11, P10, P9, P8, P7,
        P6, P5, P4, P3, P2, P1, P0
    } = wide_a * wide_b;
endmodule
