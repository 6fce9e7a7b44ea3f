// Denoises pictures with a plan of export/to_plan.py: docs/deploy.md says how to build and run this.
//
//   denoise [--plugin LIBRARY] PLAN INPUT.ppm OUTPUT.ppm [INPUT.ppm OUTPUT.ppm ...]
//
// 0 when all went well, 2 after one line on stderr that says what did not.
#include <chrono>
#include <cstdio>
#include <exception>
#include <string>
#include <vector>

#include "denoiser.h"
#include "image.h"

namespace {

void denoise(std::vector<std::string> arguments) {
  std::string plugin;
  if (arguments.size() > 1 && arguments[0] == "--plugin") {
    plugin = arguments[1];
    arguments.erase(arguments.begin(), arguments.begin() + 2);
  }
  if (arguments.size() < 3 || arguments.size() % 2 == 0)
    throw Error("expected [--plugin LIBRARY] PLAN INPUT.ppm OUTPUT.ppm [INPUT.ppm OUTPUT.ppm ...]");
  Denoiser denoiser(arguments[0], plugin);
  for (size_t i = 1; i < arguments.size(); i += 2) {
    const Image noisy = read_ppm(arguments[i]);
    const auto start = std::chrono::steady_clock::now();
    const Image clean = denoiser(noisy);
    const std::chrono::duration<double, std::milli> taken = std::chrono::steady_clock::now() - start;
    write_ppm(arguments[i + 1], clean);
    std::printf("%s: %s pixels, %.2f ms from host to host\n", arguments[i + 1].c_str(), clean.size.text().c_str(),
                taken.count());
  }
  try {
    denoiser.save_cache();
  } catch (const Error& error) {  // the next start takes longer: no failure of this one
    std::fprintf(stderr, "%s\n", error.what());
  }
}

}  // namespace

int main(int count, char** arguments) {
  try {
    denoise({arguments + 1, arguments + count});
    return 0;
  } catch (const std::exception& error) {  // Error, or no memory
    std::fprintf(stderr, "error: %s\n", error.what());
    return 2;
  }
}
