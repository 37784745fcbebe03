"""dydit train and dydit finetune: what a run leaves behind, that no work is lost, and what is refused.

Models of a few thousand weights on 24 images of 8x8 in 4 classes, float32; a run takes about a second.
"""

import csv
import fcntl
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import subprocess
import time

import numpy as np

import support
from support import PROGRAM, TINY, ProgramTest, environment, png_bytes, read_png

FAILED, USAGE, CANCELLED = 1, 2, 130
CLASSES = ["blue", "gray", "green", "red"]
COLOURS = {"blue": (30, 40, 220), "gray": (128, 128, 128), "green": (20, 200, 60), "red": (230, 30, 20)}
IMAGES_A_CLASS, SIDE = 6, 8
SHAPE = ["--hidden", "32", "--depth", "2", "--heads", "2", "--patch", "2"]
SMALL = ["--global-batch-size", "8", "--dtype", "f32", "--lr", "1e-3", "--ema-decay", "0.9"]
ROUTED = ["--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps", "1"]  # gates that open and close
CLOCKS = {"seconds", "images_per_second"}  # columns that differ from run to run


def image(name, index, side=SIDE, channels=3):
    """A flat colour with noise of its own."""
    noise = np.random.default_rng(100 * CLASSES.index(name) + index).integers(-20, 20, (side, side, 3))
    return np.clip(np.array(COLOURS[name]) + noise, 0, 255).astype(np.uint8)[:, :, :channels]


def write_images(folder, classes=CLASSES, side=SIDE, channels=3):
    for name in classes:
        (folder / name).mkdir(parents=True)
        for index in range(IMAGES_A_CLASS):
            (folder / name / f"{index}.png").write_bytes(png_bytes(image(name, index, side, channels)))
    return folder


def last_of_each(flags):
    """Of a flag that is there twice the last one, for the program takes each once."""
    values = {}
    for word in map(str, flags):
        if word.startswith("-"):
            values[word] = values.pop(word, [])[:0]
        else:
            values[list(values)[-1]].append(word)
    return [word for flag, words in values.items() for word in (flag, *words)]


def tensors_of(path):
    return support.load(path)[0]


def rows_of(run):
    with open(run / "log.csv", newline="") as file:
        return [{key: float(value) if value else None for key, value in row.items()} for row in csv.DictReader(file)]


def steps_of(run, suffix=".state"):
    return sorted(int(path.stem) for path in (run / "checkpoints").glob("*" + suffix))


class TrainBase(ProgramTest):
    def setUp(self):
        super().setUp()
        self.images = write_images(self.work / "images")

    def command(self, verb, *flags, results="results"):
        return [verb, *last_of_each(["--data-path", self.images, "--results-dir", results, *SMALL, *flags])]

    def train(self, *flags, results="results", shape=SHAPE):
        """Trains from scratch; returns the folder of the newest run."""
        self.run_ok(*self.command("train", *shape, *flags, results=results))
        return self.newest(results)

    def finetune(self, model, *flags, results="results"):
        self.run_ok(*self.command("finetune", "--model", model, *flags, results=results))
        return self.newest(results)

    def newest(self, results="results"):
        return sorted((self.work / results).iterdir())[-1]

    def static_model(self):
        """A checkpoint of five steps, far enough from zero for every weight to matter."""
        run = self.train("--total-train-steps", "5", "--lr", "0.01", "--ema-decay", "0", results="static")
        return run / "checkpoints/0000005.safetensors"

    def same_tensors(self, a, b):
        a, b = tensors_of(a), tensors_of(b)
        self.assertEqual(set(a), set(b))
        for name in a:
            self.assertEqual(a[name].tobytes(), b[name].tobytes(), name)

    def same_run(self, a, b, step):
        """The checkpoint and all that resuming needs, bit for bit."""
        for suffix in (".safetensors", ".state"):
            name = f"checkpoints/{step:07}{suffix}"
            self.same_tensors(a / name, b / name)
        counters = [json.loads(support.load(run / f"checkpoints/{step:07}.state")[1]["counters"]) for run in (a, b)]
        self.assertEqual(*counters)

    def same_rows(self, a, b):
        """Of two runs with the same --log-every, the clocks aside."""
        a, b = ([{key: row[key] for key in row if key not in CLOCKS} for row in rows_of(run)] for run in (a, b))
        self.assertEqual(a, b)


class StaticTest(TrainBase):
    """dydit train."""

    def test_from_scratch(self):
        run = self.train("--total-train-steps", "20", "--log-every", "5", "--ckpt-every", "10")
        self.assertEqual(run.name, "000-DiT-2x32-2")
        self.assertEqual(steps_of(run), [10, 20])
        self.assertEqual(steps_of(run, ".safetensors"), [10, 20])
        rows = rows_of(run)
        self.assertEqual([row["step"] for row in rows], [5, 10, 15, 20])
        self.assertLess(rows[-1]["loss"], rows[0]["loss"])
        for row in rows:
            self.assertAlmostEqual(row["loss"], row["mse"] + row["vb"], places=5)
            self.assertEqual((row["ratio_training"], row["ratio_inference"], row["target_ratio"]), (1, 1, 1))
            self.assertGreater(row["images_per_second"], 0)
            self.assertAlmostEqual(row["lr"], 1e-3)

    def test_a_second_run_has_the_next_number(self):
        self.train("--total-train-steps", "1")
        self.assertEqual(self.train("--total-train-steps", "1").name, "001-DiT-2x32-2")

    def test_from_a_checkpoint(self):
        model = self.static_model()
        run = self.train("--model", model, "--total-train-steps", "1", "--lr", "0", "--ema-decay", "0", shape=[])
        self.same_tensors(model, run / "checkpoints/0000001.safetensors")
        moved = self.train("--model", model, "--total-train-steps", "3", "--log-every", "1", "--warmup-step", "4",
                           shape=[])
        self.assertEqual([row["lr"] for row in rows_of(moved)], [0.00025, 0.0005, 0.00075])

    def test_the_seed_decides(self):
        runs = [self.train("--total-train-steps", "3", "--global-seed", seed) for seed in ("1", "1", "2")]
        self.same_run(runs[0], runs[1], 3)
        first, other = (tensors_of(run / "checkpoints/0000003.safetensors") for run in (runs[0], runs[2]))
        name = "blocks.0.attn.qkv.weight"
        self.assertFalse(np.array_equal(first[name], other[name]))

    def test_threads_change_no_result(self):
        a, b = (self.train("--total-train-steps", "5", "--threads", threads) for threads in ("1", "2"))
        self.same_run(a, b, 5)

    def test_epochs(self):
        answer = self.run_json(*self.command("train", *SHAPE, "--epochs", "2.5"))
        self.assertEqual(answer["steps"], 8)  # 2.5 x 24 images in batches of 8

    def test_one_channel_and_odd_sizes(self):
        shutil.rmtree(self.images)
        write_images(self.images, side=9, channels=1)
        run = self.train("--total-train-steps", "2", "--sample-every", "2", "--sample-steps", "1",
                         shape=["--hidden", "36", "--depth", "1", "--heads", "3", "--patch", "3"])
        self.assertEqual(read_png(run / "samples/0000002.png").shape[2], 1)
        self.assertEqual(tensors_of(run / "checkpoints/0000002.safetensors")["x_embedder.proj.weight"].shape, (36, 1, 3, 3))

    def test_other_sizes_are_cropped_to_the_models(self):
        model = self.static_model()
        shutil.rmtree(self.images)
        write_images(self.images, side=16)
        run = self.train("--model", model, "--total-train-steps", "1", shape=[])
        self.assertEqual(tensors_of(run / "checkpoints/0000001.safetensors")["pos_embed"].shape, (1, 16, 32))

    def test_image_size_is_the_side_to_train_on(self):
        run = self.train("--image-size", "4", "--total-train-steps", "1")
        self.assertEqual(tensors_of(run / "checkpoints/0000001.safetensors")["pos_embed"].shape, (1, 4, 32))

    def test_accumulation_agrees(self):
        flags = ["--total-train-steps", "5", "--log-every", "1"]
        whole, cut = self.train(*flags), self.train(*flags, "--accumulate", "4")
        for a, b in zip(rows_of(whole), rows_of(cut), strict=True):
            for key in ("loss", "mse", "vb", "grad_norm"):
                self.assertAlmostEqual(a[key], b[key], delta=1e-4 * max(1, abs(a[key])), msg=key)

    def test_bfloat16_is_near_float32(self):
        flags = ["--total-train-steps", "5", "--log-every", "1"]
        exact, rounded = self.train(*flags), self.train(*flags, "--dtype", "bf16")
        for a, b in zip(rows_of(exact), rows_of(rounded), strict=True):
            self.assertAlmostEqual(a["loss"], b["loss"], delta=0.02 * a["loss"])
        self.assertNotEqual([row["loss"] for row in rows_of(exact)], [row["loss"] for row in rows_of(rounded)])
        self.assertEqual(tensors_of(rounded / "checkpoints/0000005.state")["values"].dtype, np.float32)


class DynamicTest(TrainBase):
    """dydit finetune."""

    def test_finetune(self):
        run = self.finetune(self.static_model(), *ROUTED, "--lambda", "0.4", "--total-train-steps", "10", "--log-every", "1")
        self.assertEqual(run.name, "000-DyDiT-2x32-2")
        tensors, metadata = support.load(run / "checkpoints/0000010.safetensors")
        for name in ("attn_rate.router.weight", "mlp_rate.router.bias", "token_selection.mlp_head.2.bias"):
            self.assertIn(f"blocks.1.{name}", tensors)
        self.assertEqual(float(metadata["lambda"]), 0.4)
        rows = rows_of(run)
        self.assertEqual([row["target_ratio"] for row in rows], [1] + [0.4] * 9)  # W = 1
        for row in rows:
            self.assertLess(row["ratio_training"], 0.95)
            self.assertAlmostEqual(row["flops_loss"], 2 * (row["ratio_training"] - row["target_ratio"])**2, places=5)
            self.assertAlmostEqual(row["loss"], row["mse"] + row["vb"] + row["flops_loss"], places=5)
            for part in ("heads", "groups", "tokens"):
                for quarter in range(4):
                    self.assertLessEqual(row[f"{part}_q{quarter}"], 1)

    def test_all_is_open_at_the_start(self):
        row = rows_of(self.finetune(self.static_model(), "--total-train-steps", "1"))[0]
        self.assertEqual((row["ratio_inference"], row["target_ratio"]), (1, 1))
        self.assertGreater(row["ratio_training"], 0.98)

    def test_complete_term(self):
        run = self.finetune(self.static_model(), "--complete-steps", "2", "--total-train-steps", "4", "--log-every", "1")
        self.assertEqual([row["complete_mse"] > 0 for row in rows_of(run)], [True, True, False, False])
        self.assertEqual([row["complete_vb"] > 0 for row in rows_of(run)], [True, True, False, False])

    def test_the_ratio_falls_to_its_target(self):
        run = self.finetune(self.static_model(), *ROUTED, "--router-bias", "3,3", "--router-lr-scale", "100", "--lambda", "0.5",
                            "--total-train-steps", "60", "--log-every", "10")
        first, last = rows_of(run)[0], rows_of(run)[-1]
        self.assertLess(abs(last["ratio_training"] - 0.5), abs(first["ratio_training"] - 0.5))
        self.assertLess(abs(last["ratio_training"] - 0.5), 0.1)

    def test_capacity_rule(self):
        """Both ratios are the target at every step; what generate needs is then the same at every seed."""
        flags = ["--router-bias", "0,0", "--anneal-start", "0", "--anneal-steps", "3", "--gate-rule", "capacity", "--lr", "0.01",
                 "--lambda", "0.6", "--log-every", "1", "--ckpt-every", "4"]
        model = self.static_model()
        run = self.finetune(model, *flags, "--total-train-steps", "8")
        for row, target in zip(rows_of(run), [1, 1 - 0.4 / 3, 1 - 0.8 / 3] + [0.6] * 5, strict=True):
            self.assertAlmostEqual(row["target_ratio"], target, places=6)
            self.assertAlmostEqual(row["ratio_inference"], target, delta=0.005 * target)
            self.assertAlmostEqual(row["ratio_training"], row["ratio_inference"], places=6)
        path = run / "checkpoints/0000008.safetensors"
        metadata = support.load(path)[1]
        self.assertEqual(metadata["gate_rule"], "capacity")
        counts = json.loads(metadata["keep_counts"])
        self.assertEqual({kind: len(blocks) for kind, blocks in counts.items()}, {"heads": 2, "groups": 2, "tokens": 2})
        made = self.run_json("generate", "--model", path, "--steps", "8", "-n", "3", "--out", "x.png")["images"]
        self.assertEqual(len({image["required_gmacs"] for image in made}), 1)
        # A run that was broken off goes on with the same counts.
        self.finetune(model, *flags, "--total-train-steps", "4", results="cut")
        cut = self.finetune(model, *flags, "--total-train-steps", "8", "--resume", results="cut")
        self.same_run(run, cut, 8)
        self.assertEqual(support.load(cut / "checkpoints/0000008.safetensors")[1]["keep_counts"], metadata["keep_counts"])

    def test_soft_gates(self):
        model = self.static_model()
        flags = [*ROUTED, "--sdt", "off", "--total-train-steps", "2", "--log-every", "1"]
        hard, soft = self.finetune(model, *flags), self.finetune(model, *flags, "--gates", "soft")
        a, b = rows_of(hard)[0], rows_of(soft)[0]
        self.assertNotEqual(a["mse"], b["mse"])
        self.assertEqual(a["ratio_inference"], b["ratio_inference"])
        self.assertNotEqual(a["ratio_training"], b["ratio_training"])

    def routers_of(self, run, step=2):
        names = tensors_of(run / f"checkpoints/{step:07}.safetensors")
        return (any("rate.router" in name for name in names), any("token_selection" in name for name in names))

    def test_parts_can_be_switched_off(self):
        model = self.static_model()
        for flags, routers in ((["--tdw", "off"], (False, True)), (["--sdt", "off"], (True, False))):
            with self.subTest(flags=flags):
                run = self.finetune(model, *ROUTED, *flags, "--total-train-steps", "2", "--log-every", "1")
                self.assertEqual(self.routers_of(run), routers)
                row = rows_of(run)[0]
                self.assertEqual((row["heads_q0"] < 1, row["groups_q0"] < 1, row["tokens_q0"] < 1),
                                 (routers[0], routers[0], routers[1]))

    def test_static_control_is_training_from_the_checkpoint(self):
        model = self.static_model()
        control = self.finetune(model, "--static", "--importance", "none", "--total-train-steps", "4")
        self.assertEqual(self.routers_of(control, 4), (False, False))
        self.assertNotIn("lambda", support.load(control / "checkpoints/0000004.safetensors")[1])
        plain = self.train("--model", model, "--total-train-steps", "4", shape=[], results="plain")
        self.same_run(control, plain, 4)

    def test_static_control_sees_the_same_batches(self):
        """With every gate open the first losses are those of the static model."""
        model = self.static_model()
        flags = ["--total-train-steps", "1"]
        dynamic = rows_of(self.finetune(model, *flags, "--router-bias", "100,100"))[0]
        control = rows_of(self.finetune(model, *flags, "--static"))[0]
        for key in ("mse", "vb"):
            self.assertAlmostEqual(dynamic[key], control[key], delta=1e-5 * abs(control[key]))

    def test_router_lr_scale(self):
        model = self.static_model()
        run = self.finetune(model, *ROUTED, "--router-lr-scale", "0", "--total-train-steps", "3", "--ema-decay", "0")
        tensors = tensors_of(run / "checkpoints/0000003.safetensors")
        self.assertFalse(tensors["blocks.0.attn_rate.router.bias"].any())
        self.assertFalse(tensors["blocks.1.token_selection.mlp_head.2.bias"].any())
        run = self.finetune(model, *ROUTED, "--total-train-steps", "3", "--ema-decay", "0")
        self.assertTrue(tensors_of(run / "checkpoints/0000003.safetensors")["blocks.0.attn_rate.router.bias"].any())

    def test_importance_orders_the_heads(self):
        model = self.static_model()
        flags = ["--lr", "0", "--ema-decay", "0", "--total-train-steps", "1"]
        kept = tensors_of(self.finetune(model, *flags, "--importance", "none") / "checkpoints/0000001.safetensors")
        moved = tensors_of(self.finetune(model, *flags) / "checkpoints/0000001.safetensors")
        static = tensors_of(model)
        name = "blocks.0.mlp.fc1.weight"
        self.assertTrue(np.array_equal(kept[name], static[name]))
        self.assertFalse(np.array_equal(moved[name], static[name]))
        importance = np.abs(moved[name]).sum(1) + np.abs(moved["blocks.0.mlp.fc2.weight"]).sum(0)
        self.assertTrue((np.diff(importance) <= 1e-5).all())


class DistillTest(TrainBase):
    """--distill lcm, and what is made of such a model."""

    def distil(self, *flags, verb="train"):
        self.model = self.static_model()
        start = ["--model", self.model, "--distill", "lcm", "--teacher", self.model]
        self.run_ok(*self.command(verb, *start, "--total-train-steps", "4", "--log-every", "1", *flags))
        return self.newest()

    def student(self, *flags, verb="train"):
        return self.distil(*flags, verb=verb) / "checkpoints/0000004.safetensors"

    def test_says_how_it_is_sampled(self):
        run = self.distil("--distill-guidance", "2", "--sample-every", "4")
        metadata = support.load(run / "checkpoints/0000004.safetensors")[1]
        self.assertEqual(json.loads(metadata["few_step"]),
                         {"kind": "lcm", "timesteps": list(range(999, 0, -20)), "guidance": 2})
        self.assertEqual(metadata["dydit_format"], "2")
        self.assertTrue((run / "samples/0000004.png").exists())
        for row in rows_of(run):
            self.assertEqual(row["loss"], row["consistency"])
            self.assertEqual(row["complete_consistency"], 0)
            self.assertFalse({"mse", "vb"} & set(row))

    def test_generate_takes_its_sampler_steps_and_row(self):
        model = self.student()
        run = self.run_json("generate", "--model", model, "--out", "x.png", "-n", "2")
        self.assertEqual((run["sampler"], run["steps"], run["cfg_scale"]), ("lcm", 4, 1))
        self.assertAlmostEqual(run["images"][0]["required_share"], 1)
        self.run_ok("generate", "--model", model, "--out", "y.png", "-n", "1", "--steps", "1")
        for flags, said in ((["--sampler", "ddim"], "sampler ddim: this model is distilled"),
                            (["--cfg-scale", "2"], "guidance scale 2: this model is distilled with guidance 1.5"),
                            (["--timesteps", "500"], "timestep 500"), (["--steps", "51"], "lcm takes 1 to 50")):
            self.expect_error(["generate", "--model", model, *flags], USAGE, said)
        self.expect_error(["generate", "--model", self.model, "--sampler", "lcm"], USAGE, "were distilled")
        self.assertIn("few steps   distilled (lcm) at 50 timesteps", self.run_ok("inspect", model))

    def test_a_dynamic_student(self):
        run = self.distil(*ROUTED, "--lambda", "0.5", "--complete-steps", "2", verb="finetune")
        rows = rows_of(run)
        self.assertEqual([row["complete_consistency"] > 0 for row in rows], [True, True, False, False])
        self.assertTrue(all(row["ratio_training"] < 1 for row in rows))
        self.run_ok("generate", "--model", run / "checkpoints/0000004.safetensors", "--out", "x.png", "-n", "2")

    def test_equals_an_unbroken_run(self):
        whole = self.distil("--loss", "huber")
        flags = ["--model", self.model, "--distill", "lcm", "--teacher", self.model, "--loss", "huber", "--log-every", "1"]
        self.run_ok(*self.command("train", *flags, "--total-train-steps", "2", results="cut"))
        self.run_ok(*self.command("train", *flags, "--total-train-steps", "4", "--resume", results="cut"))
        self.same_run(whole, self.newest("cut"), 4)

    def test_refusals(self):
        model = self.student()
        distil = ["--distill", "lcm", "--teacher", self.model]
        refused = lambda flags, *said: self.expect_error(self.command("train", *flags, "--total-train-steps", "1"), USAGE, *said)
        refused(["--model", model], "distilled to few steps", "--distill lcm")
        refused(["--model", self.model, "--distill", "lcm"], "needs --teacher")
        refused(["--model", self.model, "--distill", "lcm", "--teacher", model], "is distilled itself")
        refused(["--model", self.model, *distil, "--timesteps", "uniform"], "--timesteps uniform")
        refused(["--model", self.model, *distil, "--label-dropout", "0.1"], "--label-dropout 0.1")
        self.expect_error(["evaluate", "--loss", "--model", model, "--data-path", self.images], USAGE, "--loss", "distilled")
        self.expect_error(["convert", model, "folder/"], USAGE, "distilled to few steps")


class DataTest(TrainBase):
    """What is said of a data set, and how its classes find those of a model."""

    def said(self, *flags, verb="train", shape=SHAPE):
        result = self.run_program(*self.command(verb, *shape, "--total-train-steps", "1", *flags))
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stderr

    def named_model(self):
        return ["--model", self.static_model()]

    def rename(self, **names):
        for old, new in names.items():
            (self.images / old).rename(self.images / new)

    def test_what_is_left_out_is_said(self):
        for name in ("red/1.webp", "red/2.webp", "blue/x.bmp", "cover.png", ".DS_Store"):
            (self.images / name).write_bytes(b"not read")
        self.assertIn("24 images 3x8x8, 4 classes; left out: 2 .webp, 1 .bmp, 1 beside the class folders\n", self.said())
        self.assertIn("1 beside the class folders, 1 hidden\n", self.said("-v"))
        answer = self.run_json(*self.command("train", *SHAPE, "--total-train-steps", "1"))
        self.assertEqual(answer["left_out"], {".webp": 2, ".bmp": 1, "beside the class folders": 1})
        report = self.run_json("evaluate", "--loss", *self.named_model(), "--data-path", self.images, "--images", "4",
                               "--seeds", "1")
        self.assertEqual(report["left_out"], answer["left_out"])

    def test_a_gray_picture_does_not_decide(self):
        (self.images / "blue/0.png").write_bytes(png_bytes(image("blue", 0, channels=1)))
        said = self.said()
        self.assertIn("24 images 3x8x8", said)
        self.assertIn("1 of 24 images are gray, made RGB", said)
        model = self.named_model()
        report = self.run_program("evaluate", "--loss", *model, "--data-path", self.images, "--images", "4", "--seeds", "1")
        self.assertEqual(report.returncode, 0, report.stderr)
        self.assertIn("1 of 24 images are gray, made RGB", report.stderr)

    def test_a_folder_whose_name_is_no_utf8(self):
        os.rename(bytes(self.images / "red"), bytes(self.images) + b"/caf\xe9")
        for verb, flags in (("train", SHAPE), ("finetune", self.named_model_of_four())):
            self.expect_error(self.command(verb, *flags, "--total-train-steps", "1"), FAILED, "images", r'"caf\xe9"',
                              "not UTF-8")

    def named_model_of_four(self):
        images, self.images = self.images, write_images(self.work / "named")
        model = self.named_model()
        self.images = images
        return model

    def test_classes_are_matched_by_name(self):
        model = self.named_model()
        shutil.rmtree(self.images / "blue")
        shutil.rmtree(self.images / "green")
        said = self.said("--lr", "0", verb="finetune", shape=model)
        self.assertIn("matched by name, 2 of the model's 4", said)
        self.assertIn('"gray" -> 1 ("gray")', said)
        self.assertIn('"red" -> 3 ("red")', said)
        saved = self.newest() / "checkpoints/0000001.safetensors"
        self.assertEqual(json.loads(support.load(saved)[1]["class_names"]), CLASSES)

    def test_a_label_is_that_of_its_name(self):
        model = self.named_model()
        flags = ["evaluate", "--loss", *model, "--data-path", self.images, "--images", "6", "--seeds", "1"]
        for name in ("gray", "green", "red"):
            shutil.rmtree(self.images / name)
        blue = self.run_json(*flags)["all"]["mse"]
        self.rename(blue="red")
        red = self.run_json(*flags)["all"]["mse"]
        self.assertNotEqual(blue, red)  # the same pictures under another label
        position = self.run_program(*flags, "--match-classes", "position", "--json")
        self.assertIn('"red" -> 0 ("blue")', position.stderr)
        self.assertEqual(json.loads(position.stdout)["all"]["mse"], blue)  # the first folder is label 0

    def test_other_classes_are_refused(self):
        model = self.named_model()
        self.rename(red="rose")
        for verb in ("train", "finetune"):
            self.expect_error(self.command(verb, *model, "--total-train-steps", "1"), FAILED, '"rose"', '"red"',
                              "--match-classes position")
        self.expect_error(["evaluate", "--loss", *model, "--data-path", self.images], FAILED, '"rose"', '"red"')
        said = self.said("--match-classes", "position", verb="finetune", shape=model)
        self.assertIn("warning: classes are matched by position, whatever their names:", said)

    def test_match_classes_needs_a_model(self):
        self.expect_error(self.command("train", *SHAPE, "--total-train-steps", "1", "--match-classes", "number"), USAGE,
                          "--match-classes number", "--model")

    def test_a_zip_is_read_as_the_folder_is(self):
        folder = self.train("--total-train-steps", "2", results="a")
        shutil.make_archive(self.work / "images", "zip", self.work, "images")
        self.images = self.work / "images.zip"
        self.same_run(folder, self.train("--total-train-steps", "2", results="b"), 2)


class WatchTest(TrainBase):
    """What a run leaves to look at."""

    def test_log_lines_are_dits(self):
        run = self.train("--total-train-steps", "100", "--ckpt-every", "100")
        lines = (run / "log.txt").read_text().splitlines()
        self.assertEqual(len(lines), 1)
        # The expression of DiT's users: https://github.com/facebookresearch/DiT, train.py
        match = re.match(r"\(step=0000100\) Train Loss: (\d+\.\d{4}), Train Steps/Sec: (\d+\.\d{2})", lines[0])
        self.assertTrue(match, lines[0])
        self.assertAlmostEqual(float(match[1]), rows_of(run)[0]["loss"], places=3)
        self.assertGreater(float(match[2]), 0)
        self.assertRegex(lines[0], r"Images/Sec: \d+\.\d")

    def test_dynamic_log_lines_have_both_ratios(self):
        run = self.finetune(self.static_model(), *ROUTED, "--total-train-steps", "3")
        row = rows_of(run)[0]
        self.assertIn(f"Ratio: {row['ratio_training']:.4f} (training) {row['ratio_inference']:.4f} (inference), "
                      f"Target: {row['target_ratio']:.4f}", (run / "log.txt").read_text())

    def test_losses_on_features_have_columns(self):
        flags = ["--total-train-steps", "2", "--log-every", "1", "--align-block", "1"]
        run = self.train(*flags, "--align", "dispersive", "--plr", "0.5")
        for row in rows_of(run):
            self.assertLess(row["dispersive"], 0)
            self.assertGreater(row["plr"], 0)
            self.assertAlmostEqual(row["loss"], row["mse"] + row["vb"] + row["dispersive"] + row["plr"], places=5)
        self.assertRegex((run / "log.txt").read_text(), r", dispersive: -\d+\.\d{4}, plr: \d+\.\d{4}\n")
        self.assertFalse([name for name in tensors_of(run / "checkpoints/0000002.safetensors") if "hooks" in name])

    def test_alignment_to_an_encoder(self):
        shutil.rmtree(self.images)
        write_images(self.images, side=32)
        network, other = (self.save(f"{seed}.safetensors", support.resnet56(seed)) for seed in (1, 2))
        flags = [*SHAPE[:-1], "8", "--align", "encoder", "--align-block", "1"]
        for threads in ("1", "2"):
            said = self.run_json(*self.command("train", *flags, "--align-encoder", network, "--total-train-steps", "2", "--threads",
                                               threads, results=threads))
            self.assertEqual(said["options"]["align-encoder"], hashlib.sha256(network.read_bytes()).hexdigest())
            self.assertGreater(said["align_encoder"], -0.5)
        self.same_run(self.newest("1"), self.newest("2"), 2)
        self.expect_error(self.command("train", *flags, "--align-encoder", other, "--total-train-steps", "4", "--resume",
                                       results="1"), FAILED, "align-encoder")

    def test_the_lines_are_also_said(self):
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "4", "--log-every", "2"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(re.findall(r"^\(step=(\d+)\)", result.stderr, re.M), ["0000002", "0000004"])
        self.assertEqual(result.stdout, "wrote results/000-DiT-2x32-2/checkpoints/0000004.safetensors\n")

    def test_json_is_one_object(self):
        answer = self.run_json(*self.command("train", *SHAPE, "--total-train-steps", "4", "--log-every", "2"))
        self.assertEqual(answer["run"], "results/000-DiT-2x32-2")
        self.assertTrue((self.work / answer["checkpoint"]).is_file())
        last = rows_of(self.newest())[-1]
        for ours, column in (("steps", "step"), ("loss", "loss"), ("mse", "mse"), ("vb", "vb"), ("grad_norm", "grad_norm"),
                             ("skipped", "skipped"), ("ratio_training", "ratio_training")):
            self.assertAlmostEqual(answer[ours], last[column], places=5, msg=ours)
        self.assertEqual(answer["options"]["lr"], 1e-3)

    def test_sample_grids(self):
        run = self.train("--total-train-steps", "6", "--sample-every", "3", "--sample-steps", "2")
        self.assertEqual(sorted(path.name for path in (run / "samples").iterdir()), ["0000003.png", "0000006.png"])
        first, second = (read_png(run / f"samples/000000{step}.png") for step in (3, 6))
        self.assertEqual(first.shape, (4 * (SIDE + 2) + 2, 4 * (SIDE + 2) + 2, 3))
        self.assertFalse(np.array_equal(first, second))
        events = b"".join(path.read_bytes() for path in run.glob("events.out.tfevents.*"))
        self.assertEqual(events.count((run / "samples/0000003.png").read_bytes()), 1)

    def test_sampling_changes_no_weight(self):
        flags = ["--total-train-steps", "6"]
        self.same_run(self.train(*flags), self.train(*flags, "--sample-every", "2", "--sample-steps", "1"), 6)

    def test_checkpoints_generate(self):
        static = self.train("--total-train-steps", "2") / "checkpoints/0000002.safetensors"
        dynamic = self.finetune(static, *ROUTED, "--total-train-steps", "2") / "checkpoints/0000002.safetensors"
        for model in (static, dynamic):
            answer = self.run_json("generate", "--model", model, "--steps", "2", "-n", "2", "--classes", "red,gray",
                                   "--out", "x.png")
            self.assertEqual([made["class_name"] for made in answer["images"]], ["red", "gray"])
            self.assertEqual(read_png(self.work / "x.png").shape, (SIDE + 4, 2 * SIDE + 6, 3))
            shares = [made["required_share"] for made in answer["images"]]
            self.assertEqual(min(shares) < 1, model == dynamic, shares)

    def test_a_checkpoint_of_a_wider_model_generates(self):
        """Five classes in the model, four in the data: the file must still be one that generate reads."""
        wide = write_images(self.work / "wide", classes=CLASSES)
        shutil.copytree(wide / "red", wide / "white")
        self.images, narrow = wide, self.images
        model = self.train("--total-train-steps", "2", results="wide-results") / "checkpoints/0000002.safetensors"
        self.images = narrow
        for run in (self.train("--model", model, "--total-train-steps", "1", shape=[]),
                    self.finetune(model, "--total-train-steps", "1")):
            self.run_json("generate", "--model", run / "checkpoints/0000001.safetensors", "--steps", "1", "--out", "x.png")

    def test_rotation(self):
        run = self.train("--total-train-steps", "13", "--ckpt-every", "2", "--keep-last", "2", "--keep-every", "6")
        self.assertEqual(steps_of(run), [6, 12, 13])
        self.assertEqual(steps_of(run, ".safetensors"), [6, 12, 13])

    def test_skipped_updates_are_counted(self):
        run = self.train("--total-train-steps", "4", "--log-every", "1", "--skip-norm", "1e-6")
        self.assertEqual([row["skipped"] for row in rows_of(run)], [1, 2, 3, 4])
        self.assertEqual(json.loads(support.load(run / "checkpoints/0000004.state")[1]["counters"]),
                         {"step": 4, "updates": 0, "skipped": 4})


class ResumeTest(TrainBase):
    """--resume continues bit for bit."""

    def test_equals_an_unbroken_run(self):
        flags = ["--log-every", "5", "--ckpt-every", "10", "--warmup-step", "12"]
        whole = self.train(*flags, "--total-train-steps", "30", results="whole")
        self.train(*flags, "--total-train-steps", "10")
        run = self.train(*flags, "--total-train-steps", "30", "--resume")
        self.assertEqual(run.name, "000-DiT-2x32-2")
        self.same_run(whole, run, 30)
        self.same_rows(whole, run)

    def test_finetune_equals_an_unbroken_run(self):
        model = self.static_model()
        flags = [*ROUTED, "--log-every", "2", "--ckpt-every", "4", "--complete-steps", "6"]
        whole = self.finetune(model, *flags, "--total-train-steps", "12", results="whole")
        self.finetune(model, *flags, "--total-train-steps", "4")
        run = self.finetune(model, *flags, "--total-train-steps", "12", "--resume")
        self.same_run(whole, run, 12)
        self.same_rows(whole, run)

    def test_speed_equals_an_unbroken_run(self):
        flags = ["--log-every", "2", "--ckpt-every", "4", "--timesteps", "speed", "--global-batch-size", "6"]
        whole = self.train(*flags, "--total-train-steps", "12", results="whole")
        self.train(*flags, "--total-train-steps", "4")
        run = self.train(*flags, "--total-train-steps", "12", "--resume")
        self.same_run(whole, run, 12)
        self.same_rows(whole, run)
        rows = rows_of(run)
        self.assertTrue(all(row["weighted_mse"] < row["mse"] for row in rows), rows)
        self.assertTrue(any(row["heads_q3"] is None for row in rows) and all(row["heads_q0"] == 1 for row in rows), rows)
        for others in (["--timesteps", "uniform"], ["--timesteps", "speed", "--speed-k", "2"]):
            self.expect_error(self.command("train", *SHAPE, "--global-batch-size", "6", "--total-train-steps", "14", "--resume",
                                           *others), FAILED, "timesteps" if others[1] == "uniform" else "speed-k")

    def test_losses_on_features_equal_an_unbroken_run(self):
        flags = ["--log-every", "2", "--ckpt-every", "4", "--align", "self", "--align-block", "1", "--align-teacher-block", "2",
                 "--align-until", "7", "--plr", "0.1"]
        whole = self.train(*flags, "--total-train-steps", "12", results="whole")
        self.train(*flags, "--total-train-steps", "4")
        run = self.train(*flags, "--total-train-steps", "12", "--resume")
        self.same_run(whole, run, 12)
        self.same_rows(whole, run)
        self.assertEqual([row["align_self"] > 0 for row in rows_of(run)], [True] * 4 + [False] * 2)  # until step 7
        for others, named in ((["--align-interval", "100"], "align-interval"), (["--plr", "0.2"], "plr")):
            self.expect_error(self.command("train", *SHAPE, *flags, "--total-train-steps", "14", "--resume", *others),
                              FAILED, named)

    def test_a_run_that_another_process_continues_is_refused(self):
        run = self.train("--total-train-steps", "2")
        folder = os.open(run, os.O_RDONLY)
        self.addCleanup(os.close, folder)
        fcntl.flock(folder, fcntl.LOCK_EX)
        self.expect_error(self.command("train", *SHAPE, "--total-train-steps", "4", "--resume"), FAILED, run.name,
                          "another process")
        self.assertFalse((run / "checkpoints/0000004.safetensors").exists())

    def test_rows_beyond_the_resumed_step_are_dropped(self):
        run = self.train("--total-train-steps", "30", "--log-every", "5", "--ckpt-every", "10")
        for step in (20, 30):
            (run / f"checkpoints/{step:07}.state").unlink()
        self.train("--total-train-steps", "30", "--log-every", "10", "--ckpt-every", "10", "--resume")
        self.assertEqual([row["step"] for row in rows_of(run)], [5, 10, 20, 30])

    def test_a_checkpoint_cut_in_half_is_refused_with_its_reason(self):
        whole = self.train("--total-train-steps", "30", "--ckpt-every", "10", results="whole")
        run = self.train("--total-train-steps", "20", "--ckpt-every", "10")
        newest = run / "checkpoints/0000020.state"
        os.truncate(newest, newest.stat().st_size // 2)
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "30", "--ckpt-every", "10", "--resume"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"0000020\.state: .*damaged")
        self.assertIn("resumed at step 10\n", result.stderr)
        self.same_run(whole, run, 30)

    def test_a_refused_checkpoint_is_told_even_when_quiet(self):
        run = self.train("--total-train-steps", "20", "--ckpt-every", "10")
        newest = run / "checkpoints/0000020.state"
        os.truncate(newest, newest.stat().st_size // 2)
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "30", "--resume", "-q"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("0000020.state", result.stderr)

    def test_temporary_files_of_a_killed_run_are_removed(self):
        run = self.train("--total-train-steps", "4", "--ckpt-every", "2")
        leftovers = [run / "checkpoints/.0000006.state.tmp-12-0", run / "checkpoints/.0000006.safetensors.tmp-7-19",
                     run / ".log.csv.tmp-12-1"]
        for path in leftovers:
            path.write_bytes(b"half")
        (run / "checkpoints/.mine").write_bytes(b"whole")
        self.train("--total-train-steps", "6", "--resume")
        self.assertEqual([path.name for path in leftovers if path.exists()], [])
        self.assertTrue((run / "checkpoints/.mine").exists())

    def test_a_finished_run_stays_as_it_is(self):
        run = self.train("--total-train-steps", "5", "--log-every", "5")
        before = self.files()
        self.train("--total-train-steps", "5", "--log-every", "5", "--resume")
        self.assertEqual(self.files(), before)

    def test_fewer_steps_than_are_done_are_told(self):
        """And as many: nothing is trained, nothing is said to be written, and what is named is there."""
        run = self.train("--total-train-steps", "6")
        model = "results/000-DiT-2x32-2/checkpoints/0000006.safetensors"
        before = self.files()
        for steps in ("3", "6"):
            said = self.run_ok(*self.command("train", *SHAPE, "--total-train-steps", steps, "--resume"))
            self.assertEqual(said, f"already at step 6, {steps} asked; nothing to train: {model}\n")
            answer = self.run_json(*self.command("train", *SHAPE, "--total-train-steps", steps, "--resume"))
            self.assertEqual((answer["steps"], answer["trained"], answer["checkpoint"]), (6, False, model))
            self.assertEqual((answer["loss"], answer["images_per_second"]), (None, None))
        self.assertEqual(self.files(), before)
        # A model that was moved away is there again when it is named.
        (run / "checkpoints/0000006.safetensors").unlink()
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "6", "--resume", "-q"))
        self.assertEqual((result.returncode, self.files()), (0, before), result.stderr)
        self.assertIn("0000006.safetensors: is missing", result.stderr)

    def test_another_number_of_threads_is_told(self):
        self.train("--total-train-steps", "2", "--threads", "1")
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "4", "--resume", "--threads", "2", "-q"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"^dydit: warning: \S+: was saved with threads = 1 \(now 2\); it goes on, "
                         r"but not bit for bit as it would have\n$")

    def test_other_instructions_are_told(self):
        self.train("--total-train-steps", "2")
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "4", "--resume"),
                                  env={"DYDIT_ISA": "avx2"})
        self.assertEqual(result.returncode, 0, result.stderr)
        if "instructions" not in result.stderr:
            self.skipTest("this processor has no more than avx2: NOT TESTED with other instructions")
        self.assertIn("(now avx2)", result.stderr)

    def test_a_turned_bit_is_named_and_the_checkpoint_before_it_taken(self):
        flags = ["--total-train-steps", "9", "--ckpt-every", "3"]
        whole = self.train(*flags, results="whole")
        run = self.train("--total-train-steps", "6", "--ckpt-every", "3")
        newest = run / "checkpoints/0000006.state"
        content = bytearray(newest.read_bytes())
        content[-5] ^= 64
        newest.write_bytes(content)
        result = self.run_program(*self.command("train", *SHAPE, *flags, "--resume"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertRegex(result.stderr, r"0000006\.state: tensor '\w+' has changed since it was saved")
        self.assertIn("resumed at step 3\n", result.stderr)
        self.same_run(whole, run, 9)

    def test_checkpoints_after_a_broken_one_push_out_no_whole_one(self):
        """With one checkpoint kept, the broken one of step 8 must not be it when step 6 is saved."""
        run = self.train("--total-train-steps", "8", "--ckpt-every", "4", "--keep-last", "2")
        newest = run / "checkpoints/0000008.state"
        os.truncate(newest, 100)
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "6", "--keep-last", "1", "--resume"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(steps_of(run), [6, 8])

    def test_the_newest_run_is_taken(self):
        self.train("--total-train-steps", "2")
        self.train("--total-train-steps", "3")
        self.train("--total-train-steps", "4", "--resume")
        self.assertEqual(steps_of(self.work / "results/000-DiT-2x32-2"), [2])
        self.assertEqual(steps_of(self.work / "results/001-DiT-2x32-2"), [3, 4])


class ChooseRunTest(TrainBase):
    """Which run --resume takes."""

    NAMES = ["000-DiT-2x32-2", "001-DiT-2x32-2", "002-DiT-2x32-2"]

    def resume(self, *flags, verb="train", shape=SHAPE, env=None, steps="4"):
        result = self.run_program(*self.command(verb, *shape, "--total-train-steps", steps, *flags), "-q", env=env)
        self.assertEqual(result.returncode, 0, result.stderr)
        return result.stderr

    def saved(self):
        return {run.name: steps_of(run) for run in sorted((self.work / "results").iterdir())}

    def three_runs(self):
        for steps in ("1", "2", "3"):
            self.train("--total-train-steps", steps)

    def test_empty_newest_runs_are_passed_over_and_told(self):
        self.train("--total-train-steps", "2")
        (self.work / "results" / self.NAMES[1] / "checkpoints").mkdir(parents=True)
        (self.work / "results" / self.NAMES[2]).mkdir()
        told = self.resume("--resume")
        for name in self.NAMES[1:]:
            self.assertIn(f"dydit: warning: passed over: results/{name}: no whole checkpoint", told)
        self.assertEqual(steps_of(self.work / "results" / self.NAMES[0]), [2, 4])

    def test_by_name_number_and_path(self):
        self.three_runs()
        for which, run in (("1", 1), ("000", 0), (self.NAMES[1], 1), (f"results/{self.NAMES[0]}/", 0),
                           (self.work / "results" / self.NAMES[1], 1)):
            with self.subTest(which=which):
                saved = self.saved()
                steps = saved[self.NAMES[run]][-1] + 1
                self.assertEqual(self.resume("--resume", which, steps=str(steps)), "")
                saved[self.NAMES[run]].append(steps)
                self.assertEqual({name: steps[-1] for name, steps in self.saved().items()},
                                 {name: steps[-1] for name, steps in saved.items()})

    def test_a_path_needs_no_results_folder(self):
        run = self.train("--total-train-steps", "2")
        run.rename(self.work / "elsewhere")
        shutil.rmtree(self.work / "results")
        self.resume("--resume", "elsewhere")
        self.assertEqual(steps_of(self.work / "elsewhere"), [2, 4])
        self.assertFalse((self.work / "results").exists())

    def test_alone_it_is_a_switch_wherever_it_stands(self):
        self.three_runs()
        for steps, flags in enumerate((["--resume", "--quiet"], ["-q", "--resume"], ["--resume", "--log-every", "2"],
                                       ["--resume=true"]), start=4):
            with self.subTest(flags=flags):
                words = [*self.command("train", *SHAPE, "--total-train-steps", str(steps)), *flags]
                result = self.run_program(*words)
                self.assertEqual(result.returncode, 0, result.stderr)
                self.assertEqual(max(self.saved()[self.NAMES[2]]), steps)

    def test_from_a_file_and_from_the_environment(self):
        self.three_runs()
        self.resume(env={"DYDIT_RESUME": "true"}, steps="5")
        self.resume("--config", self.write("run.toml", "resume = true\n"), steps="6")
        self.assertEqual(self.saved()[self.NAMES[2]][-1], 6)
        self.resume(env={"DYDIT_RESUME": self.NAMES[0]}, steps="7")
        self.resume("--config", self.write("run.toml", f'resume = "{self.NAMES[0]}"\n'), steps="8")
        self.assertEqual(self.saved()[self.NAMES[0]][-1], 8)
        self.resume(env={"DYDIT_RESUME": "false"}, steps="1")
        self.assertEqual(len(self.saved()), 4)

    def test_control_and_dynamic_run_side_by_side(self):
        """The newest run that fits is continued: each verb and configuration finds its own."""
        model = ["--model", self.static_model()]
        self.finetune(model[1], "--static", "--total-train-steps", "2")
        self.finetune(model[1], "--total-train-steps", "3")
        told = self.resume("--static", "--resume", verb="finetune", shape=model)
        self.assertRegex(told, r"^dydit: warning: passed over: \S+0000003.state: was saved with [^\n]*\n$")
        self.assertEqual(self.resume("--resume", verb="finetune", shape=model, steps="5"), "")
        self.assertEqual(self.saved(), {"000-DiT-2x32-2": [2, 4], "001-DyDiT-2x32-2": [3, 5]})

    def test_a_named_run_that_does_not_fit_is_refused(self):
        self.three_runs()
        for which in ("--resume", "--resume=0"):
            self.expect_error(self.command("train", *SHAPE, "--total-train-steps", "9", which, "--lr", "5e-4"), FAILED,
                              "was saved with lr = 0.001, this run has 0.0005",
                              *(["the 2 runs before it do not fit either"] if which == "--resume" else ["000-DiT"]))

    def test_a_run_that_is_not_there(self):
        words = self.command("train", *SHAPE, "--total-train-steps", "9")
        self.expect_error([*words, "--resume", "7"], USAGE, '--resume "7": no such run', "results holds no run")
        self.three_runs()
        for which in ("7", "003-DiT", "no/where", "0x1"):
            self.expect_error([*words, "--resume", which], USAGE, f'--resume "{which}": no such run', self.NAMES[2])
        shutil.copytree(self.work / "results" / self.NAMES[0], self.work / "results/000-copy")
        self.expect_error([*words, "--resume", "0"], USAGE, "2 runs have this number", "000-copy")
        self.expect_error([*words, "--resume", "images"], FAILED, "images: no whole checkpoint to resume from")

    def test_a_file_in_the_place_of_the_results(self):
        self.write("results", "no folder")
        self.expect_error(self.command("train", *SHAPE, "--total-train-steps", "9", "--resume"), USAGE, "holds no run")


class BrokenOffTest(TrainBase):
    """Kills and signals at moments of their own choosing."""

    STEPS = 600
    FLAGS = ["--total-train-steps", str(STEPS), "--log-every", "10", "--ckpt-every", "7", "--keep-last", "2"]

    def start(self, *flags):
        process = subprocess.Popen([PROGRAM, *map(str, self.command("train", *SHAPE, *self.FLAGS, *flags))], cwd=self.work,
                                   env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        return process

    def run_folders(self):
        return sorted((self.work / "results").glob("*"))

    def newest_step(self):
        return max(steps_of(self.run_folders()[-1]), default=0) if self.run_folders() else 0

    def break_off(self, process, number, random_seconds):
        """Sends the signal a random moment after one more checkpoint is there; returns the exit code."""
        before, deadline = self.newest_step(), time.monotonic() + 60
        while self.newest_step() == before and time.monotonic() < deadline:
            self.assertIsNone(process.poll(), "the run ended before it could be broken off")
            time.sleep(0.002)
        time.sleep(random_seconds)
        process.send_signal(number)
        return process.wait(timeout=60)

    def whole_run(self):
        return self.train(*self.FLAGS, results="whole")

    def test_kill_nine_twice(self):
        seed = random.randrange(1 << 32)
        moments = random.Random(seed)
        for number in range(2):
            code = self.break_off(self.start(*(["--resume"] if number else [])), signal.SIGKILL, moments.uniform(0, 0.4))
            self.assertEqual(code, -signal.SIGKILL, f"seed {seed}")
            self.assertLess(self.newest_step(), self.STEPS, f"seed {seed}")
        run = self.train(*self.FLAGS, "--resume")
        whole = self.whole_run()
        with self.subTest(seed=seed):
            self.same_run(whole, run, self.STEPS)
            self.assertEqual([row["step"] for row in rows_of(run)], [row["step"] for row in rows_of(whole)])
            self.assertEqual(rows_of(run)[-1]["loss"], rows_of(whole)[-1]["loss"])
            self.assertEqual([path.name for path in (run / "checkpoints").iterdir() if not re.fullmatch(
                r"\d{7}\.(state|safetensors)", path.name)], [], "a kill's temporary file stays for good")

    def test_signals_save_and_exit_with_130(self):
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            code = self.break_off(self.start(*(["--resume"] if self.run_folders() else [])), number, 0.1)
            self.assertEqual(code, CANCELLED)
            self.assertLess(self.newest_step(), self.STEPS)
        run = self.train(*self.FLAGS, "--resume")
        self.same_run(self.whole_run(), run, self.STEPS)

    def test_a_signal_saves_at_the_step_it_meets(self):
        process = self.start("--ckpt-every", "100000", "--log-every", "1")
        deadline = time.monotonic() + 60
        while not (self.run_folders() and (self.run_folders()[0] / "log.csv").exists()) and time.monotonic() < deadline:
            time.sleep(0.002)
        process.send_signal(signal.SIGINT)
        self.assertEqual(process.wait(timeout=60), CANCELLED)
        run = self.run_folders()[0]
        self.assertEqual(steps_of(run), [rows_of(run)[-1]["step"]])

    def test_many_signals_lose_nothing(self):
        """A terminal that closes, a shell and a scheduler may all ask at once, in the middle of the save."""
        process = self.start("--ckpt-every", "100000", "--log-every", "1")
        deadline = time.monotonic() + 60
        while not (self.run_folders() and (self.run_folders()[0] / "log.csv").exists()) and time.monotonic() < deadline:
            time.sleep(0.002)
        while process.poll() is None and time.monotonic() < deadline:
            for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGINT):
                process.send_signal(number)
            time.sleep(0.0005)
        self.assertEqual(process.wait(timeout=60), CANCELLED)
        run = self.run_folders()[0]
        self.assertEqual(steps_of(run), [rows_of(run)[-1]["step"]])

    def test_a_hangup_that_is_ignored_stays_ignored(self):
        """As nohup leaves it."""
        process = subprocess.Popen(["nohup", PROGRAM, *map(str, self.command("train", *SHAPE, *self.FLAGS))], cwd=self.work,
                                   env=environment(), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
                                   stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.kill)
        self.assertEqual(self.break_off(process, signal.SIGHUP, 0), 0)
        self.assertEqual(max(steps_of(self.run_folders()[0])), self.STEPS)

    def test_a_log_that_nobody_takes_stops_nothing(self):
        """stderr on a full device, into a pipe that is closed, and closed: the run goes on to its end."""
        words = " ".join(map(str, [PROGRAM, *self.command("train", *SHAPE, "--total-train-steps", "20", "--log-every", "1")]))
        for redirection in ("2>/dev/full", "2> >(exec true)", "2>&-"):
            with self.subTest(redirection=redirection):
                done = subprocess.run(["bash", "-c", f"exec {words} {redirection}"], cwd=self.work, env=environment(),
                                      stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, text=True, timeout=support.TIMEOUT)
                self.assertEqual(done.returncode, 0)
                self.assertEqual(steps_of(self.newest())[-1], 20)
                self.assertEqual(len(rows_of(self.newest())), 20)

    def test_a_log_on_a_full_disk_saves_the_state_first(self):
        """The run's folder has room, its log has none."""
        with support.small_disk(self, kilobytes=8) as disk:
            (disk / "filler").write_bytes(b"x" * 4096)
            run = self.work / "results/000-DiT-2x32-2"
            process = self.start("--ckpt-every", "100000", "--log-every", "1")
            deadline = time.monotonic() + 60
            while not (run / "log.csv").exists() and time.monotonic() < deadline:
                time.sleep(0.002)
            (run / "link").symlink_to(disk / "log.txt")
            (run / "link").rename(run / "log.txt")  # in one step: the run appends meanwhile
            code = process.wait(timeout=60)
            said = process.stderr.read().splitlines()[-1]
        self.assertEqual(code, FAILED, said)
        match = re.fullmatch(r"dydit: error: \S+/log\.txt: cannot append to it: No space left on device; the state of step "
                             r"(\d+) is saved in \S+/000-DiT-2x32-2", said)
        self.assertTrue(match, said)
        self.assertEqual(steps_of(run), [int(match[1])])

    def test_a_full_disk_leaves_the_checkpoints_before(self):
        """Room for one checkpoint of about 1 MB and not for the second."""
        with support.small_disk(self, kilobytes=1700) as disk:
            result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "3", "--ckpt-every", "1", "-q",
                                                    results=disk))
            self.assertEqual((result.returncode, result.stdout), (FAILED, ""), result.stderr)
            self.assertRegex(result.stderr, r"^dydit: error: \S*0000002\.\S+ .*No space left on device; the newest "
                             r"checkpoint is that of step 1\n$")
            run = next(disk.iterdir())
            self.assertEqual(steps_of(run), [1])
            support.load(run / "checkpoints/0000001.state")

    def test_a_nan_loss_is_named_and_the_state_saved_aside(self):
        result = self.run_program(*self.command("train", *SHAPE, "--total-train-steps", "200", "--lr", "1e9", "-q"))
        self.assertEqual((result.returncode, result.stdout), (FAILED, ""), result.stderr)
        match = re.fullmatch(r"dydit: error: step (\d+): the loss is -?(nan|inf).* (\S+/nan)\n", result.stderr)
        self.assertTrue(match, result.stderr)
        self.assertTrue((self.work / match[3] / f"checkpoints/{int(match[1]):07}.state").is_file())


class ProcessesTest(TrainBase):
    """mpirun; MPI's module lies beside the program when it was built with it."""

    def setUp(self):
        super().setUp()
        if not shutil.which("mpirun"):
            self.skipTest("no mpirun here: NOT TESTED on several processes")
        if not PROGRAM.with_name("libdydit_mpi.so").exists():
            self.skipTest(f"no libdydit_mpi.so beside {PROGRAM}: built without MPI, NOT TESTED on several processes")

    def start_mpirun(self, *args):
        allowed = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        process = subprocess.Popen(["mpirun", "--bind-to", "none", "--oversubscribe", "-n", "2", PROGRAM, *map(str, args), "-q"],
                                   cwd=self.work, env=environment(allowed), stdin=subprocess.DEVNULL,
                                   stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        self.addCleanup(process.communicate)
        self.addCleanup(process.terminate)  # mpirun takes its ranks along
        return process

    def finish(self, process, seconds=support.TIMEOUT):
        stdout, stderr = process.communicate(timeout=seconds)
        return subprocess.CompletedProcess(process.args, process.returncode, stdout, stderr)

    def mpirun(self, *args):
        return self.finish(self.start_mpirun(*args))

    def ranks_of(self, process):
        """The program's processes that mpirun started."""
        children = (pathlib.Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split())
        return [int(pid) for pid in children if os.path.realpath(f"/proc/{pid}/exe") == str(PROGRAM)]

    def test_two_processes_agree_with_one(self):
        model = self.static_model()
        flags = [*ROUTED, "--global-batch-size", "64", "--complete-steps", "5", "--total-train-steps", "10", "--log-every", "1"]
        alone = self.finetune(model, *flags, results="alone")
        result = self.mpirun(*self.command("finetune", "--model", model, *flags))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertEqual(len(list((self.work / "results").iterdir())), 1)  # one run, not one a process
        self.assertEqual(result.stdout.count("wrote "), 1)
        rows, wanted = rows_of(self.newest()), rows_of(alone)
        self.assertEqual(len(rows), 10)
        for row, reference in zip(rows, wanted, strict=True):
            self.assertLess(reference["ratio_training"], 0.95)
            for key in row.keys() - CLOCKS:
                self.assertAlmostEqual(row[key], reference[key], delta=1e-4 * max(1, abs(reference[key])),
                                       msg=f"{key} of step {row['step']}")

    def test_a_run_of_two_resumes_bit_for_bit(self):
        flags = [*SHAPE, "--ckpt-every", "4", "--log-every", "4"]
        for results, more in (("whole", ["--total-train-steps", "8"]), ("results", ["--total-train-steps", "4"]),
                              ("results", ["--total-train-steps", "8", "--resume"])):
            result = self.mpirun(*self.command("train", *flags, *more, results=results))
            self.assertEqual(result.returncode, 0, result.stderr)
        self.same_run(self.newest("whole"), self.newest(), 8)

    def test_gradients_of_several_messages_agree(self):
        """More parameters than one message holds (2^20)."""
        flags = ["--hidden", "160", "--depth", "3", "--heads", "4", "--patch", "4", "--total-train-steps", "4"]
        alone = self.train(*flags, shape=[], results="alone")
        result = self.mpirun(*self.command("train", *flags))
        self.assertEqual(result.returncode, 0, result.stderr)
        both, wanted = (tensors_of(run / "checkpoints/0000004.state")["exp_avg"] for run in (self.newest(), alone))
        self.assertGreater(wanted.size, 1 << 20)
        for part in np.array_split(np.arange(wanted.size), 8):  # a message that is not summed halves what it holds
            self.assertLess(np.linalg.norm(both[part] - wanted[part]), 0.05 * np.linalg.norm(wanted[part]))

    def test_an_error_ends_all(self):
        result = self.mpirun(*self.command("train", *SHAPE, "--total-train-steps", "1", "--global-batch-size", "7"))
        self.assertEqual(result.returncode, USAGE, result.stderr)
        self.assertIn("dydit: error: --global-batch-size 7: cannot be cut into 2 processes", result.stderr)

    def test_a_dead_rank_ends_the_run_which_resumes(self):
        flags = [*SHAPE, "--ckpt-every", "5", "--log-every", "5", "--total-train-steps", "300"]
        process = self.start_mpirun(*self.command("train", *flags))
        deadline = time.monotonic() + 60
        while not list((self.work / "results").glob("*/checkpoints/*.state")) and time.monotonic() < deadline:
            time.sleep(0.005)
        os.kill(self.ranks_of(process)[1], signal.SIGKILL)
        result = self.finish(process, seconds=60)
        self.assertNotEqual(result.returncode, 0)
        self.assertRegex(result.stderr, "signal 9")
        self.assertLess(max(steps_of(self.newest())), 300)
        result = self.mpirun(*self.command("train", *flags, "--resume"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.mpirun(*self.command("train", *flags, results="whole"))
        self.same_run(self.newest("whole"), self.newest(), 300)

    def test_a_full_disk_ends_all_ranks(self):
        with support.small_disk(self, kilobytes=300) as disk:
            process = self.start_mpirun(*self.command("train", *SHAPE, "--total-train-steps", "3", "--ckpt-every", "1",
                                                      results=disk))
            try:
                result = self.finish(process, seconds=30)
            except subprocess.TimeoutExpired:
                self.fail("rank 0 met a full disk and the other rank waits for it for ever")
            self.assertEqual(result.returncode, FAILED, result.stderr)
            self.assertIn("dydit: error: ", result.stderr)


class MpiModuleTest(TrainBase):
    """Started by mpirun, but MPI's module beside the program is missing or another's."""

    def refused_beside(self, module, *fragments):
        program = pathlib.Path(shutil.copy(PROGRAM, self.work / "dydit"))
        if module:
            shutil.copy(module, self.work / "libdydit_mpi.so")
        result = subprocess.run([program, *map(str, self.command("train", *SHAPE, "--total-train-steps", "1"))], cwd=self.work,
                                env=environment({"PMI_SIZE": "1"}), stdin=subprocess.DEVNULL, capture_output=True, text=True,
                                timeout=support.TIMEOUT)
        self.assertEqual((result.returncode, result.stdout), (FAILED, ""), result.stderr)
        self.assertRegex(result.stderr, r"^dydit: error: [^\n]*\n$")
        for fragment in ("libdydit_mpi.so", *fragments):
            self.assertIn(fragment, result.stderr)
        self.assertFalse((self.work / "results").exists())

    def test_no_module(self):
        self.refused_beside(None, "cannot be loaded", "build with MPI")

    def test_a_module_without_our_function(self):
        libraries = [path for path in map(str.split, pathlib.Path("/proc/self/maps").read_text().splitlines())
                     if len(path) > 5 and re.search(r"/lib(z|m|ffi|expat)[.-]", path[5])]
        if not libraries:
            self.skipTest("no small library in this process: NOT TESTED with another module")
        self.refused_beside(libraries[0][5], "has no dydit_make_mpi_communicator", "another version")


class BadTrainingInputTest(TrainBase):
    """One line that says what is wrong, the right exit code, nothing left behind."""

    ONE = ["--total-train-steps", "1"]

    def refused(self, exit_code, *fragments, verb="train", flags=SHAPE, more=ONE, results="results"):
        return self.expect_error(self.command(verb, *flags, *more, results=results), exit_code, *fragments)

    def with_model(self):
        """Flags that name a static model of 4 classes which is no part of what an error may touch."""
        return ["--model", self.static_model()]

    def test_no_such_data(self):
        self.images = self.work / "nowhere"
        self.refused(FAILED, "nowhere", "no such file or folder")

    def test_alignment_that_does_not_fit(self):
        self.refused(USAGE, "--align-block 3: the model has 2 blocks", more=[*self.ONE, "--align", "self"])
        align = [*self.ONE, "--align-block", "1", "--align"]
        self.refused(USAGE, "--align dispersive: compares all images of a batch", more=[*align, "dispersive", "--accumulate", "2"])
        self.refused(USAGE, "--align encoder: of which network?", "resnet56-4bfd9763.th", more=[*align, "encoder"])
        network = self.save("network.safetensors", support.resnet56())
        self.refused(USAGE, "--align-encoder: takes RGB images of 32x32 pixels, and these are images of 8x8 with 3 channels",
                     more=[*align, "encoder", "--align-encoder", network])
        self.refused(USAGE, "--align-encoder nowhere: holds no resnet56", more=[*align, "encoder", "--align-encoder", "nowhere"])
        other = self.save("other.safetensors", {"weight": np.zeros(3, np.float32)})
        self.refused(FAILED, "other.safetensors", "ResNet-56", more=[*align, "encoder", "--align-encoder", other])
        self.refused(USAGE, "--complete-steps 0: --plr sees the complete model alone", "here 1 steps", verb="finetune",
                     flags=self.with_model(), more=[*self.ONE, "--plr", "0.1"])

    def test_empty_class_folder(self):
        (self.images / "white").mkdir()
        self.refused(FAILED, 'class folder "white" has no .png')

    def test_one_class_only(self):
        for name in CLASSES[1:]:
            shutil.rmtree(self.images / name)
        self.refused(FAILED, "one class only")

    def test_unreadable_image(self):
        path = self.images / "red/3.png"
        path.write_bytes(path.read_bytes()[:60])
        self.refused(FAILED, "red/3.png")

    def test_unreadable_image_can_be_skipped(self):
        path = self.images / "red/3.png"
        path.write_bytes(path.read_bytes()[:60])
        result = self.run_program(*self.command("train", *SHAPE, *self.ONE, "--skip-broken"))
        self.assertEqual(result.returncode, 0, result.stderr)
        self.assertIn("23 images", result.stderr)
        self.assertIn("1 broken", result.stderr)

    def test_image_that_is_no_image(self):
        (self.images / "red/x.jpg").write_bytes(b"no image at all")
        self.refused(FAILED, "red/x.jpg")

    def test_labels_beyond_the_models_classes(self):
        model = self.with_model()
        pixels = np.stack([image(name, 0) for name in CLASSES * 2])
        self.images = self.work / "data.npz"
        np.savez(self.images, images=pixels, labels=np.array([0, 1, 2, 3, 0, 1, 2, 4]))
        self.refused(FAILED, "image 7 has label 4", "classes 0 to 3", flags=model)
        self.refused(FAILED, "image 7 has label 4", "classes 0 to 3", verb="finetune", flags=model)

    def test_negative_labels(self):
        self.images = self.work / "data.npz"
        np.savez(self.images, images=np.stack([image("red", 0)] * 2), labels=np.array([0, -1]))
        self.refused(FAILED, "label -1 of image 1")

    def test_more_classes_than_the_model_has(self):
        model = self.with_model()
        shutil.copytree(self.images / "red", self.images / "white")
        self.refused(FAILED, '1 of its 5 classes is no class of the model: "white"', flags=model)
        self.refused(FAILED, "label 4", "classes 0 to 3", flags=model, more=[*self.ONE, "--match-classes", "position"])

    def test_images_of_no_common_square(self):
        for name in CLASSES[:2]:
            for path in (self.images / name).iterdir():
                path.write_bytes(png_bytes(image(name, 0)[:6]))
        said = self.refused(FAILED, "12 of 8x6, 12 of 8x8 pixels", "--image-size")
        self.assertIn("--image-size", self.run_program("train", "--help").stdout, said)

    def test_image_size_that_is_not_the_models(self):
        model = self.with_model()
        for verb in ("train", "finetune"):
            self.refused(USAGE, "--image-size 16", "8x8", verb=verb, flags=model, more=[*self.ONE, "--image-size", "16"])

    def test_patches_that_do_not_tile_the_image(self):
        self.refused(USAGE, "patches of 3", "8x8", flags=["--hidden", "32", "--depth", "1", "--heads", "2", "--patch", "3"])
        self.refused(USAGE, "patches of 16", "8x8", flags=["--hidden", "32", "--depth", "1", "--heads", "2", "--patch", "16"])

    def test_a_model_of_latents(self):
        static = self.save_static(TINY)
        self.refused(USAGE, "4 are those of latents", flags=["--model", static, "--num-heads", "4"])

    def save_static(self, dynamic):
        """The file without its routers."""
        tensors, metadata = support.load(dynamic)
        kept = {name: value for name, value in tensors.items() if "router" not in name and "token_selection" not in name}
        return self.save("latent-static.safetensors", kept)

    def test_lambda_out_of_range(self):
        model = self.with_model()
        for value in ("0", "1.2", "1", "-0.5", "nan"):
            with self.subTest(value=value):
                self.refused(USAGE, "--lambda", verb="finetune", flags=model, more=[*self.ONE, f"--lambda={value}"])

    def test_results_folder_that_cannot_be_made(self):
        self.write("file", "not a folder")
        said = self.refused(FAILED, "file/results", results="file/results")
        self.assertIn("ot a directory", said)

    def test_resume_with_another_option_names_it(self):
        self.train("--total-train-steps", "2")
        for flag, value, key in (("--lr", "5e-4", "lr"), ("--global-batch-size", "4", "global-batch-size"),
                                 ("--flip", "off", "flip"), ("--global-seed", "9", "global-seed"),
                                 ("--dtype", "bf16", "dtype"), ("--ema-decay", "0.5", "ema-decay")):
            with self.subTest(flag=flag):
                self.refused(FAILED, f"was saved with {key} = ", more=["--total-train-steps", "4", "--resume", flag, value])

    def test_resume_with_another_model_names_it(self):
        self.train("--total-train-steps", "2")
        for shape in (["--hidden", "64", "--depth", "2", "--heads", "2", "--patch", "2"],
                      ["--hidden", "32", "--depth", "2", "--heads", "4", "--patch", "2"]):
            with self.subTest(shape=shape):
                self.refused(FAILED, "was saved with model", flags=shape, more=["--total-train-steps", "4", "--resume"])

    def test_resume_with_other_data_names_it(self):
        self.train("--total-train-steps", "2")
        (self.images / "red/0.png").unlink()
        self.refused(FAILED, "was saved with data-images = 24", more=["--total-train-steps", "4", "--resume"])

    def test_resume_with_other_data_of_the_same_size_names_it(self):
        """One pixel, the name of a class, the class of an image."""
        self.train("--total-train-steps", "2")
        mine = self.work / "mine"
        self.images.rename(mine)
        for case, change, said in (
                ("pixel", lambda data: (data / "red/3.png").write_bytes(png_bytes(image("red", 3) ^ 1)), "data-images-digest"),
                ("names", lambda data: (data / "red").rename(data / "rose"), 'class-names[3] = "red", this run has "rose"'),
                ("labels", lambda data: (data / "red/3.png").rename(data / "gray/9.png"), "data-images-digest")):
            with self.subTest(case=case):
                self.images = shutil.copytree(mine, self.work / case)
                change(self.images)
                self.refused(FAILED, "was saved with " + said, more=["--total-train-steps", "4", "--resume"])

    def test_resume_from_another_start_names_it(self):
        """Of the same shape, so that nothing else tells them apart."""
        model = self.with_model()[1]
        other = self.train("--total-train-steps", "1", results="other") / "checkpoints/0000001.safetensors"
        for verb, train in (("train", lambda: self.train("--model", model, "--total-train-steps", "2", shape=[])),
                            ("finetune", lambda: self.finetune(model, "--total-train-steps", "2"))):
            shutil.rmtree(self.work / "results", ignore_errors=True)
            train()
            self.refused(FAILED, "was saved with start = ", "--model", verb=verb, flags=["--model", other],
                         more=["--total-train-steps", "4", "--resume"])

    def test_resume_of_a_finetune_with_another_lambda(self):
        model = self.static_model()
        self.finetune(model, "--total-train-steps", "2")
        self.refused(FAILED, "was saved with lambda = 0.5", verb="finetune", flags=["--model", model],
                     more=["--total-train-steps", "4", "--resume", "--lambda", "0.7"])

    def test_resume_of_a_finetune_that_began_otherwise(self):
        """What has its effect at the start only is no flag without one: it must be that of the start."""
        model = self.static_model()
        self.finetune(model, "--total-train-steps", "2", "--router-bias", "3,4")
        for flags, said in ((["--router-bias", "3,3"], "router-bias[1] = 4.0, this run has 3.0"),
                            (["--router-bias", "3,4", "--importance", "none"], 'importance = "magnitude", this run has "none"')):
            with self.subTest(flags=flags):
                self.refused(FAILED, "was saved with " + said, verb="finetune", flags=["--model", model],
                             more=["--total-train-steps", "4", "--resume", *flags])
        self.finetune(model, "--total-train-steps", "4", "--router-bias", "3,4", "--resume")

    def test_resume_with_nothing_there(self):
        self.refused(USAGE, "--resume", "results holds no run", more=[*self.ONE, "--resume"])
        (self.work / "results/000-DiT-2x32-2/checkpoints").mkdir(parents=True)
        self.refused(FAILED, "no whole checkpoint to resume from", more=[*self.ONE, "--resume"])

    def test_a_dynamic_model_where_a_static_one_is_needed(self):
        for verb in ("train", "finetune"):
            self.refused(USAGE, str(TINY), "has routers", verb=verb, flags=["--model", TINY])

    def test_steps_and_epochs(self):
        self.refused(USAGE, "--total-train-steps or --epochs", more=[])
        self.refused(USAGE, "--total-train-steps and --epochs: one excludes the other", more=[*self.ONE, "--epochs", "1"])

    def test_a_batch_that_cannot_be_cut(self):
        self.refused(USAGE, "--global-batch-size 8", "3 micro-batches", more=[*self.ONE, "--accumulate", "3"])

    def test_no_model_named(self):
        self.refused(USAGE, "--size", flags=[])
        self.refused(USAGE, "--size", flags=["--hidden", "32", "--depth", "2"])
        self.refused(USAGE, "--model", verb="finetune", flags=[])

    def test_hidden_size_and_heads(self):
        self.refused(USAGE, "--hidden 32", flags=["--hidden", "32", "--depth", "1", "--heads", "3", "--patch", "2"])

    def test_nothing_left_to_route(self):
        model = self.with_model()
        self.refused(USAGE, "--static", verb="finetune", flags=model, more=[*self.ONE, "--tdw", "off", "--sdt", "off"])

    def test_a_split_that_is_not_there(self):
        self.refused(FAILED, "--split", "train", more=[*self.ONE, "--split", "train"])


if __name__ == "__main__":
    support.main()
