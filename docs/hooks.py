"""What mkdocs does beyond its settings: files of `results/` that a page links to are in the site.

On a page they are written as `../results/...`, which also works where the repository is shown.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

LINK = re.compile(r"\]\((?:\.\./)+(results/[^)\s#]+\.\w+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Add each linked file once; one that is not there is left to mkdocs, which warns."""
    root = Path(config.config_file_path).parent
    linked = {name for page in files.documentation_pages() for name in LINK.findall(_text(page))}
    for name in sorted(linked):
        if (root / name).is_file():
            files.append(File.generated(config, name, abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Point the links at the site's copies."""
    up = "../" * page.file.src_uri.count("/")
    return LINK.sub(rf"]({up}\1)", markdown)


def _text(page: File) -> str:
    return Path(page.abs_src_path).read_text(encoding="utf-8")
