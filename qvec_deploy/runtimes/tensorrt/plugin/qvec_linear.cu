// `QvecLinear` as a TensorRT plugin in C++: y = x @ dequant(words).T + bias, with weights that stay packed.
//
// For TensorRT 10.0 to 10.8, which take no plugin that is compiled ahead from Python. The arithmetic is that of
// runtimes/kernels/triton_kernels.py: codes enter the tensor cores as exact float16 numbers, sums are float32, and scales
// are applied to sums. x, bias and y are float16, scales (rows, groups) float32.
#include <NvInfer.h>
#include <cuda_fp16.h>
#include <cuda_runtime_api.h>
#include <mma.h>

#include <cstdio>
#include <cstring>
#include <string>

#include "packed_layout.h"

namespace qvec {

constexpr int kTileM = 64;      // rows of x that a block multiplies
constexpr int kSlice = 16;      // rows of the weight that a warp multiplies
constexpr int kPad = 8;         // halves behind a row of shared memory, against bank conflicts
constexpr int kSums = kTileRows + 4;

// An unsigned code as the exact float16 number that it stands for: it is put into the mantissa of 1024.
template <int BITS>
__device__ __forceinline__ half half_of(uint32_t field) {
  return __hsub(
      __ushort_as_half(static_cast<unsigned short>(0x6400u | field)),
      __ushort_as_half(static_cast<unsigned short>(0x6400u + (1u << (BITS - 1)))));
}

// Rows of x into shared memory; zeros where x has none.
template <class Layout>
__device__ __forceinline__ void load_x(const half* x, int m, int k, int first_m, int column, int columns, half* tile) {
  constexpr int kStride = Layout::kSlots * kSlotColumns + kPad;
  if constexpr (Layout::kAligned) {
    const int parts = columns / 8;
    for (int at = threadIdx.x; at < kTileM * parts; at += kThreads) {
      const int row = at / parts, part = at % parts;
      const bool inside = first_m + row < m;
      const half* from = x + static_cast<int64_t>(first_m + row) * k + column + 8 * part;
      *reinterpret_cast<int4*>(tile + row * kStride + 8 * part) =
          inside ? *reinterpret_cast<const int4*>(from) : make_int4(0, 0, 0, 0);
    }
  } else {
    for (int at = threadIdx.x; at < kTileM * columns; at += kThreads) {
      const int row = at / columns, place = at % columns;
      const bool inside = first_m + row < m && column + place < k;
      tile[row * kStride + place] =
          inside ? x[static_cast<int64_t>(first_m + row) * k + column + place] : __ushort_as_half(0);
    }
  }
}

// Grid: (ceil(m / 64), ceil(n / 64)). `group` columns share a scale, 0 being a whole row.
template <class Layout>
__global__ void __launch_bounds__(kThreads) linear(
    const half* x, const uint32_t* words, const float* scale, const half* bias, int m, int n, int k, int group, half* y) {
  using namespace nvcuda::wmma;
  using Sum = fragment<accumulator, 16, 16, 16, float>;
  constexpr int kColumns = Layout::kSlots * kSlotColumns, kXStride = kColumns + kPad, kWStride = kTileRows + kPad;
  constexpr int kOperands = (kTileM * kXStride + kColumns * kWStride) * static_cast<int>(sizeof(half));
  constexpr int kResult = kTileM * kSums * static_cast<int>(sizeof(float));
  __shared__ __align__(32) unsigned char shared[kOperands > kResult ? kOperands : kResult];
  __shared__ __align__(32) float factors[kTileRows / kSlice][16 * kSlice];
  half* const x_tile = reinterpret_cast<half*>(shared);
  half* const w_tile = x_tile + kTileM * kXStride;
  float* const sums = reinterpret_cast<float*>(shared);

  const int first_m = blockIdx.x * kTileM, first_n = blockIdx.y * kTileRows;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, groups = group ? k / group : 1;
  Sum total[kTileM / 16], part[kTileM / 16];
#pragma unroll
  for (int at = 0; at < kTileM / 16; ++at) {
    fill_fragment(total[at], 0.0f);
    fill_fragment(part[at], 0.0f);
  }
  typename Layout::Kept kept;

  // Add the sums of a group, scaled: the scales of a warp's rows are laid out as the sums are.
  auto flush = [&](int which) {
    __syncwarp();
    for (int at = lane; at < 16 * kSlice; at += 32) {
      const int row = first_n + warp * kSlice + at % kSlice;
      factors[warp][at] = row < n ? scale[static_cast<int64_t>(row) * groups + which] : 0.0f;
    }
    __syncwarp();
    Sum factor;
    load_matrix_sync(factor, factors[warp], kSlice, mem_row_major);
#pragma unroll
    for (int at = 0; at < kTileM / 16; ++at) {
#pragma unroll
      for (int each = 0; each < factor.num_elements; ++each) {
        total[at].x[each] += part[at].x[each] * factor.x[each];
        part[at].x[each] = 0.0f;
      }
    }
  };

  for (int step = 0; step < Layout::steps(k); ++step) {
    const int column = Layout::first_column(step), slots = Layout::slots(step);
    __syncthreads();
    load_x<Layout>(x, m, k, first_m, column, slots * kSlotColumns, x_tile);
    Layout::decode(words, n, first_n, step, threadIdx.x, kept, [&](int place, int row, uint32_t field) {
      w_tile[place * kWStride + row] = half_of<Layout::kBits>(field);
    });
    __syncthreads();
    for (int slot = 0; slot < slots; ++slot) {
      fragment<matrix_b, 16, 16, 16, half, row_major> weight;
      load_matrix_sync(weight, w_tile + slot * kSlotColumns * kWStride + warp * kSlice, kWStride);
#pragma unroll
      for (int at = 0; at < kTileM / 16; ++at) {
        fragment<matrix_a, 16, 16, 16, half, row_major> rows;
        load_matrix_sync(rows, x_tile + 16 * at * kXStride + slot * kSlotColumns, kXStride);
        mma_sync(part[at], rows, weight, part[at]);
      }
      const int done = column + (slot + 1) * kSlotColumns;
      if (group && done % group == 0) flush(done / group - 1);
    }
  }
  if (!group) flush(0);

  __syncthreads();
#pragma unroll
  for (int at = 0; at < kTileM / 16; ++at) {
    store_matrix_sync(sums + 16 * at * kSums + warp * kSlice, total[at], kSums, mem_row_major);
  }
  __syncthreads();
  for (int at = threadIdx.x; at < kTileM * kTileRows; at += kThreads) {
    const int row = first_m + at / kTileRows, place = first_n + at % kTileRows;
    if (row < m && place < n) {
      const float sum = sums[at / kTileRows * kSums + at % kTileRows];
      y[static_cast<int64_t>(row) * n + place] = __float2half_rn(sum + __half2float(bias[place]));
    }
  }
}

// The weight itself, each code times its scale, rounded once. Grid: (ceil(k / 128), n).
template <class Layout>
__global__ void __launch_bounds__(kThreads)
    dequantize(const uint32_t* words, const float* scale, int n, int k, int group, half* y) {
  const int row = blockIdx.y, column = blockIdx.x * kThreads + threadIdx.x;
  if (column >= k) return;
  const float factor = group ? scale[static_cast<int64_t>(row) * (k / group) + column / group] : scale[row];
  const uint32_t field = Layout::field(words, n, row, column);
  y[static_cast<int64_t>(row) * k + column] = __float2half_rn(value_of<Layout::kBits>(field, factor));
}

// How a weight is stored: the text of the attribute `cfg`, which runtimes/kernels/plugin_config.py writes.
struct Config {
  std::string text;
  bool p32 = false;
  int bits = 0, rows = 0, columns = 0, group = 0;

  bool parse(const char* data, size_t size) {
    text.assign(data, strnlen(data, size));
    char layout[8] = "";
    int version = 0, sm = 0, end = 0;
    const int found = std::sscanf(
        text.c_str(), "layout=%7[a-z0-9];layout_version=%d;bits=%d;rows=%d;columns=%d;group_size=%d;sm=%d%n", layout,
        &version, &bits, &rows, &columns, &group, &sm, &end);
    p32 = std::strcmp(layout, "p32") == 0;
    const bool known = found == 7 && end == static_cast<int>(text.size()) && version == 1 &&
        (p32 || std::strcmp(layout, "rows") == 0);
    const bool sizes = bits >= 2 && bits <= 4 && rows > 0 && columns > 0 &&
        (group == 0 || (group > 0 && group % kSlotColumns == 0 && columns % group == 0));
    const bool whole = !p32 ||
        (rows % 64 == 0 && columns % 256 == 0 && (group == 0 || 256 % group == 0 || group % 256 == 0));
    return known && sizes && whole;
  }

  int words_rows() const { return p32 ? columns / 256 * bits * 16 : (columns + 31) / 32 * bits; }
  int words_columns() const { return p32 ? rows / 2 : rows; }
};

template <class Launch>
cudaError_t with_layout(const Config& config, Launch launch) {
  if (config.p32) {
    if (config.bits == 2) launch(P32<2>());
    if (config.bits == 3) launch(P32<3>());
    if (config.bits == 4) launch(P32<4>());
  } else {
    if (config.bits == 2) launch(Rows<2>());
    if (config.bits == 3) launch(Rows<3>());
    if (config.bits == 4) launch(Rows<4>());
  }
  return cudaGetLastError();
}

cudaError_t launch_linear(
    const Config& config, const void* x, const void* words, const void* scale, const void* bias, int m, void* y,
    cudaStream_t stream) {
  if (m == 0) return cudaSuccess;
  const dim3 grid((m + kTileM - 1) / kTileM, (config.rows + kTileRows - 1) / kTileRows);
  return with_layout(config, [&](auto layout) {
    linear<decltype(layout)><<<grid, kThreads, 0, stream>>>(
        static_cast<const half*>(x), static_cast<const uint32_t*>(words), static_cast<const float*>(scale),
        static_cast<const half*>(bias), m, config.rows, config.columns, config.group, static_cast<half*>(y));
  });
}

cudaError_t launch_dequantize(
    const Config& config, const void* words, const void* scale, void* y, cudaStream_t stream) {
  const dim3 grid((config.columns + kThreads - 1) / kThreads, config.rows);
  return with_layout(config, [&](auto layout) {
    dequantize<decltype(layout)><<<grid, kThreads, 0, stream>>>(
        static_cast<const uint32_t*>(words), static_cast<const float*>(scale), config.rows, config.columns,
        config.group, static_cast<half*>(y));
  });
}

using namespace nvinfer1;

constexpr char kName[] = "QvecLinear", kVersion[] = "1", kNamespace[] = "qvec", kField[] = "cfg";
enum Input { kX, kWords, kScale, kBias, kInputs };

class LinearPlugin final : public IPluginV3, public IPluginV3OneCore, public IPluginV3OneBuild, public IPluginV3OneRuntime {
 public:
  explicit LinearPlugin(Config config) : config_(std::move(config)) {}

  IPluginCapability* getCapabilityInterface(PluginCapabilityType type) noexcept override {
    if (type == PluginCapabilityType::kBUILD) return static_cast<IPluginV3OneBuild*>(this);
    if (type == PluginCapabilityType::kRUNTIME) return static_cast<IPluginV3OneRuntime*>(this);
    return static_cast<IPluginV3OneCore*>(this);
  }
  IPluginV3* clone() noexcept override { return new LinearPlugin(config_); }
  AsciiChar const* getPluginName() const noexcept override { return kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }

  int32_t getNbOutputs() const noexcept override { return 1; }
  int32_t getOutputDataTypes(DataType* out, int32_t, DataType const* in, int32_t) const noexcept override {
    out[0] = in[kX];
    return 0;
  }
  int32_t getOutputShapes(
      DimsExprs const* in, int32_t, DimsExprs const*, int32_t, DimsExprs* out, int32_t,
      IExprBuilder& expressions) noexcept override {
    out[0] = in[kX];
    out[0].d[in[kX].nbDims - 1] = expressions.constant(config_.rows);
    return 0;
  }
  bool supportsFormatCombination(
      int32_t position, DynamicPluginTensorDesc const* tensors, int32_t, int32_t) noexcept override {
    constexpr DataType kTypes[] = {DataType::kHALF, DataType::kINT32, DataType::kFLOAT, DataType::kHALF, DataType::kHALF};
    const PluginTensorDesc& tensor = tensors[position].desc;
    return tensor.format == TensorFormat::kLINEAR && tensor.type == kTypes[position];
  }
  int32_t configurePlugin(
      DynamicPluginTensorDesc const* in, int32_t inputs, DynamicPluginTensorDesc const*, int32_t) noexcept override {
    if (inputs != kInputs) return 1;
    const Dims &x = in[kX].desc.dims, &words = in[kWords].desc.dims, &scale = in[kScale].desc.dims;
    const bool fits = x.nbDims >= 2 && x.d[x.nbDims - 1] == config_.columns && words.nbDims == 2 &&
        words.d[0] == config_.words_rows() && words.d[1] == config_.words_columns() && scale.nbDims == 2 &&
        scale.d[0] == config_.rows && scale.d[1] == (config_.group ? config_.columns / config_.group : 1) &&
        in[kBias].desc.dims.d[0] == config_.rows;
    return fits ? 0 : 1;
  }
  size_t getWorkspaceSize(
      DynamicPluginTensorDesc const*, int32_t, DynamicPluginTensorDesc const*, int32_t) const noexcept override {
    return 0;
  }

  int32_t setTactic(int32_t) noexcept override { return 0; }
  int32_t onShapeChange(PluginTensorDesc const*, int32_t, PluginTensorDesc const*, int32_t) noexcept override {
    return 0;
  }
  IPluginV3* attachToContext(IPluginResourceContext*) noexcept override { return clone(); }
  int32_t enqueue(
      PluginTensorDesc const* in, PluginTensorDesc const*, void const* const* inputs, void* const* outputs, void*,
      cudaStream_t stream) noexcept override {
    int64_t m = 1;
    for (int axis = 0; axis + 1 < in[kX].dims.nbDims; ++axis) m *= in[kX].dims.d[axis];
    return launch_linear(
               config_, inputs[kX], inputs[kWords], inputs[kScale], inputs[kBias], static_cast<int>(m), outputs[0],
               stream) == cudaSuccess
        ? 0
        : 1;
  }
  PluginFieldCollection const* getFieldsToSerialize() noexcept override {
    field_ = PluginField(kField, config_.text.c_str(), PluginFieldType::kCHAR, static_cast<int32_t>(config_.text.size()));
    fields_ = {1, &field_};
    return &fields_;
  }

 private:
  Config config_;
  PluginField field_;
  PluginFieldCollection fields_{};
};

class LinearCreator final : public IPluginCreatorV3One {
 public:
  AsciiChar const* getPluginName() const noexcept override { return kName; }
  AsciiChar const* getPluginVersion() const noexcept override { return kVersion; }
  AsciiChar const* getPluginNamespace() const noexcept override { return kNamespace; }
  PluginFieldCollection const* getFieldNames() noexcept override { return &fields_; }
  IPluginV3* createPlugin(AsciiChar const*, PluginFieldCollection const* given, TensorRTPhase) noexcept override {
    Config config;
    for (int32_t at = 0; at < given->nbFields; ++at) {
      const PluginField& field = given->fields[at];
      if (std::strcmp(field.name, kField) == 0 && config.parse(static_cast<const char*>(field.data), field.length)) {
        return new LinearPlugin(std::move(config));
      }
    }
    std::fprintf(stderr, "%s: no attribute %s that this plugin knows: lower the bundle again\n", kName, kField);
    return nullptr;
  }

 private:
  PluginField field_{kField, nullptr, PluginFieldType::kCHAR, 1};
  PluginFieldCollection fields_{1, &field_};
};

}  // namespace qvec

#define QVEC_EXPORT extern "C" __attribute__((visibility("default")))

// What TensorRT asks of a plugin library.
QVEC_EXPORT void setLoggerFinder(nvinfer1::ILoggerFinder*) {}
QVEC_EXPORT nvinfer1::IPluginCreatorInterface* const* getCreators(int32_t& count) {
  static qvec::LinearCreator creator;
  static nvinfer1::IPluginCreatorInterface* const creators[] = {&creator};
  count = 1;
  return creators;
}

// The kernels without TensorRT, for tests on a GPU; `cfg` as in a node, addresses on the device; 0 is success.
QVEC_EXPORT int qvec_linear(
    const char* cfg, const void* x, const void* words, const void* scale, const void* bias, int m, void* y,
    cudaStream_t stream) {
  qvec::Config config;
  if (!config.parse(cfg, std::strlen(cfg))) return cudaErrorInvalidValue;
  return qvec::launch_linear(config, x, words, scale, bias, m, y, stream);
}
QVEC_EXPORT int qvec_dequantize(const char* cfg, const void* words, const void* scale, void* y, cudaStream_t stream) {
  qvec::Config config;
  if (!config.parse(cfg, std::strlen(cfg))) return cudaErrorInvalidValue;
  return qvec::launch_dequantize(config, words, scale, y, stream);
}
