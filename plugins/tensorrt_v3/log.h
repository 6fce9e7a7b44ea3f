// Errors and where they go. TensorRT calls noexcept methods that return codes: what is thrown inside one ends here, as
// a line in TensorRT's log and a code.
#pragma once
#include <NvInferRuntime.h>

#include <stdexcept>
#include <string>

namespace sadnet_plugin {

// An error whose text says what was expected and what was found.
class Error : public std::runtime_error {
 public:
  Error(nvinfer1::ErrorCode code, const std::string& text) : std::runtime_error(text), code(code) {}
  const nvinfer1::ErrorCode code;
};

[[noreturn]] inline void refuse(const std::string& text) { throw Error(nvinfer1::ErrorCode::kINVALID_ARGUMENT, text); }

// The finder of the logger of whichever engine calls, from TensorRT; before it is set, and where it finds none, lines
// go to the log of the TensorRT in this process, else to standard error.
void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept;

// In a catch clause: logs the exception that is being handled, and returns its code.
nvinfer1::ErrorCode report(const char* method) noexcept;

// 0, or the code of what body threw.
template <class Body>
int32_t status_of(const char* method, Body&& body) noexcept {
  try {
    body();
    return 0;
  } catch (...) {
    return static_cast<int32_t>(report(method));
  }
}

// What body returns, or `otherwise` where it threw.
template <class Result, class Body>
Result value_of(const char* method, Result otherwise, Body&& body) noexcept {
  try {
    return body();
  } catch (...) {
    report(method);
    return otherwise;
  }
}

}  // namespace sadnet_plugin
