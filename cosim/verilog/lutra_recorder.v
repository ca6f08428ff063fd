// SPDX-License-Identifier: Apache-2.0
// Writes every handshake of a stream to NAME.out: 32-bit little-endian words, cycle (2 words), then payload (WORDS words), lowest first.
// `done` rises after as many beats as NAME.expect says (64 bits, most significant byte first); without that file it never does.
module lutra_recorder #(
    parameter NAME  = "",
    parameter WORDS = 1
) (
    input  wire                clk,
    input  wire                rst,
    input  wire [63:0]         cycle,
    input  wire [32*WORDS-1:0] payload,
    input  wire                valid,
    input  wire                ready,
    output reg                 done
);
    reg [63:0] count;
    reg [63:0] expected;
    integer    file;
    integer    expect_file;
    integer    got;

    initial begin
        done = 0;
        count = 0;
        expected = 64'hffffffffffffffff;
        expect_file = $fopen({NAME, ".expect"}, "rb");
        if (expect_file != 0) begin
            got = $fread(expected, expect_file);
            $fclose(expect_file);
        end
        file = $fopen({NAME, ".out"}, "wb");
    end

    always @(posedge clk) begin
        if (!rst && valid && ready) begin
            $fwrite(file, "%u", {payload, cycle});
            count = count + 1;
        end
        done <= count >= expected;
    end
endmodule
