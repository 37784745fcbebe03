// Sinks hold what they were given when a run ends, however far it came.
#include "dydit/pipeline/sink.h"

#include <cmath>
#include <filesystem>

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "dydit/io/npz_reader.h"
#include "dydit/io/png.h"
#include "dydit/io/safetensors.h"
#include "dydit/pipeline/record.h"
#include "tests/support/files.h"
#include "tests/support/random_model.h"

namespace dydit {
namespace {

using nlohmann::json;

constexpr int kSide = 8;

// A run of five images of a pixel model, of which three are made.
class Sinks : public testing::Test {
 protected:
  Sinks() : checkpoint_(test::random_checkpoint(test::static_config())) {
    checkpoint_.config.in_channels = 3;
    options_.classes = {3, 1};
    options_.num_images = 5;
    options_.num_steps = 4;
    run_.record = run_record(checkpoint_, options_);
  }

  std::vector<std::string> fill(std::unique_ptr<Sink> (*make)(const SinkRun&, const std::string&),
                                const std::string& name) {
    return fill(*make(run_, folder_ / name));
  }
  std::vector<std::string> fill(Sink& sink) {
    json records = json::array();
    for (int i = 0; i < 3; ++i) {
      GeneratedSample sample{i, options_.label(i), at::full({3, kSide, kSide}, 0.1f * i), 0.5};
      sample.pixels = sample.sample;
      sample.token_share = at::full({16}, 0.25f * i);
      records.push_back(image_record(checkpoint_, options_, sample));
      sink.add(sample, records.back());
    }
    sink.finish(records);
    return sink.files();
  }
  PngInfo png_info(const std::string& png) { return parse_png_info(MappedFile::open(png)->bytes(), png); }
  json record_of(const std::string& png) { return json::parse(png_info(png).text.at(kRecordKey)); }

  test::TemporaryFolder folder_;
  Checkpoint checkpoint_;
  GenerateOptions options_;
  SinkRun run_{{}, 5, {3, kSide, kSide}, kSide};
};

TEST_F(Sinks, NumberedPngsAreWrittenOneByOne) {
  const auto sink = make_png_sink(run_, {folder_ / "a", ".png", 2});
  EXPECT_EQ(fill(*sink),
            (std::vector<std::string>{folder_ / "a00.png", folder_ / "a01.png", folder_ / "a02.png"}));
  const json images = record_of(folder_ / "a01.png")["images"];
  ASSERT_EQ(images.size(), 1u);
  EXPECT_EQ(images[0]["class"], 1);
}

TEST_F(Sinks, AGridHoldsTheImagesThatAreMade) {
  const auto sink = make_png_sink(run_, {folder_ / "grid", ".png"});
  EXPECT_EQ(fill(*sink), std::vector<std::string>{folder_ / "grid.png"});
  EXPECT_EQ(png_info(folder_ / "grid.png").width, 3 * (kSide + kGridPadding) + kGridPadding);
  EXPECT_EQ(record_of(folder_ / "grid.png")["images"].size(), 3u);
}

TEST_F(Sinks, PreviewsOfAStepShareAGridThatGrows) {
  const auto sink = make_png_sink(run_, {folder_ / "grid", ".png"});
  for (const int first : {0, 2}) {
    json records = json::array();
    for (const int i : {first, first + 1})
      records.push_back({{"index", i}, {"class", 1}, {"class_name", ""}});
    sink->add_preview({first, 2, at::full({2, 3, kSide, kSide}, NAN)}, records);
  }
  const std::string path = folder_ / "grid_step0002.png";
  EXPECT_EQ(sink->files(), std::vector<std::string>{path});
  const json run = record_of(path);
  EXPECT_EQ(run["preview_step"], 2);
  ASSERT_EQ(run["images"].size(), 4u);
  EXPECT_EQ(run["images"][3]["index"], 3);
}

TEST_F(Sinks, AnNpzHasItsRecordsBesideIt) {
  EXPECT_EQ(fill(make_npz_sink, "a.npz"),
            (std::vector<std::string>{folder_ / "a.npz", folder_ / "a.npz.json"}));
  const auto file = MappedFile::open(folder_ / "a.npz");
  const auto array = read_npz_array(ZipArchive(file->bytes(), "a.npz"), "arr_0", 0, "a.npz");
  EXPECT_EQ(array->shape, (std::vector<int64_t>{3, kSide, kSide, 3}));
  EXPECT_EQ(json::parse(test::contents(folder_ / "a.npz.json"))["images"].size(), 3u);
}

TEST_F(Sinks, LatentsAreThoseThatAreMadeWithTheirLabels) {
  fill(make_latents_sink, "a.safetensors");
  const SafetensorsFile file = read_safetensors(folder_ / "a.safetensors");
  EXPECT_EQ(file.tensors.at("latents").shape, (std::vector<int64_t>{3, 3, kSide, kSide}));
  const at::Tensor labels = to_tensor(file.tensors.at("labels"), file.file);
  EXPECT_TRUE(at::equal(labels, at::tensor({3, 1, 3}, at::kLong)));
}

TEST_F(Sinks, ACostMapSaysWhatItsColoursMean) {
  fill(make_cost_map_sink, "map.png");
  const json map = record_of(folder_ / "map.png")["cost_map"];
  EXPECT_EQ(map["min"], 0);
  EXPECT_EQ(map["max"], 0.5);
}

}  // namespace
}  // namespace dydit
