"""Images from a running `dydit serve` by OpenAI's own client: client.py [ADDRESS [KEY]]."""

import base64
import pathlib
import sys

import openai

address = sys.argv[1] if len(sys.argv) > 1 else "http://127.0.0.1:8080"
client = openai.OpenAI(base_url=address + "/v1", api_key=sys.argv[2] if len(sys.argv) > 2 else "none")

model = client.models.list().data[0]
answer = client.images.generate(model=model.id, prompt=model.classes[0], n=2,
                                extra_body={"seed": 7, "num_inference_steps": 20, "guidance_scale": 1.5})
for image in answer.data:
    path = pathlib.Path(f"image-{image.index}.png")
    path.write_bytes(base64.b64decode(image.b64_json))
    print(f"{path}: {image.class_name}, seed {image.seed}, {image.cost['executed_gmacs']:.1f} GMACs, "
          f"{100 * image.cost['executed_share']:.0f} % of static")
