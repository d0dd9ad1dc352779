"""What reads a request's JSON or headers: an answer or a refusal by name, whatever comes."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from typing import Any, TypeVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from app import errors
from app.ingress.auth import ApiKeys
from app.ingress.body import as_object
from app.ingress.body import parse as parse_body
from app.protocols.adapters.registry import ADAPTERS
from app.protocols.limits import RISK, Limits
from app.protocols.options import GuardOptions, PolicyResolver
from app.protocols.risk import items_of
from app.settings import GuardSettings, RequestLimits
from guard.errors import GuardError, RequestError
from guard.policy import Hold, Mode, Policy
from guard.probe.bundle import Bundle
from tests.fuzz.values import EDGES, any_json, deep, many, texts

Result = TypeVar("Result")
FIELDS = sorted(GuardOptions.model_fields)
modes, holds, units = st.sampled_from(Mode), st.sampled_from(Hold), st.floats(0, 1)
sensible = st.one_of(
    modes.map(str), holds.map(str), units, st.booleans(), st.none(), st.floats(0, 3), st.just("message")
)
options = st.dictionaries(st.sampled_from(FIELDS) | texts(max_size=4), sensible | any_json(3), max_size=5)
LIMITS = Limits(
    RequestLimits(
        max_messages=3, max_parts=9, max_tools=2, max_grammar=40, max_tokens=64, max_choices=4, max_risk_items=2
    ),
    capacity=1 << 20,
)
PATHS = st.sampled_from([*ADAPTERS, *sorted(RISK)])


@st.composite
def operators(draw: st.DrawFn) -> GuardSettings:
    """Any defaults and ceilings that a server would start with."""
    mode, hold = draw(modes), draw(holds)
    threshold = draw(units)
    return GuardSettings(
        mode=mode,
        threshold=threshold,
        prompt_check=draw(st.booleans()),
        hold=hold,
        loosest_mode=draw(st.sampled_from([one for one in Mode if list(Mode).index(one) <= list(Mode).index(mode)])),
        max_threshold=draw(st.floats(threshold, 1)),
        loosest_hold=draw(st.sampled_from([one for one in Hold if list(Hold).index(one) <= list(Hold).index(hold)])),
    )


def tried(read: Callable[[], Result], statuses: tuple[int, ...] = (400, 413)) -> Result | None:
    """What ``read`` returns; None for a refusal, which must be one that can be sent."""
    try:
        return read()
    except RequestError as error:
        refusal = error
    status = errors.status_of(refusal)
    assert status in statuses
    assert str(refusal)
    json.dumps(errors.body(status, str(refusal), refusal.param), ensure_ascii=False).encode()
    return None


def policy_or_refusal(raw: Any, defaults: PolicyResolver) -> Policy | None:
    return tried(lambda: defaults.resolve(raw), (400,))


@many(150)
@given(operators(), options | any_json())
def test_options(bundle_once: Bundle, foreseeing_once: Bundle, settings: GuardSettings, raw: Any) -> None:
    for bundle in (bundle_once, foreseeing_once):
        if settings.prompt_check and not bundle.has_prompt_risk:
            continue
        defaults = PolicyResolver(settings, bundle)
        policy = policy_or_refusal(raw, defaults)
        if policy is None:
            continue
        assert list(Mode).index(policy.mode) >= list(Mode).index(defaults.ceilings.loosest_mode)
        assert policy.threshold <= max(defaults.ceilings.max_threshold, defaults.threshold)
        assert policy.threshold >= 0
        assert 0 <= policy.scale <= 3
        assert policy.retry_scale is None or (policy.withholds and 0 <= policy.retry_scale <= 3)
        assert policy.prompt_threshold is None or policy.withholds
        if policy.withholds:
            assert list(Hold).index(policy.hold) >= list(Hold).index(defaults.ceilings.loosest_hold)


@many(100)
@given(modes, units | st.none(), st.floats(0.011, 0.99), st.none() | modes, st.none() | units, st.none() | holds)
def test_what_the_operator_gives_is_what_no_request_loosens(
    bundle_once: Bundle,
    mode: Mode,
    threshold: float | None,
    target_fpr: float,
    loosest: Mode | None,
    highest: float | None,
    hold: Hold | None,
) -> None:
    chosen = {"loosest_mode": loosest, "max_threshold": highest, "loosest_hold": hold}
    try:
        defaults = PolicyResolver(
            GuardSettings(mode=mode, threshold=threshold, target_fpr=target_fpr, **chosen),  # type: ignore[arg-type]
            bundle_once,
        )
    except GuardError:  # the ceilings are stricter than the defaults
        return
    assert defaults.resolve(None).threshold == defaults.threshold


@many(150)
@given(
    PATHS,
    any_json(8)
    | st.dictionaries(
        st.sampled_from(
            ["messages", "input", "prompt", "n", "best_of", "max_tokens", "max_completion_tokens", "max_output_tokens"]
        ),
        any_json(4) | st.integers(-5, 100) | st.lists(st.integers(0, 9) | texts(max_size=2), max_size=8),
        max_size=5,
    ),
)
def test_limits(path: str, body: Any) -> None:
    if tried(lambda: LIMITS.check(path, body) or True) is None:
        return
    wanted = LIMITS.answers(path, body)
    assert wanted >= 1
    if isinstance(body, dict):
        assert wanted <= LIMITS.max_choices
    if path in RISK and isinstance(body, list):
        assert wanted <= LIMITS.max_risk_items


@many(100)
@given(st.binary(max_size=40) | any_json().map(lambda value: json.dumps(value).encode()))
def test_bodies(raw: bytes) -> None:
    content = tried(lambda: as_object(parse_body(raw)))
    assert content is None or isinstance(content, dict)


@pytest.mark.parametrize("raw", [b"[" * 100_000, b'{"a":' * 100_000, b"9" * 100_000, b'"\\ud800"', b"\xff" * 10])
def test_bodies_that_parsers_fall_over(raw: bytes) -> None:
    with pytest.raises(RequestError):
        as_object(parse_body(raw))


items = st.dictionaries(
    st.sampled_from(["model", "messages", "prompt", "response", "hallucination"]) | texts(max_size=3),
    texts(max_size=5) | any_json(4) | st.lists(st.fixed_dictionaries({"role": any_json(2), "content": any_json(3)})),
    max_size=6,
)


@many(100)
@given(items | st.lists(items, max_size=3) | any_json())
def test_risk_items(body: Any) -> None:
    found = tried(lambda: items_of(body))
    if found is None:
        return
    assert len(found) == (len(body) if isinstance(body, list) else 1)
    for item in found:
        for message in item.messages or ():
            plain = message.plain()
            assert plain["content"] is None or isinstance(plain["content"], str)


headers = st.lists(
    st.tuples(
        st.sampled_from([b"authorization", b"x-api-key", b"cookie"]),
        st.binary(max_size=12) | st.binary(max_size=6).map(lambda key: b"Bearer " + key),
    ),
    max_size=4,
)


@many(100)
@given(headers)
def test_keys_let_nobody_in_by_chance(sent: list[tuple[bytes, bytes]]) -> None:
    keys = ApiKeys(["a-key", "another"])
    given_keys = {value.strip() for name, value in sent if name == b"x-api-key"}
    given_keys |= {value.strip().partition(b" ")[2].strip() for name, value in sent if name == b"authorization"}
    holder = keys.holder(sent)
    assert holder in (None, 0, 1)
    assert (holder is not None) <= bool(given_keys & {b"a-key", b"another"})
    assert ApiKeys().holder(sent) is None


@many(100)
@given(any_json() | texts() | st.lists(texts(max_size=6), max_size=4))
def test_keys_from_any_setting(given_value: Any) -> None:
    try:
        keys = ApiKeys.parse(given_value)
    except ValueError:
        return
    assert all(len(digest) == 32 for digest in keys._digests)
    for key in given_value if isinstance(given_value, list) else [given_value]:
        for one in key.replace(",", " ").split():
            assert keys.holder([(b"x-api-key", one.encode())]) is not None


def test_edges_one_by_one(bundle_once: Bundle) -> None:
    defaults = PolicyResolver(GuardSettings(mode=Mode.SCORE, threshold=None, target_fpr=0.05), bundle_once)
    for value in (*EDGES, deep(200), deep(200, "dict")):
        policy_or_refusal(value, defaults)
        for name in FIELDS:
            policy = policy_or_refusal({name: value}, defaults)
            assert policy is None or math.isfinite(policy.scale)
            if value is None:
                assert policy is not None, "null leaves an option out"
                continue
            try:
                GuardOptions.model_validate({name: value})
            except ValidationError:
                assert policy is None
