"""What is written for people: cards (Markdown, YAML) and the report (HTML)."""

from collections.abc import Iterator
from html.parser import HTMLParser
from typing import Any

import pytest
import yaml

from dovetail.core import cards, pages
from dovetail.records import Example


def example(**more: Any) -> Example:
    told = {
        "key": "k", "split": "train", "file": "train/a.png", "name": "a.png", "caption": "a cat", "licence": "MIT",
        "author": "A", "origin": "o", "group": "g", "width": 9, "height": 9,
    }  # fmt: skip
    return Example(**told | more)


def facts(**more: Any) -> dict[str, Any]:
    axis = {"name": "prompt", "outcome": "won", "sentence": "It shows more | of what was asked."}
    verdict = {
        "headline": "Promote.", "sentence": "Better.", "prompts": 8, "seeds_per_prompt": 4, "judge": "a judge", "axes": [axis],
    }  # fmt: skip
    training = {
        "method": "full", "steps": 4, "pictures_seen": 16, "learning_rate": 1e-3, "train_pictures": 2, "rehearsal_pictures": 0,
        "weights_digest": "f" * 64,
    }  # fmt: skip
    told = {
        "name": "things", "base": "embedded", "base_licence": "mit", "training": training, "verdict": verdict,
        "examples": [example()], "rejected": [], "picture": "eval/x.png", "versions": {"torch": "2"},
    }  # fmt: skip
    return told | more


def front_matter(card: str) -> dict[str, Any]:
    assert card.startswith("---\n")
    found = yaml.safe_load(card.split("---\n")[1])
    assert isinstance(found, dict)
    return found


def test_dataset_card_names_licence_and_the_files_of_each_split() -> None:
    card = cards.dataset_card([example(), example(split="test")], {"too small": 2})
    told = front_matter(card)
    assert told["license"] == "mit"
    assert told["configs"][0]["data_files"] == [{"split": "train", "path": "train/*"}, {"split": "test", "path": "test/*"}]
    assert "| too small | 2 |" in card


def test_model_card_front_matter_is_what_a_hub_reads() -> None:
    told = front_matter(cards.model_card(facts()))
    assert told["license"] == "mit" and told["base_model"] == "embedded" and told["base_model_relation"] == "finetune"
    assert told["pipeline_tag"] == "text-to-image" and "stable-diffusion" in told["tags"]


@pytest.mark.parametrize("base", ["owner/name", "C: disk", "/models/my base #2"])
def test_model_card_stays_valid_yaml_whatever_the_base_is_called(base: str) -> None:
    assert front_matter(cards.model_card(facts(base=base)))["base_model"] == base


def test_adapters_and_mixed_licences_are_said() -> None:
    told = front_matter(cards.model_card(facts(training=facts()["training"] | {"method": "lora"}, base_licence="apache-2.0")))
    assert told["base_model_relation"] == "adapter" and told["license"] == "other"


@pytest.mark.parametrize(
    ("statements", "said"),
    [
        (["MIT", "mit"], "mit"),
        (["CC0-1.0"], "cc0-1.0"),
        (["mit", "cc0-1.0"], "other"),
        (["not stated"], "other"),
        (["public domain"], "other"),
    ],
)
def test_one_licence_is_named_only_where_all_agree_on_a_known_one(statements: list[str], said: str) -> None:
    assert cards.one_licence(statements) == said


def test_pipes_and_line_ends_do_not_break_a_markdown_table() -> None:
    lines = cards.table(("a", "b"), [("x|y", "one\ntwo")]).splitlines()
    assert len(lines) == 3 and lines[2].replace("\\|", "").count("|") == 3


def test_licences_are_counted_most_pictures_first() -> None:
    counted = cards.licence_rows([example(), example(), example(author="B")])
    assert counted == [("MIT", "A", 2), ("MIT", "B", 1)]


def test_the_code_of_a_model_card_is_python_even_with_quotes_in_the_caption() -> None:
    card = cards.model_card(facts(examples=[example(caption='a "red" cat\'s\\ toy')]))
    code = card.split("```python\n")[1].split("```")[0]
    compile(code, "card", "exec")


class _Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.words = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.words += data


HOSTILE = "<script>alert(1)</script> \" onload='x' & <b>"


def _pieces() -> Iterator[tuple[str, str]]:
    yield "paragraph", pages.paragraph(HOSTILE)
    yield "rows", pages.rows((HOSTILE,), [(HOSTILE,)])
    yield "picture", pages.picture("data:,", HOSTILE)
    yield "strip", pages.strip([("data:,", HOSTILE)])
    yield "side_by_side", pages.side_by_side([([(HOSTILE, "data:,"), ("b", "data:,")], HOSTILE)])
    yield "facts", pages.fact_boxes([(HOSTILE, HOSTILE)])
    yield "verdict", pages.verdict_box({"decision": "promote", "headline": HOSTILE, "sentence": HOSTILE})
    axis = {
        "name": HOSTILE,
        "role": "guard",
        "outcome": "lost",
        "sentence": HOSTILE,
        "advice": HOSTILE,
        "unit": "",
        "interval": None,
    }
    yield "axes", pages.axis_table([axis], [HOSTILE])
    yield "section", pages.section(HOSTILE, "x")
    yield "page", pages.page(HOSTILE, HOSTILE, "0", [])


@pytest.mark.parametrize(("name", "text"), list(_pieces()))
def test_no_text_of_a_user_becomes_markup(name: str, text: str) -> None:
    found = _Tags()
    found.feed(text)
    assert "script" not in {tag for tag, _ in found.tags}, name
    assert not any("onload" in attributes for _, attributes in found.tags)
    assert "<script>alert" not in text


def test_a_section_with_nothing_in_it_is_left_out() -> None:
    assert pages.section("Empty", "", "") == "" and pages.strip([]) == "" and pages.side_by_side([]) == ""


def test_each_picture_of_a_figure_carries_its_label_and_the_caption_as_alternative_text() -> None:
    found = _Tags()
    found.feed(pages.side_by_side([([("base", "data:a"), ("tuned", "data:b"), ("nearest", "data:c")], "a cat")]))
    shown = [(a["src"], a["alt"]) for tag, a in found.tags if tag == "img"]
    assert shown == [("data:a", "base: a cat"), ("data:b", "tuned: a cat"), ("data:c", "nearest: a cat")]
    assert all(word in found.words for word in ("base", "tuned", "nearest", "a cat"))
