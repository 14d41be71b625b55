// Common to the host_check.cpp programs: memory, formats and runs on the emulator or a GPU, random draws, comparisons.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <type_traits>
#include <vector>

#include "launch.cuh"

namespace {

// Memory of the host or a GPU: on the host allocated to the byte, for sanitizers.
template <class Value>
class Memory {
public:
    Memory() = default;
    explicit Memory(std::size_t count) : count_(count) {
#if defined(UNIMO_HOST)
        data_ = static_cast<Value*>(std::malloc(count * sizeof(Value) + (count == 0)));
#else
        if (cudaMallocManaged(&data_, count * sizeof(Value) + 16) != cudaSuccess) std::abort();
#endif
        std::memset(static_cast<void*>(data_), 0xff, count * sizeof(Value));
    }
    Memory(const Memory&) = delete;
    Memory& operator=(const Memory&) = delete;
    ~Memory() {
#if defined(UNIMO_HOST)
        std::free(data_);
#else
        cudaFree(data_);
#endif
    }
    Value* get() { return data_; }
    Value& operator[](std::size_t i) { return data_[i]; }
    std::size_t size() const { return count_; }
    void fill(Value value) {
        for (std::size_t i = 0; i < count_; ++i) data_[i] = value;
    }
    void append_to(std::vector<unsigned char>& bytes) const {
        const auto* first = reinterpret_cast<const unsigned char*>(data_);
        bytes.insert(bytes.end(), first, first + count_ * sizeof(Value));
    }

private:
    Value* data_ = nullptr;
    std::size_t count_ = 0;
};

void require(bool condition, const char* what) {
    if (condition) return;
    std::fprintf(stderr, "check: %s\n", what);
    std::abort();
}

void start_run([[maybe_unused]] int schedule) {
#if defined(UNIMO_HOST)
    unimo_host_schedule(schedule);
#endif
}
void finish_run() {
#if !defined(UNIMO_HOST)
    require(cudaDeviceSynchronize() == cudaSuccess, "the GPU reports an error");
#endif
}

int draw(std::mt19937& random, int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); }
float draw(std::mt19937& random, float low, float high) { return std::uniform_real_distribution<float>(low, high)(random); }

bool near(double found, double truth, double tolerance, const std::string& what) {
    if (found == truth || std::fabs(found - truth) <= tolerance) return true;
    std::printf("%s: %.9g, not %.9g\n", what.c_str(), found, truth);
    return false;
}

#if defined(UNIMO_HOST)
template <class Format>
std::uint16_t to_bits(float value) {
    return std::uint16_t(unimo::pack<Format>(value, 0) & 0xffffu);
}
template <class Format>
double from_bits(std::uint16_t bits) {
    return unimo::unpack<Format>(bits).low;
}
#else
template <class Format>
using Native = std::conditional_t<std::is_same_v<Format, unimo::Half>, __half, __nv_bfloat16>;
template <class Format>
std::uint16_t to_bits(float value) {
    const Native<Format> narrow(value);
    std::uint16_t bits;
    std::memcpy(&bits, &narrow, 2);
    return bits;
}
template <class Format>
double from_bits(std::uint16_t bits) {
    Native<Format> narrow;
    std::memcpy(&narrow, &bits, 2);
    return float(narrow);
}
#endif

template <class Format>
constexpr int kFormatNumber = std::is_same_v<Format, unimo::Half> ? 0 : 1;  // as in with_format

#if defined(UNIMO_HALF_ONLY)
using OtherFormat = unimo::Half;
#else
using OtherFormat = unimo::BFloat16;
#endif

// The program: cases FIRST_CASE to FIRST_CASE + NUM_CASES - 1, odd numbers with the second function.
int run_cases(int count, char** words, bool (*check)(unsigned), bool (*check_odd)(unsigned)) {
    if (count != 3) {
        std::fprintf(stderr, "usage: host_check FIRST_CASE NUM_CASES\n");
        return 2;
    }
    const unsigned first = unsigned(std::atoi(words[1])), number = unsigned(std::atoi(words[2]));
    unsigned failed = 0;
    for (unsigned i = first; i < first + number; ++i) failed += !(i % 2 ? check_odd : check)(i);
    std::printf("%u cases, %u failed\n", number, failed);
    return failed ? 1 : 0;
}

template <class Format>
double half_rounding() {  // largest relative error of one rounding
    return std::is_same_v<Format, unimo::Half> ? 1.0 / 2048 : 1.0 / 256;
}

}  // namespace
