// Runs the kernels' own sources on a CPU: one fiber per CUDA thread, one block after another.
//
// It detects wrong indices, layouts of matrix instructions and masks, missing barriers (under natural, reversed and shuffled
// schedules), missing waits for asynchronous copies (a copy lands only when waited for) and for a warpgroup's products
// (computed only when waited for), misaligned accesses, and with sanitizers every access out of bounds. It cannot detect timing,
// bank conflicts, or memory ordering between barriers.
//
// Warp-wide operations (shuffles, matrix products) have one rendezvous each: a lane posts its operands, waits until all 32 have
// posted for the same kind of operation, and reads. Two mailboxes alternate, so one rendezvous per operation is enough.
#pragma once

#include <algorithm>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <random>
#include <vector>

#include "context_switch.h"

namespace emulator {

constexpr int kWarpSize = 32;
constexpr std::size_t kStackBytes = 64 * 1024;

enum class Schedule { natural, reversed, shuffled };
inline Schedule schedule = Schedule::natural;
inline std::mt19937 shuffler{1};

[[noreturn]] inline void fail(const char* what) {
    std::fprintf(stderr, "emulator: %s\n", what);
    std::abort();
}

inline void require(bool condition, const char* what) {
    if (!condition) fail(what);
}

enum class State : std::uint8_t { runnable, at_warp, at_block, finished };

struct Copy {
    void* target;
    int size;
    unsigned char bytes[16];
};

using Products = std::vector<std::function<void()>>;  // a batch of a warpgroup's products, this thread's part

struct Thread {
    Context context;
    State state;
    int index;
    int kind;      // of the warp-wide operation it waits at
    int mailbox;   // which of the two it posts to next
    std::vector<Copy> pending;
    Products begun;                  // not committed yet
    std::vector<Products> batches;   // committed, not waited for yet
};

struct Mailbox {
    unsigned words[kWarpSize][4];
    float left[kWarpSize][8];
    float right[kWarpSize][4];
};

struct Block {
    Context scheduler;
    std::vector<Thread> threads;
    std::vector<Mailbox> mailboxes;  // two per warp
    std::vector<unsigned char> stacks;
    std::function<void()> body;
    unsigned char* shared = nullptr;
    int x = 0, y = 0;
    Thread* current = nullptr;
};
inline Block* block = nullptr;

inline void enter_thread() {
    finish_switch(nullptr, block->scheduler);
    block->body();
    require(block->current->pending.empty(), "a thread ends with asynchronous copies that nobody waited for");
    require(block->current->begun.empty() && block->current->batches.empty(), "a thread ends with products nobody waited for");
    block->current->state = State::finished;
    leave_for(block->current->context, block->scheduler, /*last=*/true);
}

inline void wait(State state, int kind) {
    Thread* thread = block->current;
    thread->state = state;
    thread->kind = kind;
    leave_for(thread->context, block->scheduler, /*last=*/false);
}

inline int lane() { return block->current->index % kWarpSize; }

// Posts through `write(mailbox)`, meets the warp, returns the mailbox to read.
template <class Write>
const Mailbox& meet(int kind, Write write) {
    Thread* thread = block->current;
    Mailbox& mailbox = block->mailboxes[thread->index / kWarpSize * 2 + thread->mailbox];
    thread->mailbox ^= 1;
    write(mailbox);
    wait(State::at_warp, kind);
    return mailbox;
}

// Runs one warp's runnable lanes once, then releases them if all wait at the same warp-wide operation. False: nothing ran.
inline bool run_warp(int warp, std::vector<int>& order) {
    bool ran = false;
    for (int lane : order) {
        Thread& thread = block->threads[warp * kWarpSize + lane];
        if (thread.state != State::runnable) continue;
        ran = true;
        block->current = &thread;
        enter_context(block->scheduler, thread.context);
    }
    Thread* first = &block->threads[warp * kWarpSize];
    int waiting = 0;
    for (int lane = 0; lane < kWarpSize; ++lane) waiting += first[lane].state == State::at_warp;
    if (waiting == 0) return ran;
    require(waiting == kWarpSize, "a warp-wide operation that not all lanes of the warp reach");
    for (int lane = 0; lane < kWarpSize; ++lane) {
        require(first[lane].kind == first[0].kind, "lanes of a warp wait at different operations");
        first[lane].state = State::runnable;
    }
    return true;
}

inline void run_block() {
    Block& b = *block;
    const int num_threads = int(b.threads.size()), num_warps = num_threads / kWarpSize;
    for (int i = 0; i < num_threads; ++i) {
        b.threads[i].state = State::runnable;
        b.threads[i].index = i;
        b.threads[i].mailbox = 0;
        prepare_context(b.threads[i].context, b.stacks.data() + kStackBytes * i, kStackBytes, enter_thread);
    }
    std::vector<int> lanes(kWarpSize), warps(num_warps);
    for (int i = 0; i < kWarpSize; ++i) lanes[i] = schedule == Schedule::reversed ? kWarpSize - 1 - i : i;
    for (int i = 0; i < num_warps; ++i) warps[i] = schedule == Schedule::reversed ? num_warps - 1 - i : i;
    for (;;) {
        bool ran = false;
        if (schedule == Schedule::shuffled) std::shuffle(warps.begin(), warps.end(), shuffler);
        for (int warp : warps) {
            do {
                if (schedule == Schedule::shuffled) std::shuffle(lanes.begin(), lanes.end(), shuffler);
                if (!run_warp(warp, lanes)) break;
                ran = true;
            } while (schedule != Schedule::shuffled);  // shuffled: one turn, then another warp
        }
        int finished = 0, at_barrier = 0;
        for (Thread& thread : b.threads) {
            finished += thread.state == State::finished;
            at_barrier += thread.state == State::at_block;
        }
        if (finished == num_threads) return;
        if (at_barrier == num_threads) {
            for (Thread& thread : b.threads) thread.state = State::runnable;
            ran = true;
        }
        require(ran, "deadlock: a block barrier that not all threads reach");
    }
}

template <class Kernel>
void launch(Kernel kernel, int grid_x, int grid_y, int threads, std::size_t shared_bytes) {
    Block b;
    b.threads.resize(threads);
    b.mailboxes.resize(threads / kWarpSize * 2);
    b.stacks.resize(kStackBytes * threads);
    b.body = kernel;
    block = &b;
    for (int y = 0; y < grid_y; ++y)
        for (int x = 0; x < grid_x; ++x) {
            // Fresh memory per block: exact bounds for the address sanitizer, and NaN wherever nothing was written.
            b.shared = static_cast<unsigned char*>(std::aligned_alloc(128, (shared_bytes + 127) / 128 * 128));
            std::memset(b.shared, 0xff, shared_bytes);
            b.x = x, b.y = y;
            run_block();
            std::free(b.shared);
        }
    block = nullptr;
}

inline float half_to_float(unsigned bits) {
    _Float16 value;
    const std::uint16_t low = std::uint16_t(bits);
    std::memcpy(&value, &low, 2);
    return float(value);
}

inline unsigned float_to_half(float value) {
    const _Float16 rounded = static_cast<_Float16>(value);
    std::uint16_t bits;
    std::memcpy(&bits, &rounded, 2);
    return bits;
}

inline float bfloat16_to_float(unsigned bits) {
    const unsigned wide = bits << 16;
    float value;
    std::memcpy(&value, &wide, 4);
    return value;
}

inline unsigned float_to_bfloat16(float value) {
    unsigned bits;
    std::memcpy(&bits, &value, 4);
    if ((bits & 0x7fffffffu) > 0x7f800000u) return (bits >> 16) | 0x40u;  // NaN stays NaN
    return (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;                  // to nearest, ties to even
}

}  // namespace emulator
