"""The verdict: better, not better, or cannot tell yet; and the sentence that says so."""

from typing import Literal

from dovetail.records import Interval

Answer = Literal["better", "not better", "cannot tell yet"]


def answer(gain: Interval) -> Answer:
    """Better where the whole interval of the paired gain is above zero; not better where none of it is."""
    if gain.count < 2:
        return "cannot tell yet"
    return "better" if gain.low > 0 else "not better" if gain.high <= 0 else "cannot tell yet"


def sentence(gain: Interval, forgot: Interval, unit: str) -> str:
    """One sentence for the report, the card and the terminal."""
    said = {
        "better": "The tuned model is better than the base",
        "not better": "The tuned model is not better than the base",
        "cannot tell yet": "It cannot be told yet whether the tuned model is better than the base",
    }[answer(gain)]
    if gain.count < 2:
        return f"{said}: {gain.count} held-out prompts are too few, at least 2 are needed."
    text = (
        f"{said} on {gain.count} held-out prompts: {gain.mean:+.2f} {unit} (95 % interval {gain.low:+.2f} to {gain.high:+.2f})"
    )
    if forgot.count >= 2:
        kept = "it forgot something" if forgot.high < 0 else "nothing measurable was forgotten"
        text += f"; on {forgot.count} other prompts {forgot.mean:+.2f} ({forgot.low:+.2f} to {forgot.high:+.2f}): {kept}"
    if answer(gain) == "cannot tell yet":
        text += "; more test pictures would tell"
    return text + "."
