"""dydit serve against dydit generate, and against the same model in a Python server: images a second at full load, the
time of a single request, latencies by load. JSON on stdout, a table on stderr.

    build/rivals/bin/python benchmarks/rivals/compare_serve.py [--quick]      DYDIT: the program
"""

import argparse
import concurrent.futures
import http.client
import json
import os
import pathlib
import random
import socket
import statistics
import subprocess
import sys
import tempfile
import time

HERE = pathlib.Path(__file__).resolve().parent
ROOT = HERE.parents[1]
DYDIT = os.environ.get("DYDIT", str(ROOT / "build/release/dydit"))
STEPS, SCALE = 50, 1.5
LOADS = (0.25, 0.5, 0.8, 1.0)


def say(text):
    print(text, file=sys.stderr, flush=True)


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as found:
        return found.getsockname()[1]


class Served:
    def __init__(self, command, port):
        self.port = port
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        for _ in range(1200):
            try:
                if self.ask("GET", "/health")[0] == 200:
                    return
            except OSError:
                pass
            time.sleep(0.1)
        raise SystemExit(f"{command}: does not answer")

    def ask(self, method, path, body=None):
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=600)
        connection.request(method, path, json.dumps(body) if body else None, {"Content-Type": "application/json"})
        response = connection.getresponse()
        text = response.read()
        connection.close()
        return response.status, text

    def images(self, seed, n=1):
        begun = time.monotonic()
        status, text = self.ask("POST", "/v1/images/generations",
                                {"prompt": self.prompt(seed), "n": n, "seed": seed, "num_inference_steps": STEPS, "guidance_scale": SCALE})
        assert status == 200, text[:300]
        return time.monotonic() - begun

    def prompt(self, seed):
        return seed % 10

    def full_load(self, images, n):
        """Images a second with so many clients that none waits for orders."""
        begun = time.monotonic()
        with concurrent.futures.ThreadPoolExecutor(32) as pool:
            list(pool.map(lambda seed: self.images(seed, n), range(images // n)))
        return images / (time.monotonic() - begun)

    def latencies(self, rate, count, seed):
        """Seconds of single images that arrive at random, `rate` a second on the average."""
        draw = random.Random(seed)
        with concurrent.futures.ThreadPoolExecutor(256) as pool:
            waits = []
            for i in range(count):
                waits.append(pool.submit(self.images, i))
                time.sleep(draw.expovariate(rate))
            return sorted(wait.result() for wait in waits)

    def end(self):
        self.process.terminate()
        self.process.wait()


class Dydit(Served):
    def __init__(self, model, threads):
        port = free_port()
        super().__init__([DYDIT, "serve", "--model", model, "--threads", str(threads), "--port", str(port), "--queue", "1000",
                          "--queue-images", "10000", "-q"], port)

    def prompt(self, seed):
        return f"class:{seed % 10}"


class Rival(Served):
    def __init__(self, model, threads, *more):
        port = free_port()
        super().__init__([sys.executable, str(HERE / "serve_torch.py"), "--model", model, "--threads", str(threads), "--port", str(port),
                          *more], port)


def generate(model, threads, images, batch):
    """Seconds that generate spends on the images, loading left out."""
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run([DYDIT, "generate", "--model", model, "-n", str(images), "--batch", str(batch), "--threads", str(threads),
                               "--sampler", "ddim", "--steps", str(STEPS), "--cfg-scale", str(SCALE), "--npz", f"{folder}/x.npz", "--json",
                               "-q"], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)["seconds"]


def quantiles(values):
    at = lambda q: values[min(len(values) - 1, int(q * len(values)))]
    return {"p50": at(0.5), "p95": at(0.95), "p99": at(0.99)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(ROOT / "models/dydit-cifar10-0.5.safetensors"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--quick", action="store_true", help="half of the images")
    args = parser.parse_args()
    images, rounds = (48, 2) if args.quick else (96, 3)
    result = {"model": pathlib.Path(args.model).name, "threads": args.threads, "steps": STEPS, "guidance": SCALE}

    batches = {batch: images / generate(args.model, args.threads, images, batch) for batch in (2, 4, 8, 16, 32)}
    best = max(batches, key=batches.get)
    say(f"generate: images/s by batch {({b: round(r, 3) for b, r in batches.items()})}")
    served = Dydit(args.model, args.threads)
    served.full_load(images // 2, 4)
    turns = [(images / generate(args.model, args.threads, images, best), served.full_load(images, 4)) for _ in range(rounds)]
    ratio = statistics.median(ours / alone for alone, ours in turns)
    rate = statistics.median(ours for _, ours in turns)
    result["throughput"] = {"generate_batch": best, "turns": turns, "ratio": ratio}
    say(f"full load: {rate:.3f} images/s, {ratio:.3f} of generate --batch {best}")
    single = [(generate(args.model, args.threads, 1, 1), served.images(i)) for i in range(3 * rounds)]
    result["single"] = {"turns": single, "ratio": statistics.median(ours / alone for alone, ours in single)}
    say(f"a single request: {result['single']['ratio']:.3f} of generate's time")
    result["latency"] = {}
    for load in LOADS:
        result["latency"][load] = quantiles(served.latencies(load * rate, images, 1))
        say(f"latency at {load:.0%}: " + ", ".join(f"{key} {value:.2f} s" for key, value in result["latency"][load].items()))
    served.end()

    result["rivals"] = {}
    for name, more in {"one at a time": (), "batches of 8": ("--batch", "8"), "one at a time, complete": ("--complete",),
                       "batches of 8, complete": ("--batch", "8", "--complete")}.items():
        rival = Rival(args.model, args.threads, *more)
        got = rival.full_load(images // 2, 4)
        waits = quantiles(rival.latencies(0.5 * got, images // 3, 1))
        rival.end()
        result["rivals"][name] = {"images_per_second": got, "latency_at_half_its_load": waits}
        say(f"PyTorch, {name}: {got:.3f} images/s, dydit {rate / got:.2f}x; at half its load p50 {waits['p50']:.2f} s")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
