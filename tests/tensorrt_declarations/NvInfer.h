// The names of TensorRT's plugin interface that qvec_linear.cu uses, so that the compiler checks that file where
// TensorRT's headers are not installed. Written for this test; nothing can be linked or run with it.
#pragma once

#include <cuda_runtime_api.h>

#include <cstddef>
#include <cstdint>

namespace nvinfer1 {
using AsciiChar = char;
enum class DataType : int32_t { kFLOAT, kHALF, kINT8, kINT32 };
enum class TensorFormat : int32_t { kLINEAR };
enum class PluginFieldType : int32_t { kUNKNOWN, kCHAR };
enum class PluginCapabilityType : int32_t { kCORE, kBUILD, kRUNTIME };
enum class TensorRTPhase : int32_t { kBUILD, kRUNTIME };

struct Dims {
  int32_t nbDims;
  int64_t d[8];
};
struct IDimensionExpr;
struct DimsExprs {
  int32_t nbDims;
  IDimensionExpr const* d[8];
};
struct IExprBuilder {
  virtual IDimensionExpr const* constant(int64_t value) noexcept = 0;
};
struct PluginTensorDesc {
  Dims dims;
  DataType type;
  TensorFormat format;
  float scale;
};
struct DynamicPluginTensorDesc {
  PluginTensorDesc desc;
  Dims min, max, opt;
};
struct PluginField {
  PluginField(
      AsciiChar const* name = nullptr, void const* data = nullptr, PluginFieldType type = PluginFieldType::kUNKNOWN,
      int32_t length = 0)
      : name(name), data(data), type(type), length(length) {}
  AsciiChar const* name;
  void const* data;
  PluginFieldType type;
  int32_t length;
};
struct PluginFieldCollection {
  int32_t nbFields;
  PluginField const* fields;
};

struct ILoggerFinder;
struct IPluginResourceContext;
struct IPluginCapability {
  virtual ~IPluginCapability() = default;
};
struct IPluginV3 {
  virtual ~IPluginV3() = default;
  virtual IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept = 0;
  virtual IPluginV3* clone() noexcept = 0;
};
struct IPluginV3OneCore : IPluginCapability {
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};
struct IPluginV3OneBuild : IPluginCapability {
  virtual int32_t configurePlugin(
      DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) noexcept = 0;
  virtual int32_t getOutputDataTypes(DataType*, int32_t, DataType const*, int32_t) const noexcept = 0;
  virtual int32_t getOutputShapes(
      DimsExprs const*, int32_t, DimsExprs const*, int32_t, DimsExprs*, int32_t, IExprBuilder&) noexcept = 0;
  virtual bool supportsFormatCombination(int32_t, DynamicPluginTensorDesc const*, int32_t, int32_t) noexcept = 0;
  virtual int32_t getNbOutputs() const noexcept = 0;
  virtual size_t getWorkspaceSize(
      DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept = 0;
};
struct IPluginV3OneRuntime : IPluginCapability {
  virtual int32_t setTactic(int32_t) noexcept = 0;
  virtual int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept = 0;
  virtual int32_t enqueue(
      PluginTensorDesc const*, PluginTensorDesc const*, void const* const*, void* const*, void*,
      cudaStream_t) noexcept = 0;
  virtual IPluginV3* attachToContext(IPluginResourceContext*) noexcept = 0;
  virtual PluginFieldCollection const* getFieldsToSerialize() noexcept = 0;
};
struct IPluginCreatorInterface {
  virtual ~IPluginCreatorInterface() = default;
};
struct IPluginCreatorV3One : IPluginCreatorInterface {
  virtual IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const*, TensorRTPhase) noexcept = 0;
  virtual PluginFieldCollection const* getFieldNames() noexcept = 0;
  virtual AsciiChar const* getPluginName() const noexcept = 0;
  virtual AsciiChar const* getPluginVersion() const noexcept = 0;
  virtual AsciiChar const* getPluginNamespace() const noexcept = 0;
};
}  // namespace nvinfer1
