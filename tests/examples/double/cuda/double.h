// What the doubles of CUDA and TensorRT beside this file have in common: the call that fails.
#pragma once
#include <cstdlib>

// DOUBLE_FAILS=n in the environment: the n-th call that can fail does.
inline bool fails() {
  static const char* const wanted = std::getenv("DOUBLE_FAILS");
  static long call = 0;
  return ++call == (wanted ? std::atol(wanted) : 0);
}
