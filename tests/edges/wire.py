"""An endpoint of a tiny model that speaks all that the page knows to say: streams, keys, refusals, starts and proofs."""

import asyncio
import base64
import hashlib
import json
import re
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import FileResponse, JSONResponse, Response, StreamingResponse

from dovetail.edges import machine, pixels
from dovetail.edges.models import Models
from dovetail.engines import painter

SAMPLERS = ["ddim", "euler_ancestral"]


class Wire:
    """What was asked of it, and what it does next."""

    def __init__(self, folder: Path, page: Path) -> None:
        self.models, self.page = Models(folder, machine.pick_device()), page
        self.asked: list[dict[str, Any]] = []
        self.left = 0  # clients that went before their picture was done
        self.lora = True
        self.key = ""  # wanted, where there is one
        self.busy = 0  # so many requests are refused with 429
        self.slow = threading.Event()  # while it is set, no picture is finished
        self.app = FastAPI()
        self.app.get("/")(self.home)
        self.app.get("/v1/models")(self.listed)
        self.app.post("/v1/images/generations")(self.generate)
        self.app.post("/v1/images/edits")(self.edit)
        self.app.post("/reproduce")(self.reproduce)

    async def home(self) -> Response:
        return FileResponse(self.page, media_type="text/html")

    async def listed(self) -> dict[str, Any]:
        side = self.models.resolution
        entry = {
            "id": "tuned", "version": "v2", "digest": "5eed" * 16, "size": side, "multiple": 8, "most_pixels": 4 * side * side,
            "samplers": SAMPLERS, "steps": 2, "guidance_scale": 3.5, "others": ["base"], "lora": self.lora,
        }  # fmt: skip
        return {"data": [entry]}

    async def generate(self, request: Request) -> Response:
        return self.answer(request, await request.json())

    async def edit(self, request: Request) -> Response:
        boundary = request.headers["Content-Type"].partition("boundary=")[2].encode()
        form: dict[str, bytes] = {}
        for part in (await request.body()).split(b"--" + boundary)[1:-1]:
            head, _, value = part.partition(b"\r\n\r\n")
            form[re.findall(rb' name="(\w+)"', head)[0].decode()] = value.removesuffix(b"\r\n")
        image = form.pop("image")
        names = {"seed", "steps", "guidance_scale", "strength", "lora_scale"} & form.keys()
        numbers = {name: json.loads(form.pop(name)) for name in names}
        return self.answer(request, {name: value.decode() for name, value in form.items()} | numbers | {"image": image})

    async def reproduce(self, request: Request) -> dict[str, Any]:
        same = hashlib.sha256(await request.body()).hexdigest() in {a.get("made") for a in self.asked}
        return {"same": same, "why": "" if same else "other weights"}

    def answer(self, request: Request, wish: dict[str, Any]) -> Response:
        if self.key and request.headers.get("Authorization") != f"Bearer {self.key}":
            return JSONResponse({"error": {"message": "a key is needed"}}, 401)
        if self.busy:
            self.busy -= 1
            return JSONResponse({"error": {"message": "busy"}}, 429, {"Retry-After": "1"})
        self.asked.append(wish)
        return StreamingResponse(self.events(wish), media_type="text/event-stream")

    async def events(self, wish: dict[str, Any]) -> AsyncIterator[str]:
        if wish["prompt"] == "fail":
            yield f"event: error\ndata: {json.dumps({'error': {'message': 'out of paint'}})}\n\n"
            return
        try:
            for number in range(int(wish["partial_images"])):
                yield self.event(wish, "partial_image", 1, partial_image_index=number)
            while self.slow.is_set():
                yield ": waiting\n\n"
                await asyncio.sleep(0.02)
            yield self.event(wish, "completed", wish["steps"], seed=wish["seed"], version="v2")
        except asyncio.CancelledError:
            self.left += 1
            raise

    def event(self, wish: dict[str, Any], name: str, steps: int, **more: Any) -> str:
        order = painter.Order(prompt=wish["prompt"], seed=wish["seed"], negative_prompt=wish.get("negative_prompt", ""))
        picture = painter.paint(self.models, [order], steps=steps, guidance_scale=wish["guidance_scale"])[0]
        told = {k: str(wish[k]) for k in ("prompt", "seed", "steps", "guidance_scale", "sampler")}
        told |= {"negative_prompt": wish.get("negative_prompt", ""), "model": wish.get("model", "tuned"), "version": "v2"}
        told |= {name: str(wish[name]) for name in ("strength", "lora_scale") if name in wish}
        png = pixels.png(picture, told)
        wish["made"] = hashlib.sha256(png).hexdigest()
        data = {"type": f"image_generation.{name}", "b64_json": base64.b64encode(png).decode()} | more
        return f"event: {data['type']}\ndata: {json.dumps(data)}\n\n"
