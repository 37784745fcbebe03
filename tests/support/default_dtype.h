// torch.set_default_dtype(torch.float64), as a host program or a notebook may have it.
#pragma once

#include <c10/core/DefaultDtype.h>

namespace dydit::test {

class DoubleByDefault {
 public:
  DoubleByDefault() { c10::set_default_dtype(caffe2::TypeMeta::Make<double>()); }
  ~DoubleByDefault() { c10::set_default_dtype(caffe2::TypeMeta::Make<float>()); }
  DoubleByDefault(const DoubleByDefault&) = delete;
  DoubleByDefault& operator=(const DoubleByDefault&) = delete;
};

}  // namespace dydit::test
