// SPDX-License-Identifier: Apache-2.0
// The memory behind the AXI4 ports of a core in a simulation (docs/architecture.md, 5.2): PORTS read ports and a write port of 128 bits. Wide beat b is 16
// bytes per port: port p's lie at BASE + (p << REGION) + 16 b of the address space, and at (PORTS b + p) * 16 of file NAME.memory (lutra_ddr.cpp), which is
// mapped privately: it is never changed. What lies beyond the file's last whole beat answers with DECERR.
// A port takes up to OUTSTANDING bursts. The first beat of a burst comes at the earliest LATENCY clocks after its address, beats in order, on all ports in
// the same clock, one per slot: clock t (0: the first after reset) is a slot if t mod REFRESH_PERIOD >= REFRESH_WINDOW and
// t * RATE_NUMERATOR mod RATE_DENOMINATOR < RATE_NUMERATOR. A written beat is taken in a slot, address and data together, and goes before a read one; its
// response comes WRITE_LATENCY clocks later. A beat that is read in clock t has what was written in clocks before t.
// If NAME.skew exists (a seed of 64 bits, most significant byte first), ports, addresses, data and responses wait at random, each on its own.
// If NAME.region exists (first beat and number of beats, 64 bits each), those beats are written to NAME.dump at the end.
// A client that breaks the protocol ends the simulation: payloads and valid must stay until accepted; reads are 16-byte INCR bursts within 4 KB and the
// port's own region, writes single beats.
module lutra_ddr #(
    parameter NAME             = "memory",
    parameter PORTS            = 4,
    parameter ADDRESS          = 40,
    parameter REGION           = 36,
    parameter [63:0] BASE      = 0,
    parameter OUTSTANDING      = 8,
    parameter LATENCY          = 64,
    parameter WRITE_LATENCY    = 32,
    parameter RATE_NUMERATOR   = 1,
    parameter RATE_DENOMINATOR = 1,
    parameter REFRESH_PERIOD   = 0,
    parameter REFRESH_WINDOW   = 0
) (
    input  wire                     clk,
    input  wire                     rst,
    input  wire [PORTS-1:0]         arvalid,
    output wire [PORTS-1:0]         arready,
    input  wire [PORTS*ADDRESS-1:0] araddr,
    input  wire [PORTS*8-1:0]       arlen,
    input  wire [PORTS*3-1:0]       arsize,
    input  wire [PORTS*2-1:0]       arburst,
    output wire [PORTS-1:0]         rvalid,
    input  wire [PORTS-1:0]         rready,
    output reg  [PORTS*128-1:0]     rdata,
    output reg  [PORTS*2-1:0]       rresp,
    output reg  [PORTS-1:0]         rlast,
    input  wire                     awvalid,
    output wire                     awready,
    input  wire [ADDRESS-1:0]       awaddr,
    input  wire [7:0]               awlen,
    input  wire [2:0]               awsize,
    input  wire [1:0]               awburst,
    input  wire                     wvalid,
    output wire                     wready,
    input  wire [127:0]             wdata,
    input  wire [15:0]              wstrb,
    input  wire                     wlast,
    output reg                      bvalid,
    input  wire                     bready,
    output reg  [1:0]               bresp
);
    import "DPI-C" function chandle lutra_ddr_open(input string name, input int beat_bytes);
    import "DPI-C" function int lutra_ddr_read(input chandle memory, input longint beat, output bit [1023:0] data);
    import "DPI-C" function int lutra_ddr_write(input chandle memory, input longint beat, input int port, input bit [127:0] data, input int strobe);
    import "DPI-C" function void lutra_ddr_close(input chandle memory);

    localparam RESPONSES = 4096; // written beats without their response, at most
    localparam NUMERATOR = RATE_NUMERATOR;

    // What the design sees is assigned without blocking; all else is private to the clocked block.
    reg [PORTS-1:0]     offered;
    reg [PORTS-1:0]     held; // offered in the clock before and not taken: has to stay
    reg [PORTS-1:0]     room;
    reg                 slot;
    reg                 address_room;
    reg                 data_room;

    chandle             memory;
    reg                 skewed;
    reg [63:0]          seed;
    reg [63:0]          random; // xorshift
    reg [63:0]          spell; // stays for 64 clocks
    reg [63:0]          cycle;
    reg [63:0]          phase; // cycle * RATE_NUMERATOR mod RATE_DENOMINATOR
    reg [63:0]          refresh; // cycle mod REFRESH_PERIOD

    reg [63:0]          burst_beat [0:PORTS*OUTSTANDING-1];
    reg [63:0]          burst_due [0:PORTS*OUTSTANDING-1];
    reg [8:0]           burst_beats [0:PORTS*OUTSTANDING-1];
    integer             oldest [0:PORTS-1];
    integer             bursts [0:PORTS-1];
    reg [8:0]           moved [0:PORTS-1]; // beats of the oldest burst
    reg [PORTS-1:0]     offer;
    reg [PORTS-1:0]     stuck;
    reg [PORTS-1:0]     able;
    reg [PORTS*128-1:0] data;
    reg [PORTS*2-1:0]   status;
    reg [PORTS-1:0]     last;
    bit [1023:0]        wide;
    integer             answer;

    reg                 address_held;
    reg                 data_held;
    reg [63:0]          write_beat;
    integer             write_port;
    bit [127:0]         write_data;
    reg [15:0]          write_strobe;
    reg [63:0]          response_due [0:RESPONSES-1];
    reg [1:0]           response [0:RESPONSES-1];
    integer             first_response;
    integer             responses;

    reg [PORTS-1:0]         ar_waits;
    reg                     aw_waits;
    reg                     w_waits;
    reg [PORTS*ADDRESS-1:0] ar_address;
    reg [PORTS*8-1:0]       ar_length;
    reg [ADDRESS-1:0]       aw_address;
    reg [127:0]             w_data;
    reg [15:0]              w_strobe;

    integer p;
    integer i;
    integer file;
    integer got;

    wire both = awvalid && wvalid;

    assign arready = room;
    assign rvalid  = skewed ? offered : offered & (held | {PORTS{~both}});
    assign awready = skewed ? address_room : slot && both;
    assign wready  = skewed ? data_room : slot && both;

    function [63:0] beat_of(input [ADDRESS-1:0] address);
        beat_of = (({{(64-ADDRESS){1'b0}}, address} - BASE) & ((64'd1 << REGION) - 64'd1)) >> 4;
    endfunction

    function [63:0] port_of(input [ADDRESS-1:0] address);
        port_of = ({{(64-ADDRESS){1'b0}}, address} - BASE) >> REGION;
    endfunction

    task next_random;
        begin
            random = random ^ (random << 13);
            random = random ^ (random >> 7);
            random = random ^ (random << 17);
            if (cycle[5:0] == 0) spell = random;
        end
    endtask

    task check;
        begin
            for (p = 0; p < PORTS; p = p + 1) begin
                if (ar_waits[p] && (!arvalid[p] || araddr[p*ADDRESS+:ADDRESS] != ar_address[p*ADDRESS+:ADDRESS] || arlen[p*8+:8] != ar_length[p*8+:8]))
                    $fatal(1, "%s, cycle %0d: the address on read port %0d changed before it was taken", NAME, cycle, p);
                if (arvalid[p]) begin
                    if (arsize[p*3+:3] != 4 || arburst[p*2+:2] != 1 || araddr[p*ADDRESS+:4] != 0)
                        $fatal(1, "%s, cycle %0d: a burst on read port %0d must be INCR, of 16 bytes, and aligned to them", NAME, cycle, p);
                    if ({1'b0, araddr[p*ADDRESS+4+:8]} + {1'b0, arlen[p*8+:8]} > 255)
                        $fatal(1, "%s, cycle %0d: the burst on read port %0d crosses 4 KB: %0h, %0d beats", NAME, cycle, p, araddr[p*ADDRESS+:ADDRESS],
                            arlen[p*8+:8] + 1);
                    if (port_of(araddr[p*ADDRESS+:ADDRESS]) != p)
                        $fatal(1, "%s, cycle %0d: address %0h does not lie in the region of read port %0d", NAME, cycle, araddr[p*ADDRESS+:ADDRESS], p);
                end
            end
            if (aw_waits && (!awvalid || awaddr != aw_address)) $fatal(1, "%s, cycle %0d: the address of a write changed before it was taken", NAME, cycle);
            if (w_waits && (!wvalid || wdata != w_data || wstrb != w_strobe))
                $fatal(1, "%s, cycle %0d: the data of a write changed before they were taken", NAME, cycle);
            if (awvalid && (awlen != 0 || awsize != 4 || awburst != 1 || awaddr[3:0] != 0))
                $fatal(1, "%s, cycle %0d: a write must be one INCR beat of 16 bytes, aligned to them", NAME, cycle);
            if (awvalid && port_of(awaddr) >= PORTS) $fatal(1, "%s, cycle %0d: address %0h of a write lies in no region", NAME, cycle, awaddr);
            if (wvalid && !wlast) $fatal(1, "%s, cycle %0d: a write must be one beat", NAME, cycle);
            ar_waits = arvalid & ~arready;
            ar_address = araddr;
            ar_length = arlen;
            aw_waits = awvalid && !awready;
            aw_address = awaddr;
            w_waits = wvalid && !wready;
            w_data = wdata;
            w_strobe = wstrb;
        end
    endtask

    // What was accepted in the clock that ends.
    task take;
        begin
            for (p = 0; p < PORTS; p = p + 1) begin
                if (rvalid[p] && rready[p]) begin
                    moved[p] = moved[p] + 1;
                    if (moved[p] == burst_beats[p*OUTSTANDING+oldest[p]]) begin
                        moved[p] = 0;
                        bursts[p] = bursts[p] - 1;
                        oldest[p] = oldest[p] == OUTSTANDING - 1 ? 0 : oldest[p] + 1;
                    end
                end
                if (arvalid[p] && arready[p]) begin
                    i = p * OUTSTANDING + (oldest[p] + bursts[p]) % OUTSTANDING;
                    burst_beat[i] = beat_of(araddr[p*ADDRESS+:ADDRESS]);
                    burst_beats[i] = {1'b0, arlen[p*8+:8]} + 9'd1;
                    burst_due[i] = cycle + LATENCY;
                    bursts[p] = bursts[p] + 1;
                end
            end
            stuck = rvalid & ~rready;
            if (bvalid && bready) begin
                first_response = (first_response + 1) % RESPONSES;
                responses = responses - 1;
            end
            if (awvalid && awready) begin
                address_held = 1;
                write_beat = beat_of(awaddr);
                write_port = port_of(awaddr);
            end
            if (wvalid && wready) begin
                data_held = 1;
                write_data = wdata;
                write_strobe = wstrb;
            end
            if (address_held && data_held) begin
                address_held = 0;
                data_held = 0;
                answer = lutra_ddr_write(memory, write_beat, write_port, write_data, {16'd0, write_strobe});
                i = (first_response + responses) % RESPONSES;
                response[i] = answer[1:0];
                response_due[i] = cycle + WRITE_LATENCY + (skewed ? {58'd0, random[5:0]} : 64'd0);
                responses = responses + 1;
            end
        end
    endtask

    task fetch(input integer port);
        begin
            i = port * OUTSTANDING + oldest[port];
            answer = lutra_ddr_read(memory, burst_beat[i] + {55'd0, moved[port]}, wide);
        end
    endtask

    // Beats for the clock that begins, `cycle`.
    task serve;
        begin
            for (p = 0; p < PORTS; p = p + 1) able[p] = bursts[p] != 0 && burst_due[p*OUTSTANDING+oldest[p]] <= cycle;
            offer = stuck;
            if (skewed) begin
                for (p = 0; p < PORTS; p = p + 1)
                    if (!stuck[p] && able[p] && random[p*2+:2] != 0 && spell[p*2+:2] != 0) begin
                        fetch(p);
                        offer[p] = 1;
                        data[p*128+:128] = wide[p*128+:128];
                        status[p*2+:2] = answer[1:0];
                    end
            end else if (stuck == 0 && &able && phase < NUMERATOR && refresh >= REFRESH_WINDOW) begin
                for (p = 1; p < PORTS; p = p + 1)
                    if (burst_beat[p*OUTSTANDING+oldest[p]] != burst_beat[oldest[0]] || burst_beats[p*OUTSTANDING+oldest[p]] != burst_beats[oldest[0]])
                        $fatal(1, "%s, cycle %0d: read ports 0 and %0d want different bursts", NAME, cycle, p);
                fetch(0);
                offer = {PORTS{1'b1}};
                data = wide[PORTS*128-1:0];
                status = {PORTS{answer[1:0]}};
            end
            for (p = 0; p < PORTS; p = p + 1) last[p] = moved[p] + 9'd1 == burst_beats[p*OUTSTANDING+oldest[p]];
        end
    endtask

    initial begin
        skewed = 0;
        file = $fopen({NAME, ".skew"}, "rb");
        if (file != 0) begin
            got = $fread(seed, file);
            skewed = 1;
            $fclose(file);
        end
        memory = lutra_ddr_open(NAME, PORTS * 16);
        if (memory == null) $fatal(1, "%s.memory cannot be mapped", NAME);
    end

    always @(posedge clk) begin
        if (rst) begin
            cycle = 0;
            phase = 0;
            refresh = 0;
            random = seed | 64'd1;
            spell = ~64'd0;
            for (p = 0; p < PORTS; p = p + 1) begin
                oldest[p] = 0;
                bursts[p] = 0;
                moved[p] = 0;
            end
            offer = 0;
            stuck = 0;
            address_held = 0;
            data_held = 0;
            first_response = 0;
            responses = 0;
            ar_waits = 0;
            aw_waits = 0;
            w_waits = 0;
        end else begin
            check;
            take;
            cycle = cycle + 1;
            phase = phase + NUMERATOR;
            if (phase >= RATE_DENOMINATOR) phase = phase - RATE_DENOMINATOR;
            refresh = refresh + 1 == REFRESH_PERIOD ? 0 : refresh + 1;
            if (skewed) next_random;
            serve;
        end
        offered <= offer;
        held <= stuck;
        rdata <= data;
        rresp <= status;
        rlast <= last;
        slot <= phase < NUMERATOR && refresh >= REFRESH_WINDOW;
        for (p = 0; p < PORTS; p = p + 1) room[p] <= bursts[p] != OUTSTANDING && (!skewed || (random[16+p*2+:2] != 0 && spell[16+p*2+:2] != 0));
        address_room <= !address_held && responses < RESPONSES - 1 && random[33:32] == 0;
        data_room <= !data_held && random[35:34] == 0;
        bvalid <= responses != 0 && response_due[first_response] <= cycle;
        bresp <= response[first_response];
    end

    final lutra_ddr_close(memory);
endmodule
