// SPDX-License-Identifier: Apache-2.0
// ECP5: two bits of a carry chain. A table of all four inputs tells whether a bit propagates the carry; where it does not, the table's rows with C = D = 0 give it.
module CCU2C #(
    parameter [15:0] INIT0 = 0,
    parameter [15:0] INIT1 = 0,
    parameter INJECT1_0 = "YES",
    parameter INJECT1_1 = "YES"
) (
    input CIN,
    input A0, B0, C0, D0,
    input A1, B1, C1, D1,
    output S0, S1,
    output COUT
);
    localparam OWN0 = INJECT1_0 != "YES", OWN1 = INJECT1_1 != "YES";
    wire propagate0 = INIT0[{D0, C0, B0, A0}];
    wire propagate1 = INIT1[{D1, C1, B1, A1}];
    wire middle = propagate0 ? CIN : OWN0 & INIT0[{2'b00, B0, A0}];
    assign S0 = propagate0 ^ (OWN0 & CIN);
    assign S1 = propagate1 ^ (OWN1 & middle);
    assign COUT = propagate1 ? middle : OWN1 & INIT1[{2'b00, B1, A1}];
endmodule
