// SPDX-License-Identifier: Apache-2.0
// Simulation model of the vendor's DSP48E2 in the modes that lutra instantiates (AMD UG579, chapter 2); synthesis takes the device's own cell.
//   TWO24, no multiplier: two 24-bit sums, P = C + A:B or C - A:B, with or without registers before the adder, one behind it.
//   ONE48, multiplier: P = (A + D) * B + PCIN or + 0, a register behind the multiplier, with or without one behind the adder;
//   P = A * B + PCIN, + 0 or + P, also with registers for A and B, and with a clock enable of P.
module DSP48E2 #(
    parameter USE_SIMD = "ONE48", USE_MULT = "MULTIPLY", AMULTSEL = "A",
    parameter AREG = 1, BREG = 1, CREG = 1, DREG = 1, ADREG = 1, MREG = 1, PREG = 1, ACASCREG = 1, BCASCREG = 1,
    parameter ALUMODEREG = 1, OPMODEREG = 1, CARRYINSELREG = 1, CARRYINREG = 1, INMODEREG = 1
) (
    input CLK, input [29:0] A, input [17:0] B, input [47:0] C, input [26:0] D, input [47:0] PCIN, output [47:0] P, output [47:0] PCOUT,
    input [8:0] OPMODE, input [3:0] ALUMODE, input [4:0] INMODE, input [2:0] CARRYINSEL, input CARRYIN,
    input CEA1, CEA2, CEB1, CEB2, CEC, CED, CEAD, CEM, CEP, CEALUMODE, CECTRL, CECARRYIN, CEINMODE,
    input RSTA, RSTB, RSTC, RSTD, RSTM, RSTP, RSTCTRL, RSTALUMODE, RSTALLCARRYIN, RSTINMODE
);
    localparam ADDS = USE_SIMD == "TWO24" && USE_MULT == "NONE" && AREG < 2 && BREG == AREG && CREG == AREG && PREG == 1;
    localparam MULTIPLIES = USE_SIMD == "ONE48" && USE_MULT == "MULTIPLY" && AREG < 2 && BREG == AREG && (AMULTSEL == "A" || AMULTSEL == "AD" && AREG == 0) && MREG == 1;
    if (!ADDS && !MULTIPLIES || DREG || ADREG || ALUMODEREG || OPMODEREG || INMODEREG) $error("DSP48E2: a mode without a model");
    assign PCOUT = P;
    if (MULTIPLIES) begin
        wire signed [26:0] factor;
        wire signed [17:0] other;
        if (AREG) begin
            reg signed [26:0] factor_held;
            reg signed [17:0] other_held;
            always @(posedge CLK) begin
                factor_held <= A[26:0];
                other_held <= B;
            end
            assign factor = factor_held;
            assign other = other_held;
        end else begin
            assign factor = AMULTSEL == "AD" ? A[26:0] + D : A[26:0];
            assign other = B;
        end
        reg signed [44:0] product;
        always @(posedge CLK) product <= factor * other;
        if (PREG) begin
            reg [47:0] held;
            always @(posedge CLK) if (CEP) held <= {{3{product[44]}}, product} + (OPMODE[4] ? PCIN : OPMODE[5] ? held : 48'd0);
            assign P = held;
        end else assign P = {{3{product[44]}}, product} + (OPMODE[4] ? PCIN : 48'd0);
    end else begin
        // Halves apart: in one vector of 48 bits they would be joined and parted again at every block.
        wire [23:0] x_low, x_high, z_low, z_high;
        if (AREG) begin
            reg [23:0] x_low_held, x_high_held, z_low_held, z_high_held;
            always @(posedge CLK) begin
                x_low_held <= {A[5:0], B};
                x_high_held <= A[29:6];
                z_low_held <= C[23:0];
                z_high_held <= C[47:24];
            end
            assign x_low = x_low_held;
            assign x_high = x_high_held;
            assign z_low = z_low_held;
            assign z_high = z_high_held;
        end else begin
            assign {x_high, x_low} = {A, B};
            assign {z_high, z_low} = C;
        end
        reg [23:0] low, high;
        always @(posedge CLK) begin
            low <= ALUMODE[0] ? z_low - x_low : z_low + x_low;
            high <= ALUMODE[0] ? z_high - x_high : z_high + x_high;
        end
        assign P = {high, low};
    end
endmodule
