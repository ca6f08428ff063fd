// SPDX-License-Identifier: Apache-2.0
// Multipliers of look-up tables where an ECP5 has too few blocks for all, and products with a constant: rules for yosys' techmap.

// A product with a constant: an adder for each of its ones. The highest bit of a signed constant counts negative.
module \$__lutra_times (A, B, Y);
    parameter A_SIGNED = 0;
    parameter B_SIGNED = 0;
    parameter A_WIDTH = 1;
    parameter B_WIDTH = 1;
    parameter Y_WIDTH = 1;
    parameter _TECHMAP_CONSTMSK_A_ = 0;
    input  [A_WIDTH-1:0] A;
    input  [B_WIDTH-1:0] B;
    output [Y_WIDTH-1:0] Y;

    localparam SWAP = &_TECHMAP_CONSTMSK_A_;
    localparam ONES = SWAP ? A_WIDTH : B_WIDTH;
    localparam NEGATIVE = SWAP ? A_SIGNED : B_SIGNED;
    wire [ONES-1:0] ones = SWAP ? A : B;
    wire [A_WIDTH+Y_WIDTH-1:0] wide_a = {{Y_WIDTH{A_SIGNED ? A[A_WIDTH-1] : 1'b0}}, A};
    wire [B_WIDTH+Y_WIDTH-1:0] wide_b = {{Y_WIDTH{B_SIGNED ? B[B_WIDTH-1] : 1'b0}}, B};
    wire [Y_WIDTH-1:0] value = SWAP ? wide_b[Y_WIDTH-1:0] : wide_a[Y_WIDTH-1:0];
    wire [Y_WIDTH*(ONES+1)-1:0] sums;
    assign sums[Y_WIDTH-1:0] = {Y_WIDTH{1'b0}};
    assign Y = sums[Y_WIDTH*ONES +: Y_WIDTH];
    genvar i;
    generate
        for (i = 0; i < ONES; i = i + 1) begin : bit
            wire [Y_WIDTH-1:0] row = ones[i] ? value << i : {Y_WIDTH{1'b0}};
            if (NEGATIVE && i == ONES - 1) assign sums[Y_WIDTH*(i+1) +: Y_WIDTH] = sums[Y_WIDTH*i +: Y_WIDTH] - row;
            else assign sums[Y_WIDTH*(i+1) +: Y_WIDTH] = sums[Y_WIDTH*i +: Y_WIDTH] + row;
        end
    endgenerate
endmodule

// A product taken apart at 18 bits; SOFT tells which parts become look-up tables: {both upper, A upper, B upper, both lower}.
module \$__lutra_mul (A, B, Y);
    parameter A_SIGNED = 0;
    parameter B_SIGNED = 0;
    parameter A_WIDTH = 1;
    parameter B_WIDTH = 1;
    parameter Y_WIDTH = 1;
    parameter [3:0] SOFT = 4'b0001;
    input  [A_WIDTH-1:0] A;
    input  [B_WIDTH-1:0] B;
    output [Y_WIDTH-1:0] Y;

    localparam BLOCK = 18;
    localparam AL = A_WIDTH > BLOCK ? BLOCK : A_WIDTH;
    localparam BL = B_WIDTH > BLOCK ? BLOCK : B_WIDTH;
    localparam AH = A_WIDTH - AL;
    localparam BH = B_WIDTH - BL;
    wire [A_WIDTH+B_WIDTH-1:0] full;
    wire [AL+BL-1:0] low;
    \$__lutra_part #(.SIGNED(A_SIGNED), .A_WIDTH(AL), .B_WIDTH(BL), .SOFT(SOFT[0])) of_low (.A(A[AL-1:0]), .B(B[BL-1:0]), .Y(low));
    generate
        if (AH == 0 && BH == 0) begin : whole
            assign full = low;
        end else if (BH == 0) begin : wide_a
            wire [AH+BL-1:0] upper;
            \$__lutra_part #(.SIGNED(0), .A_WIDTH(AH), .B_WIDTH(BL), .SOFT(SOFT[2])) of_upper (.A(A[A_WIDTH-1:AL]), .B(B), .Y(upper));
            wire [AH+BL-1:0] carried = low[AL+BL-1:AL];
            wire [AH+BL-1:0] sum = upper + carried;
            assign full = {sum, low[AL-1:0]};
        end else if (AH == 0) begin : wide_b
            wire [AL+BH-1:0] upper;
            \$__lutra_part #(.SIGNED(0), .A_WIDTH(AL), .B_WIDTH(BH), .SOFT(SOFT[1])) of_upper (.A(A), .B(B[B_WIDTH-1:BL]), .Y(upper));
            wire [AL+BH-1:0] carried = low[AL+BL-1:BL];
            wire [AL+BH-1:0] sum = upper + carried;
            assign full = {sum, low[BL-1:0]};
        end else begin : wide
            wire [AH+BH-1:0] high;
            wire [AH+BL-1:0] a_high;
            wire [AL+BH-1:0] b_high;
            \$__lutra_part #(.SIGNED(0), .A_WIDTH(AH), .B_WIDTH(BH), .SOFT(SOFT[3])) of_high (.A(A[A_WIDTH-1:AL]), .B(B[B_WIDTH-1:BL]), .Y(high));
            \$__lutra_part #(.SIGNED(0), .A_WIDTH(AH), .B_WIDTH(BL), .SOFT(SOFT[2])) of_a (.A(A[A_WIDTH-1:AL]), .B(B[BL-1:0]), .Y(a_high));
            \$__lutra_part #(.SIGNED(0), .A_WIDTH(AL), .B_WIDTH(BH), .SOFT(SOFT[1])) of_b (.A(A[AL-1:0]), .B(B[B_WIDTH-1:BL]), .Y(b_high));
            // Upper and lower part do not overlap: two adders, not three.
            wire [(AH > BH ? AH : BH)+BLOCK:0] middle = a_high + b_high;
            wire [A_WIDTH+B_WIDTH-BLOCK-1:0] upper = {high, low[2*BLOCK-1:BLOCK]} + middle;
            assign full = {upper, low[BLOCK-1:0]};
        end
    endgenerate
    wire top = (A_SIGNED || B_SIGNED) ? full[A_WIDTH+B_WIDTH-1] : 1'b0;
    wire [A_WIDTH+B_WIDTH+Y_WIDTH-1:0] extended = {{Y_WIDTH{top}}, full};
    assign Y = extended[Y_WIDTH-1:0];
endmodule

// A whole product of both operands signed or both unsigned: a block, or look-up tables with the narrower operand's bits as rows.
module \$__lutra_part (A, B, Y);
    parameter SIGNED = 0;
    parameter A_WIDTH = 1;
    parameter B_WIDTH = 1;
    parameter SOFT = 0;
    input  [A_WIDTH-1:0] A;
    input  [B_WIDTH-1:0] B;
    output [A_WIDTH+B_WIDTH-1:0] Y;

    generate
        if (!SOFT) begin : block
            \$mul #(.A_SIGNED(SIGNED), .B_SIGNED(SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH), .Y_WIDTH(A_WIDTH + B_WIDTH)) of (.A(A), .B(B), .Y(Y));
        end else if (B_WIDTH > A_WIDTH) begin : swapped
            \$__lutra_rows #(.A_SIGNED(SIGNED), .B_SIGNED(SIGNED), .A_WIDTH(B_WIDTH), .B_WIDTH(A_WIDTH)) of (.A(B), .B(A), .Y(Y));
        end else begin : straight
            \$__lutra_rows #(.A_SIGNED(SIGNED), .B_SIGNED(SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH)) of (.A(A), .B(B), .Y(Y));
        end
    endgenerate
endmodule

// A product as a tree of adders over pairs of the bits of B. The highest bit of a signed B counts negative.
module \$__lutra_rows (A, B, Y);
    parameter A_SIGNED = 0;
    parameter B_SIGNED = 0;
    parameter A_WIDTH = 1;
    parameter B_WIDTH = 1;
    input  [A_WIDTH-1:0] A;
    input  [B_WIDTH-1:0] B;
    output [A_WIDTH+B_WIDTH-1:0] Y;

    localparam FULL = A_WIDTH + B_WIDTH;
    // The lower half has an even number of rows.
    localparam LOW = B_WIDTH > 2 ? (B_WIDTH + 2) / 4 * 2 : 1;
    wire sign = A_SIGNED ? A[A_WIDTH-1] : 1'b0;
    generate
        if (B_WIDTH == 1) begin : bit
            wire [FULL-1:0] a = {sign, A};
            assign Y = !B[0] ? {FULL{1'b0}} : B_SIGNED ? -a : a;
        end else if (B_WIDTH == 2) begin : pair
            // Two rows in one carry chain whose look-up tables take the ANDs as well; the row at A and B may be inverted.
            localparam CELLS = (FULL + 1) / 2;
            wire [2*CELLS:0] a = {{(2*CELLS-A_WIDTH){sign}}, A, 1'b0};
            wire [2*CELLS-1:0] sum;
            wire [CELLS:0] carry;
            assign carry[0] = B_SIGNED ? 1'b1 : 1'b0;
            genvar i;
            for (i = 0; i < CELLS; i = i + 1) begin : chain
                CCU2C #(
                    .INIT0(B_SIGNED ? 16'h8777 : 16'h7888), .INIT1(B_SIGNED ? 16'h8777 : 16'h7888), .INJECT1_0("NO"), .INJECT1_1("NO")
                ) add (
                    .CIN(carry[i]), .COUT(carry[i+1]), .S0(sum[2*i]), .S1(sum[2*i+1]),
                    .A0(a[2*i]), .B0(B[1]), .C0(a[2*i+1]), .D0(B[0]),
                    .A1(a[2*i+1]), .B1(B[1]), .C1(a[2*i+2]), .D1(B[0])
                );
            end
            assign Y = sum[FULL-1:0];
        end else begin : halves
            wire [A_WIDTH+LOW-1:0] low;
            wire [FULL-LOW-1:0] high;
            \$__lutra_rows #(.A_SIGNED(A_SIGNED), .B_SIGNED(0), .A_WIDTH(A_WIDTH), .B_WIDTH(LOW)) of_low (.A(A), .B(B[LOW-1:0]), .Y(low));
            \$__lutra_rows #(.A_SIGNED(A_SIGNED), .B_SIGNED(B_SIGNED), .A_WIDTH(A_WIDTH), .B_WIDTH(B_WIDTH-LOW)) of_high (
                .A(A), .B(B[B_WIDTH-1:LOW]), .Y(high));
            wire low_sign = A_SIGNED ? low[A_WIDTH+LOW-1] : 1'b0;
            wire [FULL-LOW-1:0] carried = {{(B_WIDTH-LOW){low_sign}}, low[A_WIDTH+LOW-1:LOW]};
            wire [FULL-LOW-1:0] upper = high + carried;
            assign Y = {upper, low[LOW-1:0]};
        end
    endgenerate
endmodule
