"""dydit report from the outside: a page that is whole, stands alone and says what was measured; what is refused; how a browser
sees it, where one is installed."""

import base64
import html.parser
import json
import re
import shutil
import subprocess

import numpy as np

import support
import vae_files
from support import GOLDEN, TINY, ProgramTest

FAILED, USAGE = 1, 2
HOSTILE = "<b>&\"'"
VOID = {"meta", "img", "br", "link", "input", "hr", "source", "base"}
FETCHING = ("src", "srcset", "poster", "data", "action", "background", "xlink:href")
RESULT = {"fid": 21.5, "fid_error": 0.75, "sfid": 30.25, "kid": 0.0125, "kid_error": 0.001, "is": 7.5, "precision": 0.625, "recall": 0.5,
          "n": 5000, "class_agreement": 0.8125, "protocol": "ours", "extractor": "resnet56", "weights_sha256": "ab" * 32,
          "resize": "none", "reference": "cifar10.npz", "reference_sha256": "cd" * 32, "model": "m.safetensors", "name": "lambda 0.5",
          "sampler": "ddim", "steps": 50, "cfg_scale": 1.5, "seed": 0, "gmacs_per_image": 31.25, "seconds_per_image": 0.5}


class Page(html.parser.HTMLParser):
    """Fails on tags that do not close in order; collects what tests look at."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.text, self.tables, self.inside = [], [], [], [], []
        self.feed(text)
        self.close()
        assert not self.open, self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag == "table":
            self.tables.append([])
        if tag == "tr":
            self.tables[-1].append([])
        if tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        assert len(dict(attributes)) == len(attributes), (tag, attributes)
        self.tags.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open and self.open.pop() == tag, (tag, self.open)

    def handle_data(self, data):
        self.text.append(data)
        if "td" in self.open or "th" in self.open:
            self.tables[-1][-1][-1] += data

    def of(self, tag):
        return [attributes for name, attributes in self.tags if name == tag]

    def ids(self):
        return [attributes["id"] for _, attributes in self.tags if "id" in attributes]

    def said(self):
        return "".join(self.text)


class ReportBase(ProgramTest):
    def setUp(self):
        super().setUp()
        tensors, metadata = support.load(TINY)
        self.config = json.loads(metadata["config"])
        names = [HOSTILE, *(f"class {i}" for i in range(1, self.config["num_classes"]))]
        self.latent = self.save("latent.safetensors", tensors, {**metadata, "class_names": json.dumps(names)})
        tensors["x_embedder.proj.weight"] = tensors["x_embedder.proj.weight"][:, :3]
        for name in ("weight", "bias"):  # rows (p, q, eps and variance of 4 channels)
            old = tensors[f"final_layer.linear.{name}"]
            tensors[f"final_layer.linear.{name}"] = old.reshape(4, 2, 4, *old.shape[1:])[:, :, :3].reshape(
                24, *old.shape[1:]) * np.float32(0.01)
        self.model = self.save("m.safetensors", tensors, {"config": json.dumps({**self.config, "in_channels": 3}),
                                                          "class_names": json.dumps(names)})

    def result(self, path, **changed):
        values = {key: value for key, value in {**RESULT, **changed}.items() if value is not None}
        return self.write(path, json.dumps(values))

    def report(self, *flags, model=None, images=2):
        """What --json says, and the page."""
        run = ["--steps", "4", "--dtype", "f32"] if images else []
        said = self.run_json("report", model or self.model, "--images", images, *run, *flags)
        return said, Page((self.work / said["file"]).read_text())

    def check_page(self, page):
        """Whole, alone, and for everybody."""
        self.assertEqual(page.of("html")[0]["lang"], "en")
        self.assertGreaterEqual(len(page.of("title")), 1)
        self.assertEqual(page.of("script") + page.of("link") + page.of("iframe") + page.of("base"), [])
        for tag, attributes in page.tags:
            for name in FETCHING:
                if name in attributes:
                    self.assertTrue(attributes[name].startswith("data:image/png;base64,"), (tag, attributes))
            self.assertFalse([name for name in attributes if name.startswith("on")], (tag, attributes))
        self.assertEqual(len(page.ids()), len(set(page.ids())))
        for link in page.of("a"):
            self.assertIn(link["href"].removeprefix("#"), page.ids())
        for image in page.of("img"):
            self.assertTrue(image["alt"], image)
            self.assertTrue(base64.b64decode(image["src"].partition(",")[2], validate=True).startswith(support.PNG_SIGNATURE))
        self.assertEqual(len(page.of("table")), len(page.of("caption")))
        for head in page.of("th"):
            self.assertIn(head["scope"], ("row", "col"))


class PageTest(ReportBase):
    def test_a_model_with_everything(self):
        a = self.result("a.json")
        b = self.result("b.json", name="static", fid=18.5, gmacs_per_image=62.5, novel=1)
        c = self.result("c.json", name="other N", n=1000, gmacs_per_image=31.25)
        self.run_ok("calibrate", "--model", self.model, "--sampler", "ddim", "--steps", "4", "--cfg-scale", "2", "--dtype", "f32",
                    "--images", "1", "--families", "fora", "--out", "p.json")
        self.run_ok("generate", "--model", self.model, "--steps", "2", "--dtype", "f32", "-n", "2", "--out", "s.png")
        said, page = self.report("--results", a, b, c, "p.json", "--samples", "s.png", "--cache", "fora:2", "--out", "all.html")
        self.assertEqual((said["file"], said["results"], said["plans"], said["pictures"]), ("all.html", 3, 1, 1))
        self.assertEqual(said["passed_over"], {str(b): ["novel"]})
        self.check_page(page)
        sections = ["model", "widths", "plan", "samples", "tokens", "pictures", "quality", "plans"]
        self.assertEqual([link["href"] for link in page.of("a")], [f"#{name}" for name in sections])
        self.assertEqual(page.ids(), sections)
        text = page.said()
        for wanted in ("N = 5000 images", "N = 1000 images", "extractor resnet56 (weights ababababab)", "21.5 ± 0.75", "0.0125 ± 0.001",
                       "fall into 2 groups", "1 keys are not known here and were passed over: novel", "fora:2", "not quality",
                       "dydit generate --model m.safetensors"):
            self.assertIn(wanted, text)
        for image in said["run"]["images"]:
            self.assertIn(f"{image['required_gmacs']:.4g} GMACs ({100 * image['required_share']:.1f} % of static)", text)
        self.assertEqual(text.count("5000 images, extractor resnet56"), 3)  # two plots and a table: never mixed with N = 1000

    def test_token_shares_are_those_of_the_images(self):
        said, page = self.report(images=3)
        shares = [float(cell.rstrip(" %")) for table in page.tables if table[0] == ["t", "mean", "lowest image", "highest image"]
                  for row in table[1:] for cell in row[1:2]]
        self.assertEqual(len(shares), 4)  # a stretch each of the four steps
        mean = 100 * np.mean([image["token_share"] for image in said["run"]["images"]])
        self.assertAlmostEqual(np.mean(shares), mean, delta=0.051)
        maps = [image for image in page.of("img") if "each token entered" in image["alt"]]
        self.assertEqual(len(maps), 3 * (1 + 4))

    def test_names_are_escaped(self):
        _, page = self.report()
        raw = (self.work / "report.html").read_text()
        self.assertNotIn(HOSTILE, raw)
        self.assertIn("&lt;b&gt;&amp;&quot;&#39;", raw)
        self.assertIn(HOSTILE, page.said())
        self.assertTrue(any(HOSTILE in image["alt"] for image in page.of("img")))
        evil = self.result("<script>x.json", name="</td><script>alert(1)</script>", warnings=["<img src=x onerror=alert(1)>"], extractor="\x1b[31m")
        _, page = self.report("--results", evil, images=0)
        self.check_page(page)
        self.assertIn("</td><script>alert(1)</script>", page.said())
        self.assertIn("\\x1b[31m", page.said())

    def test_without_images_a_page_of_the_file(self):
        said, page = self.report(images=0)
        self.check_page(page)
        self.assertEqual(page.ids(), ["model", "widths"])
        self.assertEqual(said["run"]["images"], [])

    def test_a_static_model_has_neither_widths_nor_tokens(self):
        self.run_ok("convert", self.model, "static.safetensors", "--to", "static")
        _, page = self.report(model="static.safetensors")
        self.check_page(page)
        self.assertEqual(page.ids(), ["model", "samples"])
        self.assertIn("No token router decides", page.said())

    def test_the_plans_beside_the_model_are_taken_once(self):
        self.run_ok("calibrate", "--model", self.model, "--steps", "4", "--dtype", "f32", "--images", "1", "--families", "fora")
        for flags in ((), ("--results", "./m.plans.json")):
            said, page = self.report(*flags, images=0)
            self.assertEqual(said["plans"], 1)
            self.assertIn("for this model", page.said())
        self.assertIn("for another model", self.report("--results", "m.plans.json", model=TINY, images=0)[1].said())

    def test_latents(self):
        said, page = self.report(model=self.latent)
        self.assertIn("no autoencoder was given (--vae)", page.said())
        self.assertIn("tokens", page.ids())
        vae = vae_files.write_kl(self.work / "vae")
        said, page = self.report("--vae", vae, model=self.latent)
        self.check_page(page)
        self.assertIn("decoded by", page.said())
        self.assertTrue(all(image["decode_seconds"] > 0 for image in said["run"]["images"]))
        self.run_ok("generate", "--model", self.latent, "--steps", "1", "-n", "3", "--latents", "x.safetensors")
        said, page = self.report("--samples", "x.safetensors", "--vae", vae, images=0)
        self.assertEqual(said["pictures"], 1)
        self.assertIn("another model", page.said())
        self.expect_error(["report", self.model, "--samples", "x.safetensors", "--images", "0"], USAGE,
                          "--samples x.safetensors: latents of 4 channels are no pixels; give their autoencoder with --vae")


class RefusedTest(ReportBase):
    def refused(self, code, flags, *said):
        self.expect_error(["report", self.model, "--images", "0", *flags], code, *said)

    def test_results_that_are_none(self):
        for content, what in (("{", "is not JSON yet where the text ends"), ("nothing", "is not JSON from"), ("[1]", "holds neither fid"),
                              ('{"deciles": []}', "holds neither fid nor another measure"), ('{"fid": NaN}', "is not JSON from \"NaN"),
                              ('{"dydit_plan": 1}', "holds no plans"), ('{"fid": 3, "n": 5}', "extractor is missing")):
            self.write("bad.json", content)
            self.refused(FAILED, ["--results", "bad.json"], "bad.json: ", what)
        self.refused(FAILED, ["--results", self.result("bad.json", fid=None, kid="x")], "kid is \"x\"; a number is wanted")
        self.refused(FAILED, ["--results", "none.json"], "none.json")
        good = self.result("good.json")
        self.write("bad.json", "{")
        self.refused(FAILED, ["--results", good, "bad.json"], "bad.json: ")

    def test_pictures_that_are_none(self):
        self.write("x.png", support.tiny_png()[:40])
        self.refused(FAILED, ["--samples", "x.png"], "x.png")
        self.write("x.txt", "hello")
        self.refused(FAILED, ["--samples", "x.txt"], "x.txt")

    def test_the_page_is_no_input(self):
        result, picture = self.result("a.json"), self.write("s.png", support.tiny_png())
        for flags, name in ((["--results", result, "--out", "a.json"], "a.json"), (["--samples", picture, "--out", "./s.png"], "./s.png"),
                            (["--out", "m.safetensors"], "m.safetensors")):
            self.refused(USAGE, flags, f"{name}: is the input")
        self.run_ok("calibrate", "--model", self.model, "--steps", "4", "--dtype", "f32", "--images", "1", "--families", "fora")
        self.refused(USAGE, ["--out", "m.plans.json"], "m.plans.json: is the input")  # read unasked

    def test_flags_without_effect(self):
        for flags in (["--seed", "1"], ["--dtype", "f32"], ["--engine", "cpu"], ["--batch", "2"], ["--mode", "static"], ["--steps", "9"], ["--sampler", "ddim"], ["--cfg-scale", "2"]):
            self.refused(USAGE, flags, f"{flags[0]} {flags[1]}: needs images")
        self.refused(USAGE, ["--vae", "v"], "--vae v: needs latents")


class BrowserTest(ReportBase):
    """Headless Chromium reads the page as it is meant; no network is there to be asked."""

    def setUp(self):
        super().setUp()
        self.browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if not self.browser:
            self.skipTest("no chromium is installed, so no browser looked at the page of dydit report")

    def browse(self, *flags):
        done = subprocess.run([self.browser, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
                               f"--user-data-dir={self.work / 'profile'}", "--enable-logging=stderr", *flags,
                               (self.work / "report.html").as_uri()], cwd=self.work, capture_output=True, text=True, timeout=support.TIMEOUT)
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertNotRegex(done.stderr, r"CONSOLE.*(Refused|rror)")
        return done.stdout

    def test_it_is_shown(self):
        _, written = self.report("--results", self.result("a.json"), self.result("b.json", fid=18.5, name="static"))
        seen = Page(self.browse("--dump-dom").removeprefix("<!DOCTYPE html>"))
        self.assertEqual(seen.ids(), written.ids())
        self.assertEqual(len(seen.of("img")), len(written.of("img")))
        self.assertEqual(re.sub(r"\s", "", seen.said()), re.sub(r"\s", "", written.said()))
        self.browse("--window-size=1280,2400", "--hide-scrollbars", "--screenshot=page.png")
        pixels = support.read_png(self.work / "page.png") if self.is_rgb("page.png") else None
        if pixels is not None:
            self.assertGreater(len(np.unique(pixels.reshape(-1, pixels.shape[-1]), axis=0)), 50)

    def is_rgb(self, name):
        return (self.work / name).read_bytes()[25] in support.PNG_CHANNELS


if __name__ == "__main__":
    support.main()
