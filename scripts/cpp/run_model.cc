// Names what is in a picture, with ONNX Runtime's C++ API alone: run_model FOLDER PICTURE.ppm [THREADS]
//
// FOLDER holds model.onnx and weights.qvec.safetensors of a bundle or release for the runtime `onnxruntime`. The picture
// is a binary PPM (P6) of the model's input size: what comes before (decoding, resizing, cropping) is the device's own
// affair, and manifest.json says how. Everything else is read from the model's metadata. ONNX Runtime 1.20 or newer.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <cctype>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <fstream>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace {

struct Picture {
  int64_t width = 0, height = 0;
  std::vector<uint8_t> pixels;  // height x width x 3
};

// The next number of a PPM's header, past spaces and comments.
int64_t next_number(std::istream& file) {
  for (int next = file.peek(); next == '#' || std::isspace(next); next = file.peek()) {
    if (next == '#') {
      std::string comment;
      std::getline(file, comment);
    } else {
      file.get();
    }
  }
  int64_t value = 0;
  if (!(file >> value) || value < 1) throw std::runtime_error("its header is damaged");
  return value;
}

Picture read_ppm(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  char magic[2] = {};
  if (!file.read(magic, 2) || magic[0] != 'P' || magic[1] != '6') throw std::runtime_error("it is no binary PPM (P6)");
  Picture picture;
  picture.width = next_number(file);
  picture.height = next_number(file);
  if (next_number(file) != 255) throw std::runtime_error("it has another depth than 8 bits");
  file.get();  // one space ends the header
  if (picture.width > 65536 || picture.height > 65536) throw std::runtime_error("it is too large");
  picture.pixels.resize(static_cast<size_t>(picture.width * picture.height * 3));
  file.read(reinterpret_cast<char*>(picture.pixels.data()), static_cast<std::streamsize>(picture.pixels.size()));
  if (static_cast<size_t>(file.gcount()) != picture.pixels.size()) throw std::runtime_error("it ends early");
  return picture;
}

std::string metadata(const Ort::Session& session, const char* key) {
  Ort::AllocatorWithDefaultOptions allocator;
  auto text = session.GetModelMetadata().LookupCustomMetadataMapAllocated(key, allocator);
  if (text == nullptr) throw std::runtime_error(std::string("the model does not say its ") + key);
  return text.get();
}

// Three numbers of a JSON object that was written without spaces.
std::vector<float> three_numbers(const std::string& json, const std::string& name) {
  const std::string begin = "\"" + name + "\":[";
  const size_t found = json.find(begin);
  if (found == std::string::npos) throw std::runtime_error("the model's preprocessing lacks " + name);
  const char* next = json.c_str() + found + begin.size();
  std::vector<float> numbers;
  for (int index = 0; index < 3; ++index) {
    char* end = nullptr;
    numbers.push_back(std::strtof(next, &end));
    next = end + 1;  // past the comma
  }
  return numbers;
}

void append_utf8(std::string& text, uint32_t code) {
  if (code < 0x80) {
    text += static_cast<char>(code);
    return;
  }
  const int more = code < 0x800 ? 1 : code < 0x10000 ? 2 : 3;
  text += static_cast<char>((0xFF00 >> (more + 1) & 0xFF) | code >> 6 * more);
  for (int index = more - 1; index >= 0; --index) text += static_cast<char>(0x80 | (code >> 6 * index & 0x3F));
}

// The strings of a JSON array; the writer escapes everything that is not ASCII.
std::vector<std::string> strings(const std::string& json) {
  std::vector<std::string> found;
  bool inside = false;
  for (size_t at = 0; at < json.size(); ++at) {
    const char letter = json[at];
    if (letter == '"') {
      inside = !inside;
      if (inside) found.emplace_back();
    } else if (inside && letter == '\\') {
      const char kind = json.at(++at);
      if (kind != 'u') {
        const std::string kinds = "nrtbf", meant = "\n\r\t\b\f";
        const size_t index = kinds.find(kind);
        found.back() += index == std::string::npos ? kind : meant[index];
        continue;
      }
      auto unit = [&json](size_t from) { return static_cast<uint32_t>(std::stoul(json.substr(from, 4), nullptr, 16)); };
      uint32_t code = unit(at + 1);
      at += 4;
      if (code >= 0xD800 && code < 0xDC00) {  // the first half of a pair
        code = 0x10000 + ((code - 0xD800) << 10) + (unit(at + 3) - 0xDC00);
        at += 6;
      }
      append_utf8(found.back(), code);
    } else if (inside) {
      found.back() += letter;
    }
  }
  return found;
}

// (1, 3, H, W) float32, in the order of operations of timm's evaluation transform.
std::vector<float> normalised(const Picture& picture, const std::string& preprocessing) {
  const auto mean = three_numbers(preprocessing, "mean"), std = three_numbers(preprocessing, "std");
  const size_t plane = static_cast<size_t>(picture.width * picture.height);
  std::vector<float> values(3 * plane);
  for (size_t channel = 0; channel < 3; ++channel) {
    for (size_t pixel = 0; pixel < plane; ++pixel) {
      const float scaled = static_cast<float>(picture.pixels[3 * pixel + channel]) / 255.0f;
      values[channel * plane + pixel] = (scaled - mean[channel]) / std[channel];
    }
  }
  return values;
}

std::vector<double> softmax(const float* logits, size_t count) {
  const double largest = *std::max_element(logits, logits + count);
  std::vector<double> shares(count);
  std::transform(logits, logits + count, shares.begin(), [largest](float value) { return std::exp(value - largest); });
  const double sum = std::accumulate(shares.begin(), shares.end(), 0.0);
  for (double& share : shares) share /= sum;
  return shares;
}

void run(const std::string& folder, const Picture& picture, int threads) {
  Ort::Env env(ORT_LOGGING_LEVEL_ERROR, "run_model");
  Ort::SessionOptions options;  // those that the engine was measured with
  options.SetIntraOpNumThreads(threads);
  options.SetInterOpNumThreads(1);
  options.AddConfigEntry("session.force_spinning_stop", "1");
  Ort::Session session(env, (folder + "/model.onnx").c_str(), options);

  const auto info = session.GetInputTypeInfo(0);
  const auto spec = info.GetTensorTypeAndShapeInfo();
  const bool takes_pixels = spec.GetElementType() == ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8;
  auto shape = spec.GetShape();  // (batch, 3, H, W), or (batch, H, W, 3) of a model that normalises itself
  shape[0] = 1;
  const size_t side = takes_pixels ? 1 : 2;
  if (shape[side] != picture.height || shape[side + 1] != picture.width) {
    throw std::invalid_argument("the model takes pictures of " + std::to_string(shape[side + 1]) + " x " +
                                std::to_string(shape[side]) + " pixels");
  }

  auto pixels = picture.pixels;
  auto values = takes_pixels ? std::vector<float>() : normalised(picture, metadata(session, "qvec.preprocessing"));
  const auto memory = Ort::MemoryInfo::CreateCpu(OrtArenaAllocator, OrtMemTypeDefault);
  const Ort::Value input =
      takes_pixels ? Ort::Value::CreateTensor<uint8_t>(memory, pixels.data(), pixels.size(), shape.data(), shape.size())
                   : Ort::Value::CreateTensor<float>(memory, values.data(), values.size(), shape.data(), shape.size());
  const char* inputs[] = {"images"};
  const char* outputs[] = {"logits"};
  const auto found = session.Run(Ort::RunOptions{nullptr}, inputs, &input, 1, outputs, 1);
  const size_t classes = found[0].GetTensorTypeAndShapeInfo().GetElementCount();
  const auto shares = softmax(found[0].GetTensorData<float>(), classes);

  const auto names = strings(metadata(session, "qvec.class_names"));
  std::vector<size_t> order(classes);
  std::iota(order.begin(), order.end(), size_t{0});
  std::stable_sort(order.begin(), order.end(), [&](size_t one, size_t other) { return shares[one] > shares[other]; });
  for (size_t rank = 0; rank < std::min<size_t>(5, classes); ++rank) {
    const size_t label = order[rank];
    const std::string name = label < names.size() ? names[label] : std::to_string(label);
    std::printf("  %6.2f %%  %s\n", 100 * shares[label], name.c_str());
  }
}

}  // namespace

int main(int count, char** arguments) {
  const int threads = count == 4 ? std::atoi(arguments[3]) : 1;
  if (count < 3 || count > 4 || threads < 1) {
    std::fprintf(stderr, "usage: %s FOLDER PICTURE.ppm [THREADS]\n", arguments[0]);
    return 2;
  }
#ifndef _WIN32
  setenv("ORT_DISABLE_TELEMETRY", "1", 0);  // recent official builds report their use
#endif
  Picture picture;
  try {
    picture = read_ppm(arguments[2]);
  } catch (const std::exception& error) {
    std::fprintf(stderr, "error: %s cannot be read: %s\n", arguments[2], error.what());
    return 6;
  }
  try {
    run(arguments[1], picture, threads);
  } catch (const std::exception& error) {  // ONNX Runtime's own are of this kind
    std::fprintf(stderr, "error: %s\n", error.what());
    return 4;
  }
  return 0;
}
