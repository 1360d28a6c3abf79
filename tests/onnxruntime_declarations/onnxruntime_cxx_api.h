// What scripts/cpp/run_model.cc uses of ONNX Runtime's C++ API, declared and not defined: enough to check its syntax
// and types where the real headers are not to be had.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <vector>

enum OrtLoggingLevel { ORT_LOGGING_LEVEL_ERROR };
enum OrtAllocatorType { OrtArenaAllocator };
enum OrtMemType { OrtMemTypeDefault };
enum ONNXTensorElementDataType { ONNX_TENSOR_ELEMENT_DATA_TYPE_FLOAT, ONNX_TENSOR_ELEMENT_DATA_TYPE_UINT8 };
struct OrtAllocator;

namespace Ort {

struct AllocatorWithDefaultOptions {
  operator OrtAllocator*() const;
};
struct Env {
  Env(OrtLoggingLevel level, const char* name);
};
struct SessionOptions {
  SessionOptions& SetIntraOpNumThreads(int threads);
  SessionOptions& SetInterOpNumThreads(int threads);
  SessionOptions& AddConfigEntry(const char* key, const char* value);
};
struct RunOptions {
  explicit RunOptions(std::nullptr_t);
};
struct MemoryInfo {
  static MemoryInfo CreateCpu(OrtAllocatorType type, OrtMemType kind);
};
struct ShapeInfo {
  ONNXTensorElementDataType GetElementType() const;
  std::vector<int64_t> GetShape() const;
  size_t GetElementCount() const;
};
struct TypeInfo {
  ShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct Value {
  template <typename T>
  static Value CreateTensor(const MemoryInfo& memory, T* data, size_t count, const int64_t* shape, size_t dimensions);
  template <typename T>
  const T* GetTensorData() const;
  ShapeInfo GetTensorTypeAndShapeInfo() const;
};
struct ModelMetadata {
  std::unique_ptr<char[]> LookupCustomMetadataMapAllocated(const char* key, OrtAllocator* allocator) const;
};
struct Session {
  Session(const Env& env, const char* path, const SessionOptions& options);
  ModelMetadata GetModelMetadata() const;
  TypeInfo GetInputTypeInfo(size_t index) const;
  std::vector<Value> Run(const RunOptions& options, const char* const* inputs, const Value* values, size_t count,
                         const char* const* outputs, size_t results);
};

}  // namespace Ort
