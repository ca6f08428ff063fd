// SPDX-License-Identifier: Apache-2.0
// Stream sink of a bench: ready in cycle t is bit t of NAME.ready (32-bit words, most significant byte first, cycle 0 in bit 0 of the first);
// always ready past its end or where there is no file. Not ready in reset.
module lutra_sink #(
    parameter NAME = ""
) (
    input  wire        clk,
    input  wire        rst,
    input  wire [63:0] cycle,
    output wire        ready
);
    reg [31:0] bits;
    reg        open_;
    integer    file;
    integer    got;

    task fetch;
        begin
            bits = 32'hffffffff;
            if (file != 0) begin
                got = $fread(bits, file);
                if (got != 4) begin
                    bits = 32'hffffffff;
                    $fclose(file);
                    file = 0;
                end
            end
        end
    endtask

    wire [63:0] next = rst ? 64'd0 : cycle + 64'd1;
    assign ready = open_ & ~rst;

    initial begin
        open_ = 0;
        file = $fopen({NAME, ".ready"}, "rb");
        fetch;
    end

    always @(posedge clk) begin
        if (!rst && next[4:0] == 0) fetch;
        open_ <= bits[next[4:0]];
    end
endmodule
