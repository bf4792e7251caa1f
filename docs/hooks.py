"""Hooks of MkDocs: the README and linked sources as pages, and links to them.

The same links work on the site and in the repository. README.md is the home page. A file outside of docs/ that a page
links to gets a page of its own below source/: Markdown as it is, other text as a block of code. A link to a missing
file is left as it is, and MkDocs, which knows no such page, reports it.
"""

from __future__ import annotations

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parent.parent
HOME = "README.md"
LINK = re.compile(r"(?<=\]\()(?!#|[a-z]+:)([^)#\s]+)")
FENCE = re.compile(r"(^```.*?^```$)", re.MULTILINE | re.DOTALL)
LANGUAGES = {".py": "python", ".yaml": "yaml", ".json": "json"}
# Sphinx's roles, as they stand in docstrings: :class:`tasks.errors.SpecError`.
ROLE = re.compile(r":(?:mod|class|func|meth|attr|data):<code>~?([\w.]+)</code>")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the README and every source that a page links to, directly or through another one."""
    waiting = [HOME, *(f"docs/{file.src_uri}" for file in files.documentation_pages())]
    seen = set(waiting)
    while waiting:
        path = waiting.pop()
        if not path.startswith("docs/"):
            files.append(File.generated(config, _address(path), content=_content(path)))
        for linked in _linked(path):
            if linked not in seen and not linked.startswith("docs/"):
                seen.add(linked)
                waiting.append(linked)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point links between files of the repository to their pages."""
    path = _path(page.file.src_uri)
    if not path.endswith(".md"):
        return markdown
    here = posixpath.dirname(page.file.src_uri)

    def address(match: re.Match[str]) -> str:
        target = _target(path, match[1])
        return posixpath.relpath(_address(target), here or ".") if (ROOT / target).exists() else match[1]

    parts = FENCE.split(markdown)
    return "".join(part if part.startswith("```") else LINK.sub(address, part) for part in parts)


def on_page_content(html: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Turn Sphinx's roles into references, which mkdocs-autorefs resolves where the API has such a page."""
    return ROLE.sub(r'<autoref optional identifier="\1"><code>\1</code></autoref>', html)


def _linked(path: str) -> list[str]:
    """Files of the repository that the Markdown file ``path`` links to."""
    if not path.endswith(".md"):
        return []
    text = FENCE.sub("", (ROOT / path).read_text(encoding="utf-8"))
    return [target for link in LINK.findall(text) if (ROOT / (target := _target(path, link))).exists()]


def _target(path: str, link: str) -> str:
    """The file that ``link`` in the file ``path`` names; a folder stands for its README."""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(path), link))
    return f"{target}/README.md" if (ROOT / target).is_dir() else target


def _address(path: str) -> str:
    """Path below docs/ of the page, or the image, that shows the repository's file ``path``."""
    if path == HOME:
        return "index.md"
    return path.removeprefix("docs/") if path.startswith("docs/") else f"source/{path.removesuffix('.md')}.md"


def _path(address: str) -> str:
    """The file that the page at ``address`` shows."""
    if address == "index.md":
        return HOME
    if not address.startswith("source/"):
        return f"docs/{address}"
    path = address.removeprefix("source/")
    return path if (ROOT / path).exists() else path.removesuffix(".md")


def _content(path: str) -> str:
    text = (ROOT / path).read_text(encoding="utf-8")
    if path.endswith(".md"):
        return text
    language = LANGUAGES.get(Path(path).suffix, "")
    return f"---\nsearch: {{exclude: true}}\n---\n# {path}\n\n````{language}\n{text}\n````\n"
