"""The Taobao log of user behaviour (Alibaba, Tianchi data set 649)."""

from __future__ import annotations

from recloom.data.events.format import EventFormat
from recloom.data.events.options import EventOptions
from recloom.data.formats.base import Column


class Taobao(EventFormat):
    """UserBehavior.csv: comma, no header; user, item, category, behaviour (pv, buy, cart, fav), time in unix seconds.

    Its publisher describes the events of 25 November to 3 December 2017, Chinese time; the file has a few of other
    times, which are left out unless --time-range says otherwise.
    """

    name: str = "taobao"
    separator: str = ","
    item_keys: tuple[str, ...] = ("category",)
    behaviour: str = "behaviour"
    known_behaviours: tuple[str, ...] = ("pv", "buy", "cart", "fav")
    time_range: tuple[int, int] | None = (1511539200, 1512316799)
    time_range_name: str = "2017-11-25T00:00:00+08:00,2017-12-03T23:59:59+08:00"
    fields: tuple[Column, ...] = tuple(map(Column, ("user", "item", "category", "behaviour", "timestamp")))

    def __init__(self, options: EventOptions | None = None) -> None:
        super().__init__(options)
        self.fields = tuple(self.event_columns())
