"""Runs that ask a model: the flags that all of them share, and the one way they are opened.

    service = settings.service()                      # endpoints, limits, price; nothing is sent
    estimate_run(service, path, asks, task)           # the dry run
    with open_run(path, task.fingerprint(), service, what="the questions") as run:
        run.ask(asks, task)                           # the gate was passed, the journal is locked
        manifest = run.manifest("judge", resolved, counts=...)

What is asked, and what is wrong with a reply, is up to a task; `batch` sends.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeVar

from pydantic import Field, field_validator, model_validator

from cbtqa.errors import ConfigError, UsageError
from cbtqa.llm.batch import OnProgress, Task, asked_again, run_batch
from cbtqa.llm.chat import ChatRequest, Sampling
from cbtqa.llm.cluster import Cluster
from cbtqa.llm.cost import REPLY_TOKENS, Budget, Estimate, Price, find_price, plan_run
from cbtqa.llm.endpoint import Endpoint, TransportName, pass_disclosure_gates
from cbtqa.llm.journal import Journal
from cbtqa.llm.limits import Limits, RateSettings
from cbtqa.manifest import Manifest, new_manifest, now
from cbtqa.paths import remove_leftovers
from cbtqa.records import Usage
from cbtqa.settings import BY_FLAG_ONLY, Resolved, Settings

ItemT = TypeVar("ItemT")
BATCH_API_S = 24 * 3600.0
"""The window in which a provider's Batch API promises its replies."""


class NamedEndpointSettings(Settings):
    """Where a model is asked."""

    panel: ClassVar[str] = "Endpoint"
    endpoint: tuple[str, ...] = ()
    """Base URL of an OpenAI-compatible endpoint, or a preset: openai, deepseek, dashscope, zhipu,
    moonshot, siliconflow, vllm, ollama, llama.cpp, transformers-serve. May be repeated: servers of
    the same model share the work. batch-files:FOLDER writes the requests to files."""
    model: str | None = None
    """Model name at the endpoint."""

    @field_validator("endpoint", mode="before")
    @classmethod
    def _one_is_a_list(cls, value: object) -> object:
        return (value,) if isinstance(value, str) else value


class AccessSettings(Settings):
    """What may be sent to endpoints, and with which fields."""

    panel: ClassVar[str] = "Endpoint"
    acknowledge_disclosure: Annotated[bool, BY_FLAG_ONLY] = False
    """I may pass this text on to the operator of a non-local endpoint. PsyQA's agreement forbids
    it without permission; recorded. A settings file or the environment cannot say it."""
    allow_plain_http: bool = False
    """Ask a host that is not local over http://, where key and text can be read on the way."""
    extra: dict[str, Any] = Field(default_factory=dict)
    """Fields sent along with each request, such as {"enable_thinking": false}; null leaves a field
    out, such as {"seed": null}."""
    timeout_s: float = Field(300.0, gt=0)
    """Seconds one request may take."""


class ServerSettings(AccessSettings, NamedEndpointSettings):
    """Where a model is asked, and with which fields."""

    def endpoints(
        self, model: str | None = None, transport: TransportName = "http"
    ) -> tuple[Endpoint, ...]:
        """The endpoints named; none when none is.

        Raises:
            UsageError, ConfigError: an endpoint without a model's name; not an address.
        """
        model = model or self.model
        if self.endpoint and not model:
            hint = "--endpoint vllm --model Qwen3-32B"
            raise UsageError("--endpoint goes with --model NAME, the model's name there", hint=hint)
        names = dict.fromkeys(self.endpoint)
        how: dict[str, Any] = {
            "transport": transport,
            "allows_plain_http": self.allow_plain_http,
        }
        return tuple(Endpoint.parse(name, model or "", **how) for name in names)

    def sampling(self, **drawn: Any) -> Sampling:
        """Sampling with `extra` over it; what `extra` takes out is not set in the first place."""
        fields = drawn.pop("extra", {}) | self.extra
        for name in [one for one in drawn if one in fields and fields[one] is None]:
            del drawn[name], fields[name]
        return Sampling(**drawn, extra=fields)


class SpendingSettings(Settings):
    """What the replies may cost."""

    panel: ClassVar[str] = "Endpoint"
    budget: float | None = Field(None, gt=0)
    """Stop before this much is spent, in the currency of the price."""
    budget_tokens: int | None = Field(None, gt=0)
    """Stop after this many tokens."""
    price_in: float | None = Field(None, ge=0)
    """Price of a million prompt tokens. Default: the dated table's."""
    price_out: float | None = Field(None, ge=0)
    """Price of a million completion tokens."""

    @model_validator(mode="after")
    def _prices_go_together(self) -> Self:
        if (self.price_in is None) != (self.price_out is None):
            raise ValueError("--price-in and --price-out go together")
        return self


class EndpointSettings(SpendingSettings, RateSettings, ServerSettings):
    """The whole block of flags of a verb that asks many questions."""

    panel: ClassVar[str] = "Endpoint"
    transport: Literal["http", "sdk", "batch-api"] = "http"
    """http sends over aiohttp, sdk through the openai package, batch-api through the provider's
    Batch API: cheaper, within a day."""
    wait: bool = True
    """Wait for batches; without, submit them and leave: the same command collects."""
    cluster: str | None = None
    """Ask from the actors of a Ray cluster: its address, or local. The endpoint's address is
    resolved on their machines."""
    cluster_actors: int = Field(2, ge=1, le=256)
    """Actors that share the limits."""

    @property
    def limits(self) -> Limits:
        """Limits of the engine."""
        shared = set(Limits.model_fields) & set(type(self).model_fields)
        return Limits(**self.model_dump(include=shared))

    def service(self, model: str | None = None) -> Service | None:
        """Who is asked, under which limits; None when no endpoint is named.

        Args:
            model: in place of `--model`, where a verb asks several.

        Raises:
            UsageError, ConfigError: as `endpoints`; a budget in money without any price.
        """
        endpoints = self.endpoints(model, self.transport)
        return Service.of(self, endpoints) if endpoints else None


@dataclass(frozen=True)
class Service:
    """A model behind one or several endpoints, and the limits under which it is asked."""

    endpoints: tuple[Endpoint, ...]
    limits: Limits
    price: Price | None = None
    """None when nobody knows it."""
    budget: Budget | None = None
    cluster: Cluster | None = None
    is_acknowledged: bool = False
    waits: bool = True

    @classmethod
    def of(
        cls, settings: EndpointSettings, endpoints: Sequence[Endpoint], price: Price | None = None
    ) -> Service:
        """The service of these endpoints; `price` in place of the table's, where none is given."""
        if settings.price_in is not None and settings.price_out is not None:
            price = Price(input=settings.price_in, output=settings.price_out, currency="")
        elif price is None and not all(endpoint.is_local for endpoint in endpoints):
            price = find_price(endpoints[0].model)
        most, cluster = (settings.budget, settings.budget_tokens), settings.cluster
        budget = None if most == (None, None) else Budget(*most, price)
        actors = Cluster(cluster, settings.cluster_actors) if cluster else None
        is_open, waits = settings.acknowledge_disclosure, settings.wait
        return cls(tuple(endpoints), settings.limits, price, budget, actors, is_open, waits)

    @property
    def charged(self) -> Price | None:
        """The price by its way of sending: batches cost less."""
        return self.price and self.price.times(self.endpoints[0].price_factor)

    @property
    def model(self) -> str:
        """Name of the model at its endpoints."""
        return self.endpoints[0].model

    @property
    def is_local(self) -> bool:
        """Whether nothing that is asked leaves this machine or its private network."""
        return all(endpoint.is_local for endpoint in self.endpoints)

    @property
    def host(self) -> str:
        """Host of the endpoint, as fingerprints and provenance name it; several in order."""
        return ", ".join(sorted({endpoint.host for endpoint in self.endpoints}))


def refuse_foreign(path: Path, holds: str) -> None:
    """Raises ConfigError for a folder that holds other things than the run with this journal."""
    folder = path.parent
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out: {folder} is a file")
    foreign = [one for one in folder.glob("*") if not one.name.startswith(".")]
    if foreign and not path.exists():
        problem = f"--out: {folder} is not empty and holds no {holds}"
        raise ConfigError(problem, hint="name a new folder")


@dataclass(frozen=True)
class Run:
    """An open run: gates passed, journal locked."""

    journal: Journal
    service: Service | None
    """None where nobody is asked: the template teacher, a model in this process."""
    acknowledgements: dict[str, str]
    started_at: str

    def ask(
        self,
        items: Iterable[ItemT],
        task: Task[ItemT],
        *,
        n_total: int | None = None,
        beside: Sequence[Run] = (),
        spent: float = 0.0,
        on_progress: OnProgress | None = None,
    ) -> None:
        """Asks what the journal has no answer for; raises as `batch.run_batch`.

        Args:
            beside: other open runs, whose tokens and money count towards the budget.
            spent: money that they do not know of, where a run asks models of several prices.
        """
        assert self.service is not None, "a run without a service asks nobody"
        by, shown = self.service, {"n_total": n_total, "on_progress": on_progress}
        budget = by.budget
        if budget:
            n_tokens = sum(other.usage.n_tokens for other in beside)
            cost = sum(((other.cost or {}).get("amount", 0.0) for other in beside), spent)
            n_tokens, cost = budget.n_tokens + n_tokens, budget.cost + cost
            budget = replace(budget, n_tokens=n_tokens, cost=cost)
        how = {"budget": budget, "price": by.price, "cluster": by.cluster, "wait": by.waits}
        given: dict[str, Any] = how | shown
        run_batch(items, task, by.endpoints, self.journal, by.limits, **given)

    @property
    def usage(self) -> Usage:
        """Tokens of every paid reply, earlier calls included."""
        return self.journal.totals().usage

    @property
    def cost(self) -> dict[str, Any] | None:
        """Money for them; None without a price, or where the server counts no tokens."""
        price = self.service.charged if self.service else None
        if price is None or not self.usage.n_tokens:
            return None
        return {"amount": round(price.of(self.usage), 6), **price.model_dump()}

    def manifest(
        self,
        kind: str,
        resolved: Resolved[Any] | None,
        *,
        apart: str = "",
        beside: Sequence[Run] = (),
        **more: Any,
    ) -> Manifest:
        """The manifest of what was made: what every run knows, and `more` over it.

        Args:
            apart: begins the keys of requests that do not count among the first tries.
            beside: further runs, whose tokens and money are counted in.
        """
        usage = sum((other.usage for other in beside), self.usage)
        cost = _sum_costs((self, *beside))
        known = {"usage": usage, "cost": cost, "acknowledgements": self.acknowledgements}
        found = self.journal.first_replies(apart, is_prefixed=not apart)
        if self.service is None:
            found.pop("first_try", None)
        if found:
            more["counts"] = {**more.get("counts", {}), **found}
        return new_manifest(kind, resolved, self.started_at, **(known | more))


def _sum_costs(runs: Sequence[Run]) -> dict[str, Any] | None:
    """Money for all of them; None where one that is paid for has no price, or other money."""
    asked = [one for one in runs if one.usage.n_tokens and one.service is not None]
    paid = [one for one in asked if one.service and (one.service.price or not one.service.is_local)]
    if len(paid) <= 1:
        return paid[0].cost if paid else None
    costs = [one.cost for one in paid]
    currencies = {cost["currency"] for cost in costs if cost and cost["amount"]}
    if None in costs or len(currencies) > 1:
        return None
    amount = round(sum(cost["amount"] for cost in costs if cost), 6)
    return {"amount": amount, "currency": next(iter(currencies), "")}


@contextmanager
def open_run(
    path: Path,
    fingerprint: Mapping[str, str],
    service: Service | None,
    *,
    further: Sequence[Service] = (),
    what: str = "",
    is_invented: bool = False,
    hint: str | None = None,
) -> Iterator[Run]:
    """Passes the disclosure gate, then opens the journal at `path`; a closed gate writes nothing.

    Args:
        further: asked beside it in runs of their own, whose gates are to be open before anything
            is written.
        what: would be sent, such as `the questions`.
        is_invented: it is our own invented text, which may go anywhere.
        hint: what to do where the journal belongs to another run.

    Raises:
        LicenceGateError, EndpointAuthError: no acknowledgement, or no key, for a remote endpoint.
        ConfigError: the journal belongs to another run, or another process writes it.
    """
    started, acknowledgements = now(), {}
    if asked := [one for one in (service, *further) if one is not None]:
        endpoints = [endpoint for one in asked for endpoint in one.endpoints]
        if not is_invented:
            is_open = all(one.is_acknowledged for one in asked)
            acknowledgements = pass_disclosure_gates(endpoints, what, is_acknowledged=is_open)
        for endpoint in endpoints:
            endpoint.check_key()
    try:
        journal = Journal(path, fingerprint)
    except ConfigError as error:
        raise ConfigError(str(error), hint=hint or error.hint) from None
    with journal:
        # a journal that bears the name of its output lies among files of others
        own = path.name.removesuffix(".sqlite").removesuffix(".journal")
        remove_leftovers(path.parent, "" if own.startswith("journal") else f"{own}.")
        for name, sentence in acknowledgements.items():
            journal.set_meta(name, sentence)
        try:
            yield Run(journal, service, acknowledgements, started)
        except KeyboardInterrupt as stopped:
            if stopped.args:
                raise
            n = journal.totals().n_replies
            kept = "1 reply is kept" if n == 1 else f"{n:,} replies are kept"
            raise KeyboardInterrupt(f"interrupted: {kept}; the same command continues") from None


def estimate_run(
    service: Service | None,
    path: Path,
    items: Iterable[ItemT],
    task: Task[ItemT] | None,
    *,
    name: str = "questions",
    reply_tokens: int = REPLY_TOKENS,
    is_measured: bool = True,
) -> Estimate:
    """Counts what a run would still send; needs no key and no acknowledgement.

    Args:
        path: of the journal, which need not exist.
        task: None where nobody is asked; then the items are counted and no more.
        reply_tokens: assumed for a reply while the journal holds none.
        is_measured: False where most replies in the journal are to other questions than these.
    """
    if service is None or task is None:
        return Estimate(items=name, n_items=sum(1 for _ in items))
    limits, n_items, n_done = service.limits, 0, 0

    def requests(journal: Journal | None) -> Iterator[ChatRequest]:
        nonlocal n_items, n_done
        seen: set[str] = set()  # items of one key share their request
        for item in items:
            n_items += 1
            key = task.key(item)
            if key in seen:
                continue
            seen.add(key)
            standings = journal.standings([key]) if journal else {}
            is_again = bool(journal and asked_again(journal, standings, limits))
            standing = standings.get(key)
            if standing is not None and standing.is_done(limits.max_attempts) and not is_again:
                n_done += 1
            else:
                yield task.request(item)

    with Journal(path, read_only=True) if path.exists() else nullcontext() as journal:
        length_from = f"{reply_tokens} tokens a reply, assumed"
        totals = journal.totals() if journal else None
        if is_measured and totals and totals.n_replies and totals.usage.completion_tokens:
            reply_tokens = round(totals.usage.completion_tokens / totals.n_replies)
            length_from = f"mean of {totals.n_replies:,} replies in the journal"
        plan = plan_run(
            requests(journal),
            service.model,
            in_flight=limits.in_flight * len(service.endpoints),
            rpm=limits.rpm,
            tpm=limits.tpm,
            price=service.charged,
            reply_tokens=reply_tokens,
        )
    known: dict[str, Any] = {"items": name, "n_items": n_items, "n_done": n_done}
    if service.price is None and all(one.is_local for one in service.endpoints):
        known["cost"] = 0.0
    if service.endpoints[0].transport == "batch-api" and plan.n_requests:
        known |= {"seconds": BATCH_API_S, "bound_by": "batch-api"}
    return plan.model_copy(update=known | {"length_from": length_from})
