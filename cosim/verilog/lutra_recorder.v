// SPDX-License-Identifier: Apache-2.0
// Writes every handshake of a stream to NAME.out: 32-bit little-endian words, cycle (2 words), then payload (WORDS words), lowest first.
// `done` rises after as many beats as NAME.expect says (64 bits, most significant byte first); without that file it never does.
// With NAME.window (three times 64 bits: size, first, last) only beats first <= i < last go there, and NAME.digests gets one 64-bit hash per
// `size` beats, that of the rest, and the number of beats (cosim/windows.py has the hash). If NAME.live exists, each beat is on disk at once.
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
    reg [63:0]  count;
    reg [63:0]  expected;
    reg [191:0] window;
    reg [63:0]  position;
    reg [63:0]  hash;
    reg [63:0]  digest;
    integer     file;
    integer     digest_file;
    integer     setting;
    reg         live;
    integer     got;
    integer     word;

    wire [32*WORDS+63:0] beat = {payload, cycle};

    task mix(input [63:0] part);
        begin
            hash = (hash ^ part) * 64'h9e3779b97f4a7c15;
            hash = hash ^ (hash >> 32);
        end
    endtask

    initial begin
        done = 0;
        count = 0;
        expected = 64'hffffffffffffffff;
        window = 0;
        position = 0;
        digest = 0;
        setting = $fopen({NAME, ".expect"}, "rb");
        if (setting != 0) begin
            got = $fread(expected, setting);
            $fclose(setting);
        end
        setting = $fopen({NAME, ".window"}, "rb");
        if (setting != 0) begin
            got = $fread(window, setting);
            $fclose(setting);
            digest_file = $fopen({NAME, ".digests"}, "wb");
        end
        setting = $fopen({NAME, ".live"}, "rb");
        live = setting != 0;
        if (live) $fclose(setting);
        file = $fopen({NAME, ".out"}, "wb");
    end

    always @(posedge clk) begin
        if (!rst && valid && ready) begin
            if (window[191:128] == 0) begin
                $fwrite(file, "%u", beat);
                if (live) $fflush(file);
            end else begin
                if (count >= window[127:64] && count < window[63:0]) $fwrite(file, "%u", beat);
                hash = 0;
                for (word = 2; word < WORDS + 2; word = word + 1) mix({32'd0, beat[32*word+:32]});
                mix(position);
                mix({32'd0, cycle[31:0]});
                mix({32'd0, cycle[63:32]});
                digest = digest + hash;
                position = position + 1;
                if (position == window[191:128]) begin
                    $fwrite(digest_file, "%u", digest);
                    digest = 0;
                    position = 0;
                end
            end
            count = count + 1;
        end
        done <= count >= expected;
    end

    final
        if (window[191:128] != 0) begin
            if (position != 0) $fwrite(digest_file, "%u", digest);
            $fwrite(digest_file, "%u", count);
        end
endmodule
