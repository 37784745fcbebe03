"""The call truth: is what the engine computes right? Any failure here stops the timing. In this order: kernels against their own
forms, recorded vectors of the original code, memory and races, equal bits whatever the batch, no wait and no allocation in a step, error lines."""

import hashlib
import json
import re
import shutil
import struct
import subprocess

from own import ask_or_skip, four_blocks
from plans import changing_plan, even_timesteps
from protocol import ROOT, TINY, Failed, Line, Refused, Skip, last_error

GOLDEN = ROOT / "tests/golden"
THRESHOLD_MODEL = ROOT / "models/dydit-cifar10-0.5.safetensors"
IMAGES, STEPS = 16, 4
UNKNOWN = ("torch is unknown", "not expected", "no such flag", "unknown option")  # of a program without this engine or flag
BF16_LIMIT = 0.05  # of an image's largest value, after a few steps in bfloat16 by two engines
BF16_FACTOR = 3  # of the reference engine's own distance


def engine(context):
    return ["--engine", "torch", "--device", context.device]


def card(context):
    """Once, as people know it; everything later is NVML's."""
    context.need_card()
    fields = "name,driver_version,clocks.sm,clocks.mem,clocks.max.sm,power.limit,ecc.mode.current,persistence_mode,compute_mode,memory.total,memory.used"
    done = subprocess.run(["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise Failed(last_error(done.stderr) or "nvidia-smi failed")
    context.note(done.stdout.strip())
    return {"nvidia_smi": dict(zip(fields.split(","), done.stdout.strip().split(", ")))}


def program(context):
    """Version, commit and libraries of what is measured; the first thing that starts it."""
    done = context.run("--version", "--json", most=60)
    if done.returncode:
        raise Failed(f"{context.program.path} does not start: {last_error(done.stderr)}; "
                     "it is made for this torch by benchmarks/gpu/build")
    said = json.loads(done.stdout)
    context.note(", ".join(f"{key} {value}" for key, value in said.items()))
    return {"program": said}


def kernel_tests(pattern):
    """Tests of kernels as a program beside dydit; there is none before the engine has kernels of its own."""
    def run(context):
        if not context.program.beside("kernel_tests"):
            raise Skip("no kernel_tests beside the program: this build has no kernels of its own")
        if context.dry:
            raise Skip("needs a card; on the CPU the same sources are run by ctest")
        done = context.program.run_beside("kernel_tests", f"--gtest_filter={pattern}", timeout=context.timeout(120))
        passed, failed = (len(re.findall(rf"^\[ +{word} +\] \S+ \(", done.stdout, re.M)) for word in ("OK", "FAILED"))
        if done.returncode or not passed:
            raise Failed(f"{failed} of {passed + failed} failed: {last_error(done.stdout)}")
        context.value("tests passed", passed, "", passed + failed, "equal")
    return run


def verify(reference, dtype, model=TINY):
    def run(context):
        done = context.run("verify", "--model", model, "--reference", GOLDEN / reference, "--dtype", dtype, *engine(context), "--json", "-q")
        if done.returncode == 2 or not done.stdout.strip():
            raise (Refused if done.returncode == 2 else Failed)(last_error(done.stderr))
        said = json.loads(done.stdout)
        worst = max((check for check in said["checks"] if "error" in check), key=lambda check: check["error"] / (check["limit"] or 1), default=None)
        if worst:
            context.value(f"largest error ({worst['name']})", worst["error"], "", worst["limit"], "limit")
        missed = [check["name"] for check in said["checks"] if not check["ok"]]
        if missed or not said["passed"]:
            raise Failed(f"{len(missed)} of {len(said['checks'])} checks missed: {', '.join(missed[:5])}")
        return {"checks": len(said["checks"])}
    return run


def sanitizer(tool):
    def run(context):
        context.need_card()
        found = shutil.which("compute-sanitizer") or shutil.which("/usr/local/cuda/bin/compute-sanitizer")
        if not found:
            raise Skip("no compute-sanitizer on the PATH")
        done = context.run("verify", "--model", TINY, "--reference", GOLDEN / "forward.safetensors", "--dtype", "bf16", *engine(context), "-q",
                           prefix=[found, "--tool", tool, "--error-exitcode", "77"], most=120)
        summary = re.findall(r"ERROR SUMMARY: (\d+) error|RACECHECK SUMMARY: (\d+) hazard", done.stdout + done.stderr)
        count = int("".join(summary[-1])) if summary else None
        context.value("errors", count, "", 0, "equal")
        if count or done.returncode:
            raise Failed(f"{tool}: {count} errors, exit {done.returncode}")
    return run


# --- equal bits ----------------------------------------------------------------------------------------------------


def samples(path):
    """Bytes of every image of a file that generate --latents wrote, in its order."""
    content = path.read_bytes()
    header = struct.unpack("<Q", content[:8])[0]
    entries = {name: entry for name, entry in json.loads(content[8:8 + header]).items() if name != "__metadata__"}
    entry = max(entries.values(), key=lambda entry: entry["data_offsets"][1] - entry["data_offsets"][0])
    first, last = (8 + header + offset for offset in entry["data_offsets"])
    size = (last - first) // entry["shape"][0]
    return [content[at:at + size] for at in range(first, last, size)]


def made(context, name, *more, model=TINY, dtype="bf16", count=IMAGES, how=None, flags=("--steps", STEPS)):
    path = context.out / f"{name}.safetensors"
    ask_or_skip(context, "generate", "--model", model, "-n", count, "--sampler", "ddim", "--seed", 7, "--latents", path, "--dtype", dtype,
                *(engine(context) if how is None else how), *flags, *more)
    images = samples(path)
    path.unlink()
    return images


def floats(image):
    return struct.unpack(f"<{len(image) // 4}f", image)


def distance(images, others):
    """Largest difference over the largest value, of images that are float32."""
    pairs = [(a, b) for image, other in zip(images, others, strict=True) for a, b in zip(floats(image), floats(other), strict=True)]
    return max(abs(a - b) for a, b in pairs) / max(abs(b) for _, b in pairs)


def hold(context, of, images, others, promised=True):
    """Images that must be the same bits; on the CPU the engine promises that for the same batch alone."""
    equal = sum(image == other for image, other in zip(images, others, strict=True))
    context.value(f"{of}: equal images", equal, f"of {len(others)}", len(others) if promised else None, "equal")
    if equal < len(others):
        off = distance(images, others)
        context.value(f"{of}: largest difference", off, "", None if promised else BF16_LIMIT, "limit")
        if promised or off > BF16_LIMIT:
            raise Failed(f"{of}: {len(others) - equal} of {len(others)} images differ, by up to {off:.3g} of the largest value")


def digest(images):
    return hashlib.sha256(b"".join(images)).hexdigest()


def same_for_every_batch(context):
    promised = not context.dry
    if context.dry:
        context.note("on the CPU images of this engine depend on the batch: differences are limited, not forbidden")
    base = made(context, "batch16", "--batch", 16)
    for batch in (1, 2, 5):
        hold(context, f"batch {batch}", made(context, f"batch{batch}", "--batch", batch), base, promised)
    return {"sha256": digest(base)}


def same_for_every_batch_of_xl(context):
    """Four blocks of the size that is timed, as libraries choose by size; a plan with other heads and groups at every step, and 200 tokens."""
    if context.dry:
        context.note("on the CPU images of this engine depend on the batch: differences are limited, not forbidden")
    plan, depth, heads, tokens, on, kept = context.out / "xl.plan.json", *((2, 3, 64, 2, 50) if context.dry else (4, 16, 256, 9, 200))
    plan.write_text(changing_plan("xl", depth, heads, tokens, even_timesteps(STEPS), on, kept, None))
    model, flags = four_blocks(context), ["--plan", plan]
    base = made(context, "xl16", "--batch", 16, model=model, flags=flags)
    for batch in (1, 2, 5):
        hold(context, f"batch {batch}", made(context, f"xl{batch}", "--batch", batch, model=model, flags=flags), base, not context.dry)
    hold(context, "the complete model, batch 5", made(context, "xl-static5", "--batch", 5, "--mode", "static", model=model),
         made(context, "xl-static16", "--batch", 16, "--mode", "static", model=model), not context.dry)
    return {"sha256": digest(base)}


def same_twice(context):
    first, second = (made(context, f"run{run}", "--batch", 5) for run in (1, 2))
    hold(context, "two runs", first, second)
    return {"sha256": digest(first)}


def shards(context):
    """Shard K of N makes the images with index K mod N, with their own noise; a batch of one makes the same calls on any device."""
    whole = made(context, "whole", "--batch", 1)
    for shard in (0, 1, 2):
        images = made(context, f"shard{shard}", "--batch", 1, "--shard", f"{shard}/3")
        hold(context, f"shard {shard}/3", images, whole[shard::3])


def graphs(context):
    """On the CPU a graph is its body, called."""
    on, off = (made(context, f"graphs-{graphs}", "--batch", 5, "--graphs", graphs) for graphs in ("on", "off"))
    hold(context, "graphs on and off", on, off)


def against_the_cpu(dtype, model=TINY, counts=False):
    """The same images as the CPU's engine up to rounding, by the threshold rule; with `counts` by a plan that says how many tokens are kept
    and draws other heads and groups at every step."""
    def run(context):
        flags = ["--steps", STEPS]
        if counts:
            plan = context.out / "counts.plan.json"
            plan.write_text(changing_plan("counts", 2, 3, 64, even_timesteps(STEPS), 2, 40, None))
            flags = ["--plan", plan]
        mine = made(context, "mine", model=model, dtype=dtype, count=4, flags=flags)
        # The masked modules round to bfloat16 on every processor; what the CPU's engine calls so may be nearer to float32.
        other = "cpu" if dtype == "f32" else "reference"
        cpu = made(context, "cpu", model=model, dtype=dtype, count=4, flags=flags, how=["--engine", other])
        if dtype == "f32":
            limit, off = 1e-4, distance(mine, cpu)
            context.value("largest difference from the CPU's engine", off, "", limit, "limit")
        else:  # where a token decides otherwise an image goes its own way: as far from float32 as the reference's bfloat16 is
            exact = made(context, "exact", model=model, dtype="f32", count=4, flags=flags, how=["--engine", "cpu"])
            limit, off = max(BF16_LIMIT, BF16_FACTOR * distance(cpu, exact)), distance(mine, exact)
            context.value("largest difference from float32", off, "", limit, "limit")
        if not off <= limit:
            raise Failed(f"images differ from the CPU's by {off:.3g} of the largest value, {limit:.3g} is the limit")
    return run


def overflow(context):
    """The threshold rule guesses how many tokens a step keeps and runs a step again that kept more: the result is the same."""
    model = ["--model", THRESHOLD_MODEL]
    said = context.ask("bench", *model, "--steps", 4 if context.dry else 50, "--repeats", 1, "--batch", 2, "--dtype", "bf16", *engine(context))
    redone = said.get("redone_forwards")
    if redone is None:
        context.note("the program does not say redone_forwards")
    context.value("steps run again", redone, "")
    share = said["executed_gmacs"] / said["required_gmacs"]
    context.value("executed over required", share, "", context.table["limits"]["executed over required, threshold"], "limit")
    return {"redone_forwards": redone, "steps": said["steps"]}


def no_wait(context):
    """Of a program that counts what waited or was allocated inside the steps after a key's first ones."""
    context.need_card()
    said = context.ask("bench", "--model", TINY, "--steps", 8, "--repeats", 2, *engine(context))
    counted = {key: said.get(key) for key in ("host_waits", "allocations_in_steps")}
    for key, count in counted.items():
        context.value(key, count, "", 0, "equal")
    if None in counted.values():
        raise Skip(f"the program does not say {', '.join(key for key, count in counted.items() if count is None)}")
    if any(counted.values()):
        raise Failed(f"inside steps: {counted}")


# --- errors: one line, what, where, wanted, got, way out -----------------------------------------------------------


def one_line_error(arguments, wanted, exits=(1, 2)):
    def run(context):
        done = context.run(*[argument(context) if callable(argument) else argument for argument in arguments], "-q", most=120)
        lines = done.stderr.splitlines()
        context.note(last_error(done.stderr)[:300])
        if done.returncode == 2 and any(word in done.stderr for word in UNKNOWN):
            raise Refused(last_error(done.stderr))
        if done.returncode not in exits or len(lines) != 1 or not lines[0].startswith("dydit: error: "):
            raise Failed(f"one line of an error was expected, got exit {done.returncode} and {len(lines)} lines: {' / '.join(lines)[:200]}")
        said = lines[0].lower()
        if not any(word in said for word in wanted):
            raise Failed(f"none of {', '.join(wanted)} in: {lines[0][:200]}")
    return run


def lines(context):
    bench = ["bench", "--model", TINY, "--steps", "1", "--repeats", "1", "--engine", "torch"]
    size = ["bench", "--size", "DiT-S/8" if context.dry else "DiT-XL/2", "--input-size", "1024" if context.dry else "64", "--steps", "1", "--repeats", "1"]
    return [
        Line("card", "nvidia-smi, once", card, 2),
        Line("program", "the program starts", program, 5),
        Line("primitives", "device_primitives_test: every primitive of device.h against its emulation, bits", kernel_tests("*Primitive*"), 20),
        Line("kernels", "every kernel against its ATen form and double", kernel_tests("-*Primitive*"), 30),
        Line("forward f32", "recorded forwards of the original code, two blocks", verify("forward.safetensors", "f32"), 6),
        Line("forward bf16", "the same in bfloat16", verify("forward.safetensors", "bf16"), 6),
        Line("diffusion f32", "recorded steps and whole sampling runs", verify("diffusion.safetensors", "f32"), 8),
        Line("SiT f32", "the same of a SiT", verify("sit/forward.safetensors", "f32", GOLDEN / "sit/model.safetensors"), 6),
        Line("threshold f32", "the CPU engine's images by the threshold rule, float32", against_the_cpu("f32"), 8),
        Line("threshold bf16", "the same in bfloat16", against_the_cpu("bf16"), 8),
        Line("counts f32", "by keep counts, with other heads and groups at every step, float32", against_the_cpu("f32", counts=True), 8),
        Line("counts bf16", "the same in bfloat16", against_the_cpu("bf16", counts=True), 8),
        Line("forced overflow", "threshold rule of a trained model: steps that kept more than was guessed", overflow, 8),
        Line("same for every batch", "images of batch 1, 2, 5 and 16: bits", same_for_every_batch, 16),
        Line("same for every batch, XL", "the same of four XL blocks, by a plan and complete: bits", same_for_every_batch_of_xl, 30),
        Line("same twice", "two runs: bits", same_twice, 8),
        Line("shards", "three shards and one run: bits", shards, 16),
        Line("graphs", "graphs on and off: bits", graphs, 8),
        Line("no wait", "no wait of the host and no allocation inside a step", no_wait, 6),
        Line("memcheck", "compute-sanitizer memcheck, two-block model", sanitizer("memcheck"), 40),
        Line("racecheck", "compute-sanitizer racecheck, two-block model", sanitizer("racecheck"), 40),
        Line("error: memory", "a batch that does not fit: one line", one_line_error(
            [*size, "--batch", "65536", "--engine", "torch", "--device", lambda context: context.device], ("memory",), (1,)), 20),
        Line("error: no such card", "--device cuda:99: one line", one_line_error([*bench, "--device", "cuda:99"], ("cuda", "gpu")), 5),
        Line("error: invariance", "--no-batch-invariant on the CPU: one line", one_line_error(
            [*bench, "--device", "cpu", "--no-batch-invariant"], ("invariant",), (2,)), 5),
    ]
