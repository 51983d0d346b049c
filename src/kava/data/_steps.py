"""The parts of a generated word problem: names, days, things, and the steps between days."""

from dataclasses import dataclass
from typing import Literal

NAMES = ("Ann", "Bob", "Cleo", "Dan", "Eve", "Finn", "Gus", "Hana", "Ian", "Jo", "Kim", "Leo")
DAYS = ("Monday", "Tuesday", "Wednesday", "Thursday", "Friday", "Saturday", "Sunday")
THINGS = ("coins", "shells", "pens", "apples", "plums", "roses", "books", "cards", "lamps", "kites")


@dataclass(frozen=True)
class Step:
    """One operation, which leads from the value `before` to `after` by means of `number`."""

    kind: Literal["more", "fewer", "together", "twice"]
    number: int
    before: int
    after: int

    @property
    def equation(self) -> str:
        """Return the step as arithmetic, such as `4+3=7`."""
        left = {
            "more": f"{self.before}+{self.number}",
            "fewer": f"{self.before}-{self.number}",
            "together": f"{self.number}-{self.before}",
            "twice": f"{self.before}*{self.number}",
        }[self.kind]
        return f"{left}={self.after}"

    def to_text(self, day: str, eve: str) -> str:
        """Return the step in words: how `day` follows from `eve`, the day before."""
        return {
            "more": f"{day} brought {self.number} more than {eve}.",
            "fewer": f"{day} brought {self.number} fewer than {eve}.",
            "together": f"{day} and {eve} brought {self.number} together.",
            "twice": f"{day} brought twice as many as {eve}.",
        }[self.kind]


def noun(number: int, things: str) -> str:
    """Return the name of `number` things: singular for one, otherwise plural."""
    return things[:-1] if number == 1 else things
