"""Prices, tokens, and the numbers of a dry run."""

from __future__ import annotations

import re

import pytest
import yaml

from cbtqa.llm import cost
from cbtqa.llm.chat import ChatRequest
from cbtqa.llm.cost import Budget, Price, estimate_tokens, find_price, plan_run
from cbtqa.llm.endpoint import Endpoint
from cbtqa.prompts import shipped_prompts
from cbtqa.records import Usage


def requests(n: int, content: str = "好" * 100) -> list[ChatRequest]:
    return [ChatRequest([{"role": "user", "content": content}]) for _ in range(n)]


def test_a_price_is_found_by_name_with_or_without_its_date() -> None:
    assert find_price("gpt-4o-mini-2024-07-18") == find_price("GPT-4o-mini") is not None
    assert find_price("qwen3-8b-at-home") is None


def test_every_price_of_the_table_says_when_and_where_it_was_read() -> None:
    for price in cost._price_table().values():
        assert re.fullmatch(r"20\d\d-\d\d", price.as_of) and price.source


def test_a_plan_adds_up_and_names_the_limit_that_binds() -> None:
    price = Price(input=1, output=2, currency="CNY")
    plan = plan_run(requests(1000), "m", in_flight=100, rpm=600, price=price, reply_tokens=500)
    assert (plan.n_requests, plan.prompt_tokens, plan.completion_tokens) == (1000, 59000, 500_000)
    assert plan.cost == pytest.approx(0.059 + 1.0)
    assert (plan.bound_by, plan.seconds) == ("in_flight", 100)
    assert plan_run(requests(1000), "m", in_flight=999, rpm=60).bound_by == "rpm"
    slow = plan_run(requests(1000), "m", in_flight=999, tpm=65_900)
    assert (slow.bound_by, round(slow.seconds)) == ("tpm", 600)


def test_a_large_plan_samples_the_whole_input() -> None:
    mixed = requests(3000, "好" * 10) + requests(3000, "好" * 1000)
    plan = plan_run(iter(mixed), "m", in_flight=64)
    true = 3000 * (6 + 4) + 3000 * (550 + 4)
    assert plan.prompt_tokens == pytest.approx(true, rel=0.05)


def test_an_empty_plan_is_free() -> None:
    plan = plan_run([], "m", in_flight=8, price=Price(input=1, output=1))
    assert (plan.n_requests, plan.cost, plan.seconds) == (0, 0, 0)


@pytest.mark.parametrize(
    ("name", "deepseek", "qwen"),
    [
        ("cbt_answer.v1", 527, 550),
        ("cbt_answer_fused.v1", 342, 359),
        ("distortion_labels.v1", 254, 258),
        ("judge_cbt_llm.v1", 254, 271),
        ("session_summary.v1", 166, 168),
        ("judge_session.v1", 303, 303),
        ("profile_story.v1", 134, 134),
        ("session_therapist_act.v1", 374, 371),
    ],
)
def test_tokens_are_estimated_within_ten_percent_of_real_tokenizers(
    name: str, deepseek: int, qwen: int
) -> None:
    """Counted by `scripts/bench/tokens.py`; the text of a released prompt never changes."""
    prompt = shipped_prompts()[name]
    estimate = estimate_tokens(prompt.system.template) + estimate_tokens(prompt.user.template)
    assert estimate == pytest.approx(deepseek, rel=0.1)
    assert estimate == pytest.approx(qwen, rel=0.1)
    assert estimate_tokens("") == 0


def test_a_budget_counts_what_is_under_way() -> None:
    budget = Budget(max_tokens=100, n_tokens=60)
    assert not budget.is_used_up(Usage(completion_tokens=40))
    assert budget.is_used_up(Usage(completion_tokens=41))
    assert not Budget().is_used_up(Usage(prompt_tokens=10**12))


def test_prices_are_plain_yaml_without_duplicate_models() -> None:
    text = cost.files("cbtqa.llm").joinpath("prices.yaml").read_text(encoding="utf-8")
    models = [model for row in yaml.safe_load(text)["prices"] for model in row["models"]]
    assert len(models) == len(set(models))


def test_a_plan_through_the_batch_api_costs_half() -> None:
    requests = [ChatRequest([{"role": "user", "content": "好" * 100}])] * 10
    price = Price(input=1, output=1)
    whole = plan_run(requests, "m", in_flight=8, price=price)
    where = Endpoint.parse("http://127.0.0.1:9/v1", "m", environ={}, transport="batch-api")
    half = plan_run(requests, "m", in_flight=8, price=price.times(where.price_factor))
    assert whole.cost is not None and half.cost == whole.cost / 2
