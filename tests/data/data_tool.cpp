// The C++ half of tests/python/events_test.py and tests/python/npz_test.py.
//   data_tool events FOLDER           scalars "loss" at steps 0..9, images "sample" at 0 and 5, into FOLDER
//   data_tool truncate FOLDER STEP    truncate_events
//   data_tool describe FILE           sizes of a data set, then one line an image: label, sum of its bytes
#include <numeric>
#include <string>
#include <vector>

#include <fmt/format.h>

#include "dydit/base/error.h"
#include "dydit/data/dataset.h"
#include "dydit/io/file.h"
#include "dydit/io/png.h"
#include "dydit/io/tfevents.h"

namespace dydit {
namespace {

void write_events(const std::filesystem::path& folder) {
  const std::filesystem::path png = folder / "image.png";
  write_png(png, {2, 3, 3, std::vector<uint8_t>(18, 200)}, {});
  EventWriter writer(folder);
  for (int step = 0; step < 10; ++step) {
    writer.scalar("loss", step, 1.0f / static_cast<float>(step + 1));
    if (step % 5 == 0) writer.image("sample", step, 3, 2, MappedFile::open(png)->bytes());
  }
  writer.scalar("late", int64_t{1} << 40, -1.5f);
}

void describe(const std::filesystem::path& path) {
  const auto data = Dataset::load(path, {});
  fmt::print("{} {} {}\n", data->size(), data->channels(), data->side());
  std::vector<uint8_t> image(static_cast<size_t>(data->channels() * data->side() * data->side()));
  for (int64_t i = 0; i < data->size(); ++i) {
    data->read(i, image);
    fmt::print("{} {}\n", data->label(i), std::accumulate(image.begin(), image.end(), 0));
  }
}

}  // namespace
}  // namespace dydit

int main(int argc, char** argv) {
  const std::string verb = argc >= 3 ? argv[1] : "";
  try {
    if (verb == "events" && argc == 3) {
      dydit::write_events(argv[2]);
    } else if (verb == "truncate" && argc == 4) {
      dydit::truncate_events(argv[2], std::stoll(argv[3]));
    } else if (verb == "describe" && argc == 3) {
      dydit::describe(argv[2]);
    } else {
      fmt::print(stderr, "data_tool events FOLDER | truncate FOLDER STEP | describe FILE\n");
      return 2;
    }
  } catch (const dydit::Error& error) {
    fmt::print(stderr, "{}\n", error.what());
    return 1;
  }
  return 0;
}
