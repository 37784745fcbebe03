"""dydit serve: every image is generate's, whoever asks beside; what is asked wrongly, slowly or too often; its end."""

import concurrent.futures
import hashlib
import json
import os
import pathlib
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
import unittest

import numpy as np

import support
import vae_files
from serving import Server, events, picture
from support import CIFAR, PROGRAM, ROOT, TINY, ProgramTest

try:
    import openai
except ImportError:
    openai = None
from PIL import Image

FAILED, USAGE = 1, 2
DYNAMIC = ROOT / "models" / "dydit-cifar10-0.5.safetensors"
KEY = "a-key-of-our-own-0123456789"
MODELS = ["--model", f"dynamic={DYNAMIC}", "--model", f"static={CIFAR}"]
QUICK = {"prompt": "cat", "num_inference_steps": 5, "seed": 3, "guidance_scale": 1.5}
LONG = {"prompt": "ship", "num_inference_steps": 1000, "n": 16, "seed": 1}


def sha256(pixels):
    return hashlib.sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class ServeBase(ProgramTest):
    flags = ["--max-batch", "8"]

    @classmethod
    def setUpClass(cls):
        cls.server = cls.enterClassContext(Server(ROOT, *MODELS, *cls.flags))  # of all tests of the class

    def generate(self, model=DYNAMIC, **order):
        """sha256 of the pixels that generate makes of an order."""
        names = {"num_inference_steps": "--steps", "guidance_scale": "--cfg-scale", "sampler": "--sampler", "seed": "--seed",
                 "eta": "--eta", "mode": "--mode", "n": "-n", "prompt": "--classes", "cache": "--cache", "budget": "--budget",
                 "guide_every": "--guide-every"}
        flags = {"--steps": 50, "--sampler": "ddim", "--cfg-scale": 4, "-n": 1}
        flags |= {names[key]: value for key, value in order.items()}
        if flags["--sampler"] != "ddim":
            flags.pop("--eta", None)
        self.run_ok("generate", "--model", model, *(str(word) for pair in flags.items() for word in pair), "--npz", "x.npz")
        return [sha256(image) for image in np.load(self.work / "x.npz")["arr_0"]]


class ImagesTest(ServeBase):
    def test_images_are_those_of_generate_with_their_cost_and_record(self):
        answers = self.server.images(**QUICK, n=2)
        self.assertEqual([answer["sha256"] for answer in answers], self.generate(**QUICK, n=2))
        for index, answer in enumerate(answers):
            self.assertEqual((answer["index"], answer["class"], answer["class_name"], answer["seed"]), (index, 3, "cat", 3))
            (self.work / "x.png").write_bytes(picture(answer))
            with Image.open(self.work / "x.png") as image:
                self.assertEqual(sha256(np.asarray(image)), answer["sha256"])
                record = json.loads(image.text["dydit"])
            self.assertEqual(record["images"][0]["executed_gmacs"], answer["cost"]["executed_gmacs"])
            self.assertLess(answer["cost"]["executed_share"], 0.7)
        command = self.run_ok("inspect", "x.png")
        self.assertIn("--classes 3 -n 2 --seed 3 --steps 5 --sampler ddim --cfg-scale 1.5", command)

    def test_classes_have_many_names(self):
        wanted = self.generate(**QUICK)
        for prompt in ("3", "class:3", " cat "):
            self.assertEqual([image["sha256"] for image in self.server.images(**QUICK | {"prompt": prompt})], wanted)
        labels = {key: value for key, value in QUICK.items() if key != "prompt"}
        images = self.server.images(**labels, class_labels=[3, 8])
        self.assertEqual([image["class_name"] for image in images], ["cat", "ship"])
        self.assertEqual(images[0]["sha256"], wanted[0])
        self.assertEqual([i["class"] for i in self.server.images(**QUICK | {"prompt": "cat,ship", "n": 3})], [3, 8, 3])

    def test_a_seed_that_is_not_given_is_drawn_and_told(self):
        order = {key: value for key, value in QUICK.items() if key != "seed"}
        seeds = [self.server.images(**order)[0]["seed"] for _ in range(3)]
        self.assertEqual(len(set(seeds)), 3)
        self.assertLess(max(seeds), 2**53)
        again = self.server.images(**order, seed=seeds[0])[0]
        self.assertEqual([again["sha256"]], self.generate(**order, seed=seeds[0]))

    def test_a_seed_as_text_keeps_all_its_digits(self):
        seed = 2**64 - 1
        answer = self.server.images(**QUICK | {"seed": str(seed)})[0]
        self.assertEqual([answer["sha256"]], self.generate(**QUICK | {"seed": seed}))
        self.assertEqual(answer["seed"], seed)

    def test_plans_caches_and_budgets_are_generates(self):
        for more in ({"cache": "taylor:3,1"}, {"guide_every": 2}, {"budget": 0.2, "num_inference_steps": 50, "guidance_scale": 2}):
            order = QUICK | {"num_inference_steps": 12, **more}
            self.assertEqual([image["sha256"] for image in self.server.images(**order)], self.generate(**order), more)

    def test_a_plan_comes_with_the_order(self):
        every = "c" * 8
        plan = {"dydit_plan": 1, "depth": 8, "num_heads": 8, "num_tokens": 64,
                "steps": [{"t": t, "attn": every, "mlp": every if t != 500 else "0" * 8} for t in (999, 750, 500, 0)]}
        (self.work / "plan.json").write_text(json.dumps(plan))
        self.run_ok("generate", "--model", DYNAMIC, "--plan", "plan.json", "--sampler", "ddim", "--cfg-scale", "1.5", "--seed", "3",
                    "--classes", "cat", "--npz", "x.npz")
        order = {"prompt": "cat", "seed": 3, "guidance_scale": 1.5}
        self.assertEqual(self.server.images(**order, plan=plan)[0]["sha256"], sha256(np.load(self.work / "x.npz")["arr_0"][0]))
        for change in ({"depth": 3}, {"model_sha256": "0" * 64}, {"steps": []}):
            error = self.server.error({**order, "plan": plan | change})
            self.assertEqual(error["param"], "plan", error)
            self.assertNotIn("/", error["message"])

    def test_the_cost_map_is_asked_for(self):
        answer = self.server.images(**QUICK, cost_map=True)[0]
        (self.work / "map.png").write_bytes(picture(answer, "cost_map_b64_json"))
        with Image.open(self.work / "map.png") as image:
            self.assertEqual(image.size, (64, 64))
        self.assertIn("token_share", answer["cost"])
        self.assertEqual(self.server.error(QUICK | {"cost_map": True, "model": "static"})["param"], "cost_map")

    def test_models_are_called_by_name(self):
        models = self.server.json("GET", "/v1/models")["data"]
        self.assertEqual([(model["id"], model["dynamic"], model["size"]) for model in models],
                         [("dynamic", True, "32x32"), ("static", False, "32x32")])
        self.assertEqual([image["sha256"] for image in self.server.images(**QUICK, model="static")],
                         self.generate(model=CIFAR, **QUICK))
        error = self.server.error(QUICK | {"model": "statik"}, status=404)
        self.assertEqual(error["code"], "model_not_found")
        self.assertIn("static", error["message"])

    def test_addresses_of_pictures_last_for_a_while(self):
        answer = self.server.images(**QUICK, response_format="url")[0]
        path = answer["url"].split(f":{self.server.port}")[1]
        status, headers, bytes_ = self.server.ask("GET", path)
        self.assertEqual((status, headers["Content-Type"], bytes_[:4]), (200, "image/png", b"\x89PNG"))
        self.assertEqual(self.server.ask("GET", "/v1/files/nothing-0.png")[0], 404)
        self.assertEqual(self.server.ask("GET", path.replace("-0.png", "-1.png"))[0], 404)


class EqualTest(ServeBase):
    def test_sixty_mixed_requests_are_each_what_they_are_alone(self):
        draw = random.Random(4)
        orders = []
        for index in range(60):
            order = {"prompt": str(draw.randrange(10)), "seed": draw.randrange(2**53), "n": draw.choice([1, 1, 2]),
                     "num_inference_steps": draw.choice([5, 8, 13, 20, 50][:4 if index % 6 else 5]),
                     "sampler": draw.choice(["ddim", "ddpm", "dpm++"]), "guidance_scale": draw.choice([1, 1.5, 4]),
                     "mode": draw.choice(["dynamic", "static"])}
            orders.append(order)
        delays = [draw.random() * 2 for _ in orders]

        def ask(pair):
            time.sleep(pair[1] / 8)
            return [image["sha256"] for image in self.server.images(**pair[0])]

        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            got = list(pool.map(ask, zip(orders, delays)))
        self.assertGreater(self.server.number("forward_rows_sum"), 2 * self.server.number("forward_rows_count"))
        for order, images in zip(orders, got, strict=True):
            self.assertEqual(images, self.generate(**order), order)


class StreamTest(ServeBase):
    def stream(self, order):
        status, headers, body = self.server.ask("POST", "/v1/images/generations", order | {"stream": True})
        self.assertEqual((status, headers["Content-Type"]), (200, "text/event-stream"))
        return events(body.decode())

    def test_previews_come_first_and_pictures_are_the_same(self):
        order = QUICK | {"n": 2, "num_inference_steps": 12}
        told = self.stream(order | {"partial_images": 3})
        names = [name.split(".")[1] for name, _ in told]
        self.assertEqual(sorted(names), ["completed"] * 2 + ["partial_image"] * 6)
        partial = [data for name, data in told if name.endswith("partial_image")]
        self.assertEqual(sorted((data["index"], data["partial_image_index"], data["step"]) for data in partial),
                         [(index, k, 3 * k + 3) for index in (0, 1) for k in (0, 1, 2)])
        self.assertTrue(all(picture(data)[:4] == b"\x89PNG" for data in partial))
        images = {data["index"]: data["sha256"] for name, data in told if name.endswith("completed")}
        self.assertEqual([images[0], images[1]], self.generate(**order))

    def test_fewer_steps_than_previews(self):
        told = self.stream(QUICK | {"num_inference_steps": 2, "partial_images": 3})
        self.assertEqual([name.split(".")[1] for name, _ in told], ["partial_image", "completed"])
        told = self.stream(QUICK | {"num_inference_steps": 1, "partial_images": 3})
        self.assertEqual([name.split(".")[1] for name, _ in told], ["completed"])

    def test_progress_is_told_where_it_is_asked_for(self):
        told = self.stream(QUICK | {"num_inference_steps": 100, "n": 8, "progress": True})
        progress = [data["progress"] for name, data in told if name.endswith("progress")]
        self.assertGreater(len(progress), 1)
        self.assertEqual(progress, sorted(progress))
        self.assertEqual(self.server.error(QUICK | {"progress": True})["param"], "progress")

    def test_a_deadline_ends_a_stream_with_an_error(self):
        told = self.stream(LONG | {"timeout_s": 0.5})
        self.assertEqual(told[-1][0], "error")
        self.assertEqual(told[-1][1]["error"]["code"], "timeout")

    def test_a_client_that_leaves_takes_its_images_along(self):
        before = self.server.number('orders_total{end="cancelled"}')
        connection = self.server.connection()
        connection.request("POST", "/v1/images/generations", json.dumps(LONG | {"stream": True, "progress": True}),
                           {"Content-Type": "application/json"})
        response = connection.getresponse()
        response.read(10)
        self.assertGreater(self.server.number("images_in_flight"), 0)
        connection.sock.shutdown(socket.SHUT_RDWR)
        response.close()
        connection.close()
        self.server.until(lambda: self.server.number("images_in_flight") == 0)
        self.assertEqual(self.server.number("queue_images"), 0)
        self.assertEqual(self.server.number('orders_total{end="cancelled"}'), before + 1)


class JobsTest(ServeBase):
    flags = ["--max-batch", "8", "--keep-seconds", "1"]

    def test_a_job_is_polled_and_its_pictures_are_fetched(self):
        job = self.server.json("POST", "/v1/jobs", QUICK, status=202)
        self.assertIn(job["status"], ("queued", "generating"))
        self.assertIn("eta_s", job)
        path = job["poll_url"].split(f":{self.server.port}")[1]
        self.server.until(lambda: self.server.json("GET", path)["status"] == "completed")
        job = self.server.json("GET", path)
        self.assertEqual(job["progress"], 1)
        self.assertEqual([image["sha256"] for image in job["data"]], self.generate(**QUICK))
        time.sleep(1.2)
        self.assertEqual(self.server.ask("GET", path)[0], 410)
        self.assertEqual(self.server.ask("GET", "/v1/jobs/none")[0], 404)

    def test_jobs_are_cancelled(self):
        for method, more in (("POST", "/cancel"), ("DELETE", "")):
            path = "/v1/jobs/" + self.server.json("POST", "/v1/jobs", LONG, status=202)["id"]
            self.server.until(lambda: self.server.json("GET", path)["status"] == "generating")
            job = self.server.json(method, path + more)
            self.assertEqual((job["status"], job["error"]["code"]), ("cancelled", "cancelled"))
            self.server.until(lambda: self.server.number("images_in_flight") == 0, 5)

    def test_a_job_fails_at_its_deadline_and_says_what_was_done(self):
        path = "/v1/jobs/" + self.server.json("POST", "/v1/jobs", LONG | {"timeout_s": 0.3}, status=202)["id"]
        self.server.until(lambda: self.server.json("GET", path)["status"] == "failed", 5)
        self.assertIn("0 of 16 images were finished within 0.3 s", self.server.json("GET", path)["error"]["message"])


class WebUiTest(ServeBase):
    def test_txt2img_is_generate(self):
        answer = self.server.json("POST", "/sdapi/v1/txt2img",
                                  {"prompt": "cat", "steps": 5, "seed": 3, "cfg_scale": 1.5, "sampler_name": "DDIM", "width": 32,
                                   "height": 32, "batch_size": 1, "n_iter": 2, "negative_prompt": ""})
        wanted = self.server.images(**QUICK, n=2)
        for text, image in zip(answer["images"], wanted, strict=True):
            (self.work / "x.png").write_bytes(picture({"b64_json": text}))
            with Image.open(self.work / "x.png") as opened:
                self.assertEqual(sha256(np.asarray(opened)), image["sha256"])
        self.assertEqual(json.loads(answer["info"])["all_seeds"], [3, 3])
        self.assertEqual(answer["parameters"]["steps"], 5)

    def test_what_makes_no_sense_for_classes_is_refused_by_name(self):
        for field, value in {"negative_prompt": "ugly", "enable_hr": True, "width": 512, "styles": ["x"], "sampler_name": "Euler",
                             "subseed": 5, "restore_faces": True, "override_settings": {"clip": 1}}.items():
            error = self.server.error({"prompt": "cat", field: value}, path="/sdapi/v1/txt2img")
            self.assertEqual(error["param"], field, error)
            self.assertIn({"width": "512x32", "sampler_name": "a DiT takes ddpm, ddim or dpm++"}.get(field, field), error["message"])

    def test_front_ends_poll(self):
        self.assertEqual([s["name"] for s in self.server.json("GET", "/sdapi/v1/samplers")], ["DDPM", "DDIM", "DPM++ 2M"])
        self.assertEqual([m["title"] for m in self.server.json("GET", "/sdapi/v1/sd-models")], ["dynamic", "static"])
        self.assertEqual(self.server.json("GET", "/sdapi/v1/options")["sd_model_checkpoint"], "dynamic")
        self.assertEqual(self.server.json("GET", "/sdapi/v1/progress")["progress"], 0)

    def test_interrupt_ends_what_runs(self):
        told = {}
        body = {"prompt": "cat", "steps": 1000, "batch_size": 16}
        ask = threading.Thread(target=lambda: told.update(self.server.error(body, 499, "/sdapi/v1/txt2img")))
        ask.start()
        self.server.until(lambda: self.server.json("GET", "/sdapi/v1/progress")["progress"] > 0)
        self.server.json("POST", "/sdapi/v1/interrupt", "")
        ask.join(10)
        self.assertEqual(told["code"], "cancelled")


class RefusalTest(ServeBase):
    flags = ["--max-batch", "2", "--max-images", "4", "--queue", "2", "--queue-images", "5", "--max-seconds", "30"]

    def refused(self, fragment, **more):
        body = {key: value for key, value in (QUICK | more).items() if value is not ...}
        error = self.server.error(body)
        self.assertIn(fragment, error["message"])
        self.assertEqual(error["type"], "invalid_request_error")
        return error["param"]

    def test_every_field_is_checked(self):
        for field, value, fragment in (
                ("prompt", "unicorn", "unicorn"), ("prompt", "", "empty"), ("prompt", "class:10", "class:0 to class:9"),
                ("prompt", 3, "a text is wanted"), ("prompt", ..., "prompt is missing"), ("n", 0, "1 to 4"), ("n", 5, "1 to 4"),
                ("n", 1.5, "whole number"), ("n", "1", "whole number"), ("size", "64x64", "32x32"), ("size", "big", "32x32"),
                ("num_inference_steps", 1001, "1 to 1000"), ("guidance_scale", -1, "0 to 1000"), ("guidance_scale", "x", "number"),
                ("sampler", "euler", "ddpm, ddim or dpm++"), ("sampler", "odd", "ddpm, ddim, dpm++"), ("eta", 2, "0 to 1"), ("mode", "fast", "dynamic, static"),
                ("seed", -1, "2^64 - 1"), ("seed", 1.5, "2^64 - 1"), ("seed", "1e3", "2^64 - 1"),
                ("seed", str(2**64), "2^64 - 1"), ("partial_images", 4, "0 to 3"), ("response_format", "jpeg", "b64_json or url"),
                ("output_format", "webp", "png"), ("stream", "yes", "true or false"), ("timeout_s", 31, "to 30"),
                ("timeout_s", 0, "to 30"), ("cache", "magic:3", "magic"), ("cache", "l2c:/etc/passwd", "reads a file"),
                ("budget", 2, "0.001"), ("budget", 0.2, "plan"), ("quality", "hd", "quality"), ("class_labels", [1], "give one"),
                ("timesteps", [5, 1], "goes without num_inference_steps"), ("user", "a\nb", "control characters")):
            with self.subTest(field=field, value=value):
                self.assertIn(self.refused(fragment, **{field: value}), (field, "prompt"))

    def test_fields_are_known(self):
        self.assertIn("5", self.server.error({"prompt": "cat", "timesteps": [5, 5]})["message"])
        error = self.server.error(QUICK | {"stepz": 4})
        self.assertEqual((error["code"], error["param"]), ("unknown_field", "stepz"))
        self.assertIn("guidance_scale", self.server.error({"prompt": "cat", "guidance_scal": 3})["message"])

    def test_bodies_are_json_objects(self):
        for body, fragment in ((b"", "JSON"), (b"[1]", "object"), (b'{"prompt": "cat", "prompt": "dog"}', "twice"),
                               (b'{"prompt": "c\xff"}', "not UTF-8"), (b"[" * 5000, "deep"), (b'{"prompt": NaN}', "JSON")):
            with self.subTest(body=body[:20]):
                self.assertIn(fragment, self.server.error(body)["message"])

    def test_bodies_are_said_to_be_json(self):
        status, _, body = self.server.ask("POST", "/v1/images/generations", json.dumps(QUICK), {"Content-Type": "text/plain"})
        self.assertEqual((status, json.loads(body)["error"]["code"]), (415, "unsupported_media_type"))

    def test_null_is_nothing(self):
        self.assertEqual(self.server.images(**QUICK, n=None, budget=None)[0]["sha256"],
                         self.server.images(**QUICK)[0]["sha256"])

    def test_routes_and_methods(self):
        self.assertEqual(self.server.ask("GET", "/v2/images")[0], 404)
        self.assertEqual(self.server.ask("GET", "/v1/images/generations")[0], 405)
        self.assertEqual(self.server.ask("DELETE", "/v1/models")[0], 405)
        self.assertEqual(self.server.ask("GET", "/" + "a" * 20000)[0], 414)
        self.assertEqual(self.server.ask("HEAD", "/health")[0], 200)

    def test_a_full_queue_tells_when_to_come_again(self):
        ids = [self.server.json("POST", "/v1/jobs", LONG | {"n": 2}, status=202)["id"] for _ in range(2)]
        status, headers, body = self.server.ask("POST", "/v1/jobs", LONG | {"n": 4})
        self.assertEqual((status, json.loads(body)["error"]["code"]), (429, "queue_full"))
        self.assertGreaterEqual(int(headers["Retry-After"]), 1)
        self.assertIn("wait already", json.loads(body)["error"]["message"])
        for id_ in ids:
            self.server.json("DELETE", f"/v1/jobs/{id_}")
        self.server.until(lambda: self.server.number("queue_images") == 0)
        self.server.images(**QUICK)

    def test_strangers_pages_reach_nothing(self):
        for host in ("evil.example", "evil.example:8080", "127.evil.example", "127.0.0.1.evil.example", "localhost.evil.example", ""):
            status, _, body = self.server.ask("GET", "/v1/models", headers={"Host": host})
            self.assertEqual(status, 403, body)
        for host in ("localhost", "127.0.0.1:1", "[::1]:5"):
            self.assertEqual(self.server.ask("GET", "/v1/models", headers={"Host": host})[0], 200)
        headers = self.server.ask("GET", "/v1/models", headers={"Origin": "http://evil.example"})[1]
        self.assertNotIn("Access-Control-Allow-Origin", headers)


class FaultTest(ServeBase):
    flags = ["--max-batch", "8", "--connections", "64"]

    def raw(self, data, timeout=30):
        with self.server.socket(timeout) as connection:
            connection.sendall(data)
            got = b""
            while part := connection.recv(65536):
                got += part
        return got

    def test_two_hundred_connections_at_once(self):
        with concurrent.futures.ThreadPoolExecutor(200) as pool:
            got = list(pool.map(lambda _: self.server.ask("GET", "/health")[0], range(200)))
        self.assertLessEqual(set(got), {200, 503})
        self.assertGreater(got.count(200), 60)
        self.server.until(lambda: self.server.number("http_connections") == 1)

    def test_slow_clients_give_their_threads_back(self):
        sockets = [self.server.socket() for _ in range(40)]
        for connection in sockets:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\n")
        end = time.monotonic() + 30
        slow = 0
        while time.monotonic() < end and sockets:  # a byte now and then keeps a naive server waiting for ever
            time.sleep(0.5)
            self.assertEqual(self.server.ask("GET", "/health")[0], 200)
            for connection in list(sockets):
                try:
                    connection.sendall(b"X")
                    connection.settimeout(0.001)
                    if connection.recv(4096) == b"":
                        raise ConnectionError
                except TimeoutError:
                    continue
                except OSError:
                    connection.close()
                    sockets.remove(connection)
                    slow += 1
        self.assertEqual(slow, 40)

    def test_a_huge_body_is_refused_before_it_came(self):
        head = b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 1000000000\r\n\r\n"
        with self.server.socket() as connection:
            connection.sendall(head)
            sent = 0
            try:
                for _ in range(1000):
                    sent += connection.send(b"x" * 100_000)
            except OSError:
                pass
            self.assertLess(sent, 64_000_000)
        self.assertEqual(self.server.ask("POST", "/v1/jobs", b'{"prompt": "' + b"a" * (1 << 20) + b'"}')[0], 413)
        self.server.images(**QUICK)

    def test_odd_bytes_get_an_answer_or_an_end(self):
        for data in (b"\r\n\r\n", b"GET\r\n\r\n", b"\x16\x03\x01\x02\x00\x01\x00", b"GET / HTTP/9.9\r\n\r\n",
                     b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Length: -5\r\n\r\n",
                     b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\nZZZ\r\n",
                     b"GET / HTTP/1.1\r\n" + b"A: b\r\n" * 30000 + b"\r\n", b"GET /%zz%00%ff HTTP/1.1\r\nHost: localhost\r\n\r\n"):
            with self.subTest(data=data[:30]), self.server.socket() as connection:
                try:
                    connection.sendall(data)
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except OSError:
                    pass
        self.server.images(**QUICK)

    def test_mutated_requests(self):
        """DYDIT_REQUESTS of them: each gets an answer or an end, and the server lives."""
        draw = random.Random(6)
        body = json.dumps({"prompt": "cat", "n": 1, "num_inference_steps": 1, "stream": True}).encode()
        seeds = [b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                 b"Content-Length: %d\r\n\r\n%s" % (len(body), body),
                 b"POST /v1/jobs HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\n"
                 b"11\r\n{\"prompt\": \"cat\"}\r\n0\r\n\r\n",
                 b"GET /v1/models?a=b&c=%41 HTTP/1.1\r\nHost: localhost\r\nRange: bytes=0-5\r\nConnection: close\r\n\r\n",
                 b"GET /v1/files/a-0.png HTTP/1.0\r\nHost: [::1]:80\r\nAccept-Encoding: gzip, br\r\n\r\n",
                 b"POST /sdapi/v1/txt2img HTTP/1.1\r\nHost: localhost\r\nContent-Type: multipart/form-data; boundary=x\r\n"
                 b"Content-Length: 60\r\n\r\n--x\r\nContent-Disposition: form-data; name=\"a\"\r\n\r\nb\r\n--x--\r\n"]
        words = [b"\r\n", b"\n", b"\0", b"%00", b"%zz", b"HTTP/1.1", b"Content-Length: ", b"-1", b"99999999999999999999", b"chunked",
                 b"Expect: 100-continue\r\n", b"Range: bytes=-,5-1\r\n", b"\xff\xfe", b"a" * 9000, b": ", b" ", b"Content-Encoding: gzip\r\n"]
        for _ in range(int(os.environ.get("DYDIT_REQUESTS", 500))):
            data = bytearray(draw.choice(seeds))
            for _ in range(draw.randrange(1, 5)):
                at = draw.randrange(len(data) + 1)
                kind = draw.randrange(4)
                if kind == 0 and at < len(data):
                    data[at] = draw.randrange(256)
                elif kind == 1:
                    data[at:at] = draw.choice(words)
                elif kind == 2:
                    del data[at:at + draw.randrange(1, 20)]
                else:
                    data[at:at] = data[:draw.randrange(1, 40)]
            with self.server.socket() as connection:
                try:
                    connection.sendall(bytes(data))
                    connection.shutdown(socket.SHUT_WR)
                    while connection.recv(65536):
                        pass
                except ConnectionError:
                    pass
        self.assertIsNone(self.server.process.poll())
        self.server.images(**QUICK)

    def test_a_half_closed_client_is_taken_as_gone(self):
        body = json.dumps(LONG).encode()
        with self.server.socket() as connection:
            connection.sendall(b"POST /v1/images/generations HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                               b"Content-Length: %d\r\n\r\n%s" % (len(body), body))
            self.server.until(lambda: self.server.number("images_in_flight") > 0)
            connection.shutdown(socket.SHUT_WR)
            self.server.until(lambda: self.server.number("images_in_flight") == 0, 5)
            self.assertIn(b" 499 ", connection.recv(65536).split(b"\r\n")[0] + b" ")

    def test_a_post_without_a_length_has_no_body(self):
        begun = time.monotonic()
        got = self.raw(b"POST /sdapi/v1/interrupt HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
        self.assertIn(b"200 OK", got.split(b"\r\n")[0])
        self.assertLess(time.monotonic() - begun, 5)

    def test_a_connection_serves_many_requests(self):
        connection = self.server.connection()
        for _ in range(50):
            connection.request("GET", "/health")
            self.assertEqual(connection.getresponse().read(), b'{"status":"ok"}\n')
        connection.close()

    def test_memory_and_descriptors_stay_as_they_are(self):
        def state():
            return self.server.number("resident_bytes"), len(os.listdir(f"/proc/{self.server.process.pid}/fd"))

        def load():
            with concurrent.futures.ThreadPoolExecutor(8) as pool:
                list(pool.map(lambda seed: self.server.images(**QUICK | {"seed": seed}), range(40)))
            connection = self.server.connection()
            connection.request("POST", "/v1/images/generations", json.dumps(LONG | {"stream": True}),
                               {"Content-Type": "application/json"})
            connection.getresponse().close()
            connection.close()
            self.server.until(lambda: self.server.number("images_in_flight") == 0)
        for _ in range(2):  # what is allocated once: steps of plans, tables of so many timesteps
            load()
        before = state()
        end = time.monotonic() + float(os.environ.get("DYDIT_SOAK_SECONDS", 20))
        while time.monotonic() < end:
            load()
        after = state()
        self.assertLess(after[0], before[0] + 24e6)
        self.assertLessEqual(after[1], before[1] + 2)


class KeysTest(ProgramTest):
    def test_a_key_is_asked_for_but_by_page_and_health(self):
        self.write("keys", f"# ours\n\n{KEY}\nanother-key-0123456789\n")
        with Server(self.work, *MODELS[:2], "--api-key-file", "keys") as server:
            self.assertEqual(server.ask("GET", "/health")[0], 200)
            self.assertEqual(server.ask("GET", "/")[0], 200)
            for header in ({}, {"Authorization": "Bearer wrong-key-0123456789"}, {"Authorization": KEY}):
                status, headers, body = server.ask("GET", "/v1/models", headers=header)
                self.assertEqual((status, headers["WWW-Authenticate"]), (401, "Bearer"))
                self.assertEqual(json.loads(body)["error"]["type"], "authentication_error")
                self.assertEqual(server.ask("POST", "/v1/images/generations", QUICK, header)[0], 401)
            self.assertEqual(server.ask("GET", "/v1/models", headers={"Authorization": f"Bearer {KEY}"})[0], 200)

    def test_one_client_does_not_keep_another_waiting(self):
        self.write("keys", f"{KEY}\nanother-key-0123456789\n")
        with Server(self.work, *MODELS[:2], "--api-key-file", "keys", "--max-batch", "2") as server:
            mine, other = ({"Authorization": f"Bearer {key}"} for key in (KEY, "another-key-0123456789"))
            job = server.json("POST", "/v1/jobs", QUICK | {"n": 16, "num_inference_steps": 50}, mine, status=202)
            server.json("POST", "/v1/images/generations", QUICK, other)
            self.assertLess(server.json("GET", "/v1/jobs/" + job["id"], headers=mine)["finished"], 8)

    def test_cors_is_for_the_origin_that_is_named(self):
        with Server(self.work, *MODELS[:2], "--cors", "https://example.org") as server:
            status, headers, _ = server.ask("OPTIONS", "/v1/images/generations", headers={"Origin": "https://example.org"})
            self.assertEqual((status, headers["Access-Control-Allow-Origin"]), (204, "https://example.org"))
            self.assertIn("Authorization", headers["Access-Control-Allow-Headers"])

    def test_flags_that_cannot_be_meant(self):
        self.write("short", "short\n")
        self.write("none", "# nothing\n")
        serve = ["serve", "--model", DYNAMIC, "--port", "0"]
        for more, status, fragments in (
                (["--host", "0.0.0.0"], USAGE, ("--host 0.0.0.0", "--api-key-file", "--no-auth", "whoever reaches it could use this machine")),
                (["--model", "=x"], USAGE, ("--model", "NAME=PATH is wanted")),
                (["--no-auth"], USAGE, ("--no-auth", "--host")),
                (["--api-key-file", "absent"], FAILED, ("absent: cannot read API keys",)),
                (["--api-key-file", "short"], FAILED, ("short: line 1", "16 or more")),
                (["--api-key-file", "none"], FAILED, ("none: holds no API key",)),
                (["--model", f"x={DYNAMIC}", "--model", f"x={CIFAR}"], USAGE, ("--model", "two models are called", "NAME=PATH")),
                (["--host", "192.0.2.1", "--no-auth"], FAILED, ("cannot listen on 192.0.2.1",)),
                (["--vae", "x"], USAGE, ("--vae", "latents")),
                (["--model", "absent.safetensors"], FAILED, ("absent.safetensors",))):
            with self.subTest(more=more):
                self.expect_error([*serve, *more], status, *fragments)
        self.expect_error(["serve", "--model", TINY, "--port", "0"], FAILED, "model.safetensors", "makes latents", "--vae")

    def test_a_port_in_use_is_told(self):
        with socket.create_server(("127.0.0.1", 0)) as taken:
            port = taken.getsockname()[1]
            self.expect_error(["serve", "--model", DYNAMIC, "--port", port], FAILED, f"port {port}", "in use", "--port")


class EndTest(ProgramTest):
    def test_what_was_accepted_is_finished(self):
        with Server(self.work, *MODELS, "--max-batch", "4") as server:
            with concurrent.futures.ThreadPoolExecutor(12) as pool:
                asked = [pool.submit(server.ask, "POST", "/v1/images/generations", QUICK | {"seed": seed, "num_inference_steps": 60})
                         for seed in range(10)]
                server.until(lambda: server.number("images_in_flight") + server.number("queue_images") >= 8)
                server.process.send_signal(signal.SIGTERM)
                server.until(lambda: server.ask("GET", "/health")[0] == 503)
                status, headers, body = server.ask("POST", "/v1/images/generations", QUICK)
                self.assertEqual((status, headers["Connection"].lower()), (503, "close"))
                self.assertEqual([future.result()[0] for future in asked], [200] * 10)
            self.assertEqual(server.process.wait(30), 0)
            self.assertIn("10 images in 10 requests", server.process.stdout.read())

    def test_what_takes_too_long_is_cancelled(self):
        with Server(self.work, *MODELS[:2], "--drain-seconds", "0.5", "--json") as server:
            job = threading.Thread(target=lambda: server.ask("POST", "/v1/images/generations", LONG))
            job.start()
            server.until(lambda: server.number("images_in_flight") > 0)
            status, stdout = server.end()
            job.join(10)
            self.assertEqual((status, json.loads(stdout)["cancelled"]), (0, 1))
            self.assertTrue(any("1 requests were not finished in time" in line for line in server.lines))

    def test_a_second_signal_ends_at_once(self):
        with Server(self.work, *MODELS[:2]) as server:
            threading.Thread(target=lambda: self.assertRaises(Exception, server.ask, "POST", "/v1/images/generations", LONG)).start()
            server.until(lambda: server.number("images_in_flight") > 0)
            server.process.send_signal(signal.SIGINT)
            time.sleep(0.5)
            begun = time.monotonic()
            server.process.send_signal(signal.SIGINT)
            self.assertEqual(server.process.wait(10), -signal.SIGINT)
            self.assertLess(time.monotonic() - begun, 2)

    def test_killed_it_starts_again_on_its_port(self):
        with Server(self.work, *MODELS[:2]) as server:
            port = server.port
            server.images(**QUICK)
            server.process.kill()
        with Server(self.work, *MODELS[:2], port=port) as again:
            self.assertEqual(again.port, port, again.lines)
            again.images(**QUICK)


class DocsTest(ServeBase):
    @unittest.skipIf(shutil.which("curl") is None, "curl is not installed")
    def test_the_examples_of_the_page_work(self):
        blocks = re.findall(r"```sh no-test\n(.*?)```", (ROOT / "docs/serve.md").read_text(), re.DOTALL)
        blocks = [block for block in blocks if "curl" in block]
        self.assertGreaterEqual(len(blocks), 4)
        for block in blocks:
            done = subprocess.run(["bash", "-euc", block.replace("localhost:8080", f"localhost:{self.server.port}")], cwd=self.work,
                                  capture_output=True, text=True, timeout=120)
            self.assertEqual(done.returncode, 0, block + done.stderr)
            self.assertNotIn('"error"', done.stdout.replace('"error":{"code":"cancelled"', ""), block)
            self.assertTrue(done.stdout, block)

    def test_every_route_is_on_the_page(self):
        text = (ROOT / "docs/serve.md").read_text()
        code = (ROOT / "programs/dydit/serve_routes.cpp").read_text()
        routes = re.findall(r'\{"(?:GET|POST)", "(/[^"]*)"', code)
        self.assertGreater(len(routes), 14)
        for route in routes:
            self.assertTrue(f"`{route}`" in text or f" {route}`" in text or f"`{route.split('/')[-1]}`" in text, route)

    @unittest.skipIf(openai is None, "the package openai is not installed (scripts/setup --tests does so)")
    def test_the_client_of_the_examples_works(self):
        done = subprocess.run([sys.executable, ROOT / "examples/serve/client.py", f"http://127.0.0.1:{self.server.port}"],
                              cwd=self.work, capture_output=True, text=True, timeout=120)
        self.assertEqual((done.returncode, done.stdout.count("\n")), (0, 2), done.stderr)
        self.assertIn("image-1.png: airplane, seed 7, ", done.stdout)


class FlagsTest(ProgramTest):
    """Each flag changes what its help says."""

    def test_every_flag_is_seen_here(self):
        said = self.run_program("serve", "--help").stdout
        tests = pathlib.Path(__file__).read_text()
        for line in said.splitlines():
            if line.startswith("  -"):
                name = next(name for name in line.split()[0].split(",") if name.startswith("--"))
                self.assertIn(f'"{name}', tests, name)

    def test_what_requests_get_that_say_nothing(self):
        self.write("serve.toml", "sampler = 'dpm++'\nsteps = 4\n")
        with Server(self.work, "--model", CIFAR, "--config", "serve.toml", "--cfg-scale", "1.5", "--max-batch", "6", "--dtype", "bf16",
                    "--engine", "reference", "--device", "cpu", "--threads", "2", "--access-log", "--verbose") as server:
            model = server.json("GET", "/v1/models")["data"][0]
            self.assertEqual(model["id"], "dit-cifar10")
            self.assertEqual(model["defaults"], {"num_inference_steps": 4, "sampler": "dpm++", "guidance_scale": 1.5})
            self.assertEqual(model["rows"], 6)
            answer = server.images(prompt="cat", seed=1, user="somebody")[0]
            server.until(lambda: any(" somebody POST /v1/images/generations 200 " in line for line in server.lines))
            flags = ["--seed", "1", "--classes", "cat", "--sampler", "dpm++", "--steps", "4", "--cfg-scale", "1.5", "--dtype", "bf16",
                     "--engine", "reference", "--npz", "x.npz"]
            self.run_ok("generate", "--model", CIFAR, *flags)
            self.assertEqual(answer["sha256"], sha256(np.load(self.work / "x.npz")["arr_0"]))

    def test_what_belongs_to_a_gpu_is_refused_without_one(self):
        for flags in (["--graphs", "on"], ["--no-batch-invariant"]):
            self.expect_error(["serve", "--model", CIFAR, *flags], 2, flags[0], "needs --device cuda")

    def test_what_is_kept(self):
        with Server(self.work, *MODELS[:2], "--keep-memory", "0.005", "--cache-memory", "0.000001", "--quiet", port=free_port()) as server:
            server.until(lambda: server.health() == 200)
            ids = [server.json("POST", "/v1/jobs", QUICK | {"seed": seed}, status=202)["id"] for seed in range(4)]
            server.until(lambda: server.number("images_total") == 4)
            server.images(**QUICK)  # whose acceptance looks after what is kept
            self.assertEqual(server.ask("GET", f"/v1/jobs/{ids[0]}")[0], 410)
            self.assertEqual(server.ask("GET", f"/v1/jobs/{ids[-1]}")[0], 200)
            self.assertEqual(server.error(QUICK | {"cache": "fora:2"})["param"], "cache")
            self.assertEqual(server.lines, [])


class LatentTest(ProgramTest):
    def test_latents_are_decoded_as_generate_does(self):
        vae = vae_files.write_kl(self.work / "vae")
        config, bare = vae / "config.json", shutil.copy(vae / "diffusion_pytorch_model.safetensors", self.work / "bare.safetensors")
        for flags in (["--vae", "vae"], ["--vae", "vae", "--vae-dtype", "bf16"], ["--vae", bare, "--vae-config", config],
                      ["--vae", "vae", "--vae-tiling", "diffusers"]):
            self.run_ok("generate", "--model", TINY, *flags, "--sampler", "ddim", "--steps", "4", "--seed", "3", "--classes", "2",
                        "--npz", "x.npz")
            wanted = sha256(np.load(self.work / "x.npz")["arr_0"])
            with Server(self.work, "--model", TINY, *flags, "--preview-vae", "vae") as server:
                order = {"prompt": "2", "num_inference_steps": 4, "seed": 3}
                answer = server.images(**order)[0]
                self.assertEqual(answer["sha256"], wanted, flags)
                self.assertGreater(answer["cost"]["decode_seconds"], 0)
                told = events(server.ask("POST", "/v1/images/generations", order | {"stream": True, "partial_images": 1})[2].decode())
                self.assertEqual(len(told), 2)


@unittest.skipIf(openai is None, "the package openai is not installed (scripts/setup --tests does so)")
class OpenAiClientTest(ServeBase):
    def setUp(self):
        super().setUp()  # a folder of the test
        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self.server.port}/v1", api_key="none", max_retries=0)

    def test_images_are_generated(self):
        answer = self.client.images.generate(model="dynamic", prompt="cat", n=2, size="32x32",
                                             extra_body={"seed": 3, "num_inference_steps": 5, "guidance_scale": 1.5})
        wanted = self.server.images(**QUICK, n=2)
        self.assertEqual([image.b64_json is not None for image in answer.data], [True, True])
        self.assertEqual([image.sha256 for image in answer.data], [image["sha256"] for image in wanted])

    def test_they_are_streamed(self):
        stream = self.client.images.generate(model="dynamic", prompt="cat", stream=True, partial_images=2,
                                             extra_body={"seed": 3, "num_inference_steps": 6})
        self.assertEqual([event.type for event in stream],
                         ["image_generation.partial_image"] * 2 + ["image_generation.completed"])

    def test_errors_are_its_own(self):
        with self.assertRaises(openai.BadRequestError) as raised:
            self.client.images.generate(model="dynamic", prompt="unicorn")
        self.assertEqual(raised.exception.param, "prompt")
        with self.assertRaises(openai.NotFoundError):
            self.client.images.generate(model="dall-e-3", prompt="cat")

    def test_models_are_listed(self):
        self.assertEqual([model.id for model in self.client.models.list()], ["dynamic", "static"])


if __name__ == "__main__":
    support.main()
