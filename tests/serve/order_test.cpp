// JSON becomes an order, or a refusal that names the field. What the program answers:
// tests/programs/serve_test.py.
#include "dydit/serve/order.h"

#include <string>

#include <gtest/gtest.h>
#include <nlohmann/json.hpp>

#include "tests/support/random_model.h"

namespace dydit {
namespace {

std::vector<ModelTerms> models() {
  return {{"dynamic", test::tiny_config(), {"cat", "dog", "a, b", "fox", "10"}, 8},
          {"static", test::static_config(), {}, 8}};
}

Order read(const std::string& body) { return read_generation(body, models(), {}); }

Refusal refused(const std::string& body) {
  try {
    read(body);
  } catch (const Refusal& refusal) {
    return refusal;
  }
  ADD_FAILURE() << body << " is taken";
  return Refusal(0, "");
}

TEST(Order, SaysAllOfARequest) {
  const Order order =
      read(R"({"prompt": "cat", "n": 3, "seed": 18446744073709551615, "num_inference_steps": 7,
      "guidance_scale": 1.5, "sampler": "ddim", "eta": 0.5, "mode": "static", "stream": true, "partial_images": 2,
      "response_format": "url", "timeout_s": 5, "user": "me", "size": "8x8", "quality": "auto", "progress": true})");
  EXPECT_EQ(order.request.classes, std::vector{0});
  EXPECT_EQ(order.request.num_images, 3);
  EXPECT_EQ(order.request.seed, ~uint64_t{0});
  EXPECT_EQ(order.request.num_steps, 7);
  EXPECT_FLOAT_EQ(order.request.cfg_scale, 1.5f);
  EXPECT_FLOAT_EQ(order.request.sampler.eta, 0.5f);
  EXPECT_EQ(order.request.mode, Mode::Static);
  EXPECT_TRUE(order.stream && order.url && order.progress);
  EXPECT_EQ(order.partial_images, 2);
  EXPECT_EQ(order.seconds, 5);
  EXPECT_EQ(order.user, "me");
}

TEST(Order, HasTheServersDefaults) {
  const OrderRules rules{
      .max_images = 2, .max_seconds = 9, .steps = 12, .sampler = SamplerKind::Dpm, .cfg_scale = 3};
  const Order order = read_generation(R"({"prompt": "dog"})", models(), rules);
  EXPECT_EQ(order.request.num_steps, 12);
  EXPECT_EQ(order.request.sampler.kind, SamplerKind::Dpm);
  EXPECT_EQ(order.request.cfg_scale, 3);
  EXPECT_EQ(order.seconds, 9);
  EXPECT_EQ(order.request.mode, Mode::Dynamic);
  EXPECT_THROW(read_generation(R"({"prompt": "dog", "n": 3})", models(), rules), Refusal);
}

// A class may be called by a number, hold a comma, or be a number.
TEST(Order, ClassesThatAreCalledOddly) {
  EXPECT_EQ(read(R"({"prompt": "a, b"})").request.classes, std::vector{2});
  EXPECT_EQ(read(R"({"prompt": "name:10"})").request.classes, std::vector{4});
  EXPECT_EQ(read(R"({"prompt": "4"})").request.classes, std::vector{4});
  EXPECT_EQ(read(R"({"prompt": "class:4"})").request.classes, std::vector{4});
  EXPECT_EQ(read(R"({"prompt": "fox, dog"})").request.classes, (std::vector{3, 1}));
  EXPECT_EQ(read(R"({"prompt": "fox, dog"})").request.num_images, 2);
  EXPECT_EQ(read(R"({"prompt": "3", "model": "static"})").request.classes, std::vector{3});
  EXPECT_EQ(refused(R"({"prompt": "fox, dog", "n": 1})").param, "n");
  EXPECT_EQ(refused(R"({"prompt": "class:-1"})").param, "prompt");
  EXPECT_EQ(refused(R"({"prompt": "class:cat"})").param, "prompt");
  EXPECT_EQ(refused(R"({"class_labels": [5]})").param, "class_labels");
}

TEST(Order, PlansAreMadeAndReadHere) {
  const Order cached = read(R"({"prompt": "cat", "num_inference_steps": 9, "cache": "taylor:3,1"})");
  ASSERT_TRUE(cached.request.plan);
  EXPECT_EQ(cached.request.total_steps(), 9);
  EXPECT_FALSE(read(R"({"prompt": "cat"})").request.plan);
  const PlanSpec spec = policy_plan("fora:2", test::tiny_config(), std::vector<double>{0, 300, 600, 999});
  const nlohmann::json plan = nlohmann::json::parse(plan_text(spec, test::tiny_config()));
  const Order given = read(nlohmann::json{{"prompt", "cat"}, {"plan", plan}}.dump());
  EXPECT_EQ(given.request.total_steps(), 4);
  EXPECT_EQ(
      refused(nlohmann::json{{"prompt", "cat"}, {"plan", plan}, {"num_inference_steps", 4}}.dump()).param,
      "plan");
  EXPECT_EQ(refused(nlohmann::json{{"prompt", "cat"}, {"plan", plan}, {"cache", "fora:2"}}.dump()).param,
            "plan");
  EXPECT_EQ(refused(R"({"prompt": "cat", "cache": "l2c:/etc/passwd"})").param, "cache");
  EXPECT_EQ(refused(R"({"prompt": "cat", "guidance_scale": 1, "guide_every": 2})").param, "guide_from");
}

TEST(Order, DrawnSeedsDifferAndFitIntoADouble) {
  const uint64_t a = read(R"({"prompt": "cat"})").request.seed,
                 b = read(R"({"prompt": "cat", "seed": null})").request.seed;
  EXPECT_NE(a, b);
  EXPECT_LT(a | b, uint64_t{1} << 53);
}

TEST(Order, RefusalsAreErrorsOfTheApi) {
  const Refusal refusal = refused(R"({"prompt": "cat", "promt": 1})");
  const nlohmann::json error = error_answer(refusal)["error"];
  EXPECT_EQ(error["type"], "invalid_request_error");
  EXPECT_EQ(error["code"], "unknown_field");
  EXPECT_EQ(error["param"], "promt");
  EXPECT_NE(error["message"].get<std::string>().find("did you mean prompt"), std::string::npos);
  EXPECT_TRUE(error_answer(Refusal(500, "x"))["error"]["param"].is_null());
}

TEST(Order, TheWebUisFields) {
  const auto read = [](const std::string& body) { return read_txt2img(body, models(), {}); };
  const Order order =
      read(R"({"prompt": "dog", "seed": 5, "steps": 3, "cfg_scale": 2, "sampler_name": "DPM++ 2M",
      "width": 8, "height": 8, "batch_size": 2, "n_iter": 3, "negative_prompt": "", "restore_faces": false})");
  EXPECT_EQ(order.request.num_images, 6);
  EXPECT_EQ(order.request.sampler.kind, SamplerKind::Dpm);
  EXPECT_EQ(order.request.num_steps, 3);
  EXPECT_EQ(read(R"({"prompt": "1", "override_settings": {"sd_model_checkpoint": "static"}})").model, 1u);
  EXPECT_NE(read(R"({"prompt": "dog", "seed": -1})").request.seed,
            read(R"({"prompt": "dog", "seed": -1})").request.seed);
  EXPECT_THROW(read(R"({"prompt": "dog", "batch_size": 16, "n_iter": 16})"), Refusal);
  EXPECT_THROW(read(R"({"prompt": "dog", "seed": -2})"), Refusal);
  EXPECT_THROW(read(R"({"prompt": "dog", "num_inference_steps": 2})"), Refusal);
}

}  // namespace
}  // namespace dydit
