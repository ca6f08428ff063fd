// SPDX-License-Identifier: Apache-2.0
// The contents of a lutra_ddr: a file of wide beats, mapped privately, so that its pages are read when they are touched and writes stay in this process.

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstring>
#include <string>

#include "svdpi.h"

namespace {

constexpr int PORT_BYTES = 16;
constexpr int OKAY = 0, DECERR = 3;  // responses of AXI

struct Memory {
    std::string name;
    uint8_t* bytes;
    size_t size;  // of the mapping
    int64_t beat_bytes;
    int64_t beats;
};

/// Two numbers of 64 bits, most significant byte first.
bool read_region(const std::string& name, int64_t& first, int64_t& count) {
    FILE* file = std::fopen(name.c_str(), "rb");
    if (file == nullptr) return false;
    uint8_t raw[16];
    const bool whole = std::fread(raw, 1, sizeof raw, file) == sizeof raw;
    std::fclose(file);
    first = count = 0;
    for (int i = 0; i < 8; i++) {
        first = first << 8 | raw[i];
        count = count << 8 | raw[8 + i];
    }
    return whole;
}

}  // namespace

extern "C" void* lutra_ddr_open(const char* name, int beat_bytes) {
    const int file = open((std::string(name) + ".memory").c_str(), O_RDONLY);
    if (file < 0) return nullptr;
    struct stat about;
    void* bytes = MAP_FAILED;
    if (fstat(file, &about) == 0 && about.st_size > 0)
        bytes = mmap(nullptr, about.st_size, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
    close(file);
    if (bytes == MAP_FAILED) return nullptr;
    return new Memory{name, static_cast<uint8_t*>(bytes), static_cast<size_t>(about.st_size), beat_bytes, about.st_size / beat_bytes};
}

extern "C" int lutra_ddr_read(void* handle, long long beat, svBitVecVal* data) {
    const Memory* memory = static_cast<const Memory*>(handle);
    const bool inside = beat >= 0 && beat < memory->beats;
    if (inside)
        std::memcpy(data, memory->bytes + beat * memory->beat_bytes, memory->beat_bytes);
    else
        std::memset(data, 0xFF, memory->beat_bytes);
    return inside ? OKAY : DECERR;
}

extern "C" int lutra_ddr_write(void* handle, long long beat, int port, const svBitVecVal* data, int strobe) {
    Memory* memory = static_cast<Memory*>(handle);
    if (beat < 0 || beat >= memory->beats) return DECERR;
    uint8_t* target = memory->bytes + beat * memory->beat_bytes + port * PORT_BYTES;
    const uint8_t* source = reinterpret_cast<const uint8_t*>(data);
    for (int i = 0; i < PORT_BYTES; i++)
        if (strobe >> i & 1) target[i] = source[i];
    return OKAY;
}

extern "C" void lutra_ddr_close(void* handle) {
    Memory* memory = static_cast<Memory*>(handle);
    if (memory == nullptr) return;
    int64_t first, count;
    if (read_region(memory->name + ".region", first, count) && first >= 0 && count >= 0 && first + count <= memory->beats) {
        FILE* dump = std::fopen((memory->name + ".dump").c_str(), "wb");
        if (dump != nullptr) {
            std::fwrite(memory->bytes + first * memory->beat_bytes, memory->beat_bytes, count, dump);
            std::fclose(dump);
        }
    }
    munmap(memory->bytes, memory->size);
    delete memory;
}
