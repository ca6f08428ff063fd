// SPDX-License-Identifier: Apache-2.0
// ECP5: the multiplexer behind two look-up tables.
module PFUMX (
    input ALUT, BLUT, C0,
    output Z
);
    assign Z = C0 ? ALUT : BLUT;
endmodule
