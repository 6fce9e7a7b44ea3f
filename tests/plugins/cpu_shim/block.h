// A block of CUDA threads on one thread of the CPU. Each is a fiber, which runs until it has to wait for others; whose
// turn it is then is random, from a seed: one warp may be far ahead of another, as on a GPU, so that a missing barrier
// shows as a wrong result.
#pragma once
#include <setjmp.h>
#include <stdarg.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

struct uint3 {
  unsigned x, y, z;
};
typedef uint3 dim3;
static uint3 threadIdx, blockIdx;
static dim3 blockDim, gridDim;

// One copy for all fibers, which share a thread: in its block of thread-local storage, which can be found and poisoned
// whatever function or template declares it.
#define __shared__ static thread_local

namespace cpu {

constexpr int WARP = 32, MAX_THREADS = 1024, STACK = 64 * 1024;
constexpr unsigned char POISON = 0xff;  // NaN in half and in float

// Where threads wait for each other, round after round.
struct Meeting {
  int arrived;
  unsigned round;
};

struct Fiber {
  ucontext_t start;
  jmp_buf paused;
  bool started, finished;
  const Meeting* meeting;  // where it waits, or waited last
  unsigned round;          // that it waits to see ended

  bool can_run() const { return !finished && !(meeting && meeting->round == round); }
};

static Fiber fibers[MAX_THREADS];
static Meeting block_meeting, warp_meetings[MAX_THREADS / WARP];
static jmp_buf scheduler;
static void (*kernel)();
static char message[256];  // of the first fault, empty without one
static uint64_t random_state;

static unsigned random_below(unsigned limit) {  // xorshift64*, Vigna 2016
  random_state ^= random_state >> 12, random_state ^= random_state << 25, random_state ^= random_state >> 27;
  return (unsigned)(random_state * 0x2545F4914F6CDD1DULL >> 33) % limit;
}

// ---- what a fiber does

// The scheduler's turn. setjmp switches stacks without swapcontext's two system calls; ucontext only starts a fiber.
static __attribute__((noinline)) void pause_fiber() {
  if (!_setjmp(fibers[threadIdx.x].paused)) _longjmp(scheduler, 1);
}

// Says what is wrong and ends the launch: the fiber does not come back.
[[noreturn]] static void fail(const char* format, ...) {
  const int length = snprintf(message, sizeof message, "block (%u, %u, %u), thread %u: ", blockIdx.x, blockIdx.y,
                              blockIdx.z, threadIdx.x);
  va_list values;
  va_start(values, format);
  vsnprintf(message + length, sizeof message - length, format, values);
  va_end(values);
  _longjmp(scheduler, 1);
}

// Waits until `all` threads are here. The last to come does what is to be done for all of them.
template <class Last>
static void meet(Meeting& meeting, int all, Last last) {
  if (++meeting.arrived == all) {
    last();
    meeting.arrived = 0;
    ++meeting.round;
    return;
  }
  Fiber& self = fibers[threadIdx.x];
  self.meeting = &meeting;
  self.round = meeting.round;
  pause_fiber();
}

static void run_fiber() {
  for (;;) {  // once for each block
    kernel();
    fibers[threadIdx.x].finished = true;
    pause_fiber();
  }
}

// ---- what the scheduler does

static __attribute__((noinline)) void resume_fiber(int thread) {
  Fiber& fiber = fibers[thread];
  threadIdx.x = thread;
  if (_setjmp(scheduler)) return;
  if (fiber.started) _longjmp(fiber.paused, 1);
  fiber.started = true;
  setcontext(&fiber.start);
}

// Every thread of a warp that can run does so until it waits, in some order. Returns how many did.
static int run_warp(int warp) {
  const unsigned first = random_below(WARP), step = 2 * random_below(WARP / 2) + 1;
  int ran = 0;
  for (unsigned i = 0; i < WARP && !message[0]; ++i) {
    const int thread = warp * WARP + (first + i * step) % WARP;
    if (thread >= (int)blockDim.x || !fibers[thread].can_run()) continue;
    resume_fiber(thread);
    ++ran;
  }
  return ran;
}

static void report_stuck() {
  int finished = 0, at_barrier = 0;
  for (int i = 0; i < (int)blockDim.x; ++i) {
    finished += fibers[i].finished;
    at_barrier += !fibers[i].finished && fibers[i].meeting == &block_meeting;
  }
  snprintf(message, sizeof message, "block (%u, %u, %u) is stuck: %d threads at __syncthreads, %d at mma, %d returned",
           blockIdx.x, blockIdx.y, blockIdx.z, at_barrier, (int)blockDim.x - at_barrier - finished, finished);
}

// For a random while, the first warp that can run is preferred to all others: they lag as far as barriers let them.
static void run_block() {
  const int warps = (blockDim.x + WARP - 1) / WARP;
  for (unsigned i = 0; i < blockDim.x; ++i) fibers[i].finished = false, fibers[i].meeting = nullptr;
  block_meeting.arrived = 0;
  for (Meeting& meeting : warp_meetings) meeting.arrived = 0;

  int order[MAX_THREADS / WARP];
  for (int i = 0; i < warps; ++i) order[i] = i;
  for (;;) {
    for (int i = warps - 1; i > 0; --i) {
      const int k = random_below(i + 1), swapped = order[i];
      order[i] = order[k], order[k] = swapped;
    }
    for (int turns = 1 << random_below(12); turns > 0; --turns) {
      int ran = 0;
      for (int i = 0; i < warps && !ran; ++i) ran = run_warp(order[i]);
      if (message[0]) return;
      if (ran) continue;
      for (int i = 0; i < (int)blockDim.x; ++i)
        if (!fibers[i].finished) return report_stuck();
      return;
    }
  }
}

static void start_fibers(int threads, char* stacks) {
  for (int i = 0; i < threads; ++i) {
    Fiber& fiber = fibers[i];
    fiber.started = false;
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = stacks + (size_t)i * STACK;
    fiber.start.uc_stack.ss_size = STACK;
    makecontext(&fiber.start, run_fiber, 0);
  }
}

}  // namespace cpu

static inline void __syncthreads() {
  cpu::meet(cpu::block_meeting, blockDim.x, [] {});
}
