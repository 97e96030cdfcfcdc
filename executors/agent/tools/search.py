"""`web_search`, `arxiv`, `wikipedia`: what others have indexed."""

from __future__ import annotations

import json
import os
from typing import Annotated
from urllib.parse import urlencode
from xml.etree import ElementTree

from executors.agent.tools.fault import ToolFault
from executors.agent.tools.web import fetch
from mloc_dagster.spec.base import Json

SEARCH_URL = "MLOC_AGENT_SEARCH_URL"
"""Address of a SearXNG server with its JSON format switched on, such as https://search.example.org/search."""
_ARXIV = ("MLOC_AGENT_ARXIV_URL", "https://export.arxiv.org/api/query")
_WIKIPEDIA = ("MLOC_AGENT_WIKIPEDIA_URL", "https://en.wikipedia.org/w/api.php")
_ATOM = {"atom": "http://www.w3.org/2005/Atom"}
_MOST = 10


def web_search(query: Annotated[str, "What to search for"], count: Annotated[int, "Results, at most 10"] = 5) -> str:
    """Search the web; returns titles, addresses and excerpts."""
    address = os.environ.get(SEARCH_URL)
    if not address:
        raise ToolFault(f"No search server is named here ({SEARCH_URL}).")
    found = _json(f"{address}?{urlencode({'q': query, 'format': 'json'})}").get("results") or []
    parts = [f"{one.get('title')}\n{one.get('url')}\n{one.get('content') or ''}" for one in found[: _limit(count)]]
    return "\n\n".join(parts) or f"Nothing was found for {query!r}."


def arxiv(
    query: Annotated[str, "Words or an arXiv query such as ti:attention"], count: Annotated[int, "Papers"] = 5
) -> str:
    """Search arXiv; returns titles, authors, dates, addresses and abstracts of papers."""
    asked = query if ":" in query else f"all:{query}"
    parameters = {"search_query": asked, "max_results": _limit(count)}
    text = fetch(f"{os.environ.get(_ARXIV[0]) or _ARXIV[1]}?{urlencode(parameters)}").text
    try:
        entries = ElementTree.fromstring(text).findall("atom:entry", _ATOM)
    except ElementTree.ParseError as error:
        raise ToolFault(f"arXiv gave an answer that cannot be read: {error}.") from None
    return "\n\n".join(_paper(entry) for entry in entries) or f"Nothing was found for {query!r}."


def wikipedia(query: Annotated[str, "What to look up"], count: Annotated[int, "Articles"] = 2) -> str:
    """Look something up in Wikipedia; returns the first paragraphs of the articles that fit best."""
    parameters = {
        "action": "query", "format": "json", "generator": "search", "gsrsearch": query, "gsrlimit": _limit(count),
        "prop": "extracts|info", "exintro": 1, "explaintext": 1, "inprop": "url",
    }  # fmt: skip
    answer = _json(f"{os.environ.get(_WIKIPEDIA[0]) or _WIKIPEDIA[1]}?{urlencode(parameters)}")
    pages = sorted((answer.get("query") or {}).get("pages", {}).values(), key=lambda page: page.get("index", 0))
    parts = [f"{page.get('title')}\n{page.get('fullurl') or ''}\n{page.get('extract') or ''}" for page in pages]
    return "\n\n".join(parts) or f"Nothing was found for {query!r}."


def _paper(entry: ElementTree.Element) -> str:
    def text(name: str) -> str:
        return " ".join((entry.findtext(f"atom:{name}", "", _ATOM)).split())

    authors = ", ".join(name.text or "" for name in entry.findall("atom:author/atom:name", _ATOM))
    return f"{text('title')}\n{authors} ({text('published')[:10]})\n{text('id')}\n{text('summary')}"


def _json(url: str) -> dict[str, Json]:
    text = fetch(url, {"Accept": "application/json"}).text
    try:
        found = json.loads(text)
    except ValueError:
        raise ToolFault(f"The server gave no JSON, but {text[:80]!r}.") from None
    return found if isinstance(found, dict) else {}


def _limit(count: int) -> int:
    return max(1, min(count, _MOST))
