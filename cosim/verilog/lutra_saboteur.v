// SPDX-License-Identifier: Apache-2.0
// Injects one fault at a stream boundary at run time, for the negative controls; transparent (no register) where NAME.fault does not exist.
// NAME.fault, most significant byte first: kind (32 bits; 1 flip, 2 drop, 3 delay), bit (32), beat (64), cycles (64). The beat is
// counted at the source. flip: one payload bit inverted. drop: taken from the source, never offered. delay: offered `cycles` cycles late.
module lutra_saboteur #(
    parameter NAME  = "",
    parameter WORDS = 1
) (
    input  wire                clk,
    input  wire                rst,
    input  wire [32*WORDS-1:0] i_payload,
    input  wire                i_valid,
    output wire                i_ready,
    output wire [32*WORDS-1:0] o_payload,
    output wire                o_valid,
    input  wire                o_ready
);
    reg [191:0] fault;
    reg [63:0]  index;
    reg [63:0]  waited;
    integer     file;
    integer     got;

    wire hit   = fault[191:160] != 0 && index == fault[127:64];
    wire flip  = hit && fault[191:160] == 1;
    wire drop  = hit && fault[191:160] == 2;
    wire delay = hit && fault[191:160] == 3 && waited != fault[63:0];

    assign o_payload = flip ? i_payload ^ ({{(32*WORDS-1){1'b0}}, 1'b1} << fault[159:128]) : i_payload;
    assign o_valid   = i_valid && !drop && !delay;
    assign i_ready   = drop || (o_ready && !delay);

    initial begin
        fault = 0;
        index = 0;
        waited = 0;
        file = $fopen({NAME, ".fault"}, "rb");
        if (file != 0) begin
            got = $fread(fault, file);
            $fclose(file);
        end
    end

    always @(posedge clk) begin
        if (!rst && fault != 0) begin
            if (i_valid && i_ready) index <= index + 1;
            if (i_valid && delay) waited <= waited + 1;
        end
    end
endmodule
