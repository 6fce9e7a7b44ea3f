// C functions of examples/cpp/image.h, for test_image.py. Those that can fail return what Error says, or "".
#include <image.h>

#include <algorithm>

namespace {

template <class T>
void pad(const uint8_t* samples, int64_t width, int64_t height, Size padded, T* tensor) {
  to_tensor({{width, height}, {samples, samples + width * height * CHANNELS}}, padded, tensor);
}

template <class Work>
const char* error_of(const Work& work) {
  static std::string text;
  text.clear();
  try {
    work();
  } catch (const Error& error) {
    text = error.what();
  }
  return text.c_str();
}

}  // namespace

extern "C" {

void pad_uint8(const uint8_t* samples, int64_t width, int64_t height, int64_t to_width, int64_t to_height,
               uint8_t* to) {
  pad(samples, width, height, {to_width, to_height}, to);
}
void pad_float32(const uint8_t* samples, int64_t width, int64_t height, int64_t to_width, int64_t to_height,
                 float* to) {
  pad(samples, width, height, {to_width, to_height}, to);
}

const char* crop_uint8(const uint8_t* tensor, int64_t from_width, int64_t from_height, int64_t width, int64_t height,
                       uint8_t* samples) {
  return error_of([&] {
    const Image image = from_tensor(tensor, {from_width, from_height}, {width, height});
    std::copy(image.samples.begin(), image.samples.end(), samples);
  });
}
const char* crop_float32(const float* tensor, int64_t from_width, int64_t from_height, int64_t width, int64_t height,
                         uint8_t* samples) {
  return error_of([&] {
    const Image image = from_tensor(tensor, {from_width, from_height}, {width, height});
    std::copy(image.samples.begin(), image.samples.end(), samples);
  });
}

const char* copy_ppm(const char* from, const char* to) {
  return error_of([&] { write_ppm(to, read_ppm(from)); });
}

}  // extern "C"
