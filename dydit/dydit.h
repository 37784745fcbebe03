// The public header: what a program needs to load a (Dy)DiT, plan it, run it and keep what it made.
//
//   const Checkpoint checkpoint = load_checkpoint("model.safetensors");
//   const Pipeline pipeline(checkpoint, EngineKind::Cpu, {.threads = default_threads()});
//   pipeline.generate({.classes = {3}, .num_steps = 50, .seed = 7}, {.threads = default_threads()},
//                     {.on_sample = [](GeneratedSample&& s) { write_png("out.png", to_image(s.sample), {});
//                     }});
//
// or a loop of your own, as in examples/custom_sampler: choose_timesteps -> make_width_plan -> make_engine,
// then Engine::forward once a step, from the last to the first. A pipeline and an engine may be used by
// several threads at the same time, each with a run or a workspace of its own.
//
// Errors are exceptions: UsageError (an option that cannot be meant), Cancelled, and Error, their base. The
// library never prints and never exits. To obey DYDIT_ISA, call apply_isa_cap before the first tensor is
// made. Training is not part of this header, since modules take long to compile: dydit/train/trainer.h;
// neither are many orders at once: dydit/serve/service.h.
#pragma once

#include "dydit/base/dtype.h"          // auto_dtype
#include "dydit/base/error.h"          // Error, UsageError, Cancelled
#include "dydit/base/isa.h"            // active_isa, apply_isa_cap
#include "dydit/base/machine.h"        // default_threads, memory_limit
#include "dydit/base/noise.h"          // fill_normal: noise as a function of (seed, image, draw)
#include "dydit/base/progress.h"       // Progress, CancelFlag
#include "dydit/base/version.h"        // kVersion
#include "dydit/data/classes.h"        // resolve_classes: labels and names, as --classes takes them
#include "dydit/diffusion/gaussian.h"  // tables of a respaced schedule
#include "dydit/diffusion/guidance.h"  // apply_guidance
#include "dydit/diffusion/schedule.h"  // linear_betas, even_timesteps
#include "dydit/diffusion/solver.h"    // choose_timesteps, reverse steps as coefficients
#include "dydit/engine/engine.h"       // make_engine, Engine::forward, Work
#include "dydit/io/image.h"            // Image, make_grid
#include "dydit/io/png.h"              // write_png
#include "dydit/model/checkpoint.h"    // load_checkpoint, save_checkpoint
#include "dydit/model/config.h"        // DiTConfig
#include "dydit/model/macs.h"          // multiply-adds of a model
#include "dydit/pipeline/decoder.h"    // LatentDecoder: latents to pixels
#include "dydit/pipeline/generate.h"   // Pipeline, generate
#include "dydit/pipeline/pixels.h"     // to_image
#include "dydit/pipeline/record.h"     // what is remembered of an image, as PNG text
#include "dydit/plan/run_plan.h"       // make_width_plan, required_macs
#include "dydit/vae/autoencoder.h"     // load_autoencoder, make_autoencoder
