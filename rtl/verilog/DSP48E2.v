// SPDX-License-Identifier: Apache-2.0
// Simulation model of the vendor's DSP48E2 in the one mode that lutra instantiates (AMD UG579, tables 2-3 to 2-8): two 24-bit sums, P = C + A:B or C - A:B,
// with or without registers before the adder, and always the one behind it. Synthesis takes the device's own cell.
module DSP48E2 #(
    parameter USE_SIMD = "ONE48",
    parameter USE_MULT = "MULTIPLY",
    parameter AREG = 1, parameter BREG = 1, parameter CREG = 1, parameter ACASCREG = 1, parameter BCASCREG = 1, parameter MREG = 1,
    parameter ALUMODEREG = 1, parameter OPMODEREG = 1, parameter CARRYINSELREG = 1, parameter CARRYINREG = 1, parameter INMODEREG = 1,
    parameter ADREG = 1, parameter DREG = 1, parameter PREG = 1
) (
    input CLK, input [29:0] A, input [17:0] B, input [47:0] C, input [26:0] D, output [47:0] P,
    input [8:0] OPMODE, input [3:0] ALUMODE, input [4:0] INMODE, input [2:0] CARRYINSEL, input CARRYIN,
    input CEA1, input CEA2, input CEB1, input CEB2, input CEC, input CEP, input CEAD, input CED, input CEM, input CEALUMODE, input CECTRL, input CECARRYIN,
    input CEINMODE, input RSTA, input RSTB, input RSTC, input RSTD, input RSTP, input RSTM, input RSTCTRL, input RSTALUMODE, input RSTALLCARRYIN,
    input RSTINMODE
);
    if (USE_SIMD != "TWO24" || USE_MULT != "NONE" || AREG != BREG || AREG != CREG || AREG > 1 || ALUMODEREG || OPMODEREG || PREG != 1)
        $error("DSP48E2: a mode without a model");
    wire [47:0] x, z;
    if (AREG) begin
        reg [47:0] x_held, z_held;
        always @(posedge CLK) begin
            x_held <= {A, B};
            z_held <= C;
        end
        assign x = x_held;
        assign z = z_held;
    end else begin
        assign x = {A, B};
        assign z = C;
    end
    reg [47:0] sum;
    always @(posedge CLK) begin
        sum[23:0] <= ALUMODE[0] ? z[23:0] - x[23:0] : z[23:0] + x[23:0];
        sum[47:24] <= ALUMODE[0] ? z[47:24] - x[47:24] : z[47:24] + x[47:24];
    end
    assign P = sum;
endmodule
