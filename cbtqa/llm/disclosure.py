"""The gate before text leaves the machine.

PsyQA's user agreement forbids passing its text on to third parties, and a hosted model is one. So
an endpoint that is neither loopback nor a private address needs an acknowledgement by a person,
which the manifest records.
"""

from __future__ import annotations

from collections.abc import Iterable

from cbtqa.errors import LicenceGateError
from cbtqa.llm.endpoint import Endpoint
from cbtqa.manifest import now


def pass_disclosure_gate(
    endpoint: Endpoint, what: str, *, is_acknowledged: bool, is_invented: bool = False
) -> dict[str, str]:
    """What to write down about sending text away; empty when nothing is disclosed.

    Args:
        what: would be sent, such as `the questions`.
        is_invented: it is our own invented text, which may go anywhere.

    Raises:
        LicenceGateError: a non-local endpoint and no acknowledgement.
    """
    asked = [] if is_invented else [endpoint]
    return pass_disclosure_gates(asked, what, is_acknowledged=is_acknowledged)


def pass_disclosure_gates(
    endpoints: Iterable[Endpoint], what: str, *, is_acknowledged: bool
) -> dict[str, str]:
    """The same for a run that asks several endpoints."""
    hosts = dict.fromkeys(endpoint.host for endpoint in endpoints if not endpoint.is_local)
    if not hosts:
        return {}
    told = ", ".join(hosts)
    if not is_acknowledged:
        raise LicenceGateError(
            f"{what} would be sent to {told}. PsyQA's user agreement forbids passing its "
            "text on to third parties, and a hosted model is one",
            hint="use a local endpoint (--endpoint vllm, ollama, llama.cpp), or, if you have "
            "permission or the data is yours, add --acknowledge-disclosure (recorded in the "
            "manifest)",
        )
    return {"disclosure": f"text sent to {told}; acknowledged {now()}"}
