"""No flag is accepted and without effect: every flag of every verb, as --help lists them, has a row here, and two runs
that differ in it alone differ in what they print, write or refuse. And what a flag needs to have an effect is said."""

import concurrent.futures
import hashlib
import json
import pathlib
import re
import shutil
import subprocess
import tempfile

import numpy as np

import support
import vae_files
from support import GOLDEN, TINY, ProgramTest

FAILED, USAGE = 1, 2
VAE, VAE_VECTORS = GOLDEN / "vae/kl16", GOLDEN / "vae/kl16.safetensors"
# What no two runs have in common.
TIMES = {"seconds", "load_seconds", "decode_seconds", "ms_per_sample", "ms_low", "ms_high", "gflops", "peak_share", "peak_gflops", "peak_rss_mb", "seconds_low", "cpu_seconds", "gmacs_per_second", "peak_bytes",
         "speedup", "realised_share", "images_per_second", "seconds_per_image"}
# Files whose bytes are a function of the flags; of others the name counts.
EXACT = (".npz", ".safetensors", ".csv", ".svg", ".pt", "samples/0000002.png")


def without_times(value):
    if isinstance(value, dict):
        return {key: dict.fromkeys(inner, 0) if key == "all" and "operators" in key else without_times(inner)
                for key, inner in value.items() if key not in TIMES}
    return [without_times(inner) for inner in value] if isinstance(value, list) else value


def shape_of(operators):
    """Names of the operators and the number of blocks; the milliseconds differ."""
    return {key: sorted(value) if isinstance(value, dict) else len(value) for key, value in operators.items()}


def row(*given, base=None, env=None, bare=False):
    """The flag's arguments; `base`: what both runs have instead of the verb's own; `bare`: without --json."""
    return {"given": [str(word) for word in given], "base": base, "env": env or {}, "bare": bare}


def common_rows(quiet_base=None, quiet_env=None):
    return {"--help": row("--help"), "--config": row("--config", "no.toml"), "--json": row("--json", bare=True),
            "--verbose": row("--verbose"), "--quiet": row("--quiet", base=quiet_base, env=quiet_env)}


class FlagsBase(ProgramTest):
    def setUp(self):
        super().setUp()
        self.accounts = {}
        self.shared = self.work / "shared"
        self.shared.mkdir()
        self.write("shared/no.toml", "no-flag = 1\n")
        self.names = self.write("shared/names.txt", "".join(f"class {i}\n" for i in range(self.classes)))

    classes = 8

    def listed(self, verb):
        """The first long name of each flag."""
        said = self.run_ok(verb, "--help") if verb != "generate" else self.run_program(verb, "--help").stdout
        names = re.findall(r"^  (-[^ ]+)", said, re.MULTILINE)
        return {next(name for name in line.split(",") if name.startswith("--")) for line in names}

    def account(self, args, env, bare):
        """All that a run in an empty folder says and leaves, without times."""
        with tempfile.TemporaryDirectory(dir=self.work) as folder:
            words = [*map(str, args), *([] if bare or "--json" in args else ["--json"])]
            words = [str(self.shared / word) if (self.shared / word).is_file() else word for word in words]
            done = subprocess.run([support.PROGRAM, *words], cwd=folder, env=support.environment(env),
                                  stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=support.TIMEOUT)
            said = done.stdout
            if said.startswith("{"):
                told = json.loads(said)
                for model in ("static", "dynamic"):
                    if "operators" in told.get(model, {}):
                        told[model]["operators"] = shape_of(told[model]["operators"])
                said = without_times(told)
            else:
                said = re.sub(r"\d+\.\d+ ?(s|%|images)", "#", said)
            lines = [re.sub(r"Sec: [\d.]+", "", line) for line in done.stderr.splitlines() if " s left" not in line]
            files = {}
            for path in sorted(pathlib.Path(folder).rglob("*")):
                name = re.sub(r"tfevents.*", "tfevents", str(path.relative_to(folder)))
                content = path.read_bytes() if path.is_file() and name.endswith(EXACT) else b""
                if name.endswith("log.csv"):
                    content = str(content.count(b"\n")).encode()
                if name.endswith(".safetensors") and content:
                    content = support.header(path)[1]  # the record beside the tensors has times
                files[name] = hashlib.sha256(content).hexdigest()
            return done.returncode, said, lines, files

    def accounts_of(self, runs):
        """[(args, env, bare)] -> their accounts, each run once, two at a time."""
        keys = [json.dumps([list(map(str, args)), env, bare]) for args, env, bare in runs]
        new = {key: run for key, run in zip(keys, runs) if key not in self.accounts}
        with concurrent.futures.ThreadPoolExecutor(2) as pool:
            for key, account in zip(new, pool.map(lambda run: self.account(*run), new.values())):
                self.accounts[key] = account
        return [self.accounts[key] for key in keys]

    def check(self, verb, base, rows):
        self.assertEqual(self.listed(verb), set(rows), "a flag of --help without a row here, or a row without a flag")
        pairs = []
        for entry in rows.values():
            start = [verb, *(base if entry["base"] is None else entry["base"])]
            given = entry["given"]
            without = start
            if given and given[0] in start:  # its value differs
                at = start.index(given[0])
                without, start = start, start[:at] + start[at + 2:]
            pairs += [(without, entry["env"], entry["bare"]), ([*start, *given], entry["env"], entry["bare"])]
        found = self.accounts_of(pairs)
        for name, before, after in zip(rows, found[::2], found[1::2]):
            self.assertNotEqual(before, after, f"{verb} {name} has no effect")
        again = self.account([verb, *base], {}, False)
        self.assertEqual(self.accounts_of([([verb, *base], {}, False)])[0], again, "two equal runs differ: what is compared?")
        self.assertEqual(again[0], 0, again)

    def pixel_model(self):
        """The golden DyDiT cut to three channels."""
        tensors, metadata = support.load(TINY)
        config = json.loads(metadata["config"])
        tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :3]
        for name in ("weight", "bias"):  # rows (p, q, eps and variance of 4 channels)
            old = tensors[f"final_layer.linear.{name}"]
            tensors[f"final_layer.linear.{name}"] = old.reshape(4, 2, 4, *old.shape[1:])[:, :, :3].reshape(
                24, *old.shape[1:]) * np.float32(0.01)
        self.classes = config["num_classes"]
        return self.save("shared/pixels.safetensors", tensors, {"config": json.dumps({**config, "in_channels": 3})})

    def plan_file(self):
        """Of the golden model's sizes."""
        steps = [{"t": 900, "attn": "cc", "mlp": "cc"}, {"t": 400, "attn": "00", "mlp": "0c"}]
        return self.write("shared/plan.json", json.dumps({"dydit_plan": 1, "name": "two steps", "depth": 2, "num_heads": 3,
                                                          "num_tokens": 64, "forecast": "taylor", "steps": steps}))

    def static_model(self, model):
        self.run_ok("convert", model, self.shared / "static.safetensors", "--to", "static")
        return self.shared / "static.safetensors"

    def images(self, name, side=8, level=40):
        for index, folder in enumerate(("dark", "light")):
            (self.shared / name / folder).mkdir(parents=True)
            for i in range(4):
                ramp = (np.arange(side * side * 3) * (7 + i) % 200 + level + index * 10).astype(np.uint8)
                self.write(f"shared/{name}/{folder}/{i}.png", support.png_bytes(ramp.reshape(side, side, 3)))
        return self.shared / name


GPU = {"--device": row("--device", "cuda"), "--graphs": row("--graphs", "on"), "--no-batch-invariant": row("--no-batch-invariant")}
MODEL = {**GPU, "--num-heads": row("--num-heads", "4"), "--weights": row("--weights", "none"), "--threads": row("--threads", "2"),
         "--path": row("--path", "linear"), "--prediction": row("--prediction", "velocity")}
FILE = {name: MODEL[name] for name in ("--num-heads", "--weights", "--path", "--prediction")}


def sde_rows(base):
    """Of verbs that sample: what belongs to em-sde, of a model that is taken for a SiT."""
    sde = [*base, "--path", "linear", "--sampler", "em-sde"]
    return {"--diffusion-form": row("--diffusion-form", "constant", base=sde),
            "--diffusion-norm": row("--diffusion-norm", "0.5", base=sde),
            "--last-step": row("--last-step", "euler", base=sde),
            "--last-step-size": row("--last-step-size", "0.1", base=sde)}


def plan_rows(base, plan):
    """Of verbs that sample; `base` has guidance and steps enough, `plan` is a file for another number of them."""
    cached = [*base, "--cache", "fora:2"]
    at = base.index("--steps")
    return {"--plan": row("--plan", plan, base=[*base[:at], *base[at + 2:]]), "--cache": row("--cache", "fora:2", base=base),
            "--guide-from": row("--guide-from", "500", base=cached), "--guide-to": row("--guide-to", "500", base=cached),
            "--guide-every": row("--guide-every", "2", base=base), "--guide-weak": row("--guide-weak", base=base),
            "--weak-steps": row("--weak-steps", "2", base=base), "--level-from": row("--level-from", "500", base=base),
            "--cache-memory": row("--cache-memory", "1e-9", base=cached)}


def vae_rows(work, base):
    """Of verbs that decode latents of 4 channels; `base` gives no autoencoder."""
    vae, other = vae_files.write_kl(work / "shared/vae"), vae_files.write_kl(work / "shared/other-vae", seed=1)
    bare = [*base, "--vae", vae / "diffusion_pytorch_model.safetensors"]
    tiled = vae_files.write_kl(work / "shared/tiled", config=vae_files.kl_config(sample_size=16))
    config = work / "shared/config.json"
    config.write_text(json.dumps(vae_files.kl_config(scaling_factor=0.5)))
    return {"--vae": row("--vae", other, base=[*base, "--vae", vae]), "--vae-config": row("--vae-config", config, base=bare),
            "--vae-dtype": row("--vae-dtype", "bf16", base=[*base, "--vae", vae]),
            "--vae-tiling": row("--vae-tiling", "diffusers", base=[*base, "--vae", tiled])}


class DecodeFlagsTest(FlagsBase):
    def test_every_flag(self):
        for seed in (0, 1):
            self.run_ok("generate", "--model", TINY, "--steps", "1", "--seed", seed, "--latents", self.shared / f"{seed}.safetensors")
        start = ["--latents", self.shared / "0.safetensors", "--npz", "x.npz"]
        rows = vae_rows(self.work, start)
        base = rows["--vae"]["base"]
        self.check("decode", base, {
            **common_rows(), **rows, "--latents": row("--latents", self.shared / "1.safetensors"),
            "--out": row("--out", "a.png"), "--npz": row("--npz", "y.npz"), "--threads": MODEL["--threads"],
            "--device": MODEL["--device"]})


class GenerateFlagsTest(FlagsBase):
    def vae_rows(self, base):
        rows = vae_rows(self.work, base)
        vae = rows["--vae"]["base"]
        rows["--preview-vae"] = row("--preview-vae", self.shared / "other-vae", base=[*vae, "--out", "a.png", "--preview-every", "1"])
        return rows

    def test_every_flag(self):
        model = self.pixel_model()
        names = self.write("shared/names.txt", "".join(f"class {i}\n" for i in range(self.classes)))
        base = ["--model", model, "--steps", "3", "--dtype", "f32", "--npz", "x.npz"]
        ddim = [*base, "--sampler", "ddim"]
        six = [*base[:2], "--steps", "6", *base[4:]]
        plans = self.shared / "plans.json"
        self.run_ok("calibrate", *six[:-2], "--images", "1", "--families", "fora", "--out", plans)
        self.check("generate", base, {
            **common_rows(), **MODEL,
            "--model": row("--model", self.static_model(model)), "--dtype": row("--dtype", "bf16"),
            "--engine": row("--engine", "reference"), "--classes": row("--classes", "3"),
            "--class-names": row("--class-names", names), "--shard": row("--shard", "0/2", base=[*base, "-n", "2"]),
            "--devices": row("--devices", "cpu,cpu", base=[*base, "-n", "2"]), "--num-images": row("--num-images", "2"),
            "--steps": row("--steps", "2"), "--timesteps": row("--timesteps", "9,500", base=[*base[:2], *base[4:]]),
            "--sampler": row("--sampler", "dpm++"), "--eta": row("--eta", "0.5", base=ddim),
            "--cfg-scale": row("--cfg-scale", "2"), "--cfg-channels": row("--cfg-channels", "1"),
            "--seed": row("--seed", "1"), "--noise": row("--noise", "torch"), "--batch": row("--batch", "2"),
            "--mode": row("--mode", "static"), "--out": row("--out", "a.png"), "--npz": row("--npz", "y.npz"),
            "--latents": row("--latents", "x.safetensors"), "--preview-every": row("--preview-every", "1", base=[*base, "--out", "a.png"]),
            "--cost-map": row("--cost-map", "map.png"), **self.vae_rows(["--model", TINY, *base[2:]]),
            **plan_rows(six, self.plan_file()), **sde_rows(base),
            "--stitch": row("--stitch", f"{self.shared / 'static.safetensors'}:0.5"),
            "--budget": row("--budget", "1", base=[*six, "--plans", plans]), "--plans": row("--plans", plans, base=[*six, "--budget", "1"]),
            "--force": row("--force", base=[*six, "--plans", plans, "--budget", "0.01"])})


class CalibrateFlagsTest(FlagsBase):
    def test_every_flag(self):
        model = self.pixel_model()
        base = ["--model", model, "--steps", "4", "--dtype", "f32", "--images", "2", "--families", "fora,steps", "--out", "plans.json"]
        ddim = [*base, "--sampler", "ddim"]
        self.check("calibrate", base, {
            **common_rows(), **MODEL, **sde_rows(base), "--model": row("--model", self.static_model(model)), "--dtype": row("--dtype", "bf16"),
            "--engine": row("--engine", "reference"), "--steps": row("--steps", "5"), "--sampler": row("--sampler", "dpm++"),
            "--eta": row("--eta", "0.5", base=ddim), "--cfg-scale": row("--cfg-scale", "2"), "--cfg-channels": row("--cfg-channels", "1"),
            "--mode": row("--mode", "static"), "--images": row("--images", "3"), "--seed": row("--seed", "1"),
            "--search-images": row("--search-images", "1", base=[*base[:2], "--steps", "12", *base[4:-4], "--families", "search", *base[-2:]]),
            "--batch": row("--batch", "1"), "--cache-memory": row("--cache-memory", "1e-9"), "--families": row("--families", "stack"),
            "--out": row("--out", "other.json"), "--csv": row("--csv", "a.csv")})


class ReportFlagsTest(FlagsBase):
    def test_every_flag(self):
        model = self.pixel_model()
        base = [model, "--images", "1", "--steps", "6", "--dtype", "f32"]
        rows = vae_rows(self.work, [TINY, *base[1:]])
        result = self.write("shared/result.json", json.dumps({"fid": 1, "n": 2, "extractor": "lite0"}))
        png = self.write("shared/x.png", support.tiny_png())
        self.check("report", base, {
            **common_rows(), **MODEL, **rows, **plan_rows(base, self.plan_file()), **sde_rows(base), "--dtype": row("--dtype", "bf16"),
            "--engine": row("--engine", "reference"), "--results": row("--results", result), "--samples": row("--samples", png),
            "--images": row("--images", "2"), "--steps": row("--steps", "5"), "--sampler": row("--sampler", "dpm++"),
            "--eta": row("--eta", "0.5"), "--cfg-scale": row("--cfg-scale", "2"), "--cfg-channels": row("--cfg-channels", "1"),
            "--mode": row("--mode", "static"), "--batch": row("--batch", "2"), "--seed": row("--seed", "1"),
            "--out": row("--out", "other.html")})


class ModelFilesFlagsTest(FlagsBase):
    """inspect, convert and verify."""

    def test_every_flag_of_inspect(self):
        png = self.write("shared/x.png", support.tiny_png())
        self.check("inspect", [TINY], {
            **common_rows(quiet_base=[png], quiet_env={"DYDIT_PLAN_STEPS": "3"}), **FILE, "--plan-steps": row("--plan-steps", "3"), "--plan": row("--plan", self.plan_file()),
            "--cache": row("--cache", "fora:2"), "--weak-steps": row("--weak-steps", "2"), "--level-from": row("--level-from", "500"),
            "--svg": row("--svg", "a.svg"), "--csv": row("--csv", "a.csv"),
            "--vae-config": row("--vae-config", VAE / "config.json", base=[self.bare_vae()])})

    def bare_vae(self):
        """Weights of an autoencoder without their configuration."""
        return shutil.copy(VAE / "diffusion_pytorch_model.safetensors", self.shared / "bare.safetensors")

    def lora_model(self, static):
        """The static model with a LoRA beside its layers."""
        tensors, metadata = support.load(static)
        random = np.random.default_rng(1)
        for name, weight in list(tensors.items()):
            if re.fullmatch(r"blocks\.\d+\.(attn\.(qkv|proj)|mlp\.fc[12])\.weight", name):
                layer = name.removesuffix("weight") + "lora."
                tensors[layer + "A"] = random.standard_normal((1, 2, weight.shape[1])).astype(np.float32)
                tensors[layer + "B"] = random.standard_normal((weight.shape[0], 2)).astype(np.float32)
        adapter = {"kind": "lora", "rank": 2, "experts": 1, "scale": 1, "mix": "A",
                   "base_sha256": hashlib.sha256(pathlib.Path(static).read_bytes()).hexdigest()}
        return self.save("shared/lora.safetensors", tensors, {**metadata, "dydit_format": "2", "adapter": json.dumps(adapter)})

    def test_every_flag_of_convert(self):
        self.pixel_model()
        names = self.write("shared/names.txt", "".join(f"class {i}\n" for i in range(self.classes)))
        static = [self.static_model(TINY), "x.safetensors"]
        lora = [self.lora_model(static[0]), "x.safetensors"]
        alone = self.shared / "alone.safetensors"
        self.run_ok("convert", lora[0], alone, "--adapters-only")
        self.check("convert", [TINY, "x.pt"], {
            **common_rows(quiet_env={"DYDIT_SEED": "3"}), **FILE, "--dtype": row("--dtype", "bf16"), "--to": row("--to", "static"), "--semantics": row("--semantics", "diffusers"),
            "--seed": row("--seed", "1", base=[*static, "--to", "dynamic"]), "--class-names": row("--class-names", names),
            "--merge": row("--merge", base=lora), "--adapters-only": row("--adapters-only", base=lora),
            "--base": row("--base", static[0], base=[alone, "x.safetensors"])})

    def test_every_flag_of_quantize(self):
        base = ["--model", TINY, "--out", "x.safetensors", "--calibrate", "2"]
        self.check("quantize", base, {
            **common_rows(), **FILE, "--model": row("--model", self.pixel_model()), "--threads": MODEL["--threads"], "--out": row("--out", "y.safetensors"),
            "--calibrate": row("--calibrate", "3"), "--smoothing": row("--smoothing", "0.4"), "--batch": row("--batch", "1"),
            "--seed": row("--seed", "1"), "--dtype": row("--dtype", "f32")})

    def test_every_flag_of_verify(self):
        base = ["--model", TINY, "--reference", GOLDEN / "forward.safetensors"]
        self.check("verify", base, {
            **common_rows(), **MODEL, "--model": row("--model", support.CIFAR), "--dtype": row("--dtype", "bf16"),
            "--engine": row("--engine", "cpu"), "--reference": row("--reference", TINY),
            "--vae": row("--vae", VAE, base=["--vae", "recipe:taesd", "--reference", VAE_VECTORS]),
            "--vae-config": row("--vae-config", VAE / "config.json", base=["--vae", self.bare_vae(), "--reference", VAE_VECTORS])})


class BenchFlagsTest(FlagsBase):
    def test_every_flag(self):
        base = ["--model", TINY, "--steps", "1", "--repeats", "1", "--batch", "1"]
        size = ["--size", "DiT-S/8", "--steps", "1", "--repeats", "1", "--batch", "1"]
        vae = vae_files.write_kl(self.work / "shared/vae")
        net = support.write_resnet20(self.shared / "resnet20.safetensors")
        half = ["--vae", vae, "--side", "16", "--repeats", "1"]
        self.check("bench", base, {
            **common_rows(), **FILE, **GPU, "--threads": MODEL["--threads"], "--model": row("--model", self.pixel_model()), "--dtype": row("--dtype", "f32", base=[*base, "--dtype", "bf16"]), "--levels": row("--levels"),
            "--engine": row("--engine", "reference"), "--size": row("--size", "odd", base=base[2:]),
            "--input-size": row("--input-size", "16", base=size), "--batch": row("--batch", "2"),
            "--heads": row("--heads", "0.3"), "--groups": row("--groups", "0.3"), "--tokens": row("--tokens", "0.3"),
            "--steps": row("--steps", "2"), "--repeats": row("--repeats", "2"), "--run": row("--run"),
            "--sampler": row("--sampler", "ddpm"), "--cfg-scale": row("--cfg-scale", "1", base=[*base, "--run"]),
            "--profile": row("--profile"), "--csv": row("--csv", "a.csv"),
            "--vae": row("--vae", vae, base=half[2:]), "--side": row("--side", "32", base=half),
            "--extractor": row("--extractor", "resnet20", base=["--weights", net]),
            "--extractor-dtype": row("--extractor-dtype", "bf16", base=["--extractor", "resnet20", "--weights", net, "--repeats", "1"]),
            "--resize": row("--resize", "clean-fid", base=["--extractor", "inception", "--weights", "recipe:inception", "--repeats", "1", "--batch", "1"]),
            **plan_rows(["--model", TINY, "--run", "--repeats", "1", "--batch", "1", "--steps", "6"], self.plan_file())})


class EvaluateFlagsTest(FlagsBase):
    def test_every_flag(self):
        model, images = self.pixel_model(), self.images("images", side=16)
        split = self.images("deep/test", side=16).parent
        self.images("deep/train", side=16)
        other = self.images("other", side=16, level=20)
        base = ["--loss", "--model", model, "--data-path", images, "--seeds", "1", "--dtype", "f32"]
        self.check("evaluate", base, {
            **common_rows(), **MODEL, "--model": row("--model", self.static_model(model)), "--dtype": row("--dtype", "bf16"),
            "--engine": row("--engine", "reference"), "--loss": row("--loss", base=base[1:]),
            "--data-path": row("--data-path", other),
            "--split": row("--split", "test", base=[*base[:3], "--data-path", split, *base[5:]]),
            "--match-classes": row("--match-classes", "position", base=[*base[:3], "--data-path", other, *base[5:]]),
            "--images": row("--images", "2"), "--seed": row("--seed", "1"), "--seeds": row("--seeds", "2"), "--level": row("--level", "1"),
            "--batch": row("--batch", "2"), "--csv": row("--csv", "a.csv"), "--weights": row("--weights", "none"),
            "--model-weights": row("--model-weights", "none"), **self.rows_of_images(model)})

    def rows_of_images(self, model):
        rng = np.random.default_rng(1)
        for name in ("a", "b", "c"):
            np.savez(self.shared / f"{name}.npz", arr_0=rng.integers(0, 256, (8, 16, 16, 3), dtype=np.uint8))
        a, b, c = (self.shared / f"{name}.npz" for name in "abc")
        split = self.images("sets/test", side=16).parent
        self.images("sets/train", side=16, level=20)
        nets = [support.write_resnet20(self.shared / f"{seed}.safetensors", seed) for seed in (1, 2)]
        net = ["--extractor", "resnet20", "--weights", nets[0]]
        lie = [*net, "--images", a, "--reference", b]
        inception = ["--weights", "recipe:inception", "--images", a, "-n", "4", "--reference", b, "--no-pairs"]
        made = [*net, "--model", model, "-n", "4", "--steps", "3", "--dtype", "f32", "--reference", b]
        latent = [*net, "--model", TINY, "-n", "4", "--steps", "3", "--dtype", "f32", "--reference", b]
        six = [*net, "--model", model, "-n", "4", "--steps", "6", "--dtype", "f32", "--reference", b]
        plans = self.shared / "plans.json"
        self.run_ok("calibrate", "--model", model, "--steps", "6", "--dtype", "f32", "--cfg-scale", "1.5", "--images", "1", "--families",
                    "fora", "--out", plans)
        return {
            "--images-split": row("--images-split", "test", base=[*net, "--images", split, "--reference", b]),
            "--reference": row("--reference", c, base=lie),
            "--reference-split": row("--reference-split", "test", base=[*net, "--images", a, "--reference", split]),
            "--num-images": row("--num-images", "5", base=lie), "--extractor": row("--extractor", "resnet56", base=lie),
            "--resize": row("--resize", "clean-fid", base=inception), "--extractor-dtype": row("--extractor-dtype", "bf16", base=lie),
            "--steps": row("--steps", "2", base=made), "--sampler": row("--sampler", "dpm++", base=made),
            "--timesteps": row("--timesteps", "9,500", base=[word for word in made if word not in ("--steps", "3")]),
            "--eta": row("--eta", "0.5", base=[*made, "--sampler", "ddim"]), "--cfg-scale": row("--cfg-scale", "2", base=made),
            "--cfg-channels": row("--cfg-channels", "1", base=made), "--mode": row("--mode", "static", base=made),
            "--labels": row("--labels", "balanced", base=made), "--stitch": row("--stitch", f"{self.shared / 'static.safetensors'}:0.5", base=made),
            **plan_rows(six, self.plan_file()), **sde_rows(made),
            "--budget": row("--budget", "1", base=[*six, "--plans", plans]),
            "--plans": row("--plans", plans, base=[*six, "--budget", "1"]),
            "--force": row("--force", base=[*six, "--plans", plans, "--budget", "0.01"]), **vae_rows(self.work, latent),
            "--features": row("--features", "kept", base=lie), "--fid-infinity": row("--fid-infinity", base=lie),
            "--torch-fidelity": row("--torch-fidelity", base=lie),
            "--no-pairs": row("--no-pairs", base=lie), "--write-stats": row("--write-stats", "a.stats.npz", base=lie),
            "--save": row("--save", "made.npz", base=made), "--name": row("--name", "mine", base=lie)}


class LatentsFlagsTest(FlagsBase):
    def test_every_flag(self):
        images, broken = self.images("images", side=16), self.images("broken", side=16)
        split = self.images("deep/train", side=16).parent
        self.images("deep/test", side=16)
        self.write("shared/broken/dark/9.png", support.tiny_png()[:40])
        rows = vae_rows(self.work, ["--data-path", images, "--out", "set"])
        tiled = vae_files.write_kl(self.shared / "tiled-8", config=vae_files.kl_config(sample_size=8))
        base = rows["--vae"]["base"]
        elsewhere = lambda path: [path if word == images else word for word in base]
        self.check("latents", base, {
            **common_rows(), **rows, "--vae-tiling": row("--vae-tiling", "diffusers", base=[*base[:-1], tiled]),
            "--threads": MODEL["--threads"], "--data-path": row("--data-path", self.images("other", side=16, level=10)),
            "--out": row("--out", "there"), "--split": row("--split", "train", base=elsewhere(split)),
            "--image-size": row("--image-size", "8"), "--skip-broken": row("--skip-broken", base=elsewhere(broken)),
            "--shard-size": row("--shard-size", "3"), "--dtype": row("--dtype", "bf16"), "--no-flip": row("--no-flip"),
            "--normalize": row("--normalize"), "--batch": row("--batch", "2"), "--check": row("--check")})


class TrainFlagsBase(FlagsBase):
    def data_rows(self, base):
        """Flags that train and finetune share; `base` has two steps."""
        broken, split = self.images("broken"), self.images("deep/train").parent
        self.images("deep/test")
        self.write("shared/broken/dark/9.png", support.tiny_png()[:40])
        grids = [*base, "--sample-every", "2", "--lr", "0.1", "--ema-decay", "0"]
        steps = base.index("--total-train-steps")
        without_steps = base[:steps] + base[steps + 2:]
        elsewhere = lambda path: [path if word == self.data else word for word in base]
        speed = [*base, "--timesteps", "speed"]
        tuned = base[0] == "--model"
        kept = ["--complete-steps", "9"] if tuned else []  # losses on features are of the complete model
        aligned = lambda kind, of=base: [*of, *kept, "--align", kind, "--align-block", "1"]
        to_self = [*aligned("self"), "--align-teacher-block", "1"]
        wide = [self.images("wide", side=32) if word == self.data else word for word in base]
        if tuned:
            plain = [word for word in wide if word not in ("--model", self.model, "--router-bias", "1,1")]
            self.run_ok("train", *plain, *self.sizes, "--results-dir", self.work / "wide")
            wide[1] = next((self.work / "wide").glob("*/checkpoints/*.safetensors"))
        networks = [self.save(f"shared/{seed}.safetensors", support.resnet56(seed)) for seed in (1, 2)]
        to_network = [*aligned("encoder", wide), "--align-encoder", networks[0]]
        adapted = [*self.start, "--adapter", "td-lora"]
        even = ["--model", self.deep, *self.options] if tuned else [*self.options, *self.deep_sizes]
        teacher = self.shared / "teacher.safetensors"
        self.run_ok("convert", self.model, teacher, "--dtype", "bf16")
        distil = [*self.start, "--distill", "lcm", "--teacher", self.model]
        logit = [*base, "--timesteps", "logit-normal", *(["--gate-rule", "capacity"] if base[0] == "--model" else [])]
        return {
            **common_rows(), "--device": MODEL["--device"], "--threads": MODEL["--threads"],
            "--data-path": row("--data-path", self.images("other", level=10)),
            "--split": row("--split", "train", base=elsewhere(split)), "--image-size": row("--image-size", "4"),
            "--skip-broken": row("--skip-broken", base=elsewhere(broken)), "--results-dir": row("--results-dir", "there"),
            "--resume": row("--resume"), "--match-classes": row("--match-classes", "number", base=self.start),
            "--total-train-steps": row("--total-train-steps", "3"),
            "--epochs": row("--epochs", "1", base=without_steps), "--global-batch-size": row("--global-batch-size", "8"),
            "--accumulate": row("--accumulate", "2"), "--lr": row("--lr", "0.01"), "--warmup-step": row("--warmup-step", "5"),
            "--weight-decay": row("--weight-decay", "0.1"), "--clip-grad": row("--clip-grad", "0.001"),
            "--skip-norm": row("--skip-norm", "1e-9"), "--ema-decay": row("--ema-decay", "0.5"),
            "--label-dropout": row("--label-dropout", "0.9"), "--flip": row("--flip", "off"), "--dtype": row("--dtype", "bf16"),
            "--timesteps": row("--timesteps", "uniform"), "--speed-k": row("--speed-k", "2", base=speed),
            "--speed-tau": row("--speed-tau", "400", base=speed), "--speed-lambda": row("--speed-lambda", "0.9", base=speed),
            "--loss-weights": row("--loss-weights", "off", base=speed),
            "--distill": row("--distill", "none", base=distil), "--teacher": row("--teacher", teacher, base=distil),
            "--distill-guidance": row("--distill-guidance", "2", base=distil), "--loss": row("--loss", "huber", base=distil),
            "--logit-mean": row("--logit-mean", "2", base=logit), "--logit-std": row("--logit-std", "0.2", base=logit),
            "--align": row("--align", "dispersive", base=to_self[:-2]), "--plr": row("--plr", "0.1", base=[*base, *kept]),
            "--align-block": row("--align-block", "9", base=aligned("dispersive")),
            "--align-teacher-block": row("--align-teacher-block", "9", base=to_self),
            "--align-weight": row("--align-weight", "2", base=to_self), "--align-until": row("--align-until", "1", base=to_self),
            "--align-interval": row("--align-interval", "900", base=to_self),
            "--align-tau": row("--align-tau", "2", base=aligned("dispersive")),
            "--align-manifold": row("--align-manifold", "0", base=to_network),
            "--align-manifold-inter": row("--align-manifold-inter", "1", base=to_network),
            "--align-encoder": row("--align-encoder", networks[1], base=to_network),
            "--levels": row("--levels", "2"), "--level-from": row("--level-from", "500"), "--long-skips": row("--long-skips", base=even),
            "--adapter": row("--adapter", "lora", base=self.start), "--lora-rank": row("--lora-rank", "2", base=adapted),
            "--lora-experts": row("--lora-experts", "2", base=adapted), "--lora-mix": row("--lora-mix", "B", base=adapted),
            "--lora-scale": row("--lora-scale", "2", base=adapted),
            "--adapter-lr-scale": row("--adapter-lr-scale", "3", base=adapted),
            "--global-seed": row("--global-seed", "1"), "--log-every": row("--log-every", "1"),
            "--ckpt-every": row("--ckpt-every", "1"), "--keep-last": row("--keep-last", "1", base=[*base, "--ckpt-every", "1"]),
            "--keep-every": row("--keep-every", "1", base=[*base, "--ckpt-every", "1", "--keep-last", "1"]),
            "--sample-every": row("--sample-every", "2"), "--sample-steps": row("--sample-steps", "3", base=grids),
            "--sample-cfg-scale": row("--sample-cfg-scale", "900", base=grids),
            "--sample-cache": row("--sample-cache", "fora:3", base=grids), **{name: {**given, "base": self.start} for name, given in FILE.items()}}

    def prepare(self):
        self.data = self.images("images")
        self.options = ["--data-path", self.data, "--total-train-steps", "2", "--global-batch-size", "4", "--dtype", "f32"]
        self.sizes = ["--hidden", "16", "--depth", "1", "--heads", "2", "--patch", "4"]
        self.run_ok("train", *self.options, *self.sizes, "--results-dir", self.work / "start")
        self.model = next((self.work / "start").glob("*/checkpoints/*.safetensors"))
        self.start = ["--model", self.model, *self.options]
        self.deep_sizes = ["--hidden", "16", "--depth", "2", "--heads", "2", "--patch", "4"]
        self.run_ok("train", *self.options, *self.deep_sizes, "--results-dir", self.work / "deep")
        self.deep = next((self.work / "deep").glob("*/checkpoints/*.safetensors"))


class TrainFlagsTest(TrainFlagsBase):
    def test_every_flag(self):
        self.prepare()
        base = [*self.options, *self.sizes]
        uvit = [*self.options, *("3" if size == "1" else size for size in self.sizes), "--family", "uvit"]
        self.check("train", base, {
            **self.data_rows(base), "--model": row("--model", self.model, base=self.options),
            "--size": row("--size", "odd", base=self.options), "--hidden": row("--hidden", "32"),
            "--depth": row("--depth", "2"), "--heads": row("--heads", "4"), "--patch": row("--patch", "2"),
            "--family": row("--family", "sit"), "--unconditional": row("--unconditional", base=uvit)})


class FinetuneFlagsTest(TrainFlagsBase):
    def test_every_flag(self):
        self.prepare()
        other = self.shared / "other.safetensors"
        self.run_ok("convert", self.model, other, "--dtype", "bf16")
        base = [*self.start, "--router-bias", "1,1"]
        self.check("finetune", base, {
            **self.data_rows(base), "--model": row("--model", other), "--lambda": row("--lambda", "0.3"),
            "--router-bias": row("--router-bias", "2,2"), "--router-lr-scale": row("--router-lr-scale", "9"),
            "--importance": row("--importance", "none"), "--anneal-start": row("--anneal-start", "0"),
            "--anneal-steps": row("--anneal-steps", "2"), "--complete-steps": row("--complete-steps", "2"),
            "--gates": row("--gates", "soft"), "--tdw": row("--tdw", "off"), "--sdt": row("--sdt", "off"),
            "--gate-rule": row("--gate-rule", "capacity"), "--token-scope": row("--token-scope", "block"),
            "--share-gradient": row("--share-gradient", "interval", base=[*base, "--gate-rule", "capacity"]),
            "--regions": row("--regions", "10", base=[*base, "--gate-rule", "capacity"]), "--static": row("--static", base=self.start),
            "--train": row("--train", "routers")})


class VainTest(FlagsBase):
    """A flag that would have no effect is refused; a variable, which is for many runs, is passed over and told."""

    def test_flags_that_need_others(self):
        model = self.pixel_model()
        static = self.static_model(model)
        png = self.write("x.png", support.tiny_png())
        np.savez(self.work / "x.npz", arr_0=np.zeros((1, 2, 2, 3), np.uint8))
        data = self.images("images")
        make = ["generate", "--model", model, "--steps", "1"]
        train = ["train", "--data-path", data, "--total-train-steps", "1"]
        tune = ["finetune", "--static", "--model", static, "--data-path", data, "--total-train-steps", "1"]
        bench = ["bench", "--steps", "1"]
        for args, flag, value, what in (
                (make, "--eta", "0", "--sampler ddim"), ([*make, "--cfg-scale", "1"], "--cfg-channels", "2", "--cfg-scale above 1"),
                (["generate", "--model", static], "--mode", "dynamic", "static DiT"),
                (["generate", "--model", static], "--cost-map", "m.png", "token routers"),
                ([*make, "--mode", "static"], "--cost-map", "m.png", "--mode dynamic"),
                (["inspect", png], "--svg", "a.svg", "x.png is none"), (["inspect", png], "--csv", "a.csv", "checkpoint"),
                (["inspect", png], "--num-heads", "2", "checkpoint"), (["inspect", "x.npz"], "--plan-steps", "9", "checkpoint"),
                (["inspect", static], "--plan-steps", "9", "static DiT"),
                (["inspect", GOLDEN / "latents/packed"], "--plan-steps", "9", "packed is none"),
                (["convert", model, "y.safetensors"], "--seed", "1", "--to dynamic"),
                (["convert", static, "folder/"], "--class-names", "n.txt", ".safetensors"),
                (["convert", static, "folder/"], "--semantics", "original", "diffusers"),
                (train, "--speed-k", "2", "--timesteps speed"), (train, "--speed-tau", "2", "--timesteps speed"),
                (train, "--loss-weights", "off", "--timesteps speed"), (train, "--speed-lambda", "1", "--timesteps speed"),
                ([*train, "--timesteps", "speed", "--loss-weights", "off"], "--speed-lambda", "1", "--loss-weights on"),
                (train, "--teacher", static, "--distill lcm"), (train, "--distill-guidance", "2", "--distill lcm"),
                (train, "--loss", "huber", "--distill lcm"),
                ([*train, "--distill", "lcm", "--teacher", static, "--sample-every", "1"], "--sample-cfg-scale", "2", "not distilled"),
                ([*make, "--stitch", f"{static}:0.4"], "--cost-map", "m.png", "no --stitch"),
                (train, "--logit-mean", "1", "--timesteps logit-normal"), (train, "--logit-std", "2", "--timesteps logit-normal"),
                (train, "--align-block", "2", "--align self, encoder or dispersive"), (train, "--align-weight", "2", "--align self"),
                (train, "--align-until", "2", "--align self"), (train, "--align-teacher-block", "2", "--align self"),
                ([*train, "--align", "dispersive"], "--align-interval", "9", "--align self"),
                ([*train, "--align", "self"], "--align-manifold", "2", "--align encoder"),
                ([*train, "--align", "self"], "--align-manifold-inter", "2", "--align encoder"),
                ([*train, "--align", "self"], "--align-encoder", "x.th", "--align encoder"),
                ([*train, "--align", "self"], "--align-tau", "2", "--align dispersive"),
                (train, "--lora-rank", "2", "--adapter lora or td-lora"), (train, "--lora-scale", "2", "--adapter lora or td-lora"),
                (train, "--adapter-lr-scale", "2", "--adapter lora or td-lora"), (train, "--adapter", "lora", "--model"),
                ([*train, "--model", static, "--adapter", "lora"], "--lora-experts", "2", "--adapter td-lora"),
                ([*train, "--model", static, "--adapter", "lora"], "--lora-mix", "B", "--adapter td-lora"),
                (tune, "--train", "routers", "--static"), ([*tune[:1], *tune[2:], "--adapter", "lora"], "--train", "routers", "--adapter"),
                ([*tune[:1], *tune[2:], "--train", "routers"], "--complete-steps", "2", "--train all"),
                (train, "--num-heads", "2", "--model"), ([*train, "--size", "DiT-S/2"], "--hidden", "8", "--size"),
                ([*train, "--model", static], "--depth", "1", "--model"), (train, "--sample-steps", "2", "--sample-every"),
                (train, "--sample-cfg-scale", "2", "--sample-every"), (train, "--sample-cache", "fora:2", "--sample-every"),
                ([*make, "--cfg-scale", "1"], "--guide-from", "9", "--cfg-scale above 1"),
                ([*make, "--cfg-scale", "1"], "--guide-to", "9", "--cfg-scale above 1"),
                ([*make, "--cfg-scale", "1"], "--guide-every", "2", "--cfg-scale above 1"),
                ([*make[:3], "--plan", self.plan_file()], "--guide-every", "2", "no --plan"),
                (make, "--cache-memory", "1", "--plan or --cache"), (make, "--plans", "p.json", "--budget"),
                ([*make[:3], "--budget", "0.5"], "--timesteps", "9", "no --budget"),
                ([*make, "--budget", "0.5"], "--guide-every", "2", "no --budget"),
                (["calibrate", "--model", model], "--eta", "0", "--sampler ddim"),
                (["calibrate", "--model", static], "--mode", "dynamic", "static DiT"),
                (["calibrate", "--model", model, "--cfg-scale", "1"], "--cfg-channels", "2", "--cfg-scale above 1"),
                (["inspect", VAE], "--num-heads", "2", "checkpoint"), (["inspect", png], "--vae-config", "c.json", "an autoencoder"),
                (["verify", "--model", TINY, "--reference", "r"], "--vae-config", "c.json", "--vae"),
                (["verify", "--vae", VAE, "--reference", "r"], "--engine", "cpu", "--model"),
                (["inspect", png], "--plan", "p.json", "checkpoint"), (["inspect", png], "--cache", "fora:2", "checkpoint"),
                (["inspect", model, "--plan", self.plan_file()], "--plan-steps", "9", "no --plan"), (tune, "--lambda", "0.4", "--static"),
                (tune, "--gates", "hard", "--static"), (tune, "--gate-rule", "capacity", "--static"),
                (tune, "--token-scope", "block", "--static"), ([*tune[:1], *tune[2:]], "--regions", "10", "--gate-rule capacity"),
                ([*tune[:1], *tune[2:]], "--share-gradient", "interval", "--gate-rule capacity"),
                ([*make, "--budget", "0.5"], "--weak-steps", "2", "no --budget"),
                (tune, "--tdw", "on", "--static"), (tune, "--sdt", "on", "--static"), (tune, "--router-bias", "1,1", "--static"),
                (tune, "--router-lr-scale", "2", "--static"), (tune, "--anneal-start", "1", "--static"),
                (tune, "--anneal-steps", "2", "--static"), (tune, "--complete-steps", "1", "--static"),
                ([*bench, "--model", model], "--cfg-scale", "2", "--run"), ([*bench, "--model", model], "--input-size", "8", "--size"),
                ([*bench, "--size", "DiT-S/8"], "--num-heads", "2", "--model"),
                ([*bench, "--model", model], "--side", "8", "--vae"), (["bench", "--vae", "v"], "--cache", "fora:2", "--model or --size"),
                (["bench", "--vae", "v"], "--cfg-scale", "2", "--model or --size"),
                (["evaluate", "--loss", "--data-path", data, "--model", static], "--mode", "dynamic", "static DiT")):
            self.expect_error([*args, flag, value], USAGE, f"{flag} {value}: needs ", what)
        self.expect_error(["convert", static, "y.pt", "--adapters-only"], USAGE, "--adapters-only: needs a target that ends in .safetensors")
        self.expect_error([*bench, "--model", model, "--run", "--profile"], USAGE, "--profile: needs forwards")
        self.expect_error([*bench, "--model", model, "--engine", "reference", "--profile"], USAGE, "--profile: needs")

    def test_flags_that_exclude_others(self):
        data = ["--data-path", self.images("images")]
        for args in (["generate", "--model", TINY, "--steps", "2", "--timesteps", "5"],
                     ["generate", "--model", TINY, "--quiet", "--verbose"],
                     ["generate", "--model", TINY, "--plan", "p.json", "--cache", "fora:2"],
                     ["generate", "--model", TINY, "--plan", "p.json", "--budget", "0.5"],
                     ["generate", "--model", TINY, "--cache", "fora:2", "--budget", "0.5"],
                     ["inspect", TINY, "--plan", "p.json", "--cache", "fora:2"],
                     ["report", TINY, "--plan", "p.json", "--cache", "fora:2"],
                     ["verify", "--reference", "r", "--model", TINY, "--vae", VAE],
                     ["bench", "--model", TINY, "--size", "DiT-S/2"], ["bench", "--model", TINY, "--vae", "v"], ["train", *data, "--model", TINY, "--size", "DiT-S/2"],
                     ["train", *data, "--total-train-steps", "2", "--epochs", "1"]):
            said = self.expect_error(args, USAGE, "give one of them", quiet=False)
            for flag in args[-4::2] if "--quiet" not in args else args[-2:]:
                self.assertIn(str(flag), said)

    def test_a_file_counts_as_a_flag(self):
        path = self.write("run.toml", "eta = 0.5\n")
        self.expect_error(["generate", "--model", TINY, "--config", path], USAGE, "run.toml: --eta 0.5: needs --sampler ddim")

    def test_a_variable_is_passed_over(self):
        flags = ["generate", "--model", TINY, "--latents", "x.safetensors", "--steps", "1", "--cfg-scale", "1"]
        plain = self.run_json(*flags)
        result = self.run_program(*flags, env={"DYDIT_ETA": "0.5", "DYDIT_CFG_CHANNELS": "1", "DYDIT_TIMESTEPS": "5"})
        self.assertEqual(result.returncode, 0, result.stderr)
        for told in ("passed over: --eta 0.5 (DYDIT_ETA): needs --sampler ddim", "--cfg-channels 1 (DYDIT_CFG_CHANNELS)",
                     "--timesteps 5 (DYDIT_TIMESTEPS): --steps is given"):
            self.assertIn(told, result.stderr)
        again = self.run_json(*flags, env={"DYDIT_ETA": "0.5", "DYDIT_CFG_CHANNELS": "1", "DYDIT_TIMESTEPS": "5"})
        for key in ("eta", "cfg_channels", "steps", "spacing"):
            self.assertEqual(plain[key], again[key])

    def test_a_variable_yields_to_the_flag_that_excludes_it(self):
        run = self.run_json("generate", "--model", TINY, "--latents", "x.safetensors", "--timesteps", "9,4", env={"DYDIT_STEPS": "7"})
        self.assertEqual((run["steps"], run["timesteps"]), (2, [9, 4]))

    def test_more_classes_than_images_are_told(self):
        said = self.run_program("generate", "--model", TINY, "--latents", "x.safetensors", "--steps", "1", "--classes", "1,2,3", "-n", "1")
        self.assertIn("passed over: the last 2 of 3 classes", said.stderr)


class NumbersTest(FlagsBase):
    """Every number of every verb goes through one door."""

    WORDS = ("nan", "inf", "-inf", "1e999", "", " 1", "1 ", "1x", "0x1", "1;5", "--5", "1_0", "NaN", "infinity")

    def test_every_number(self):
        positions = {"inspect": [TINY], "convert": [TINY, "x.safetensors"], "report": [TINY]}
        for verb in ("generate", "inspect", "report", "verify", "convert", "train", "finetune", "bench", "evaluate", "latents", "quantize", "serve"):
            said = self.run_program(verb, "--help").stdout
            numbers = re.findall(r"^  (?:-\w,)?(--[a-z-]+)[^ ]* (INT|FLOAT|UINT)", said, re.MULTILINE)
            self.assertTrue(numbers, verb)
            for flag, kind in numbers:
                own = {"INT": ("1.5", "1e1", "-1.5"), "UINT": ("-1", "99999999999999999999999"), "FLOAT": ("1e-9999",)}[kind]
                # A word each, another for every flag; NaN is what ranges let through.
                words = own + self.WORDS
                for word in {words[sum(map(ord, verb + flag)) % len(words)], "nan" if kind == "FLOAT" else own[0]}:
                    with self.subTest(verb=verb, flag=flag, word=word):
                        self.expect_error([verb, *positions.get(verb, []), f"{flag}={word}"], USAGE, flag)

    def test_whole_numbers_are_neither_wrapped_nor_cut(self):
        evaluate = ["evaluate", "--loss", "--model", TINY, "--data-path", "images"]
        train = ["train", "--data-path", "images", "--size", "DiT-S/2", "--total-train-steps", "1"]
        for args, flag in ((["convert", TINY, "x.pt", "--to", "dynamic"], "--seed"), (evaluate, "--seed"), (train, "--seed"),
                           (["generate", "--model", TINY], "--seed")):
            for value in ("-1", "18446744073709551616", "1e3"):
                self.expect_error([*args, f"{flag}={value}"], USAGE, "seed", value, "0 to 18446744073709551615")
        self.expect_error([*train, "--keep-last=4294967297"], USAGE, "--keep-last", "4294967297")

    def test_leading_zeros_and_signs_are_decimal(self):
        run = self.run_json("generate", "--model", TINY, "--latents", "x.safetensors", "--steps", "010", "--seed=+7",
                            "--cfg-scale", "1.50")
        self.assertEqual((run["steps"], run["seed"], run["cfg_scale"]), (10, 7, 1.5))


if __name__ == "__main__":
    support.main()
