"""The trie gives what a comparison with every pattern gives, whatever was added and removed before."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tocsin.subject import Pattern
from tocsin_gateway.delivery.routes import Routes

tokens = st.sampled_from(["a", "b", "c"])
subjects = st.lists(tokens, min_size=1, max_size=4).map(".".join)
patterns = st.builds(lambda head, last: Pattern(".".join([*head, last])), st.lists(tokens | st.just("*"), max_size=3), tokens | st.sampled_from(["*", ">"]))


@given(st.lists(patterns, unique=True), subjects)
def test_match_is_what_brute_force_finds(chosen: list[Pattern], subject: str) -> None:
    routes: Routes[str] = Routes()
    for pattern in chosen:
        routes.add(pattern, pattern.text)
    assert sorted(routes.match(subject)) == sorted(pattern.text for pattern in chosen if pattern.matches(subject))


class RoutesMachine(RuleBasedStateMachine):
    """Adds, removes and asks, in any order; answers are remembered in between, and must not be stale."""

    def __init__(self) -> None:
        super().__init__()
        self.routes: Routes[str] = Routes()
        self.model: dict[Pattern, str] = {}

    @rule(pattern=patterns)
    def add(self, pattern: Pattern) -> None:
        if pattern not in self.model:
            self.model[pattern] = pattern.text
            self.routes.add(pattern, pattern.text)

    @rule(data=st.data())
    def remove(self, data: st.DataObject) -> None:
        if self.model:
            pattern = data.draw(st.sampled_from(sorted(self.model, key=lambda p: p.text)))
            del self.model[pattern]
            self.routes.remove(pattern)

    @rule(subject=subjects)
    def match(self, subject: str) -> None:
        assert sorted(self.routes.match(subject)) == sorted(text for pattern, text in self.model.items() if pattern.matches(subject))

    @invariant()
    def holds_the_same(self) -> None:
        assert len(self.routes) == len(self.model)
        assert set(self.routes.patterns()) == set(self.model)
        assert set(self.routes.values()) == set(self.model.values())
        if not self.model:
            assert self.routes._root.children == {}, "an empty trie keeps no branches"


TestRoutes = RoutesMachine.TestCase


def test_the_memory_of_recent_subjects_is_bounded() -> None:
    routes: Routes[int] = Routes()
    routes.add(Pattern("a.>"), 1)
    for number in range(10_000):
        assert routes.match(f"a.{number}") == (1,)
    assert len(routes._recent) <= 4096
