"""What the site makes of the pages before they become HTML.

Links to files beside docs/ lead to the repository, where the site has no such page; "python notest", which tests leave
alone, is Python to a reader, and commands have the colours of a shell.
"""

import re
from typing import Any

SOURCE = "https://github.com/vokens/vokens/blob/main/"


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """mkdocs calls it with the text of each page."""
    markdown = markdown.replace("```python notest", "```python")
    markdown = markdown.replace("```console", "```sh")  # "console" would grey all that has no prompt
    up = r"\.\./" * (page.file.src_uri.count("/") + 1)
    return re.sub(rf"\]\({up}([^)]+)\)", rf"]({SOURCE}\1)", markdown)
