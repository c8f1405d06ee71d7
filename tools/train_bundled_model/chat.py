"""The chat format: special tokens, the Jinja template that ships with the model, and the same in Python."""

from __future__ import annotations

END = "<|endoftext|>"
PAD = "<|pad|>"
ROLES = ("system", "user", "assistant")
SPECIAL_TOKENS = (END, PAD, *(f"<|{role}|>" for role in ROLES))
TEMPLATE = (
    "{%- for message in messages -%}"
    "{{- '<|' + message['role'] + '|>' + message['content'] -}}"
    "{%- if message['role'] == 'assistant' -%}{{- '<|endoftext|>' -}}{%- endif -%}"
    "{%- endfor -%}"
    "{%- if add_generation_prompt -%}{{- '<|assistant|>' -}}{%- endif -%}"
)

Message = tuple[str, str]


def render(messages: list[Message], *, add_generation_prompt: bool = False) -> str:
    """Write role and content pairs as the template does.

    Raises:
        ValueError: A role is none of system, user and assistant.
    """
    parts = []
    for role, content in messages:
        if role not in ROLES:
            message = f"role {role!r}: expected one of {', '.join(ROLES)}"
            raise ValueError(message)
        parts.append(f"<|{role}|>{content}{END if role == 'assistant' else ''}")
    return "".join(parts) + ("<|assistant|>" if add_generation_prompt else "")
