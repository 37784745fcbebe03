"""Plans that state the active heads, groups and kept tokens of every block and step, so that what flips between two steps is chosen, not trained."""

import json
import random


def pattern(count, on, generator):
    """Which of `count` parts are on; the first always is."""
    others = set(generator.sample(range(1, count), on - 1))
    return [index == 0 or index in others for index in range(count)]


def flip(parts, generator):
    """One that is on goes off and one that is off comes on."""
    on = [index for index, value in enumerate(parts) if value and index]
    off = [index for index, value in enumerate(parts) if not value]
    if on and off:
        parts[generator.choice(on)], parts[generator.choice(off)] = False, True


def text(parts):
    return "".join("01"[part] for part in parts)


def changing_plan(name, depth, heads, tokens, timesteps, on, kept, flips, seed=0):
    """`on` of the heads and of the groups, `kept` of the tokens; from a step to the next `flips` of each kind change in every block, or
    all are drawn anew where flips is None (as random routers do)."""
    generator = random.Random(seed)
    sets = [[pattern(heads, on, generator) for _ in range(depth)] for _ in ("heads", "groups")]
    steps = []
    for timestep in timesteps:
        steps.append({"t": timestep, "attn": "c" * depth, "mlp": "c" * depth, "heads": [text(parts) for parts in sets[0]],
                      "groups": [text(parts) for parts in sets[1]], "tokens": [kept] * depth})
        for blocks in sets:
            for block, parts in enumerate(blocks):
                if flips is None:
                    blocks[block] = pattern(heads, on, generator)
                else:
                    for _ in range(flips):
                        flip(parts, generator)
    return json.dumps({"dydit_plan": 1, "name": name, "depth": depth, "num_heads": heads, "num_tokens": tokens, "sampler": "ddim", "steps": steps})


def even_timesteps(count):
    return [round(999 - 998 * step / count) for step in range(count)]
