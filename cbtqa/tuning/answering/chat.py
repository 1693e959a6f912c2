"""Questions typed by a person, each answered once, behind the safety checks: `cbtqa chat`.

    speaker = open_speaker(ChatSettings(adapter=Path("runs/tuned")))
    turn = answer_safely(speaker, "同事没有回我消息，我觉得大家都讨厌我")
    turn.text            # None when nothing may be shown; turn.problems and turn.fault give why

An explicit question gets help routes, what to do now first, and no model is asked. An answer is
shown whole or not at all, so nothing is streamed. What goes to an endpoint that is not local has
its personal data masked. Every question is independent, and nothing is stored.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import Any

from cbtqa.dataset.instruction import grade_text
from cbtqa.dataset.template.teacher import TemplateTeacher, fault_of_question
from cbtqa.errors import UsageError
from cbtqa.llm.chat import ChatRequest, Fault, Reply
from cbtqa.llm.endpoint import Endpoint, pass_disclosure_gates
from cbtqa.llm.runs import Service
from cbtqa.llm.second_opinion import (
    NO_HELP,
    Exchange,
    GuardSettings,
    GuardTask,
    ScreenEndpointSettings,
    ScreenTask,
    ask_once,
    opinion_service,
    worse_of,
)
from cbtqa.llm.transport import ask_now
from cbtqa.records import Question, Risk
from cbtqa.safety.answers import Problem, check_in_both, is_at_stake
from cbtqa.safety.encoder import ScreenEncoder, open_encoder
from cbtqa.safety.normalise import language_of
from cbtqa.safety.notices import answer_withheld, help_text, no_answer
from cbtqa.safety.personal_data import Scrubbed, scrub
from cbtqa.safety.screen import Screening, screen
from cbtqa.tuning.answering.generate import open_local, refuse_adapter_at_endpoint, sampling_of
from cbtqa.tuning.answering.model import AnswerModel, prompt_form
from cbtqa.tuning.answering.questions import AnswerChecks, AskedItem, Prompt, turn_mark_of
from cbtqa.tuning.answering.settings import GenerateSettings, SpeakerSettings
from cbtqa.tuning.data.examples import prompt_messages, read_target
from cbtqa.tuning.libraries import require_training
from cbtqa.tuning.loading import ComputeType
from cbtqa.tuning.settings import OnStage

_GRADES: tuple[Risk, ...] = ("none", "concern", "explicit")


class ChatSettings(SpeakerSettings, ScreenEndpointSettings, GuardSettings):
    """The settings of `cbtqa chat`; without a model the template system answers."""


@dataclass(frozen=True)
class Turn:
    """One question and what may be shown in reply."""

    risk: Risk
    """Of the question."""
    help: str | None
    """Help routes; None when the question shows no risk and no answer is withheld."""
    text: str | None = None
    """The answer; None when no model was asked, none answered, or the answer is unsafe."""
    problems: tuple[Problem, ...] = ()
    """Why an answer is withheld."""
    fault: Fault | None = None
    """Why a reply is no answer."""
    notice: str | None = None
    """What the asker reads in place of an answer, in the language of the question."""
    masked: tuple[str, ...] = ()
    """Kinds of personal data that were masked before the question left the machine."""
    unheard: tuple[str, ...] = ()
    """Second opinions that were asked for and not to be had, with the reason."""


class Speaker:
    """Answers one question: by itself the template system."""

    name: str = "template"
    is_local: bool = True
    """Whether what is asked stays on this machine or in its private network."""

    def __init__(self, settings: ChatSettings) -> None:
        self._settings = settings

    def answer(self, question: Question, risk: Risk) -> str | Fault:
        """The answer, unchecked; raises EndpointError, or IncompleteRunError without memory."""
        if unread := fault_of_question(question):
            return unread
        teacher = TemplateTeacher(seed=self._settings.seed)
        model = open_encoder(self._settings.screen_model)
        danger = grade_text(question.source_text, model).danger
        # the routes of a danger stand beside the answer, which need not repeat them
        return teacher.answer(question, risk, None if danger is None else "").steps.joined()


class SecondOpinions:
    """Further models that grade a question and read an answer; by itself nobody is asked.

    None of them takes a danger away that screen and checks find, and one that gives no verdict
    changes nothing.
    """

    def __init__(
        self,
        screen: Service | None = None,
        guard: Service | None = None,
        encoder: ScreenEncoder | None = None,
    ) -> None:
        self._screen, self._guard, self.encoder = screen, guard, encoder
        self.names = [f"{one.model} at {one.host}" for one in (screen, guard) if one]
        self.names += [encoder.name] if encoder else []
        self.is_local = all(one.is_local for one in (screen, guard) if one)

    def grades(self, text: str) -> tuple[Screening, tuple[str, ...]]:
        """The worst of all grades, and why an endpoint's is not among them."""
        own = screen(text, model=self.encoder)
        if self._screen is None or own.risk == "explicit":  # nothing is worse, and help is urgent
            return own, ()
        sent = text if self._screen.is_local else scrub(text).text
        found = ask_once(self._screen, ScreenTask(self._screen.model), Exchange("chat", sent))
        return worse_of(own, found), _unheard("screen", found)

    def problems(self, text: str, answer: str) -> tuple[tuple[Problem, ...], tuple[str, ...]]:
        """What is unsafe in an answer, and why nobody says so."""
        if self._guard is None:
            return (), ()
        if not self._guard.is_local:
            text, answer = scrub(text).text, scrub(answer).text
        task = GuardTask(self._guard.model)
        found = ask_once(self._guard, task, Exchange("chat", text, answer))
        return (() if isinstance(found, Fault) else found), _unheard("guard", found)


def _unheard(who: str, found: object) -> tuple[str, ...]:
    if not isinstance(found, Fault):
        return ()
    return (f"no second opinion of the {who}: {found.reason.value}, {found.detail}",)


def answer_safely(speaker: Speaker, text: str, opinions: SecondOpinions | None = None) -> Turn:
    """Grades a question, asks for an answer unless it is explicit, and checks the answer."""
    opinions = opinions or SecondOpinions()
    language = language_of(text)
    screening, unheard = opinions.grades(text)
    risk = screening.risk
    if risk == "explicit":
        return Turn(risk, help_text(language, "answer"), unheard=unheard)
    routes = [help_text(language, "short")] if risk == "concern" else []
    routes += [help_text(language, danger=danger.kind) for danger in screening.dangers]
    sent = Scrubbed(text, ()) if speaker.is_local else scrub(text)
    masked = tuple(dict.fromkeys(place.kind for place in sent.found))
    answer = speaker.answer(Question(id="chat", question=sent.text), risk)
    turn = Turn(risk, "\n".join(routes) or None, masked=masked, unheard=unheard)
    if isinstance(answer, Fault):
        return replace(turn, fault=answer, notice=no_answer(language))
    # grade `none`: a route is named beside the answer, which need not name one itself
    at_stake = is_at_stake(text, screening.route)
    problems = check_in_both(answer, "none", at_stake=at_stake, model=opinions.encoder)
    if not problems:
        found, more = opinions.problems(text, answer)
        problems = tuple(problem for problem in found if problem.rule != NO_HELP)
        turn = replace(turn, unheard=(*unheard, *more))
        if len(problems) < len(found) and not routes:
            turn = replace(turn, help=help_text(language, "short"))
    if problems:
        where = help_text(language, "short")
        return replace(turn, problems=problems, help=where, notice=answer_withheld(language))
    return replace(turn, text=answer)


def open_opinions(settings: ChatSettings) -> SecondOpinions:
    """The further models that the settings name.

    Raises:
        UsageError, ConfigError: an endpoint without a model; no address; no such encoder.
        MissingExtraError: an encoder without torch.
        EndpointAuthError: a remote endpoint without a key.
        LicenceGateError: text would leave the machine without acknowledgement.
    """
    encoder = open_encoder(settings.screen_model)
    screen, guard = (opinion_service(settings, role) for role in ("screen", "guard"))
    asked = [service for service in (screen, guard) if service]
    endpoints = [endpoint for service in asked for endpoint in service.endpoints]
    pass_disclosure_gates(
        endpoints, "what is typed", is_acknowledged=settings.acknowledge_disclosure
    )
    for endpoint in endpoints:
        endpoint.check_key()
    return SecondOpinions(screen, guard, encoder)


def open_speaker(settings: ChatSettings, on_stage: OnStage = lambda words: None) -> Speaker:
    """An endpoint, a model or adapter in this process, or the template system.

    Raises:
        UsageError: flags that do not go together.
        ConfigError, DataError: no such model, or one that does not fit.
        MissingExtraError: torch, transformers or peft are not installed.
        LicenceGateError: text would leave the machine without acknowledgement.
    """
    refuse_adapter_at_endpoint(settings)
    if endpoints := settings.endpoints():
        pass_disclosure_gates(
            endpoints, "what is typed", is_acknowledged=settings.acknowledge_disclosure
        )
        return _EndpointSpeaker(settings, endpoints[0])
    if settings.adapter is None and settings.model is None:
        if settings.base is not None:
            raise UsageError("--base goes with --adapter")
        return Speaker(settings)
    require_training()
    opened, device, precision = open_local(settings, on_stage)
    on_stage(f"loading {opened.backbone.display_name}")
    return _ModelSpeaker(settings, opened, device, precision)


class _PromptedSpeaker(Speaker, ABC):
    """What an endpoint and a model in this process have in common."""

    checks = AnswerChecks()

    def answer(self, question: Question, risk: Risk) -> str | Fault:
        mode, system = prompt_form(self._settings)
        item = AskedItem(question.id, tuple(prompt_messages(question, mode, system)), risk)
        reply = self._reply(item)
        if isinstance(reply, Fault):
            return reply
        return self.checks.fault_of(item, reply) or read_target(mode, reply.text).text

    @abstractmethod
    def _reply(self, item: AskedItem) -> Reply | Fault: ...


class _EndpointSpeaker(_PromptedSpeaker):
    def __init__(self, settings: ChatSettings, endpoint: Endpoint) -> None:
        super().__init__(settings)
        self.name, self._endpoint = f"{endpoint.model} at {endpoint.host}", endpoint
        self.is_local = endpoint.is_local

    def _reply(self, item: AskedItem) -> Reply:
        request = ChatRequest(item.messages, sampling=sampling_of(self._settings))
        return ask_now(self._endpoint, request, self._settings.timeout_s)


class _ModelSpeaker(_PromptedSpeaker):
    def __init__(
        self, settings: ChatSettings, opened: AnswerModel, device: str, precision: ComputeType
    ) -> None:
        from cbtqa.tuning.answering.decoding import Decoder

        super().__init__(settings)
        self.name, self.checks = opened.name, AnswerChecks(turn_mark_of(opened.chat))
        model: Any = opened.load(device, precision)
        settings = settings.with_own(opened.generation)
        self._settings = settings
        shared = GenerateSettings.model_fields.keys() & settings.model_dump().keys()
        as_generate = GenerateSettings(**settings.model_dump(include=set(shared)))
        self._opened = opened
        self._decoder = Decoder(model, opened.chat, opened.stops, as_generate, opened.name)

    def _reply(self, item: AskedItem) -> Reply | Fault:
        (ids,) = self._opened.chat.prompt_ids([item.messages])
        n_new = self._settings.max_new_tokens
        if fault := self._opened.fault_of_prompt(item.messages, len(ids), n_new):
            return fault
        ((_, reply),) = next(self._decoder.answer([Prompt(item.key, tuple(ids))]))
        return reply
