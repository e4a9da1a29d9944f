"""Random histories of an account and its job: in the end, the warehouse equals what the API shows."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from msgspec.structs import replace

from helpers.sizes import pick_size
from helpers.world import OURS, SINCE_1970, World
from msgbubbles.source.run import Run
from msgbubbles.times import DAY_MS, HOUR_MS
from msgbubbles_sync.sandbox import Knobs, NewMessage

pytestmark = [pytest.mark.slow, pytest.mark.usefixtures("small_parts")]
MINUTE_MS = 60_000
# At most this many rows share a millisecond: fewer than a page, so that all can be reached.
TIES = 3
# By default always the same examples, so that a failure is due to a change. Set this for other ones, and their number.
EXAMPLES = int(os.environ.get("LOSSLESS_EXAMPLES", "0"))

knobs = st.builds(
    Knobs,
    before_inclusive=st.booleans(),
    tie_order=st.sampled_from(["stable", "reversed", "random"]),
    shuffled_pages=st.booleans(),
    short_pages=st.sampled_from([0.0, 0.0, 0.3]),
    feed=st.booleans(),
    created_at_on_messages=st.just(True),
    server_errors=st.sampled_from([0.0, 0.05]),
    cut_bodies=st.sampled_from([0.0, 0.05]),
    malformed_bodies=st.sampled_from([0.0, 0.05]),
    seed=st.integers(0, 100),
)


class Conversations(RuleBasedStateMachine):
    """Random steps within the documented limits.

    Statuses change within two days, and a complete run comes at least every 20 hours.
    """

    def __init__(self) -> None:
        super().__init__()
        self.world: World | None = None
        self.chats: list[str] = []
        self.groups: list[str] = []
        self.hidden_chats: set[str] = set()
        self.messages: list[tuple[int, str, str]] = []
        self.unsynced_ms = 0

    @initialize(knobs=knobs, seed=st.integers(0, 1000))
    def begin(self, knobs: Knobs, seed: int) -> None:
        settings = replace(SINCE_1970, read_participants=seed % 2 == 0, parallel_requests=1 + seed % 3)
        self.world = World(knobs, settings, seed=seed)
        for _ in range(seed % 15):
            self.a_new_chat(group=False)
            self.world.pass_time(1 + seed * 1000)

    # -- what people do

    def _new_id(self) -> str:
        assert self.world
        value = f"{self.world.random.getrandbits(128):032x}"
        return f"{value[:8]}-{value[8:12]}-{value[12:16]}-{value[16:20]}-{value[20:]}"

    def _write(self, chat_id: str, *, hidden_ms: int = 0) -> None:
        assert self.world
        chance = self.world.random
        message = NewMessage(
            chat_id,
            chance.choice(["inbound", "outbound"]),
            "hello",
            self.world.at() + timedelta(microseconds=chance.randrange(1000)),
            "sent",
            sender=OURS,
            id=self._new_id(),
            attachments=[("a.jpg", "image/jpeg", 1)] if chance.random() < 0.1 else (),
        )
        if hidden_ms:
            self.world.hidden.append((self.world.now_ms + hidden_ms, message))
        else:
            self.world.account.add_messages([message])
            self.messages.append((self.world.now_ms, message.id, chat_id))

    @rule(group=st.booleans())
    def a_new_chat(self, group: bool) -> None:
        assert self.world
        chat_id = self.world.account.add_chat(
            OURS, f"+1415555{len(self.chats):04}", self.world.at(), is_group=group, chat_id=self._new_id()
        )
        self.chats.append(chat_id)
        self.groups += [chat_id] if group else []
        self._write(chat_id)
        self.world.pass_time(1)

    @precondition(lambda self: self.chats)
    @rule(data=st.data(), count=st.integers(1, 12))
    def messages_in_a_row(self, data: Any, count: int) -> None:
        assert self.world
        for number in range(count):
            self._write(data.draw(st.sampled_from(self.chats)))
            if number % TIES == TIES - 1 or data.draw(st.booleans()):
                self.world.pass_time(data.draw(st.sampled_from([1, 2, 900, 30_000])))
        self.world.pass_time(1)

    @precondition(lambda self: self.chats)
    @rule(data=st.data(), hidden_ms=st.sampled_from([500, 4 * MINUTE_MS, 50 * MINUTE_MS]))
    def a_message_that_shows_late(self, data: Any, hidden_ms: int) -> None:
        assert self.world
        self._write(data.draw(st.sampled_from(self.chats)), hidden_ms=hidden_ms)
        self.world.pass_time(1)

    @precondition(lambda self: self.chats)
    @rule(data=st.data(), title=st.sampled_from(["a", "b", None]))
    def a_rename(self, data: Any, title: str | None) -> None:
        assert self.world
        self.world.account.rename(data.draw(st.sampled_from(self.chats)), title, self.world.at())
        self.world.pass_time(1)

    @precondition(lambda self: self.groups)
    @rule(data=st.data(), joins=st.booleans())
    def a_participant(self, data: Any, joins: bool) -> None:
        assert self.world
        chat_id = data.draw(st.sampled_from(self.groups))
        change = self.world.account.add_participant if joins else self.world.account.remove_participant
        change(chat_id, "+14155550177", self.world.at())
        self.world.pass_time(1)

    @precondition(lambda self: self.chats)
    @rule(data=st.data())
    def a_delete_or_an_undelete(self, data: Any) -> None:
        assert self.world
        chat_id = data.draw(st.sampled_from(self.chats))
        if chat_id in self.hidden_chats:
            self.world.account.restore_chat(chat_id)
            self.hidden_chats.remove(chat_id)
        else:
            self.world.account.delete_chat(chat_id)
            self.hidden_chats.add(chat_id)
        self.world.pass_time(1)

    @precondition(lambda self: self.messages)
    @rule(data=st.data(), status=st.sampled_from(["delivered", "read", "failed"]), edited=st.booleans())
    def a_status(self, data: Any, status: str, edited: bool) -> None:
        assert self.world
        recent = [
            one for at, one, chat in self.messages
            if at > self.world.now_ms - 48 * HOUR_MS and chat not in self.hidden_chats
        ]  # fmt: skip
        if recent:
            message_id = data.draw(st.sampled_from(recent[-20:]))
            self.world.account.set_status(message_id, status, self.world.at())
            if edited:
                self.world.account.edit_text(message_id, status, self.world.at())
        self.world.pass_time(1)

    # -- what happens to the job

    @rule(ms=st.sampled_from([1000, 3 * MINUTE_MS, 20 * MINUTE_MS, HOUR_MS, 7 * HOUR_MS]))
    def time_passes(self, ms: int) -> None:
        assert self.world
        if self.unsynced_ms + ms <= 20 * HOUR_MS:
            self.unsynced_ms += ms
            self.world.pass_time(ms)

    @rule(ahead_ms=st.sampled_from([0, -DAY_MS, DAY_MS, 400 * DAY_MS, -HOUR_MS]))
    def the_clock_of_the_job_jumps(self, ahead_ms: int) -> None:
        assert self.world
        self.world.client_ahead_ms = ahead_ms

    @rule()
    def a_run(self) -> None:
        assert self.world
        self.world.sync()
        self.unsynced_ms = 0

    @rule(requests=st.integers(1, 12))
    def a_run_that_is_killed(self, requests: int) -> None:
        assert self.world
        self.world.sync(killed_after=requests)

    @rule(requests=st.integers(1, 12))
    def a_run_of_few_requests(self, requests: int) -> None:
        assert self.world
        self.world.sync(Run(max_requests=requests))

    @rule(pages=st.integers(20, 25))
    def a_run_in_slices(self, pages: int) -> None:
        assert self.world
        self.world.sync(Run(batch_pages=pages))
        self.unsynced_ms = 0

    @rule(errors=st.sampled_from([0.3, 1.0]))
    def a_run_while_the_api_is_down(self, errors: float) -> None:
        assert self.world
        before, self.world.knobs.server_errors = self.world.knobs.server_errors, errors
        self.world.sync(accept_failure=True)
        self.world.knobs.server_errors = before

    def participants(self) -> dict[str, list[str]]:
        """Return the last loaded list of each group that is not deleted."""
        assert self.world
        lists: dict[str, dict[Any, list[str]]] = {}
        for row in self.world.store.tables["participant_lists"].values():
            handles = lists.setdefault(row["chat_id"], {}).setdefault(row["_fetched_at"], [])
            handles += [row["handle"]] if row["handle"] else []
        alive = lists.keys() - self.hidden_chats
        return {chat_id: sorted(lists[chat_id][max(lists[chat_id])]) for chat_id in alive}

    def teardown(self) -> None:
        world = self.world
        if world is None:
            return
        world.sync()
        for pause_ms in (51 * MINUTE_MS, 61 * MINUTE_MS, 25 * HOUR_MS, 25 * HOUR_MS, 25 * HOUR_MS):
            world.pass_time(pause_ms)
            run = world.sync()
        assert not any(progress.standing for progress in run.streams.values())
        assert world.differences() == {}
        gone = {key[0] for key, row in world.store.tables["chats"].items() if row["deleted_at"] is not None}
        known = {key[0] for key in world.store.tables["chats"]}
        assert gone == self.hidden_chats & known
        if world.settings.read_participants:
            groups = {key[0] for key, row in world.store.tables["chats"].items() if row["is_group"]} - gone
            assert self.participants() == {group: world.account.participants(group) for group in groups}
        world.pass_time(MINUTE_MS)
        run = world.sync()
        assert not any(changes.loaded for changes in run.changes.values())
        world.close()


Conversations.TestCase.settings = settings(
    max_examples=EXAMPLES or pick_size(30, nightly=120),
    derandomize=not EXAMPLES,
    stateful_step_count=30,
    deadline=None,
    # Shrinking a failure takes longer than understanding it by its seed.
    phases=[Phase.explicit, Phase.reuse, Phase.generate] if EXAMPLES else [Phase.generate],
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much, HealthCheck.data_too_large],
)
test_in_the_end_the_warehouse_is_what_the_api_shows = Conversations.TestCase
