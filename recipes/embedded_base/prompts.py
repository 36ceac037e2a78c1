"""What the base is asked: 48 prompts for its card, and 512 by which it is scored. No training picture fits any of them.

Each prompt comes from a scene that `scenes.held_out` keeps from training: its thing was never seen on its background, or its
things were never seen together.
"""

from dataclasses import dataclass

import numpy as np

from . import icons, scenes

SCORED = {"single": 320, "pair": 160, "triple": 32}
PAIRS = [(thing, style) for thing in icons.THINGS for style in icons.of_the_generator()]
STYLES = {name: icons.STYLE_WORDS[name] for name in icons.of_the_generator()}


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """A prompt and the scene that it tells of."""

    scene: scenes.Scene
    wording: int  # seed of the wording: another scene in the same words is `said(scene, ask.wording)`

    @property
    def prompt(self) -> str:
        """The scene in its words."""
        return said(self.scene, self.wording)

    @property
    def style(self) -> str:
        """The set whose style word stands in the prompt, or ""."""
        return next((s for s, word in STYLES.items() if f" {word} " in f" {self.prompt} "), "")


def said(scene: scenes.Scene, wording: int) -> str:
    """`scene` in the words that the seed `wording` picks; scenes of one layout are told in the same words."""
    return scenes.describe(np.random.default_rng(wording), scene, STYLES)


def _ask(rng: np.random.Generator, things: list[tuple[str, str]], count: int) -> Ask:
    """A held-out scene of `count` objects on a plain background that the prompt names, as well as who stands where."""
    shares = tuple(float(count == n) for n in (1, 2, 3))
    while True:
        scene = scenes.draw_any(rng, things, shares)
        if not scenes.held_out(scene) or len(scene.background) > 1:
            continue
        ask = Ask(scene=scene, wording=int(rng.integers(2**32)))
        prompt = ask.prompt
        told = count == 1 or any(word in prompt for word in (" left", " right", " above ", " below ", " top ", " row"))
        if told and f" on {scene.background[0]}" in prompt.replace(" on an ", " on ").replace(" on a ", " on "):
            return ask


def _asks(seed: int, wanted: dict[str, int]) -> list[Ask]:
    """Single objects go through all things in turn, so that none is asked for much more often than another."""
    rng = np.random.default_rng(seed)
    asks: dict[str, Ask] = {}
    for count, kind in enumerate(wanted, 1):
        order: list[str] = []
        goal = len(asks) + wanted[kind]
        while len(asks) < goal:
            order = order or [str(t) for t in rng.permutation(list(icons.THINGS))]
            ask = _ask(rng, [p for p in PAIRS if p[0] == order[-1]] if count == 1 else PAIRS, count)
            if ask.prompt not in asks:
                asks[ask.prompt] = ask
                order.pop()
    return list(asks.values())


def scored() -> list[Ask]:
    """The 512 prompts of `benchmarks/embedded_base.py`: one object, then two, then three."""
    return _asks(41, SCORED)


def card() -> list[Ask]:
    """The 48 prompts of the model card and of the contact sheets."""
    return _asks(43, {"single": 32, "pair": 12, "triple": 4})
