#include "creator.h"

#include <string>

#include "log.h"
#include "plugin.h"

namespace sadnet_plugin {
namespace {

using namespace nvinfer1;

constexpr char OFFSET_GROUPS[] = "offset_groups", NEGATIVE_SLOPE[] = "negative_slope";
constexpr Attributes DEFAULTS;

template <class T>
T value(const PluginField& field, PluginFieldType type, const char* type_name) {
  if (field.type != type || field.length != 1 || !field.data)
    refuse(std::string("expected attribute ") + field.name + " as one " + type_name + ", found " +
           std::to_string(field.length) + " of type " + std::to_string(static_cast<int>(field.type)) +
           (field.data ? "" : " at a null pointer"));
  return *static_cast<const T*>(field.data);
}

Attributes attributes_of(const PluginFieldCollection& fields) {
  Attributes attributes;
  if (fields.nbFields > 0 && !fields.fields) refuse("expected fields, found a null pointer");
  for (int32_t i = 0; i < fields.nbFields; ++i) {
    const PluginField& field = fields.fields[i];
    const std::string name = field.name ? field.name : "";
    if (name == OFFSET_GROUPS) attributes.offset_groups = value<int32_t>(field, PluginFieldType::kINT32, "int32");
    if (name == NEGATIVE_SLOPE) attributes.negative_slope = value<float>(field, PluginFieldType::kFLOAT32, "float32");
  }
  return attributes;
}

}  // namespace

std::vector<PluginField> fields_of(const Attributes& attributes) {
  return {{OFFSET_GROUPS, &attributes.offset_groups, PluginFieldType::kINT32, 1},
          {NEGATIVE_SLOPE, &attributes.negative_slope, PluginFieldType::kFLOAT32, 1}};
}

Creator::Creator() : fields_(fields_of(DEFAULTS)), collection_{static_cast<int32_t>(fields_.size()), fields_.data()} {}

IPluginV3* Creator::createPlugin(const char* name, const PluginFieldCollection* fields, TensorRTPhase) noexcept {
  return value_of<IPluginV3*>("createPlugin", nullptr, [&]() -> IPluginV3* {
    const std::string layer = name && *name ? std::string("layer ") + name + ": " : "";
    try {
      if (!fields) refuse("expected fields, found a null pointer");
      return new Plugin(attributes_of(*fields));
    } catch (const Error& error) {
      throw Error(error.code, layer + error.what());
    }
  });
}

const PluginFieldCollection* Creator::getFieldNames() noexcept { return &collection_; }
const char* Creator::getPluginName() const noexcept { return NAME; }
const char* Creator::getPluginVersion() const noexcept { return VERSION; }
const char* Creator::getPluginNamespace() const noexcept { return NAMESPACE; }

}  // namespace sadnet_plugin
