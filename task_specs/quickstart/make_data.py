"""Write the data of the quickstart: `python task_specs/quickstart/make_data.py`.

`records_*`: sentences about a person, a city and a year; the answer is one record in a fixed form. `words_*`: a word to
copy; the answer is the word in capitals. Held-out rows use people, cities and words that training never shows.
"""

from __future__ import annotations

import json
import random
import string
from collections.abc import Iterable, Iterator
from pathlib import Path

FIRST = "Anna Boris Clara David Elena Farid Greta Hugo Ines Jonas Karin Leon Maria Nils Olga Pavel Rita Simon Tanja Viktor".split()
LAST = "Keller Novak Meier Rossi Silva Lund Petrov Weber Garcia Costa Hansen Moreau Fischer Nowak Berg Lopez Schmidt Brown".split()
CITIES = "Oslo Lisbon Vienna Madrid Prague Dublin Athens Warsaw Zurich Berlin Geneva Porto Milan Lyon Bergen Turin".split()
HELD_FIRST, HELD_LAST = "Alice Oscar Nina Paul Laura Peter".split(), "Taylor Walker Martin Miller Adams Cooper".split()
HELD_CITIES = "London Paris Rome Boston Sydney Toronto".split()
SENTENCES = (
    "{name} moved to {city} in {year}.",
    "In {year}, {name} came to live in {city}.",
    "{name} has been living in {city} since {year}.",
    "Since {year} the home of {name} is {city}.",
)
ANSWER = "<{city}> {name} :: {year}"

Row = dict[str, str]


def records(count: int, first: list[str], last: list[str], cities: list[str], seed: int) -> Iterator[Row]:
    """Yield sentences with their records."""
    draw = random.Random(seed)
    for index in range(count):
        values = {
            "name": f"{draw.choice(first)} {draw.choice(last)}",
            "city": draw.choice(cities),
            "year": str(draw.randint(1950, 2024)),
        }
        yield {"prompt": SENTENCES[index % len(SENTENCES)].format(**values), "response": ANSWER.format(**values)}


def words(count: int, seed: int) -> list[str]:
    """Return different made-up words of three to seven small letters."""
    draw = random.Random(seed)
    found: dict[str, None] = {}
    while len(found) < count:
        found["".join(draw.choices(string.ascii_lowercase, k=draw.randint(3, 7)))] = None
    return list(found)


def capitals(of: list[str]) -> Iterator[Row]:
    """Yield words to copy with the words in capitals."""
    for word in of:
        yield {"prompt": f"copy: {word} ->", "response": word.upper()}


def main() -> None:
    """Write all files."""
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    made_up = words(296, 3)
    sets: dict[str, Iterable[Row]] = {
        "records_train.jsonl": records(400, FIRST, LAST, CITIES, 1),
        "records_heldout.jsonl": records(24, HELD_FIRST, HELD_LAST, HELD_CITIES, 2),
        "words_train.jsonl": capitals(made_up[:256]),
        "words_heldout.jsonl": capitals(made_up[256:]),
    }
    for name, rows in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
