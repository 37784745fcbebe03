"""Laps of forwards on a card or on the CPU. On a card events around a whole lap, on one stream that is not the default one (graphs cannot
be captured on that); on the CPU perf_counter, for dry runs. Nothing is timed on zeros: they run up to 13 % faster."""

import statistics
import time


class Clock:
    def __init__(self, torch, device, warm_up=1.0, lap=0.1):
        """warm_up, lap: seconds; on the CPU a lap is one call."""
        self.torch, self.cuda, self.device = torch, device.startswith("cuda"), device
        self.warm_up, self.lap_seconds = warm_up, lap
        self.stream = torch.cuda.Stream() if self.cuda else None

    def on_stream(self, work):
        if not self.cuda:
            return work()
        with self.torch.cuda.stream(self.stream):
            return work()

    def wait(self):
        if self.cuda:
            self.torch.cuda.synchronize()

    def lap(self, work, calls):
        """Milliseconds a call. Waits before, so that nothing queued earlier is counted."""
        self.wait()
        if not self.cuda:
            began = time.perf_counter()
            for _ in range(calls):
                work()
            return (time.perf_counter() - began) * 1e3 / calls
        first, last = (self.torch.cuda.Event(enable_timing=True) for _ in range(2))

        def run():
            first.record()
            for _ in range(calls):
                work()
            last.record()

        self.on_stream(run)
        last.synchronize()
        return first.elapsed_time(last) / calls

    def warm(self, work):
        """Runs for warm_up seconds and returns how many calls make a lap."""
        self.on_stream(work)
        self.wait()
        if not self.cuda:
            return 1
        end, once = time.monotonic() + self.warm_up, self.lap(work, 1)
        while time.monotonic() < end:
            once = self.lap(work, max(1, int(20 / max(once, 1e-3))))
        return max(1, round(self.lap_seconds * 1e3 / max(once, 1e-3)))

    def time(self, work, laps=7):
        """(median, first, third quartile) in milliseconds a call."""
        calls = self.warm(work)
        return quartiles([self.lap(work, calls) for _ in range(laps)])

    def capture(self, work):
        """The same as one CUDA graph: a function that replays it. Three calls on the stream first: plans and handles must be warm."""
        if not self.cuda:
            raise ValueError("a CPU has no CUDA graphs")
        for _ in range(3):
            self.on_stream(work)
        self.wait()
        graph = self.torch.cuda.CUDAGraph()
        with self.torch.cuda.graph(graph, stream=self.stream, capture_error_mode="thread_local"):
            work()
        graph.replay()
        self.wait()
        return graph.replay


def quartiles(laps):
    """(median, first, third) of at least one lap."""
    if len(laps) < 2:
        return laps[0], laps[0], laps[0]
    first, median, third = statistics.quantiles(laps, n=4, method="inclusive")
    return median, first, third
