"""Write the data of the quickstart: `python task_specs/quickstart/make_data.py`.

Sentences about a person, a city and a year; the answer is one record in a fixed form. Held-out sentences use people and
cities that training never shows.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
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


def rows(count: int, first: list[str], last: list[str], cities: list[str], seed: int) -> Iterator[dict[str, str]]:
    """Yield prompt and response pairs."""
    draw = random.Random(seed)
    for index in range(count):
        values = {
            "name": f"{draw.choice(first)} {draw.choice(last)}",
            "city": draw.choice(cities),
            "year": str(draw.randint(1950, 2024)),
        }
        yield {"prompt": SENTENCES[index % len(SENTENCES)].format(**values), "response": ANSWER.format(**values)}


def main() -> None:
    """Write both files."""
    folder = Path(__file__).parent / "data"
    folder.mkdir(exist_ok=True)
    sets = {
        "records_train.jsonl": rows(400, FIRST, LAST, CITIES, 1),
        "records_heldout.jsonl": rows(24, HELD_FIRST, HELD_LAST, HELD_CITIES, 2),
    }
    for name, made in sets.items():
        text = "".join(json.dumps(row) + "\n" for row in made)
        (folder / name).write_text(text, "utf-8")


if __name__ == "__main__":
    main()
