"""The server that one would write in Python: FastAPI, PyTorch, DDIM with guidance; a worker of compare_serve.py.

    serve_torch.py --model FILE --port 9000 --threads 2 [--batch 8 --window 0.05]

With --batch 1 one image after the other; else those that arrive within --window seconds of the first one are sampled together,
which takes the same steps, sampler and guidance (what static batching can do). A DyDiT is masked: every part computed and
multiplied by its gates, as published; --complete leaves the gates out.
"""

import argparse
import base64
import io
import queue
import threading
import time

import torch
import uvicorn
from dit_torch import Diffusion, Gates, load_model
from fastapi import FastAPI
from PIL import Image
from pydantic import BaseModel


class Order(BaseModel):
    prompt: int
    n: int = 1
    seed: int = 0
    num_inference_steps: int = 50
    guidance_scale: float = 1.5


class Sampler:
    def __init__(self, path, complete, batch, window):
        self.model = load_model(path).eval().requires_grad_(False)
        self.masked = self.model.config.dynamic and not complete
        self.batch, self.window = batch, window
        self.orders = queue.Queue()
        threading.Thread(target=self.work, daemon=True).start()

    def sample(self, labels, seeds, steps, scale):
        """uint8 (B, side, side, 3) by DDIM, a null class's row beside each image's."""
        config, tables, rows = self.model.config, Diffusion(), len(labels)
        shape = (config.in_channels, config.input_size, config.input_size)
        x = torch.stack([torch.randn(shape, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        y = torch.tensor(labels + [config.num_classes] * rows)
        times = list(range(0, 1000, 1000 // steps))[:steps][::-1]
        with torch.inference_mode():
            for i, t in enumerate(times):
                both, ts = torch.cat([x, x]), torch.full((2 * rows,), t)
                out = self.model(both, ts, y, Gates(config) if self.masked else None)[:, :config.in_channels]
                eps = out[rows:] + scale * (out[:rows] - out[rows:])
                x0 = (x - tables.sqrt_one_minus_a[t] * eps) / tables.sqrt_a[t]
                last = i + 1 == len(times)
                x = x0 if last else tables.sqrt_a[times[i + 1]] * x0 + tables.sqrt_one_minus_a[times[i + 1]] * eps
                x = x.float()
        return (127.5 * x + 128).clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()

    def work(self):
        while True:
            waiting = [self.orders.get()]
            until = time.monotonic() + self.window
            key = waiting[0][0].num_inference_steps, waiting[0][0].guidance_scale
            while len(waiting) < self.batch and (left := until - time.monotonic()) > 0:
                try:
                    waiting.append(self.orders.get(timeout=left))
                except queue.Empty:
                    break
            images = self.sample([order.prompt for order, *_ in waiting], [seed for _, seed, *_ in waiting], *key)
            for (_, _, done, made), image in zip(waiting, images):
                made.append(image)
                done.set()

    def make(self, order):
        asked = [(order, order.seed + i, threading.Event(), []) for i in range(order.n)]
        for entry in asked:
            self.orders.put(entry)
        answers = []
        for _, _, done, made in asked:
            done.wait()
            file = io.BytesIO()
            Image.fromarray(made[0]).save(file, "PNG")
            answers.append({"b64_json": base64.b64encode(file.getvalue()).decode()})
        return answers


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True)
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--window", type=float, default=0.05, help="seconds")
    parser.add_argument("--complete", action="store_true")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    sampler = Sampler(args.model, args.complete, args.batch, args.window)
    sampler.sample([0] * args.batch, [0] * args.batch, 2, 1.5)
    app = FastAPI()

    @app.get("/health")
    def health():
        return {"status": "ok"}

    @app.post("/v1/images/generations")
    def generations(order: Order):
        return {"data": sampler.make(order)}

    uvicorn.run(app, host="127.0.0.1", port=args.port, log_level="error")


if __name__ == "__main__":
    main()
