// Bytes as text.
#include "dydit/io/base64.h"

#include <gtest/gtest.h>

namespace dydit {
namespace {

TEST(Base64, PadsWhatIsNoMultipleOfThree) {  // RFC 4648, 10
  EXPECT_EQ(base64(""), "");
  EXPECT_EQ(base64("f"), "Zg==");
  EXPECT_EQ(base64("fo"), "Zm8=");
  EXPECT_EQ(base64("foo"), "Zm9v");
  EXPECT_EQ(base64("foobar"), "Zm9vYmFy");
  EXPECT_EQ(base64("\xff\xfe\xfd"), "//79");
}

}  // namespace
}  // namespace dydit
