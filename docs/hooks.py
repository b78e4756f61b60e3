"""Links of the pages to files beside docs/ lead to the repository, where the site has no such page."""

import re
from typing import Any

SOURCE = "https://github.com/vokens/vokens/blob/main/"


def on_page_markdown(markdown: str, **_: Any) -> str:
    """mkdocs calls it with the text of each page."""
    return re.sub(r"\]\(\.\./([^)]+)\)", rf"]({SOURCE}\1)", markdown)
