// SPDX-License-Identifier: Apache-2.0
// Stream source of a bench. NAME.in holds one record per beat, most significant byte first: not_before (64 bits), payload (WORDS x 32 bits).
// Beat i is offered from cycle max(not_before[i], handshake[i-1] + 1) and held until accepted; the payload of a cycle without valid is
// the inverse of the beat to come, so that a design that looks at it is caught. A missing file is an empty one.
module lutra_player #(
    parameter NAME  = "",
    parameter WORDS = 1
) (
    input  wire                clk,
    input  wire                rst,
    input  wire [63:0]         cycle,
    output reg  [32*WORDS-1:0] payload,
    output wire                valid,
    input  wire                ready
);
    // head, present: private to the clocked block (blocking); payload, offered: what the design sees (non-blocking).
    reg [64+32*WORDS-1:0] head;
    reg                   present;
    reg                   offered;
    integer               file;
    integer               got;

    task fetch;
        begin
            present = 0;
            if (file != 0) begin
                got = $fread(head, file);
                present = got == 8 + 4 * WORDS;
            end
        end
    endtask

    wire [63:0] next = rst ? 64'd0 : cycle + 64'd1;
    assign valid = offered & ~rst;

    initial begin
        offered = 0;
        payload = 0;
        file = $fopen({NAME, ".in"}, "rb");
        fetch;
    end

    always @(posedge clk) begin
        if (valid && ready) fetch;
        offered <= present && head[32*WORDS+:64] <= next;
        payload <= (present && head[32*WORDS+:64] <= next) ? head[32*WORDS-1:0] : ~head[32*WORDS-1:0];
    end
endmodule
