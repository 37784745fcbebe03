// dydit serve: flags -> models, a service and its routes; until a signal ends it in good order.
#include <algorithm>
#include <chrono>
#include <exception>
#include <filesystem>
#include <fstream>
#include <set>
#include <thread>

#include <fmt/ranges.h>
#include <nlohmann/json.hpp>

#include "cli.h"
#include "dydit/base/error.h"
#include "dydit/base/machine.h"
#include "dydit/calibrate/plan_set.h"
#include "dydit/io/json.h"
#include "dydit/io/text.h"
#include "dydit/pipeline/sink.h"
#include "dydit/serve/service.h"
#include "http_listener.h"
#include "model_flags.h"
#include "serve_routes.h"
#include "signals.h"
#include "vae_flags.h"
#include "verbs.h"
#include "version_facts.h"

namespace dydit {
namespace {

using nlohmann::json;
using namespace std::chrono_literals;

constexpr size_t kShortestKey = 16;  // of an API key
constexpr double kMegabyte = 1e6;

struct ServeFlags {
  std::vector<std::string> models;
  ModelFlags computing;
  VaeFlags vae;
  std::string preview_vae, sampler = "ddim", host = "127.0.0.1", api_key_file, cors;
  int port = 8080;
  bool no_auth = false, access_log = false;
  double drain_seconds = 30, keep_mb = 256, cache_memory_gb = 0;
  ServiceOptions service;
  HttpLimits http;
};

void add_flags(Cli& cli, ServeFlags& flags) {
  ServiceOptions& service = flags.service;
  cli.keep_default(
      cli.app
          .add_option("--model,--ckpt", flags.models,
                      "Checkpoints, each PATH or NAME=PATH; NAME is how requests call it (default: the "
                      "file's name); the first is the one of requests that name none")
          ->type_name("[NAME=]PATH")
          ->required(),
      flags.models);
  flags.computing.add_computing(cli);
  flags.vae.add(cli, "Autoencoder of the models of latents (default: the one in a pipeline's folder)");
  cli.add_text("--preview-vae", flags.preview_vae, "Autoencoder for previews alone: a tiny one is cheap");
  cli.add_text("--host", flags.host, "Address to listen on; others than this machine's own want API keys");
  cli.add_number("--port", flags.port, 0, 65535, "Port; 0: any that is free, which is told");
  cli.add_text("--api-key-file", flags.api_key_file,
               "File with one API key a line; requests then need Authorization: Bearer KEY");
  cli.add_switch("--no-auth", flags.no_auth, "Listen beyond this machine without API keys");
  cli.add_text("--cors", flags.cors, "Origin whose pages may ask from a browser (https://example.org, or *)");
  cli.add_switch("--access-log", flags.access_log, "A line on stderr for every request");
  cli.add_number("--steps", service.rules.steps, 1, 1000, "Sampling steps of requests that do not say");
  cli.add_choice("--sampler", flags.sampler, {"ddpm", "ddim", "dpm++", "euler", "heun"}, "Sampler of those");
  cli.add_number("--cfg-scale", service.rules.cfg_scale, 0, 1000, "Guidance of those");
  cli.add_number("--max-batch", service.max_rows, 0, 1'000'000,
                 "Rows of a forward, a guided image has two; 0: what a short measurement at start finds");
  cli.add_number("--max-images", service.rules.max_images, 1, 4096, "Images of one request");
  cli.add_number("--max-seconds", service.rules.max_seconds, 0.1, 86400,
                 "A request may take so long, from its arrival to its last image");
  cli.add_number("--queue", service.queue_requests, 1, 100'000, "Requests that may wait");
  cli.add_number("--queue-images", service.queue_images, 1, 1'000'000, "Images that may wait");
  cli.add_number("--keep-seconds", service.keep_seconds, 1, 86400,
                 "How long jobs and their pictures are kept");
  cli.add_number("--keep-memory", flags.keep_mb, 0.001, 1e6, "MB of pictures kept at most");
  cli.add_number("--cache-memory", flags.cache_memory_gb, 0, 1e6,
                 "GB that images in flight may keep of branches (default: a quarter of the memory)");
  cli.add_number("--connections", flags.http.connections, 1, 10'000, "Connections at a time");
  cli.add_number("--drain-seconds", flags.drain_seconds, 0, 86400,
                 "After SIGTERM or SIGINT what was accepted is finished, for so long");
}

std::vector<std::string> read_keys(const std::string& path) {
  std::ifstream file(path);
  DYDIT_CHECK(file && !std::filesystem::is_directory(path), "{}: cannot read API keys", path);
  std::vector<std::string> keys;
  size_t number = 0;
  for (std::string line; std::getline(file, line);) {
    ++number;
    const std::string key(trimmed(line, " \t\r"));
    if (key.empty() || key.starts_with('#')) continue;
    DYDIT_CHECK(
        key.size() >= kShortestKey && key.find_first_of(" \t") == key.npos && printable(key, key.npos) == key,
        "{}: line {} is no API key: {} or more characters without blanks are wanted", path, number,
        kShortestKey);
    keys.push_back(key);
  }
  DYDIT_CHECK(!keys.empty(), "{}: holds no API key; one a line is wanted", path);
  return keys;
}

struct NamedPath {
  std::string name, path;
};

// "NAME=PATH", or a path, whose file's name it takes.
NamedPath named_path(const Cli& cli, const std::string& text) {
  const size_t equals = text.find('=');
  if (equals != text.npos && !std::filesystem::exists(text)) {
    const std::string name = text.substr(0, equals), path = text.substr(equals + 1);
    DYDIT_USAGE_CHECK(!name.empty() && !path.empty() && printable(name) == name, "{} {}: NAME=PATH is wanted",
                      cli.named("--model"), quote(text));
    return {name, path};
  }
  std::filesystem::path path(text);
  if (!path.has_filename()) path = path.parent_path();
  const std::string name =
      std::filesystem::is_directory(path) ? path.filename().string() : path.stem().string();
  return {printable(name.empty() ? text : name), text};
}

std::unique_ptr<const ServedModel> load_served(Cli& cli, const ServeFlags& flags, const NamedPath& from) {
  Checkpoint checkpoint = load_model(cli, from.path, {});
  const DiTConfig& config = checkpoint.config;
  const EngineKind kind = flags.computing.resolve_engine();
  flags.computing.where.check(cli);
  const EngineOptions options = flags.computing.engine_options(checkpoint);
  std::optional<LatentDecoder> decoder, previews;
  json vae;
  if (!makes_pixels(config)) {
    const std::optional<AutoencoderFile> file = flags.vae.load(cli, own_autoencoder(checkpoint.path));
    DYDIT_CHECK(file, "{}: makes latents; --vae names the autoencoder that makes pictures of them",
                from.path);
    const LatentOrigin origin = latent_origin(checkpoint.notes, config.in_channels, from.path);
    const auto make = [&](const AutoencoderFile& of) {
      return flags.vae.decoder(cli, of, origin, config.in_channels, config.input_size, config.input_size,
                               flags.computing.threads);
    };
    decoder.emplace(make(*file));
    if (!flags.preview_vae.empty()) previews.emplace(make(load_vae(cli, flags.preview_vae, {})));
    vae = decoder->record(config.input_size, config.input_size);
    flags.vae.say(vae);
  }
  auto model = std::make_unique<ServedModel>(from.name, std::move(checkpoint), kind, options,
                                             std::move(decoder), std::move(previews));
  model->vae = vae;
  const std::filesystem::path plans = plan_set_path(model->checkpoint.path);
  if (std::filesystem::exists(plans)) {
    model->plans = read_plan_set(plans);
    model->plans_file = plans.filename().string();  // clients need not know where
  }
  return model;
}

std::unique_ptr<Service> make_service(Cli& cli, const ServeFlags& flags,
                                      const std::vector<NamedPath>& paths) {
  std::vector<std::unique_ptr<const ServedModel>> models;
  for (const NamedPath& path : paths) models.push_back(load_served(cli, flags, path));
  const bool latents =
      std::any_of(models.begin(), models.end(), [](const auto& model) { return model->decoder.has_value(); });
  cli.needs("--vae", latents, "a model of latents");
  cli.needs("--preview-vae", latents, "a model of latents");
  auto service = std::make_unique<Service>(std::move(models), flags.service);
  for (size_t i = 0; i < service->models().size(); ++i) {
    const ServedModel& model = *service->models()[i];
    cli.console.info(fmt::format("model    {}: {}, {}, images of {}x{}, sha256 {:.10}, {} rows a forward",
                                 model.name, model_name(model.checkpoint.config),
                                 arithmetic_text(model.kind, model.options.dtype), service->terms()[i].side,
                                 service->terms()[i].side, model.checkpoint.sha256, service->max_rows(i)));
  }
  cli.console.info(fmt::format("memory   {} held", memory_text(static_cast<double>(resident_bytes()))));
  return service;
}

json summary_of(const ServiceNumbers& numbers) {
  return {{"images", numbers.images},
          {"completed", numbers.completed},
          {"failed", numbers.failed},
          {"cancelled", numbers.cancelled},
          {"refused", numbers.refused},
          {"required_gmacs", numbers.required_gmacs},
          {"executed_gmacs", numbers.executed_gmacs},
          {"forward_seconds", numbers.forward_seconds}};
}

}  // namespace

int run_serve(const Args& args, Isa isa) {
  Cli cli("serve", "Answer over HTTP: a page for people, OpenAI's and the web UI's routes for programs.");
  ServeFlags flags;
  add_flags(cli, flags);
  cli.parse(args);
  flags.vae.where = flags.computing.where.resolve();
  const bool loopback = is_loopback(flags.host);
  cli.needs("--no-auth", !loopback, "a --host beyond this machine; here nobody is asked for a key");
  cli.one_of("--api-key-file", "--no-auth");
  DYDIT_USAGE_CHECK(loopback || flags.no_auth || !flags.api_key_file.empty(),
                    "{} {}: whoever reaches it could use this machine; give --api-key-file, or say --no-auth",
                    cli.named("--host"), flags.host);
  ServiceOptions& options = flags.service;
  options.rules.sampler = kSamplerNames.at(flags.sampler);
  options.threads = flags.computing.threads;
  options.keep_bytes = static_cast<int64_t>(flags.keep_mb * kMegabyte);
  options.cache_memory = static_cast<int64_t>(flags.cache_memory_gb * 1e9);
  RouteOptions routing{.loopback = loopback,
                       .host = flags.host,
                       .cors = flags.cors,
                       .access_log = flags.access_log,
                       .version = json_text(version_facts(isa))};
  if (!flags.api_key_file.empty()) routing.api_keys = read_keys(flags.api_key_file);
  std::vector<NamedPath> paths;
  std::set<std::string> names;
  for (const std::string& text : flags.models) {
    paths.push_back(named_path(cli, text));
    DYDIT_USAGE_CHECK(names.insert(paths.back().name).second,
                      "{}: two models are called {}; give them names: NAME=PATH", cli.named("--model"),
                      quote(paths.back().name));
  }
  const CancelFlag& cancel = install_cancel_handler();
  Console& console = cli.console;

  HttpListener listener(flags.http);
  ServeRoutes routes(listener, routing);
  const int port = listener.bind(flags.host, flags.port);
  std::unique_ptr<Service> service;
  std::exception_ptr failure;
  std::atomic<bool> failed = false;
  std::thread accepting([&] {
    try {
      listener.serve();
    } catch (...) {
      failure = std::current_exception();
      failed = true;
    }
  });
  const auto stop = [&] {
    listener.close_idle();
    listener.stop();
    accepting.join();
  };
  // Stopping a listener that does not run yet would stop nothing.
  while (!listener.is_running() && !failed) std::this_thread::sleep_for(1ms);
  try {
    service = make_service(cli, flags, paths);
  } catch (...) {
    stop();
    throw;
  }
  routes.open(*service);
  console.info(fmt::format("serving  http://{}:{}",
                           flags.host.find(':') == std::string::npos ? flags.host : "[" + flags.host + "]",
                           port));
  while (!cancel && !failed) std::this_thread::sleep_for(50ms);

  service->drain();
  listener.close_idle();
  if (!failed) {
    const ServiceNumbers numbers = service->numbers();
    console.info(fmt::format("ending   {} images are in flight and {} wait; they are finished within {:g} s",
                             numbers.images_in_flight, numbers.queued_images, flags.drain_seconds));
  }
  const auto until = Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                        std::chrono::duration<double>(flags.drain_seconds));
  while (!service->idle() && Clock::now() < until && !failed) std::this_thread::sleep_for(10ms);
  const int left = service->cancel_all();
  if (left > 0) console.warning(fmt::format("{} requests were not finished in time and are cancelled", left));
  while (!service->idle()) std::this_thread::sleep_for(10ms);  // they leave at the next step
  stop();
  if (failure) std::rethrow_exception(failure);
  const json summary = summary_of(service->numbers());
  cli.print(summary, [&] {
    print_out("{} images in {} requests; {} failed, {} cancelled, {} refused; {:.1f} GMACs executed\n",
              summary["images"].get<uint64_t>(), summary["completed"].get<uint64_t>(),
              summary["failed"].get<uint64_t>(), summary["cancelled"].get<uint64_t>(),
              summary["refused"].get<uint64_t>(), summary["executed_gmacs"].get<double>());
  });
  return 0;
}

}  // namespace dydit
