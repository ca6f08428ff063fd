// SPDX-License-Identifier: Apache-2.0
// Runs a design with the pins rx and tx from the commands of lutra.cosim.serial on standard input, clock by clock, and does the other end of the line: every bit of
// a byte is put on rx and taken from tx as a serial adapter does it, with a bit time of its own.
//
// Commands are a letter and a number of 64 bits: S n, then n bytes: put them on the line behind those that wait; B n: keep the line low for n bits there;
// P n: hold the reset for n clocks; R n: run n clocks, or until a byte has come. R is answered with the clock (64 bits), the bytes that came (64 bits) and these.
#include <unistd.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <deque>
#include <memory>
#include <string>

#include "Vtop.h"
#include "verilated.h"

namespace {

bool read_all(void* target, size_t size) {
    char* at = static_cast<char*>(target);
    while (size) {
        const ssize_t got = read(STDIN_FILENO, at, size);
        if (got <= 0) return false;
        at += got;
        size -= got;
    }
    return true;
}

bool write_all(const void* source, size_t size) {
    const char* at = static_cast<const char*>(source);
    while (size) {
        const ssize_t put = write(STDOUT_FILENO, at, size);
        if (put <= 0) return false;
        at += put;
        size -= put;
    }
    return true;
}

class Line {
public:
    Line(VerilatedContext* context, double bit_clocks) : m_top(new Vtop{context}), m_bit(bit_clocks) { reset(4); }
    ~Line() { m_top->final(); }

    void send(int item) { m_waiting.push_back(item); }

    void reset(uint64_t clocks) {
        m_top->rst = 1;
        for (uint64_t i = 0; i < clocks; ++i) step();
        m_top->rst = 0;
    }

    void run(uint64_t clocks, std::string& received) {
        for (uint64_t i = 0; i < clocks && received.empty(); ++i) {
            step();
            listen(received);
        }
    }

    uint64_t clock() const { return m_clock; }

private:
    void step() {
        m_top->rx = level();
        m_top->clk = 0;
        m_top->eval();
        m_top->clk = 1;
        m_top->eval();
        ++m_clock;
    }

    // What an adapter puts on the line: an item is a byte, or as a negative number so many bits of break, which end in one high bit.
    int level() {
        if (!m_sending) {
            if (m_waiting.empty()) return 1;
            m_sending = true;
            m_begin = std::max(m_begin, static_cast<double>(m_clock));
        }
        const int item = m_waiting.front();
        const int bits = item < 0 ? 1 - item : 10;
        const int bit = static_cast<int>((m_clock - m_begin) / m_bit);
        if (bit >= bits) {
            m_waiting.pop_front();
            m_begin += bits * m_bit;
            m_sending = false;
            return level();
        }
        if (item < 0) return bit == bits - 1;
        return bit == 0 ? 0 : bit == 9 ? 1 : item >> (bit - 1) & 1;
    }

    void listen(std::string& received) {
        if (m_bits == 0) {
            if (m_top->tx) return;
            m_bits = 10;
            m_sample = m_clock + m_bit / 2;
        }
        if (m_clock < m_sample) return;
        m_sample += m_bit;
        --m_bits;
        if (m_bits == 9 && m_top->tx) m_bits = 0;
        else if (m_bits > 0) m_shift = m_shift >> 1 | (m_top->tx ? 0x80 : 0);
        else if (m_top->tx) received.push_back(static_cast<char>(m_shift));
    }

    std::unique_ptr<Vtop> m_top;
    const double m_bit;
    uint64_t m_clock = 0;
    std::deque<int> m_waiting;
    bool m_sending = false;
    double m_begin = 0, m_sample = 0;
    int m_bits = 0, m_shift = 0;
};

}  // namespace

int main(int argc, char** argv) {
    if (argc < 2) return 2;
    VerilatedContext context;
    Line line{&context, std::atof(argv[1])};
    char command;
    uint64_t number;
    while (read_all(&command, 1) && read_all(&number, sizeof number)) {
        if (command == 'S') {
            std::string bytes(number, '\0');
            if (!read_all(bytes.data(), number)) return 1;
            for (const unsigned char byte : bytes) line.send(byte);
        } else if (command == 'B') {
            line.send(-static_cast<int>(number));
        } else if (command == 'P') {
            line.reset(number);
        } else if (command == 'R') {
            std::string received;
            line.run(number, received);
            const uint64_t facts[2] = {line.clock(), received.size()};
            if (!write_all(facts, sizeof facts) || !write_all(received.data(), received.size())) return 1;
        } else {
            return 2;
        }
    }
    return 0;
}
