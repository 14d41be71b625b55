// Switching between fibers: a dozen instructions on x86-64 (swapcontext makes a system call each time), ucontext elsewhere.
// Each switch is reported to the address sanitizer.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(__SANITIZE_ADDRESS__)
extern "C" void __sanitizer_start_switch_fiber(void** fake_stack, const void* bottom, std::size_t size);
extern "C" void __sanitizer_finish_switch_fiber(void* fake_stack, const void** bottom, std::size_t* size);
#endif

#if !defined(__x86_64__)
#include <ucontext.h>
#endif

namespace emulator {

struct Context {
#if defined(__x86_64__)
    void* stack_pointer;
#else
    ucontext_t registers;
#endif
    const void* bottom = nullptr;
    std::size_t size = 0;
    void* fake_stack = nullptr;
};

#if defined(__x86_64__)
// void unimo_switch(void** save_to, void* load_from): callee-saved registers and the stack pointer.
asm(R"(
    .text
    .local unimo_switch
    .type unimo_switch, @function
unimo_switch:
    pushq %rbp
    pushq %rbx
    pushq %r12
    pushq %r13
    pushq %r14
    pushq %r15
    movq %rsp, (%rdi)
    movq %rsi, %rsp
    popq %r15
    popq %r14
    popq %r13
    popq %r12
    popq %rbx
    popq %rbp
    ret
    .size unimo_switch, .-unimo_switch
)");
extern "C" void unimo_switch(void** save_to, void* load_from);
#endif

inline void start_switch([[maybe_unused]] void** fake_stack, [[maybe_unused]] const Context& to) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_start_switch_fiber(fake_stack, to.bottom, to.size);
#endif
}

// Sets the stack bounds of `from`, the context that was left.
inline void finish_switch([[maybe_unused]] void* fake_stack, [[maybe_unused]] Context& from) {
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fake_stack, &from.bottom, &from.size);
#endif
}

inline void switch_context(Context& from, Context& to) {
#if defined(__x86_64__)
    unimo_switch(&from.stack_pointer, to.stack_pointer);
#else
    swapcontext(&from.registers, &to.registers);
#endif
}

inline void prepare_context(Context& context, unsigned char* stack, std::size_t size, void (*entry)()) {
    context.bottom = stack;
    context.size = size;
#if defined(__x86_64__)
    auto top = (reinterpret_cast<std::uintptr_t>(stack) + size) & ~std::uintptr_t(15);
    auto* words = reinterpret_cast<void**>(top);
    words[-1] = nullptr;                          // return address of `entry`, which never returns
    words[-2] = reinterpret_cast<void*>(entry);
    for (int i = 3; i <= 8; ++i) words[-i] = nullptr;
    context.stack_pointer = words - 8;
#else
    getcontext(&context.registers);
    context.registers.uc_stack.ss_sp = stack;
    context.registers.uc_stack.ss_size = size;
    context.registers.uc_link = nullptr;
    makecontext(&context.registers, entry, 0);
#endif
}

// From the scheduler into a fiber, and back when the fiber leaves.
inline void enter_context(Context& scheduler, Context& fiber) {
    start_switch(&scheduler.fake_stack, fiber);
    switch_context(scheduler, fiber);
    Context unused;
    finish_switch(scheduler.fake_stack, unused);
}

// From a fiber to the scheduler; returns when the fiber is entered again.
inline void leave_for(Context& fiber, Context& scheduler, bool last) {
    start_switch(last ? nullptr : &fiber.fake_stack, scheduler);
    switch_context(fiber, scheduler);
    finish_switch(fiber.fake_stack, scheduler);
}

}  // namespace emulator
