#include "log.h"

#include <atomic>
#include <cstdio>
#include <exception>
#include <new>

#include "op.h"
#include "tensorrt.h"

namespace sadnet_plugin {
namespace {

std::atomic<nvinfer1::ILoggerFinder*> logger_finder{nullptr};

nvinfer1::ILogger* find_logger() {
  if (auto* const finder = logger_finder.load())
    if (auto* const logger = finder->findLogger()) return logger;
  return tensorrt().logger();
}

void log_error(const char* method, const char* text) noexcept {
  try {
    const std::string line = std::string(NAMESPACE) + "::" + NAME + ": " + method + ": " + text;
    if (auto* const logger = find_logger()) return logger->log(nvinfer1::ILogger::Severity::kERROR, line.c_str());
  } catch (...) {  // no memory for the line, or a finder that throws
  }
  std::fprintf(stderr, "%s::%s: %s: %s\n", NAMESPACE, NAME, method, text);
}

}  // namespace

void set_logger_finder(nvinfer1::ILoggerFinder* finder) noexcept { logger_finder = finder; }

nvinfer1::ErrorCode report(const char* method) noexcept {
  try {
    throw;
  } catch (const Error& error) {
    log_error(method, error.what());
    return error.code;
  } catch (const std::bad_alloc&) {
    log_error(method, "out of memory");
    return nvinfer1::ErrorCode::kFAILED_ALLOCATION;
  } catch (const std::exception& error) {
    log_error(method, error.what());
  } catch (...) {
    log_error(method, "an exception of unknown type");
  }
  return nvinfer1::ErrorCode::kUNSPECIFIED_ERROR;
}

}  // namespace sadnet_plugin
