"""Chat templates render as Hugging Face renders them, and cannot reach out of their sandbox."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest

from fourlane.errors import InvalidRequest
from fourlane.gateway.chat_template import ChatTemplate

if TYPE_CHECKING:
    from pathlib import Path

HI = [{"role": "user", "content": "hi <b> é"}]


def rendered(source: str, messages: list[dict[str, str]] | None = None, **options: object) -> str:
    return ChatTemplate(source, {"eos_token": "</s>"}, origin="test").render(messages or HI, **options)


def test_blocks_are_trimmed_and_stripped() -> None:
    assert (
        rendered("{% for m in messages %}\n    {% if true %}\n{{ m.role }}\n    {% endif %}\n{% endfor %}\n")
        == "user\n"
    )


def test_special_tokens_and_options_are_variables() -> None:
    assert rendered("{{ eos_token }}{{ add_generation_prompt }}{{ x }}", add_generation_prompt=True, x=3) == "</s>True3"


def test_tojson_keeps_letters_and_signs_as_they_are() -> None:
    assert rendered("{{ messages[0] | tojson }}") == '{"role": "user", "content": "hi <b> é"}'
    assert rendered("{{ [1] | tojson(indent=2) }}") == "[\n  1\n]"


def test_loop_controls_and_generation_blocks_are_known() -> None:
    assert rendered("{% for n in [1,2,3] %}{% if n == 2 %}{% break %}{% endif %}{{ n }}{% endfor %}") == "1"
    assert rendered("a{% generation %}b{{ messages[0].role }}{% endgeneration %}c") == "abuserc"


def test_the_date_can_be_asked_for() -> None:
    assert len(rendered("{{ strftime_now('%Y-%m-%d') }}")) == 10


def test_a_refusal_of_the_template_is_the_clients_fault() -> None:
    with pytest.raises(InvalidRequest, match="roles must alternate") as refused:
        rendered("{{ raise_exception('roles must alternate') }}")
    assert refused.value.status == 400


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.append(1) }}",
        "{{ messages[0].update({'a': 1}) }}",
        "{{ nothing.there }}",
        "{{ 1 + 'a' }}",
        "{{ 1 // 0 }}",
    ],
)
def test_what_the_sandbox_or_the_language_forbids_is_a_refusal(source: str) -> None:
    with pytest.raises(InvalidRequest, match="the chat template"):
        rendered(source)


def test_the_template_is_read_from_either_file(tmp_path: Path) -> None:
    assert ChatTemplate.read(tmp_path) is None
    config = {"eos_token": {"content": "<e>"}, "chat_template": [{"name": "default", "template": "A{{ eos_token }}"}]}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    assert ChatTemplate.read(tmp_path).render(HI) == "A<e>"
    (tmp_path / "chat_template.jinja").write_text("B{{ eos_token }}")
    assert ChatTemplate.read(tmp_path).render(HI) == "B<e>"
