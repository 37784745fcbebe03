// Recorded metrics of recorded features. Expected values stand in metrics.json beside the vectors: of this
// many digits where they were computed in 40 or in float64, of 1e-6 where another tool's float32 has rounded.
#include <cmath>
#include <string>
#include <vector>

#include <ATen/ATen.h>
#include <c10/core/InferenceMode.h>

#include "dydit/base/error.h"
#include "dydit/eval/frechet.h"
#include "dydit/eval/inception_score.h"
#include "dydit/eval/kid.h"
#include "dydit/eval/precision_recall.h"
#include "dydit/eval/torch_fidelity.h"
#include "dydit/io/bytes.h"
#include "dydit/io/file.h"
#include "dydit/io/json.h"
#include "verify.h"

namespace dydit {
namespace {

constexpr double kExact = 1e-9, kGramExact = 1e-12;    // of float64 results
constexpr double kSums = 1e-10;                        // of KID over all rows, absolute
constexpr double kFloat32 = 1e-6, kKidFloat32 = 1e-5;  // of tools that compute in float32

class Recorded {
 public:
  Recorded(const Reference& reference, int threads, VerifyReport& report)
      : reference_(reference), threads_(threads), report_(report) {
    const std::filesystem::path path = std::filesystem::path(reference.path()).parent_path() / "metrics.json";
    name_ = path.string();
    const auto file = MappedFile::open(path);
    expected_ = read_json(text_of(file->bytes()), /*max_depth=*/3, name_);
  }

  void verify_distances() {
    const at::Tensor ref = at("ref"), gen = at("gen");
    const Gaussian ours = gaussian("gen", gen), theirs = gaussian("ref", ref);
    relative("fid.exact", frechet_distance(factor(ours), factor(theirs)), kExact);
    relative("fid.exact", frechet_distance(factor_rows(gen), factor_rows(ref)), kExact, " (rows)");
    relative("fid.exact", quick_frechet_distance(factor(theirs), ours), kExact, " (eigenvalues)");
    relative("fid.adm", frechet_distance(factor(ours), factor(theirs)), kFloat32);
    relative("fid.pytorch_fid", frechet_distance(factor(ours), factor(theirs)), kExact);
    relative("fid.torch_fidelity", frechet_distance(factor(ours), factor(theirs)), kFloat32);
    relative("fid_few.exact",
             frechet_distance(factor_rows(gen.slice(0, 0, 30)), factor_rows(ref.slice(0, 0, 20))),
             kGramExact);
    absolute("fid_same.exact", frechet_distance(factor(theirs), factor(theirs)), kExact);
    verify_infinity(theirs, gen);

    // (17, 17, 7) order: positions before channels.
    const auto flat = [&](const char* name) {
      return at(name).permute({0, 2, 3, 1}).flatten(1).contiguous();
    };
    const FactoredGaussian spatial = factor(gaussian_of(moments_of(flat("sp_ref"))[0]));
    const auto sfid = [&](const at::Tensor& rows) {
      return frechet_distance(factor(gaussian_of(moments_of(rows)[0])), spatial);
    };
    relative("sfid.adm", sfid(flat("sp_gen")), kFloat32);
    relative("sfid.if_samples_are_flattened_nchw", sfid(at("sp_gen").flatten(1)), kFloat32);
  }

  void verify_kid() {
    const at::Tensor ref = at("ref"), gen = at("gen");
    const Kid full = kid(gen, ref, {.threads = threads_});
    absolute("kid_full.unbiased", full.unbiased, kSums);
    absolute("kid_full.jackknife_std", full.error, kSums);
    absolute("kid_full.biased", full.biased, kSums);
    const KidOfSubsets subsets = kid_of_subsets(gen, ref, at("kid_gen_rows"), at("kid_ref_rows"), threads_);
    for (size_t s = 0; s < subsets.each.size(); ++s)
      absolute("kid_subsets.each." + std::to_string(s), subsets.each[s], kKidFloat32);
    absolute("kid_subsets.mean", subsets.mean, kKidFloat32);
    absolute("kid_subsets.std", subsets.deviation, kKidFloat32);
    absolute("kid_subsets.std_ddof1", subsets.deviation_ddof1, kKidFloat32);
  }

  // Which rows a subset takes: numpy's generator.
  void verify_subset_rows() {
    const at::Tensor &ours = at("kid_gen_rows"), &theirs = at("kid_ref_rows");
    const SubsetRows got = torch_fidelity_rows(at("gen").size(0), at("ref").size(0),
                                               static_cast<int>(ours.size(0)), ours.size(1));
    report_.count("kid_gen_rows", (got.generated != ours).sum().item<int64_t>(), ours.numel());
    report_.count("kid_ref_rows", (got.reference != theirs).sum().item<int64_t>(), theirs.numel());
  }

  void verify_precision_recall() {
    const PrecisionRecall got = precision_recall(at("gen"), at("ref"), {.threads = threads_});
    report_.compare("radii_gen", got.generated_radii, at("radii_gen"), kGramExact);
    report_.compare("radii_ref", got.reference_radii, at("radii_ref"), kGramExact);
    mask("precision_mask", got.is_inside_reference);
    mask("recall_mask", got.is_inside_generated);
    absolute("pr.precision", got.precision, 0);
    absolute("pr.recall", got.recall, 0);
    for (const char* tool : {"adm_float32", "torch_fidelity"}) {
      absolute("pr." + std::string(tool) + ".0", got.precision, kFloat32);
      absolute("pr." + std::string(tool) + ".1", got.recall, kFloat32);
    }
  }

  void verify_inception_score() {
    const at::Tensor logits = at("logits");
    const auto by_size = [&](const at::Tensor& rows, int64_t size) {
      return inception_score(rows, parts_of_size(rows.size(0), size), threads_).mean;
    };
    relative("is.adm_500_split5000", by_size(logits, kAdmPartRows), kExact);
    relative("is.adm_split150", by_size(logits, 150), kExact);
    const InceptionScore tenths =
        inception_score(logits, parts_of_number(logits.size(0), kTorchFidelityParts), threads_);
    relative("is.torch_fidelity_10.0", tenths.mean, kExact);
    relative("is.torch_fidelity_10.1", tenths.deviation, kExact);
    const at::Tensor by_class = std::get<1>(at("classes").sort(/*stable=*/true, 0, /*descending=*/false));
    relative("is.class_order_split100", by_size(logits.index_select(0, by_class), 100), kExact);
    relative("is.shuffled_split100", by_size(logits, 100), kExact);
    const at::Tensor others = at::cat({logits.slice(0, 0, 3), logits.slice(0, 4)});
    relative("is.without_row3_split150", by_size(others, 150), kExact);
    relative("is.without_row3_adm_code_split150", by_size(others, 150), kFloat32);
  }

 private:
  const at::Tensor& at(const std::string& name) const { return reference_.at(name); }

  Gaussian gaussian(const std::string& name, const at::Tensor& rows) {
    const Gaussian got = gaussian_of(moments_of(rows, {.threads = threads_})[0]);
    report_.compare("mean_" + name, got.mean, at("mean_" + name), kGramExact);
    report_.compare("cov_" + name, got.cov, at("cov_" + name), kGramExact);
    return got;
  }

  void verify_infinity(const Gaussian& reference, const at::Tensor& rows) {
    std::vector<int64_t> sizes;
    while (expected_.contains(pointer("fid_infinity.N." + std::to_string(sizes.size()))))
      sizes.push_back(std::llround(expected("fid_infinity.N." + std::to_string(sizes.size()))));
    const FidInfinity fit = fid_infinity(factor(reference), rows, sizes, threads_);
    for (size_t k = 0; k < sizes.size(); ++k)
      relative("fid_infinity.fid." + std::to_string(k), fit.distances[k], kExact);
    relative("fid_infinity.intercept", fit.intercept, kExact);
    relative("fid_infinity.slope", fit.slope, kExact);
  }

  // "fid.exact": of {"fid": {"exact": ..}}.
  static nlohmann::json::json_pointer pointer(std::string name) {
    std::replace(name.begin(), name.end(), '.', '/');
    return nlohmann::json::json_pointer("/" + name);
  }
  double expected(const std::string& name) const {
    const auto at = pointer(name);
    DYDIT_CHECK(expected_.contains(at) && expected_[at].is_number(),
                "{}: number {} is missing; the vectors come with one that has it", name_, name);
    return expected_[at].get<double>();
  }

  void relative(const std::string& name, double got, double limit, const std::string& way = "") {
    const double want = expected(name);
    report_.error(name + way, std::abs(got - want) / std::abs(want), limit);
  }
  void absolute(const std::string& name, double got, double limit) {
    report_.error(name, std::abs(got - expected(name)), limit);
  }
  void mask(const std::string& name, const at::Tensor& got) {
    const at::Tensor want = at(name) != 0;
    DYDIT_CHECK(got.sizes() == want.sizes(), "{}: {} holds {} values, expected {}", reference_.path(), name,
                want.numel(), got.numel());
    report_.count(name, (got != want).sum().item<int64_t>(), want.numel());
  }

  const Reference& reference_;
  const int threads_;
  VerifyReport& report_;
  std::string name_;
  nlohmann::json expected_;
};

}  // namespace

void verify_metrics(const Reference& reference, int threads, VerifyReport& report) {
  const c10::InferenceMode guard;
  Recorded recorded(reference, threads, report);
  recorded.verify_distances();
  recorded.verify_kid();
  recorded.verify_subset_rows();
  recorded.verify_precision_recall();
  recorded.verify_inception_score();
}

}  // namespace dydit
