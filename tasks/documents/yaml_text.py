"""Read YAML documents: each plain scalar becomes a :class:`~tasks.documents.plain.Plain`, and double keys are refused.

PyYAML parses. The type of a scalar is not decided by PyYAML's resolver, which knows only YAML 1.1, but by the field's
type (:mod:`tasks.documents.by_type`). Two other libraries fall short. ruamel.yaml refuses double keys, but resolves
scalars by one version of YAML and forgets their text, so that ``010`` and ``no`` could not be noticed or kept.
strictyaml has its own schema language, which would be needed beside pydantic's.
"""

from __future__ import annotations

import functools
import re
from typing import Any

from tasks.documents.errors import DocumentError, DuplicateKey
from tasks.documents.json_text import read_json
from tasks.documents.plain import Plain

MOST_REPEATED = 1_000_000  # values that a document has through aliases
_OBJECT = re.compile(r"\ufeff?\s*\{")


def read_document(text: str, source: str) -> Any:
    """Return the YAML or JSON document ``text``; None when it is empty.

    JSON has types of its own and is read as JSON. In YAML, plain scalars are :class:`~tasks.documents.plain.Plain`,
    keys are texts, and an empty value is None. ``source`` is the file that messages name.

    Raises:
        DocumentError: a mapping has a key twice, or it is no YAML. The message does not name ``source``.
    """
    if _OBJECT.match(text):
        try:
            return read_json(text.removeprefix("\ufeff"), parse_constant=_no_json)
        except DuplicateKey:
            raise
        except (ValueError, RecursionError):
            pass  # it may still be YAML, which has mappings in braces too
    return read_yaml_text(text, source)


def read_yaml_text(text: str, source: str, *, lines: bool = True) -> Any:
    """Read ``text`` as :func:`read_document` does, but read JSON as YAML too.

    lines: messages name the line beside ``source``.
    """
    import yaml  # here, so that the core loads without it

    loader = None
    try:
        loader = _loader()(text)  # it refuses control characters
        node = loader.get_single_node()
        value = None if node is None else _YamlReader(source, lines=lines).read(node, ())
        return None if isinstance(value, Plain) and value.is_null else value
    except DocumentError:
        raise
    except yaml.MarkedYAMLError as error:
        raise _marked(error) from None
    except yaml.reader.ReaderError as error:
        before = text[: error.position]
        line, column = before.count("\n") + 1, error.position - before.rfind("\n")
        raise DocumentError(f"expected YAML: unacceptable character #x{error.character:04x}", line, column) from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise DocumentError(f"expected YAML: {' '.join(str(error).split())}") from None
    finally:
        if loader is not None:
            loader.dispose()


def _no_json(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


@functools.cache
def _loader() -> Any:
    """Return PyYAML's loader, extended to keep the tag that is written before a scalar."""
    import yaml

    class Loader(yaml.SafeLoader):
        def compose_scalar_node(self, anchor: Any) -> Any:
            tag = self.peek_event().tag
            node = super().compose_scalar_node(anchor)
            node.written_tag = tag  # type: ignore[attr-defined]
            return node

    return Loader


class _YamlReader:
    """Turns nodes into values.

    A node with several aliases is read once, so that a few lines cannot fill the memory. Readers of the document visit
    it once for each alias, so a document in which this takes long is refused.
    """

    def __init__(self, source: str, *, lines: bool) -> None:
        self._source = source
        self._lines = lines
        self._made: dict[int, Any] = {}
        self._sizes: dict[int, int] = {}  # values in a node, those behind an alias counted each time
        self._open: set[int] = set()

    def read(self, node: Any, path: tuple[str, ...]) -> Any:
        if id(node) in self._made:
            return self._made[id(node)]
        if id(node) in self._open:
            raise DocumentError("expected YAML: an alias is inside the value that it names", _line(node))
        self._open.add(id(node))
        value: Any
        if node.id == "scalar":
            value = self._scalar(node)
        elif node.id == "sequence" and node.tag == "tag:yaml.org,2002:seq":
            value = [self.read(item, (*path, str(index))) for index, item in enumerate(node.value)]
        elif node.id == "mapping" and node.tag == "tag:yaml.org,2002:map":
            value = self._mapping(node, path)
        else:
            raise _unknown_tag(node)
        self._open.remove(id(node))
        self._made[id(node)] = value
        self._count(node)
        return value

    def _count(self, node: Any) -> None:
        inner = [item[1] if isinstance(item, tuple) else item for item in node.value] if node.id != "scalar" else []
        size = self._sizes[id(node)] = 1 + sum(self._sizes[id(item)] for item in inner)
        if size > len(self._made) + MOST_REPEATED:
            raise DocumentError(
                f"expected YAML: expected aliases that stand for at most {MOST_REPEATED} values, found more: write the "
                "values out",
                _line(node),
            )

    def _scalar(self, node: Any) -> Any:
        if node.written_tag not in (None, "!", _TEXT):
            raise _unknown_tag(node)
        if node.style is not None or node.written_tag is not None:
            return node.value
        if not node.value:
            return None
        return Plain(node.value, f"{self._source}: line {_line(node)}" if self._lines else self._source)

    def _mapping(self, node: Any, path: tuple[str, ...]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        lines: dict[str, int] = {}
        for key_node, value_node in node.value:
            key, line = self._key(key_node), _line(key_node)
            if key in found:
                raise DuplicateKey(".".join((*path, key)), lines[key], line)
            lines[key] = line
            found[key] = self.read(value_node, (*path, key))
        return found

    def _key(self, node: Any) -> str:
        if node.id != "scalar":
            raise DocumentError(f"expected YAML: expected a text as key, found a {node.id}", _line(node))
        if node.written_tag not in (None, "!", _TEXT):
            raise _unknown_tag(node)
        if node.value == "<<" and node.style is None and node.written_tag is None:
            raise DocumentError(
                "<< puts one mapping into another in YAML 1.1, and is a key like others in YAML 1.2: write the fields "
                "out, or put it in quotes",
                _line(node),
            )
        return str(node.value)


_TEXT = "tag:yaml.org,2002:str"


def _line(node: Any) -> int:
    return int(node.start_mark.line) + 1


def _unknown_tag(node: Any) -> DocumentError:
    tag = getattr(node, "written_tag", None) or node.tag
    return DocumentError(
        f"expected YAML: could not determine what {tag} is; expected a value without a tag", _line(node)
    )


def _marked(error: Any) -> DocumentError:
    """Return PyYAML's error without its excerpt and its name of the text, which is not the file's."""
    start, place = error.context_mark, error.problem_mark or error.context_mark
    context = error.context or ""
    if context and start is not None and start.line != place.line:
        context = f"{context} (from line {start.line + 1})"
    words = ", ".join(word for word in (context, error.problem) if word).replace(
        "'<stream end>'", "the end of the file"
    )
    if place is None:
        return DocumentError(f"expected YAML: {words}")
    return DocumentError(f"expected YAML: {words}", place.line + 1, place.column + 1)
