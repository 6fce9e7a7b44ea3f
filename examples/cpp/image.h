// Pictures: binary PPM files, and how they become a plan's tensors and come back. Nothing of TensorRT or CUDA.
#pragma once
#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

// Its text is one line for the user: what was expected, what was found.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// In pixels.
struct Size {
  int64_t width = 0, height = 0;
  bool operator==(const Size& other) const { return width == other.width && height == other.height; }
  std::string text() const { return std::to_string(width) + "x" + std::to_string(height); }
};

// 8-bit RGB: rows of pixels of three samples, as a PPM file and a uint8 plan have them.
struct Image {
  Size size;
  std::vector<uint8_t> samples;
};

constexpr int64_t CHANNELS = 3;

// ---- files

inline std::string read_file(const std::string& path) {
  std::error_code ignored;
  if (!std::filesystem::is_regular_file(path, ignored)) {
    const bool exists = std::filesystem::exists(path, ignored);
    throw Error(path + ": expected a file, found " + (exists ? "something else" : "none"));
  }
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  std::string bytes(static_cast<size_t>(std::max<std::streamoff>(file.tellg(), 0)), '\0');
  if (!file.seekg(0) || !file.read(bytes.data(), static_cast<std::streamsize>(bytes.size())))
    throw Error(path + ": expected a file that can be read, found one that cannot");
  return bytes;
}

// The file appears whole or not at all, in place of one that was there, to which a link may lead.
inline void write_file(const std::string& path, const std::string& bytes) {
  std::error_code failure;
  const std::filesystem::path target = std::filesystem::weakly_canonical(path, failure);
  if (failure) throw Error(path + ": cannot be written: " + failure.message());
  if (std::filesystem::exists(target, failure) && !std::filesystem::is_regular_file(target, failure))
    throw Error(path + ": expected a file there, or nothing, found a folder, device or pipe");
  const std::string temporary = target.string() + ".tmp-" + std::to_string(std::random_device{}());
  failure.clear();
  {
    std::ofstream file(temporary, std::ios::binary);
    file.write(bytes.data(), static_cast<std::streamsize>(bytes.size()));
    file.close();
    if (file) std::filesystem::rename(temporary, target, failure);
    if (file && !failure) return;
  }
  std::error_code ignored;
  std::filesystem::remove(temporary, ignored);
  throw Error(path + ": cannot be written" + (failure ? ": " + failure.message() : ""));
}

// netpbm.sourceforge.net/doc/ppm.html, of one picture and 8 bits.
inline Image read_ppm(const std::string& path) {
  const std::string bytes = read_file(path);
  if (bytes.compare(0, 2, "P6") != 0) throw Error(path + ": expected a binary PPM picture (P6), found another file");
  size_t place = 2;
  const auto at_space = [&] { return place < bytes.size() && std::isspace(static_cast<unsigned char>(bytes[place])); };
  const auto number = [&](const char* what) {
    const size_t before = place;
    while (at_space() || (place < bytes.size() && bytes[place] == '#'))
      place = bytes[place] == '#' ? std::min(bytes.find('\n', place), bytes.size()) : place + 1;
    const size_t first = place;
    int64_t value = 0;
    while (place < bytes.size() && bytes[place] >= '0' && bytes[place] <= '9' && place < first + 9)
      value = 10 * value + (bytes[place++] - '0');
    if (first == before || place == first) throw Error(path + ": expected " + what + " in the header, found none");
    return value;
  };
  Image image;
  image.size.width = number("the width");
  image.size.height = number("the height");
  const int64_t highest = number("the highest sample value");
  if (image.size.width == 0 || image.size.height == 0)
    throw Error(path + ": expected at least one pixel, found " + image.size.text());
  if (highest != 255 || !at_space())
    throw Error(path + ": expected 8-bit samples, of at most 255, found " + std::to_string(highest));
  ++place;
  const auto expected = static_cast<size_t>(image.size.width * image.size.height * CHANNELS);
  if (bytes.size() - place != expected)
    throw Error(path + ": expected " + std::to_string(expected) + " bytes for " + image.size.text() +
                " pixels, found " + std::to_string(bytes.size() - place));
  image.samples.assign(bytes.begin() + static_cast<std::ptrdiff_t>(place), bytes.end());
  return image;
}

inline void write_ppm(const std::string& path, const Image& image) {
  std::string bytes = "P6\n" + std::to_string(image.size.width) + " " + std::to_string(image.size.height) + "\n255\n";
  bytes.append(image.samples.begin(), image.samples.end());
  write_file(path, bytes);
}

// ---- tensors: float32 is N,C,H,W in [0, 1], uint8 is N,H,W,C; N is 1

// Which of `length` samples stands at `place` when they go on by reflection, again and again, the border not repeated:
// the padding of common/padding.py.
inline int64_t reflected(int64_t place, int64_t length) {
  if (length == 1) return 0;
  const int64_t period = 2 * (length - 1);
  return length - 1 - std::abs(place % period - (length - 1));
}

// Where sample `channel` of a pixel is in a tensor of this size.
inline int64_t position(const uint8_t*, Size size, int64_t x, int64_t y, int64_t channel) {
  return (y * size.width + x) * CHANNELS + channel;
}
inline int64_t position(const float*, Size size, int64_t x, int64_t y, int64_t channel) {
  return (channel * size.height + y) * size.width + x;
}

inline void store(uint8_t sample, uint8_t* to) { *to = sample; }
inline void store(uint8_t sample, float* to) { *to = static_cast<float>(sample) / 255; }
inline void store(float sample, uint8_t* to) {  // halves go to even, as NumPy's do
  if (!std::isfinite(sample)) throw Error("expected finite samples from the network, found NaN or infinity");
  *to = static_cast<uint8_t>(std::nearbyint(255 * std::clamp(sample, 0.f, 1.f)));
}

// `padded` is at least the picture's size, on both axes; the picture is at the upper left.
template <class T>
void to_tensor(const Image& image, Size padded, T* tensor) {
  std::vector<int64_t> columns(static_cast<size_t>(padded.width));
  for (size_t x = 0; x < columns.size(); ++x) columns[x] = reflected(static_cast<int64_t>(x), image.size.width);
  for (int64_t y = 0; y < padded.height; ++y) {
    const int64_t row = reflected(y, image.size.height) * image.size.width;
    for (int64_t x = 0; x < padded.width; ++x) {
      const uint8_t* const pixel = image.samples.data() + (row + columns.data()[x]) * CHANNELS;
      for (int64_t c = 0; c < CHANNELS; ++c) store(pixel[c], tensor + position(tensor, padded, x, y, c));
    }
  }
}

// The upper left `size` pixels of a tensor of `padded` pixels. Throws Error where a sample is not finite.
template <class T>
Image from_tensor(const T* tensor, Size padded, Size size) {
  Image image{size, std::vector<uint8_t>(static_cast<size_t>(size.width * size.height * CHANNELS))};
  uint8_t* sample = image.samples.data();
  for (int64_t y = 0; y < size.height; ++y)
    for (int64_t x = 0; x < size.width; ++x)
      for (int64_t c = 0; c < CHANNELS; ++c) store(tensor[position(tensor, padded, x, y, c)], sample++);
  return image;
}
