// One kernel's source (SADNET_SOURCE), and what Python calls to run a grid of it.
#include <cuda_fp16.h>

#include SADNET_SOURCE

struct Arguments {
  const SADNET_TYPE *x, *offset_mask, *weight, *bias;
  int n, c, h, w, o, groups;
  SADNET_TYPE* y;
};
static Arguments arguments;

static void run_thread() {
  const Arguments& a = arguments;
  modulated_deform_conv2d(a.x, a.offset_mask, a.weight, a.bias, a.n, a.c, a.h, a.w, a.o, a.groups, a.y);
}

// Runs all blocks. bytes: of x, offset_mask, weight and bias. Returns what went wrong, empty if nothing did.
extern "C" const char* launch(const Arguments* given, const size_t* bytes, const unsigned* grid, unsigned threads,
                              uint64_t seed) {
  arguments = *given;
  const void* const pointers[4] = {given->x, given->offset_mask, given->weight, given->bias};
  for (int i = 0; i < 4; ++i) cpu::inputs[i] = {(const char*)pointers[i], (const char*)pointers[i] + bytes[i]};
  gridDim = {grid[0], grid[1], grid[2]};
  blockDim = {threads, 1, 1};
  cpu::kernel = run_thread;
  cpu::random_state = (seed + 1) * 0x9E3779B97F4A7C15ULL;  // never 0, where xorshift stays
  cpu::message[0] = 0;
  char* stacks = (char*)malloc((size_t)threads * cpu::STACK);
  cpu::start_fibers(threads, stacks);
  for (blockIdx.z = 0; blockIdx.z < grid[2] && !cpu::message[0]; ++blockIdx.z)
    for (blockIdx.y = 0; blockIdx.y < grid[1] && !cpu::message[0]; ++blockIdx.y)
      for (blockIdx.x = 0; blockIdx.x < grid[0] && !cpu::message[0]; ++blockIdx.x) {
        cpu::poison_shared();
        cpu::start_copies();
        cpu::run_block();
      }
  free(stacks);
  return cpu::message;
}
