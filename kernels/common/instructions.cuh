// Matrix instructions of one warp, and their emulation on the host with the register layouts of the PTX manual.
//
// sm_80 and newer: mma.m16n8k16 and ldmatrix. Older (sm_70): mma.m8n8k4, four independent 8x8x4 products at once, one per
// "quad pair" (lanes 4q..4q+3 and 16+4q..16+4q+3).
#pragma once

#include "device.cuh"

namespace unimo {

#if UNIMO_ARCH >= 800

// Four 8x8 matrices of 16-bit elements. Lane l passes the address of row l % 8 of matrix l / 8; of each matrix it receives
// elements (l / 4, 2 (l % 4)) and the next one, of the transposed matrix if kTransposed.
template <bool kTransposed>
__device__ __forceinline__ void load_matrices(unsigned (&registers)[4], const void* row) {
#if defined(UNIMO_HOST)
    const Words4 mine = load<Words4>(row);
    const auto& mail = emulator::meet(4 + kTransposed, [&](auto& mailbox) {
        for (int i = 0; i < 4; ++i) mailbox.words[emulator::lane()][i] = mine.word[i];
    });
    const int lane = emulator::lane();
    for (int matrix = 0; matrix < 4; ++matrix) {
        unsigned value = 0;
        for (int half = 0; half < 2; ++half) {
            const int major = lane / 4, minor = 2 * (lane % 4) + half;
            const int r = kTransposed ? minor : major, c = kTransposed ? major : minor;
            value |= (mail.words[matrix * 8 + r][c / 2] >> (16 * (c % 2)) & 0xffffu) << (16 * half);
        }
        registers[matrix] = value;
    }
#else
    const unsigned address = unsigned(__cvta_generic_to_shared(row));
    if (kTransposed) {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    } else {
        asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
                     : "=r"(registers[0]), "=r"(registers[1]), "=r"(registers[2]), "=r"(registers[3])
                     : "r"(address)
                     : "memory");
    }
#endif
}

#if !defined(UNIMO_HOST)
template <class Format>
__device__ __forceinline__ void multiply_16_8_16(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1);

template <>
__device__ __forceinline__ void multiply_16_8_16<Half>(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
                 : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
                 : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#if !defined(UNIMO_HALF_ONLY)
template <>
__device__ __forceinline__ void multiply_16_8_16<BFloat16>(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}
#endif
#else
// d: rows l / 4 and l / 4 + 8, columns 2 (l % 4) and the next. a: register i holds row l / 4 + 8 (i % 2), columns 2 (l % 4) +
// 8 (i / 2) and the next. b: register i holds rows 2 (l % 4) + 8 i and the next of column l / 4.
template <class Format>
void multiply_16_8_16(float* d, const unsigned (&a)[4], unsigned b0, unsigned b1) {
    const int lane = emulator::lane();
    const auto& mail = emulator::meet(6, [&](auto& mailbox) {
        for (int i = 0; i < 4; ++i) {
            const Pair pair = unpack<Format>(a[i]);
            mailbox.left[lane][2 * i] = pair.low;
            mailbox.left[lane][2 * i + 1] = pair.high;
        }
        const Pair first = unpack<Format>(b0), second = unpack<Format>(b1);
        const float right[4] = {first.low, first.high, second.low, second.high};
        for (int i = 0; i < 4; ++i) mailbox.right[lane][i] = right[i];
    });
    for (int row = 0; row < 2; ++row)
        for (int column = 0; column < 2; ++column) {
            const int n = 2 * (lane % 4) + column;
            float sum = d[2 * row + column];
            for (int k = 0; k < 16; ++k) {
                const float left = mail.left[lane / 4 * 4 + k % 8 / 2][2 * (row + 2 * (k / 8)) + k % 2];
                sum += left * mail.right[n * 4 + k % 8 / 2][2 * (k / 8) + k % 2];
            }
            d[2 * row + column] = sum;
        }
}
#endif

#else

// d: element i is row (l & 1) + (i & 2) + 4 (l >= 16), column (i & 4) + (l & 2) + (i & 1). a: row l % 4 + 4 (l >= 16), four
// columns. b: column l % 4 + 4 (l >= 16), four rows; if kRightByRows, row l % 4 and columns 4 (l >= 16) and the next three.
template <bool kRightByRows>
__device__ __forceinline__ void multiply_8_8_4(float* d, unsigned a0, unsigned a1, unsigned b0, unsigned b1) {
#if defined(UNIMO_HOST)
    const int lane = emulator::lane();
    const auto& mail = emulator::meet(7 + kRightByRows, [&](auto& mailbox) {
        const unsigned words[4] = {a0, a1, b0, b1};
        for (int i = 0; i < 4; ++i) {
            const Pair pair = unpack<Half>(words[i]);
            float* target = i < 2 ? mailbox.left[lane] : mailbox.right[lane];
            target[2 * (i % 2)] = pair.low;
            target[2 * (i % 2) + 1] = pair.high;
        }
    });
    const int quad = lane & 12;
    for (int i = 0; i < 8; ++i) {
        const int row = (lane & 1) + (i & 2) + (lane >= 16 ? 4 : 0), column = (i & 4) + (lane & 2) + (i & 1);
        const int left_lane = quad + row % 4 + (row >= 4 ? 16 : 0);
        for (int k = 0; k < 4; ++k) {
            const int group = column >= 4 ? 16 : 0;
            const float right = kRightByRows ? mail.right[quad + k + group][column % 4]
                                             : mail.right[quad + column % 4 + group][k];
            d[i] += mail.left[left_lane][k] * right;
        }
    }
#else
    if (kRightByRows) {
        asm volatile(
            "mma.sync.aligned.m8n8k4.row.row.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
            "{%0,%1,%2,%3,%4,%5,%6,%7};\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
    } else {
        asm volatile(
            "mma.sync.aligned.m8n8k4.row.col.f32.f16.f16.f32 {%0,%1,%2,%3,%4,%5,%6,%7}, {%8,%9}, {%10,%11}, "
            "{%0,%1,%2,%3,%4,%5,%6,%7};\n"
            : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3]), "+f"(d[4]), "+f"(d[5]), "+f"(d[6]), "+f"(d[7])
            : "r"(a0), "r"(a1), "r"(b0), "r"(b1));
    }
#endif
}

#endif

}  // namespace unimo
