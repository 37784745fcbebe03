"""The page of dydit serve in headless Chromium: pictures are ordered, watched, cancelled, compared.

DYDIT_SCREENSHOTS names a folder that keeps the pictures of the page that the tests take.
"""

import os
import pathlib
import shutil
import unittest

import support
from serving import Server
from support import CIFAR, ROOT, ProgramTest

try:
    from selenium import webdriver
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait
except ImportError:
    webdriver = None

DYNAMIC = ROOT / "models" / "dydit-cifar10-0.5.safetensors"
WAIT = 60


def missing():
    if webdriver is None:
        return "selenium is not installed (scripts/setup --tests does so)"
    if not shutil.which("chromium") or not shutil.which("chromedriver"):
        return "chromium and chromium-driver are not installed (scripts/setup --tests does so)"
    return None


@unittest.skipIf(missing(), missing())
class PageTest(ProgramTest):
    def setUp(self):
        super().setUp()
        self.server = self.enterContext(Server(self.work, "--model", f"dynamic={DYNAMIC}", "--model", f"static={CIFAR}"))
        options = webdriver.ChromeOptions()
        for flag in ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu"):
            options.add_argument(flag)
        options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
        service = webdriver.ChromeService(shutil.which("chromedriver"))
        self.browser = webdriver.Chrome(options, service)
        self.addCleanup(self.browser.quit)
        self.browser.set_window_size(1440, 1000)
        self.browser.get(f"http://127.0.0.1:{self.server.port}/")
        self.until(lambda: self.find("#class").get_attribute("value") == "airplane")

    def find(self, selector):
        return self.browser.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector):
        return self.browser.find_elements(By.CSS_SELECTOR, selector)

    def until(self, met):
        return WebDriverWait(self.browser, WAIT).until(lambda _: met())

    def enter(self, selector, text):
        element = self.find(selector)
        element.clear()
        element.send_keys(text)

    def order(self, prompt="cat", n=2, steps=10, seed="7", mode="dynamic"):
        self.enter("#class", prompt)
        self.enter("#n", str(n))
        self.enter("#steps", str(steps))
        self.enter("#seed", seed)
        self.find(f"#modes input[value={mode}]").click()
        self.find("#go").click()

    def done(self):
        self.until(lambda: self.find("#status").text.startswith("done"))

    def shot(self, name):
        if folder := os.environ.get("DYDIT_SCREENSHOTS"):
            pathlib.Path(folder).mkdir(parents=True, exist_ok=True)
            self.browser.save_screenshot(str(pathlib.Path(folder) / f"{name}.png"))

    def look(self, width, scheme):
        self.browser.set_window_size(width, 1000)
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride",
                                     {"width": width, "height": 1000, "deviceScaleFactor": 1, "mobile": False})
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia",
                                     {"features": [{"name": "prefers-color-scheme", "value": scheme}]})

    def complaints(self):
        """What the browser's console says: a refused script, a failed request."""
        return [entry["message"] for entry in self.browser.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")]

    def test_pictures_are_those_that_the_route_gives(self):
        self.order()
        self.done()
        wanted = self.server.images(prompt="cat", n=2, num_inference_steps=10, seed=7)
        self.all("figure button.picture")[1].click()
        facts = self.find("#large-facts").text
        self.assertIn(wanted[1]["sha256"], facts)
        self.assertEqual(len(self.all("#large-pictures img")), 2)  # with its cost map
        self.assertEqual(self.find("#download").get_attribute("download"), "cat-7-1.png")
        self.assertEqual(self.find("#download").get_attribute("href").split(",")[0], "data:image/png;base64")
        self.assertEqual(self.complaints(), [])

    def test_previews_come_before_the_pictures(self):
        self.browser.execute_script("""
            window.seen = [];
            new MutationObserver(() => {
              const caption = document.querySelector('figcaption');
              if (caption) window.seen.push(caption.textContent);
            }).observe(document.getElementById('runs'), {subtree: true, childList: true, characterData: true});""")
        self.order(steps=40)
        self.done()
        seen = self.browser.execute_script("return window.seen")
        self.assertTrue(any(text == "step 10 of 40" for text in seen), seen)
        self.assertIn("GMACs", seen[-1])

    def test_a_run_is_cancelled(self):
        self.order(n=16, steps=1000)
        self.until(lambda: "%" in self.find("#status").text)
        self.find("#cancel").click()
        self.until(lambda: self.find("#status").text == "cancelled")
        self.server.until(lambda: self.server.number("images_in_flight") == 0)
        self.assertTrue(self.find("#go").is_enabled())

    def test_an_error_is_shown(self):
        self.order(prompt="unicorn")
        self.until(lambda: "unicorn" in self.find("#error").text)
        self.assertTrue(self.find("#go").is_enabled())

    def test_side_by_side_has_the_same_seeds_and_says_what_was_saved(self):
        self.order(mode="both", n=2)
        self.done()
        self.assertEqual([note.text for note in self.all(".sides .note")], ["dynamic, dynamic", "static, static"])
        self.assertEqual(len(self.all(".sides .grid")), 2)
        title = self.find(".run h3").text
        self.assertRegex(title, r"dynamic took \d+ % of the static work and \d+ % of its time")
        self.shot("sides")

    def test_again_makes_the_same_picture(self):
        self.order(seed="")
        self.done()
        source = self.all("figure img")[0].get_attribute("src")
        self.all("figure button.picture")[0].click()
        self.find("#again").click()
        self.until(lambda: len(self.all(".run h3")) == 2)
        self.done()
        pixels = "return arguments[0].complete && arguments[0].naturalWidth"
        self.until(lambda: self.browser.execute_script(pixels, self.all("figure img")[0]) == 32)
        facts = []
        for index in (0, 2):
            self.all("figure button.picture")[index].click()
            facts.append(self.find("#large-facts").text.split("SHA-256")[1])
            self.find("#close").click()
        self.assertEqual(facts[0], facts[1])
        self.assertTrue(source.startswith("data:image/png"))

    def test_a_static_model_has_no_dynamic_mode_and_no_plan(self):
        self.find("#model option[value=static]").click()
        self.assertFalse(self.find("#modes input[value=dynamic]").is_enabled())
        self.assertFalse(self.find("#plan-section").is_displayed())
        self.find("#model option[value=dynamic]").click()
        self.until(lambda: self.find("#plan-section").is_displayed())
        self.until(lambda: "of the heads" in self.find("#plan-note").text)

    def test_narrow_and_wide_light_and_dark(self):
        self.order(n=4)
        self.done()
        for width in (360, 1440):
            for scheme in ("light", "dark"):
                self.look(width, scheme)
                inside = self.browser.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
                self.assertTrue(inside, f"{width}: wider than the window")
                for selector in ("#class", "#go", "#cancel", "figure img"):
                    box = self.find(selector).rect
                    self.assertGreaterEqual(box["x"], 0)
                    self.assertLessEqual(box["x"] + box["width"], width, selector)
                self.shot(f"page-{width}-{scheme}")

    def test_every_field_has_a_name_and_the_keyboard_reaches_it(self):
        nameless = self.browser.execute_script("""
            return [...document.querySelectorAll('input, select, button')].filter(e => e.offsetParent &&
              !(e.labels && e.labels.length) && !e.textContent.trim() && !e.getAttribute('aria-label')).map(e => e.id);""")
        self.assertEqual(nameless, [])
        focused = self.browser.execute_script("""
            return [...document.querySelectorAll('#form input, #form select, #form button')]
              .filter(e => e.offsetParent && e.tabIndex < 0).map(e => e.id);""")
        self.assertEqual(focused, [])


if __name__ == "__main__":
    support.main()
