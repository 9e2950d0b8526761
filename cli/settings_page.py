"""docs/settings.md, made from the settings themselves."""

from pydantic import SecretStr

import settings


def page() -> str:
    """Returns the page."""
    lines = [
        "# Settings",
        "",
        "Every process reads its settings from environment variables. A wrong or unknown one stops the start.",
        "This page is made by `orderflow settings`.",
    ]
    section = None
    for name, (owner, _, field) in settings.variables().items():
        if owner is not section:
            section = owner
            lines += [
                "",
                f"## {(owner.__doc__ or '').strip().rstrip('.')}",
                "",
                "| variable | default | what |",
                "| --- | --- | --- |",
            ]
        default = field.default.get_secret_value() if isinstance(field.default, SecretStr) else field.default
        lines.append(f"| `{name}` | {'' if default is None else f'`{default}`'} | {field.description} |")
    return "\n".join(lines) + "\n"
