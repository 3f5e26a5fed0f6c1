"""What stands in somebody's way, gathered so that all of it is said at once."""

from __future__ import annotations

from dataclasses import dataclass, field

from tocsin.errors import OperatorError


@dataclass(slots=True)
class Problems:
    """Each with its fix; `raise_any` shows all of them at once, so that nobody mends one to meet the next."""

    found: list[tuple[str, str]] = field(default_factory=list)

    def add(self, message: str, fix: str) -> None:
        self.found.append((message, fix))

    def raise_any(self) -> None:
        if len(self.found) == 1:
            raise OperatorError(*self.found[0])
        if self.found:
            raise OperatorError(
                f"{len(self.found)} things stand in the way:\n" + "\n".join(f"  {i}. {message}" for i, (message, _) in enumerate(self.found, 1)),
                "\n".join(f"{i}. {fix}" for i, (_, fix) in enumerate(self.found, 1)),
            )
