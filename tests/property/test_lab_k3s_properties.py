"""Properties of the k3s stand-in: merging converges, tokens round-trip, no command line ends in anything unforeseen."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from provider_kairos.lab.k3s import kubelet, logrus, tokens
from provider_kairos.lab.k3s.arguments import parse, read_arguments
from provider_kairos.lab.k3s.flags import COMMANDS, Kind
from provider_kairos.lab.k3s.life import Fatal, Shutdown
from provider_kairos.lab.k3s.store import Row, Store

NOWHERE = Path("/nonexistent")
KEYS = st.sampled_from(["nodes/a", "nodes/b", "leases/a", "members/x"])
ROWS = st.lists(st.builds(Row, KEYS, st.none() | st.integers() | st.text(), st.integers(1, 50)), max_size=12)
FLAG_NAMES = st.sampled_from([f.name for f in COMMANDS["server"]] + ["nosuch", "h", "t"])
WORDS = st.one_of(
    st.text(max_size=8),
    st.builds(lambda dashes, name: dashes + name, st.sampled_from(["-", "--", ""]), FLAG_NAMES),
    st.builds(lambda name, value: f"--{name}={value}", FLAG_NAMES, st.text(max_size=8)),
)


def state(store):
    return sorted((row.key, repr(row.value), row.version) for row in store.rows())


@given(ROWS, ROWS)
def test_merging_converges_whatever_the_order(left, right):
    # One version never has two values: it is the nanosecond of a write, and the writer's own key.
    values: dict[tuple[str, int], Row] = {}
    left = [values.setdefault((row.key, row.version), row) for row in left]
    right = [values.setdefault((row.key, row.version), row) for row in right]
    with TemporaryDirectory() as folder:
        one, two = Store(Path(folder) / "1.db"), Store(Path(folder) / "2.db")
        for row in left + right:
            one.merge([row])
        for row in right + left:
            two.merge([row])
        assert state(one) == state(two)
        assert one.merge(two.rows()) == 0
        assert state(Store(one.path)) == state(one)
        one.close()
        two.close()


@given(ROWS)
def test_rows_survive_the_wire(rows):
    for row in rows:
        assert Row.from_json(json.loads(json.dumps(row.as_json()))) == row


@given(st.binary(max_size=64), st.sampled_from(["server", "node"]), st.from_regex(r"[!-~]{1,40}", fullmatch=True))
def test_tokens_round_trip(ca, user, password):
    token = tokens.JoinToken.parse(tokens.render(ca, user, password))
    assert (token.full, token.password) == (True, password)
    tokens.check_ca(token, ca)


@given(st.text())
def test_any_text_is_a_token_or_none(text):
    token = tokens.JoinToken.parse(text)
    assert token.password == token.password.strip() or token.full


@given(st.sampled_from(["server", "agent"]), st.lists(WORDS, max_size=6))
def test_a_command_line_is_read_or_refused(command, words):
    try:
        options = parse(command, words, {"K3S_CONFIG_FILE": ""}, NOWHERE)
    except Fatal:
        return
    for flag in COMMANDS[command]:
        if flag.kind is Kind.NUMBER:
            options.number(flag.name)
        options.items(flag.name)
    try:
        kubelet.check_flags(options)
    except Shutdown:
        return


@given(st.lists(st.builds(lambda name, value: (name, value), FLAG_NAMES, st.text(max_size=5)), max_size=5))
def test_attached_values_arrive_as_they_are(pairs):
    flags = {f.name: f for f in COMMANDS["server"] if f.kind in (Kind.VALUE, Kind.LIST)}
    wanted = [(name, value) for name, value in pairs if name in flags]
    found = read_arguments(COMMANDS["server"], [f"--{name}={value}" for name, value in wanted])
    assert [(flag.name, value) for flag, value in found] == wanted


@given(st.text(min_size=1, max_size=20), st.sampled_from(["--token", "-t", "--agent-token", "--datastore-endpoint"]))
def test_secrets_never_reach_the_annotation(secret, flag):
    secret = f"§{secret}§"
    for given_arguments in ([f"{flag}={secret}"], [flag, secret]):
        assert secret not in "".join(kubelet.node_args(["server", *given_arguments]))


@given(st.text())
def test_a_log_record_is_one_line_that_can_be_read_back(text):
    record = logging.LogRecord("x", logging.INFO, "f", 1, "%s", (text,), None)
    line = logrus.LogrusFormatter().format(record)
    assert "\n" not in line
    assert json.loads(line.partition(" msg=")[2]) == text
