// One of the plugin's launches, SADNET_LAUNCHES, on the CPU, and what Python calls.
#include SADNET_LAUNCHES

// How many tiles there are: those of tiles.def, or linear.cu's one.
extern "C" int tiles(const sadnet_plugin::Problem* problem) {
#ifdef SADNET_OUTPUTS
  return 1;
#else
  return sadnet_plugin::fused_tiles(problem->c, problem->o, problem->offset_groups);
#endif
}

// bytes: of x, offset_mask, weight and bias. fault: what the kernel did wrong. Returns a cudaError_t.
extern "C" int run(const sadnet_plugin::Problem* problem, int tile, const sadnet_plugin::Buffers* buffers,
                   const size_t* bytes, const char** fault) {
  const void* const inputs[4] = {buffers->x, buffers->offset_mask, buffers->weight, buffers->bias};
  for (int i = 0; i < 4; ++i) cpu::inputs[i] = {(const char*)inputs[i], (const char*)inputs[i] + bytes[i]};
  cpu::random_state = 0x9E3779B97F4A7C15ULL;
  cpu::message[0] = 0;
  *fault = cpu::message;
#ifdef SADNET_OUTPUTS
  return sadnet_plugin::launch_linear<SADNET_TYPE, SADNET_OUTPUTS>(*problem, *buffers, nullptr);
#else
  return sadnet_plugin::launch_fused(*problem, tile, *buffers, nullptr);
#endif
}
