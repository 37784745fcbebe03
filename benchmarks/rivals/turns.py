"""Programs that take turns, a lap each, so that a busy minute hits all of them. A rival is a process that answers "ready VERSION" once
warm, and then every line with the numbers of a lap: of autoencoders and networks of features two, by the clock and by processors' time.
"""

import pathlib
import statistics
import subprocess
import sys


class Worker:
    def __init__(self, command, **options):
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, **options)
        ready = self.process.stdout.readline().split(maxsplit=1)
        if not ready:
            raise RuntimeError(f"{' '.join(map(str, command))}: ended before it was ready")
        self.version = ready[1].strip()

    def lap(self):
        print(file=self.process.stdin, flush=True)
        return tuple(float(word) for word in self.process.stdout.readline().split())

    def close(self):
        self.process.stdin.close()
        self.process.wait()


def best_worker(script, options, settings, better, name):
    """The rival of benchmarks/rivals/SCRIPT at its best setting, by processors' time (`better`: min or max), and which that is."""
    best = None
    for setting in settings:
        worker = Worker([sys.executable, pathlib.Path(__file__).with_name(script), *options, *setting])
        trial = better(worker.lap()[1] for _ in range(3))
        print(f"{name} {' '.join(setting)}: {trial:.3f} by processors' time", file=sys.stderr)
        if best and better(best[1], trial) == best[1]:
            worker.close()
            continue
        if best:
            best[0].close()
        best = (worker, trial, " ".join(part.removeprefix("--").removeprefix("dtype=") for part in setting))
    return best[0], best[2]


def medians_of_turns(rounds, dydit, workers):
    """{label: (by the clock, by processors' time)}, dydit's first; `dydit()` runs a lap of it. Ends the workers."""
    laps = {"dydit, f32": [], **{f"{worker.version}, {setting}": [] for worker, setting in workers}}
    for _ in range(rounds):
        laps["dydit, f32"].append(dydit())
        for worker, setting in workers:
            laps[f"{worker.version}, {setting}"].append(worker.lap())
    for worker, _ in workers:
        worker.close()
    return {label: tuple(statistics.median(column) for column in zip(*rows)) for label, rows in laps.items()}
