#include "dydit/engine/engine.h"

namespace dydit {

std::string_view engine_name(EngineKind kind) { return kind == EngineKind::Cpu ? "cpu" : "reference"; }

std::unique_ptr<Engine> make_engine(EngineKind kind, const Checkpoint& checkpoint, const WidthPlan& plan,
                                    const EngineOptions& options) {
  return kind == EngineKind::Cpu ? make_cpu_engine(checkpoint, plan, options)
                                 : make_reference_engine(checkpoint, plan, options);
}

}  // namespace dydit
