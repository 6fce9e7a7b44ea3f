// Drives the plugin library as TensorRT does, with TensorRT's public headers alone and no libnvinfer: opens it, takes
// its creator, and calls the interfaces' virtual functions. C functions, for driver.py.
#include <NvInferRuntime.h>
#include <dlfcn.h>

#include <list>
#include <stdexcept>
#include <string>

#include <kernels.h>

using namespace nvinfer1;

namespace {

class Log final : public ILogger {
 public:
  void log(Severity severity, const char* text) noexcept override {
    lines_ += std::string(severity == Severity::kERROR ? "error" : "other") + ": " + text + "\n";
  }
  std::string take() {
    std::string all;
    all.swap(lines_);
    return all;
  }

 private:
  std::string lines_;
} the_log;

enum FinderKind { FINDS, FINDS_NOTHING, THROWS, ABSENT };

class Finder final : public ILoggerFinder {
 public:
  ILogger* findLogger() override {
    if (kind == THROWS) throw std::runtime_error("this finder throws");
    return kind == FINDS ? &the_log : nullptr;
  }
  FinderKind kind = FINDS;
} finder;

// A dimension: known, or, below 0, a label that says which.
class Dimension final : public IDimensionExpr, public apiv::VDimensionExpr {
 public:
  explicit Dimension(int64_t size) : size(size) { mImpl = this; }
  bool isConstant() const noexcept override { return size >= 0; }
  int64_t getConstantValue() const noexcept override { return size; }
  bool isSizeTensor() const noexcept override { return false; }
  const int64_t size;
};

class Builder final : public IExprBuilder, public apiv::VExprBuilder {
 public:
  Builder() { mImpl = this; }
  const IDimensionExpr* constant(int64_t size) noexcept override { return make(size); }
  const IDimensionExpr* operation(DimensionOperation, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
    return nullptr;
  }
  const IDimensionExpr* declareSizeTensor(int32_t, const IDimensionExpr&, const IDimensionExpr&) noexcept override {
    return nullptr;
  }
  const Dimension* make(int64_t size) { return &dimensions_.emplace_back(size); }

 private:
  std::list<Dimension> dimensions_;
};

IPluginCreatorV3One* creator = nullptr;
void (*set_finder)(ILoggerFinder*) = nullptr;

IPluginV3OneCore* core(IPluginV3* plugin) {
  return static_cast<IPluginV3OneCore*>(plugin->getCapabilityInterface(PluginCapabilityType::kCORE));
}
IPluginV3OneBuild* build(IPluginV3* plugin) {
  return static_cast<IPluginV3OneBuild*>(plugin->getCapabilityInterface(PluginCapabilityType::kBUILD));
}
IPluginV3OneRuntime* runtime(IPluginV3* plugin) {
  return static_cast<IPluginV3OneRuntime*>(plugin->getCapabilityInterface(PluginCapabilityType::kRUNTIME));
}

}  // namespace

extern "C" {

// ---- the library

// "", or what failed. Never closed: the tests' process uses it until it ends.
const char* v3_open(const char* path) {
  void* const library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
  if (!library) return dlerror();
  set_finder = reinterpret_cast<void (*)(ILoggerFinder*)>(dlsym(library, "setLoggerFinder"));
  const auto creators = reinterpret_cast<IPluginCreatorInterface* const* (*)(int32_t&)>(dlsym(library, "getCreators"));
  if (!set_finder || !creators) return "no setLoggerFinder, or no getCreators";
  set_finder(&finder);
  int32_t count = 0;
  IPluginCreatorInterface* const* const found = creators(count);
  if (count != 1 || std::string(found[0]->getInterfaceInfo().kind) != "PLUGIN CREATOR_V3ONE") return "no V3 creator";
  creator = static_cast<IPluginCreatorV3One*>(found[0]);
  return "";
}

void v3_set_finder(FinderKind kind) {
  finder.kind = kind;
  set_finder(kind == ABSENT ? nullptr : &finder);
}

// What was logged since the last call.
const char* v3_log() {
  static std::string taken;
  taken = the_log.take();
  return taken.c_str();
}

const char* v3_creator_name() { return creator->getPluginName(); }
const char* v3_creator_version() { return creator->getPluginVersion(); }
const char* v3_creator_namespace() { return creator->getPluginNamespace(); }
const PluginFieldCollection* v3_field_names() { return creator->getFieldNames(); }

IPluginV3* v3_create(const char* layer, const PluginFieldCollection* fields, int32_t phase) {
  return creator->createPlugin(layer, fields, static_cast<TensorRTPhase>(phase));
}

// ---- the plugin: core

const char* v3_name(IPluginV3* plugin) { return core(plugin)->getPluginName(); }
const char* v3_version(IPluginV3* plugin) { return core(plugin)->getPluginVersion(); }
const char* v3_namespace(IPluginV3* plugin) { return core(plugin)->getPluginNamespace(); }
// "", or null where the plugin has no such capability.
const char* v3_capability(IPluginV3* plugin, int32_t type) {
  IPluginCapability* const found = plugin->getCapabilityInterface(static_cast<PluginCapabilityType>(type));
  return found ? found->getInterfaceInfo().kind : "";
}
IPluginV3* v3_clone(IPluginV3* plugin) { return plugin->clone(); }
void v3_destroy(IPluginV3* plugin) { delete plugin; }

// ---- the plugin: build

int32_t v3_outputs(IPluginV3* plugin) { return build(plugin)->getNbOutputs(); }
const char* v3_metadata(IPluginV3* plugin) { return build(plugin)->getMetadataString(); }

int32_t v3_output_types(IPluginV3* plugin, const DataType* in, int32_t inputs, DataType* out, int32_t outputs) {
  return build(plugin)->getOutputDataTypes(out, outputs, in, inputs);
}

// in: sizes, or labels below 0 for those not known; null: no shapes.
int32_t v3_output_shapes(IPluginV3* plugin, const Dims* in, int32_t inputs, Dims* out, int32_t outputs) {
  Builder builder;
  DimsExprs shapes[8] = {}, result[8] = {};
  for (int32_t i = 0; in && i < inputs; ++i) {
    shapes[i].nbDims = in[i].nbDims;
    for (int32_t j = 0; j < in[i].nbDims; ++j) shapes[i].d[j] = builder.make(in[i].d[j]);
  }
  const int32_t status = build(plugin)->getOutputShapes(in ? shapes : nullptr, inputs, nullptr, 0,
                                                        out ? result : nullptr, outputs, builder);
  if (status == 0) {
    out[0].nbDims = result[0].nbDims;
    for (int32_t j = 0; j < result[0].nbDims; ++j) out[0].d[j] = static_cast<const Dimension*>(result[0].d[j])->size;
  }
  return status;
}

bool v3_supports(IPluginV3* plugin, int32_t position, const DynamicPluginTensorDesc* tensors, int32_t inputs,
                 int32_t outputs) {
  return build(plugin)->supportsFormatCombination(position, tensors, inputs, outputs);
}

int32_t v3_configure(IPluginV3* plugin, const DynamicPluginTensorDesc* in, int32_t inputs,
                     const DynamicPluginTensorDesc* out, int32_t outputs) {
  return build(plugin)->configurePlugin(in, inputs, out, outputs);
}

size_t v3_workspace(IPluginV3* plugin, const DynamicPluginTensorDesc* in, int32_t inputs,
                    const DynamicPluginTensorDesc* out, int32_t outputs) {
  return build(plugin)->getWorkspaceSize(in, inputs, out, outputs);
}

int32_t v3_tactic_count(IPluginV3* plugin) { return build(plugin)->getNbTactics(); }
int32_t v3_tactics(IPluginV3* plugin, int32_t* tactics, int32_t room) {
  return build(plugin)->getValidTactics(tactics, room);
}

// ---- the plugin: run

int32_t v3_set_tactic(IPluginV3* plugin, int32_t tactic) { return runtime(plugin)->setTactic(tactic); }

int32_t v3_shape_change(IPluginV3* plugin, const PluginTensorDesc* in, int32_t inputs, const PluginTensorDesc* out,
                        int32_t outputs) {
  return runtime(plugin)->onShapeChange(in, inputs, out, outputs);
}

int32_t v3_enqueue(IPluginV3* plugin, const PluginTensorDesc* in, const PluginTensorDesc* out,
                   const void* const* inputs, void* const* outputs, void* stream) {
  return runtime(plugin)->enqueue(in, out, inputs, outputs, nullptr, static_cast<cudaStream_t>(stream));
}

IPluginV3* v3_attach(IPluginV3* plugin) { return runtime(plugin)->attachToContext(nullptr); }
const PluginFieldCollection* v3_fields_to_serialize(IPluginV3* plugin) {
  return runtime(plugin)->getFieldsToSerialize();
}

// ---- what the kernels' launches are made of

void v3_grid(int32_t n, int32_t h, int32_t w, int32_t o, int32_t width, int32_t height, int32_t tiles, int32_t outputs,
             uint32_t* grid) {
  const dim3 blocks = sadnet_plugin::grid_of({n, 1, h, w, o, 1, 0.f}, {32, width, height, tiles, outputs});
  grid[0] = blocks.x, grid[1] = blocks.y, grid[2] = blocks.z;
}

}  // extern "C"
